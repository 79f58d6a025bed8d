"""Photos to enroll, one a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

from indexer.enrollment.containers import Reader, printable
from indexer.errors import InvalidRequest, RejectedImage
from indexer.gallery.spelling import is_same_text
from indexer.gallery.validation import check_person
from indexer.types import Person, Reason


@dataclass(frozen=True)
class Row:
    """A photo and whom it shows. `image` is its name for people; `read` raises RejectedImage for invalid rows too."""

    image: str
    person: Person
    read: Reader
    stem: str | None = None
    """The whole stem of the file's name, if the identity is only a guess from it: `ana` for `ana_1.jpg`."""

    def is_enrolled_for(self, external_id: str) -> bool:
        """Returns whether an identity is the one of this row: the person's, or the one of the whole stem, which
        versions that did not group such photos have enrolled."""
        return any(is_same_text(one, external_id) for one in (self.person.external_id, self.stem) if one is not None)


class LazyRow(Protocol):
    """A row that is parsed whenever it is read, so that many rows need little memory."""

    @property
    def external_id(self) -> str: ...

    def read(self) -> Row: ...


class Rows(Sequence[Row]):
    """Rows of which lazy ones are parsed when they are taken out."""

    def __init__(self, rows: Sequence[Row | LazyRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [_parsed(row) for row in self._rows[place]]
        return _parsed(self._rows[place])

    def at(self, places: Iterable[int]) -> Rows:
        """Returns the rows at some places, without parsing them."""
        return Rows([self._rows[place] for place in places])


def _parsed(row: Row | LazyRow) -> Row:
    return row if isinstance(row, Row) else row.read()


def together(rows: Iterable[Row | LazyRow]) -> Rows:
    """Returns the rows with those of an identity one after another, so that their faces are compared together."""
    groups: dict[str, list[Row | LazyRow]] = {}
    for row in rows:
        groups.setdefault(row.person.external_id if isinstance(row, Row) else row.external_id, []).append(row)
    return Rows([row for group in groups.values() for row in group])


def checked_row(image: str, person: Person, read: Reader, stem: str | None = None) -> Row:
    """Returns the row, or an invalid one if the person is invalid."""
    try:
        check_person(person)
    except InvalidRequest as error:
        return invalid_row(image, person.external_id, error.message, Reason.INVALID_ROW)
    return Row(printable(image), person, read, stem)


def invalid_row(image: str, external_id: str, message: str, reason: Reason) -> Row:
    """Returns a row whose photo is rejected when it is read."""
    rejection = RejectedImage(message, code=reason)

    def read(limit: int) -> bytes:
        raise rejection

    return Row(printable(image), Person(printable(external_id)), read)
