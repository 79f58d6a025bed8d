"""Selects identities by words in their external id and name, and by values in their metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Text, case, cast, exists, func
from sqlalchemy.orm import Session

from indexer.errors import InvalidRequest
from indexer.gallery.database import is_sqlite
from indexer.gallery.schema import IdentityRow
from indexer.gallery.spelling import fold_text


@dataclass(frozen=True)
class IdentityFilter:
    """Selects identities that match every given criterion."""

    text: str = ""
    """Words that occur anywhere in the external id or the name. Case and accents do not matter."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Values of top-level keys of the metadata, compared as text: `3`, `true`."""


EVERYBODY = IdentityFilter()

MAX_METADATA_FILTERS = 8


def parse_metadata(pairs: Iterable[str]) -> dict[str, str]:
    """Returns values by key of texts `KEY=VALUE`. Raises InvalidRequest."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key or parsed.setdefault(key, value) != value:
            raise InvalidRequest(f"metadata is {pair!r}; expected KEY=VALUE with a value for each key")
    return parsed


def conditions(wanted: IdentityFilter, session: Session) -> Iterator[ColumnElement[bool]]:
    """Yields the conditions for a row.

    A search reads the folded texts of the gallery from an index, in the order of the ids, until its page is full. An
    index of all parts of words would not read those that do not match, but write about 20 rows for each identity.
    """
    for word in fold_text(wanted.text).split():
        yield IdentityRow.search_text.contains(word, autoescape=True)
    for key, value in wanted.metadata.items():
        yield _has_value(key, value, session)


def _has_value(key: str, value: str, session: Session) -> ColumnElement[bool]:
    if not is_sqlite(session.get_bind()):
        return cast(IdentityRow.details[key].as_string(), Text) == value
    pair = func.json_each(IdentityRow.details).table_valued("key", "value", "type")
    text = case((pair.c.type.in_(("true", "false")), pair.c.type), else_=cast(pair.c.value, Text))
    return exists().where(pair.c.key == key, text == value)
