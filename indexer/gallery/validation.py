"""Checks of names, people and metadata before they are stored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC
from typing import Any

from indexer.errors import InvalidRequest, quoted
from indexer.gallery.schema import MAX_NAME_LENGTH
from indexer.types import Person

MAX_METADATA_BYTES = 16 * 2**10
"""Size of an identity's metadata as JSON in UTF-8, the limit that Azure Face sets for a person's `userData`. Every
answer that names the identity contains it: a page names up to 1,000 people, a search 100."""

MAX_METADATA_DEPTH = 32
"""Nested lists and objects in an identity's metadata."""


def check_name(what: str, value: str) -> None:
    """Raises InvalidRequest unless `value` is 1 to MAX_NAME_LENGTH printable characters without surrounding space."""
    if not value or value != value.strip() or not value.isprintable() or len(value) > MAX_NAME_LENGTH:
        raise InvalidRequest(
            f"{what} must be 1 to {MAX_NAME_LENGTH} printable characters without space around them; got {quoted(value)}"
        )


def check_url_name(what: str, value: str) -> None:
    """Raises InvalidRequest unless `value` is a name that can be a segment of a URL's path."""
    check_name(what, value)
    if value in (".", ".."):
        raise InvalidRequest(f"{what} must not be {value!r}, which cannot be part of a URL")


def check_person(person: Person, stored: Mapping[str, object] | None = None) -> None:
    """Checks the external id, name, dates and metadata of a person.

    Args:
        person: The description to check.
        stored: The metadata stored for the identity so far, which is accepted at any size.

    Raises:
        InvalidRequest: A bad id or name, dates without a time zone or in the wrong order, metadata that is not JSON or
            is too large.
    """
    check_url_name("an external_id", person.external_id)
    if person.name is not None:
        check_name("a name", person.name)
    start, end = person.valid_from, person.valid_until
    for what, date in (("valid_from", start), ("valid_until", end)):
        if date is None:
            continue
        if date.utcoffset() is None:
            raise InvalidRequest(f"{what} ({date.isoformat()}) must have a time zone")
        try:
            date.astimezone(UTC)
        except OverflowError as error:
            raise InvalidRequest(f"{what} ({date.isoformat()}) is not in the years 1 to 9999 in UTC") from error
    check_metadata(person, stored)
    if start is not None and end is not None and end <= start:
        raise InvalidRequest(f"valid_until ({end.isoformat()}) must be after valid_from ({start.isoformat()})")


def check_metadata(person: Person, stored: Mapping[str, object] | None = None) -> None:
    """Raises InvalidRequest unless the metadata is JSON and small enough, or equal to what is `stored` already."""
    if person.metadata == stored:
        return
    try:
        size = json_size(check_storable(person.metadata))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the metadata of {person.external_id!r} must be JSON: {error}") from error
    if size > MAX_METADATA_BYTES:
        raise InvalidRequest(
            f"the metadata of {person.external_id!r} would be {size:,} bytes of JSON; "
            f"expected {MAX_METADATA_BYTES:,} at most"
        )


def check_storable(value: Any, depth: int = 0) -> Any:
    """Returns `value` unchanged.

    Raises:
        ValueError: It cannot be written as JSON and read again, and would break every answer that contains it.
    """
    if depth > MAX_METADATA_DEPTH:
        raise ValueError(f"more than {MAX_METADATA_DEPTH} lists and objects are nested")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a JSON number")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{value!r} is not valid Unicode") from None
    if isinstance(value, Mapping):
        check_storable([*value.keys(), *value.values()], depth)
    elif isinstance(value, list):
        for item in value:
            check_storable(item, depth + 1)
    return value


def json_size(metadata: Mapping[str, object]) -> int:
    """Returns the bytes of compact JSON in UTF-8. Raises TypeError or ValueError if it is not JSON."""
    return len(json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
