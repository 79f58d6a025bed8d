"""ETags of identities, and requests that hang on them (RFC 9110, section 13)."""

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

LISTED = re.compile(r'\s*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')
"""One tag of a list."""

ANY = "*"


def etag_of(person: Identity) -> str:
    """Changes with everything that an answer says of the identity."""
    said = json.dumps(identity_object(person))
    return f'"{hashlib.sha256(said.encode()).hexdigest()[:32]}"'


@dataclass(frozen=True)
class Conditions:
    """What a request expects to be there. None where it expects nothing; ANY is anything at all."""

    match: Sequence[str] | None = None
    none_match: Sequence[str] | None = None

    def check(self, there: Identity | None) -> None:
        """For a change. Raises PreconditionFailed, with the tag that is there."""
        if self.match is not None and (there is None or not _names(self.match, etag_of(there))):
            raise _failed("If-Match", there)
        if self.is_known(there):
            raise _failed("If-None-Match", there)

    def is_known(self, there: Identity | None) -> bool:
        """Whether the caller has this state already."""
        if self.none_match is None or there is None:
            return False
        return _names([tag.removeprefix("W/") for tag in self.none_match], etag_of(there))


def _conditions(
    if_match: Annotated[
        list[str] | None, Header(description="ETags: only in one of these states; `*` for any.")
    ] = None,
    if_none_match: Annotated[
        list[str] | None, Header(description="ETags: only in none of these states; `*` for none at all.")
    ] = None,
) -> Conditions:
    return Conditions(_tags("If-Match", if_match), _tags("If-None-Match", if_none_match))


Asked = Annotated[Conditions, Depends(_conditions)]


def _tags(header: str, values: Sequence[str] | None) -> list[str] | None:
    """Raises InvalidRequest: an unreadable condition must not be taken for none."""
    given = ",".join(values or ()).strip()
    if not given:
        return None
    if given == ANY:
        return [ANY]
    tags, at = [], 0
    while at < len(given):
        found = LISTED.match(given, at)
        if found is None:
            raise InvalidRequest(f'{header} is {given[:100]!r}; expected an ETag as it was answered, "..." or *')
        tags.append(found[1])
        at = found.end()
    return tags


def _names(tags: Sequence[str], tag: str) -> bool:
    return ANY in tags or tag in tags


def _failed(header: str, there: Identity | None) -> PreconditionFailed:
    found = "there is no such identity" if there is None else f"identity {there.external_id!r} is another state"
    tag = None if there is None else etag_of(there)
    return PreconditionFailed(f"{header}: {found}; read it, and decide anew", details={"etag": tag})
