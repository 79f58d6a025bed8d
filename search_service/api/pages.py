"""Pages of a list. Every list has the same parameters and cursors: what the last entry of a page is sorted by."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query

from indexer.errors import InvalidRequest

Entry = TypeVar("Entry")
Position = TypeVar("Position")

LARGEST_ID = 2**63 - 1
"""The largest id that the databases store."""

Limit = Annotated[int, Query(ge=1, le=1000, description="Entries on one page.")]


@dataclass(frozen=True)
class Order(Generic[Position]):
    """What a list is sorted by. `kind` distinguishes the cursors of different lists; `parse` raises ValueError."""

    kind: str
    start: Position
    parse: Callable[[str], Position]

    def encode(self, last: object) -> str:
        """Returns the cursor of the page after the entry at the position `last`."""
        return base64.urlsafe_b64encode(f"{self.kind}:{last}".encode()).decode()

    def decode(self, cursor: str | None) -> Position:
        """Returns the position of the last entry before the page. Raises InvalidRequest on an unknown cursor."""
        if cursor is None:
            return self.start
        try:
            kind, _, position = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
            if kind != self.kind:
                raise ValueError(kind)
            return self.parse(position)
        except ValueError:
            raise InvalidRequest(f"the cursor {cursor!r} was not returned by this list") from None


def _row_id(text: str) -> int:
    value = int(text)
    if not 0 <= value <= LARGEST_ID:
        raise ValueError(text)
    return value


def _name(text: str) -> str:
    if not text.isprintable():
        raise ValueError(text)
    return text


def _job_id(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{32}", text):
        raise ValueError(text)
    return text


BY_ID = Order("after", 0, _row_id)
BY_NAME = Order("name", "", _name)
BY_ID_BACKWARDS: Order[int | None] = Order("below", None, _row_id)
NEWEST_FIRST: Order[str | None] = Order("before", None, _job_id)
"""Jobs, whose ids grow with time."""


@dataclass(frozen=True)
class Page:
    """The part of a list that a request asks for."""

    limit: int
    cursor: str | None

    @property
    def wanted(self) -> int:
        """Entries to query: one more than the page shows, to know whether there is another page."""
        return self.limit + 1

    def answer(
        self,
        name: str,
        found: Sequence[Entry],
        serialize: Callable[[Entry], Any] = lambda entry: entry,
        order: Order[Any] = BY_ID,
        position: Callable[[Any], object] = lambda entry: entry.id,
    ) -> dict[str, Any]:
        """Returns the page as `name` with the cursor of the next page, if any. `found` are at most `wanted` entries."""
        shown = found[: self.limit]
        cursor = order.encode(position(shown[-1])) if len(found) > self.limit else None
        return {name: [serialize(entry) for entry in shown], "cursor": cursor}


async def _page(
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(description="The `cursor` of the page before.")] = None,
) -> Page:
    return Page(limit, cursor)


Paged = Annotated[Page, Depends(_page)]
