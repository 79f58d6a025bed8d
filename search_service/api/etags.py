"""ETags of identities, and conditional requests (RFC 9110, section 13)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header

from indexer.errors import InvalidRequest
from indexer.serializers import identity_object
from indexer.types import Identity
from search_service.api.errors import PreconditionFailed
from search_service.api.shortening import short

ONE_TAG = re.compile(r'\s*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')

ANY = "*"


def etag_of(person: Identity) -> str:
    """Returns the ETag, a hash of everything that an answer contains about the identity."""
    content = json.dumps(identity_object(person))
    return f'"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'


@dataclass(frozen=True)
class Conditions:
    """The ETags of `If-Match` and `If-None-Match`. None where the header is missing; ANY matches every identity."""

    match: Sequence[str] | None = None
    none_match: Sequence[str] | None = None

    def check(self, current: Identity | None) -> None:
        """Raises PreconditionFailed, with the current ETag, unless the identity may be changed."""
        if self.match is not None and (current is None or not _matches(self.match, etag_of(current))):
            raise _failed("If-Match", current)
        if self.is_known(current):
            raise _failed("If-None-Match", current)

    def is_known(self, current: Identity | None) -> bool:
        """Returns whether `If-None-Match` has the current ETag: the caller already knows the identity's state."""
        if self.none_match is None or current is None:
            return False
        return _matches([tag.removeprefix("W/") for tag in self.none_match], etag_of(current))


def _conditions(
    if_match: Annotated[
        list[str] | None, Header(description="ETags: only while the identity has one of them; `*` if it exists.")
    ] = None,
    if_none_match: Annotated[
        list[str] | None, Header(description="ETags: only while it has none of them; `*` if it does not exist.")
    ] = None,
) -> Conditions:
    return Conditions(_tags("If-Match", if_match), _tags("If-None-Match", if_none_match))


IfTags = Annotated[Conditions, Depends(_conditions)]


def _tags(header: str, values: Sequence[str] | None) -> list[str] | None:
    """Parses a list of ETags. Raises InvalidRequest, as an unreadable condition must not be ignored."""
    given = ",".join(values or ()).strip()
    if not given:
        return None
    if given == ANY:
        return [ANY]
    tags, at = [], 0
    while at < len(given):
        found = ONE_TAG.match(given, at)
        if found is None:
            raise InvalidRequest(f'{header} is {short(given)}; expected "..." from an ETag header, or *')
        tags.append(found[1])
        at = found.end()
    return tags


def _matches(tags: Sequence[str], tag: str) -> bool:
    return ANY in tags or tag in tags


def _failed(header: str, current: Identity | None) -> PreconditionFailed:
    found = "there is no such identity" if current is None else f"identity {current.external_id!r} has another ETag"
    tag = None if current is None else etag_of(current)
    return PreconditionFailed(f"{header}: {found}; read it again before changing it", details={"etag": tag})
