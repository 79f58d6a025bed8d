"""Manifests: CSV files that say whom each photo shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from indexer.csv_files import restore
from indexer.enrollment.containers import Container, Reader, printable
from indexer.enrollment.manifest_files import Manifest, Record
from indexer.enrollment.rows import LazyRow, Row, invalid_row
from indexer.errors import InvalidRequest, RejectedImage, WhosthereError
from indexer.gallery.spelling import normalize_text
from indexer.gallery.validation import check_person
from indexer.types import Person, Reason

COLUMNS = ("image", "external_id", "name", "valid_from", "valid_until")

CLEAR = "\\N"
"""A cell that removes the stored value, as in PostgreSQL's COPY. An empty cell keeps it: of several photos of a person,
often only the first row has the name."""


def manifest_rows(manifest: Manifest, containers: Sequence[Container]) -> list[LazyRow]:
    """Returns the rows of a manifest, whose images are in the containers. Raises InvalidRequest."""
    records = manifest.records()
    table = _Table(manifest, containers, _header(next(records, None), manifest.label))
    values: dict[tuple[str, str], tuple[int, object]] = {}
    ids: dict[str, str] = {}
    rows: list[LazyRow] = []
    for record in records:
        external_id, contradiction = table.check(record, values)
        shared_id = ids.setdefault(external_id, external_id)
        rows.append(_ManifestRow(table, record.start, record.line, shared_id, contradiction))
    return rows


def _header(record: Record | None, label: str) -> list[str]:
    """Returns the names of the columns."""
    names = record.cells if record is not None else []
    if not names:
        raise InvalidRequest(f"the manifest {label} is empty; expected a header line")
    header = [name.strip().lower() if name.strip().lower() in COLUMNS else name.strip() for name in names]
    for column in COLUMNS[:2]:
        if column not in header:
            raise InvalidRequest(f"the manifest {label} has no column {column!r}; it has {', '.join(header)}")
    named = [name for name in header if name]  # spreadsheets leave unnamed columns
    if len(set(named)) != len(named):
        raise InvalidRequest(f"the manifest {label} has duplicate columns: {', '.join(header)}")
    return header


@dataclass(frozen=True, eq=False)
class _Table:
    """A manifest with its header, and where its images are."""

    manifest: Manifest
    containers: Sequence[Container]
    header: Sequence[str]

    def check(self, record: Record, values: dict[tuple[str, str], tuple[int, object]]) -> tuple[str, str | None]:
        """Returns the identity of a row, and how it contradicts an earlier one. `values` are those of earlier rows."""
        cells = self.cells(record.cells)
        external_id = _external_id(cells)
        try:
            return external_id, _contradiction(_checked_person(external_id, cells), record.line, values)
        except WhosthereError:  # raised again when the row is read
            return printable(external_id), None

    def row(self, place: _ManifestRow) -> Row:
        """Parses a row."""
        cells = self.cells(self.manifest.cells_at(place.start))
        image, external_id = _text(cells.get("image")), _external_id(cells)
        try:
            person = _checked_person(external_id, cells)
            if place.contradiction is not None:
                raise InvalidRequest(place.contradiction)
            if not image:
                raise InvalidRequest("it names no image")
            return Row(image, person, _find_image(image, self.containers))
        except RejectedImage as error:
            return invalid_row(image, external_id, error.message, Reason(error.code))
        except WhosthereError as error:
            message = f"line {place.line} of the manifest: {error.message}"
            return invalid_row(image, external_id, message, Reason.INVALID_ROW)

    def cells(self, values: Sequence[str]) -> dict[str, Any]:
        """Returns the cells by column; those without a column are a list, under the empty name."""
        cells: dict[str, Any] = dict(zip(self.header, values, strict=False))
        if len(values) > len(self.header):
            cells[""] = values[len(self.header) :]
        return cells


@dataclass(frozen=True, eq=False, slots=True)
class _ManifestRow:
    """Where a row of a manifest is; it is parsed when it is read."""

    table: _Table
    start: int
    line: int
    external_id: str
    contradiction: str | None

    def read(self) -> Row:
        return self.table.row(self)


def _has_extra_cells(cells: Mapping[str, Any]) -> bool:
    """Returns whether cells without a column have text; spreadsheets leave empty ones."""
    rest = cells.get("") or ()
    return any(cell.strip() for cell in ([rest] if isinstance(rest, str) else rest))


def _text(cell: str | None) -> str:
    """Returns a cell's text, none if it is CLEAR; reports and attendance lists of this program are protected from
    spreadsheets."""
    text = restore((cell or "").strip())
    return "" if text == CLEAR else text


def _external_id(cells: Mapping[str, Any]) -> str:
    return normalize_text(_text(cells.get("external_id")))


def _checked_person(external_id: str, cells: Mapping[str, Any]) -> Person:
    """Raises InvalidRequest."""
    if _has_extra_cells(cells):
        raise InvalidRequest("it has more cells than the header has columns")
    return _person(external_id, cells)


def _person(external_id: str, cells: Mapping[str, str | None]) -> Person:
    def cell(name: str) -> str | None:
        return _text(cells.get(name)) or None

    person = Person(
        external_id,
        cell("name"),
        parse_time("valid_from", cell("valid_from")),
        parse_time("valid_until", cell("valid_until"), end=True),
        {name: value for name in cells if name and name not in COLUMNS and (value := cell(name)) is not None},
        frozenset(name for name, value in cells.items() if name and isinstance(value, str) and value.strip() == CLEAR),
    )
    check_person(person)
    return person


def _contradiction(person: Person, line: int, values: dict[tuple[str, str], tuple[int, object]]) -> str | None:
    """Returns a message if an earlier line gave the same external_id another name or date."""
    for column in ("name", "valid_from", "valid_until"):
        here = CLEAR if column in person.cleared else getattr(person, column)
        if here is None:
            continue
        first_line, before = values.setdefault((person.external_id, column), (line, here))
        if before != here:
            return (
                f"duplicate external_id {person.external_id!r}: its {column} is {here} here "
                f"and {before} in line {first_line}"
            )
    return None


def _find_image(image: str, containers: Sequence[Container]) -> Reader:
    for container in containers:
        found = container.find(image)
        if found is not None:
            return found
    raise RejectedImage(f"the manifest names {image!r}, but there is no such file", code=Reason.UNREADABLE_IMAGE)


def parse_time(what: str, value: str | None, end: bool = False) -> datetime | None:
    """Parses an ISO 8601 date or time, in UTC unless it has a zone. `what` names it in errors.

    A date is its first moment, or with `end` the first moment after it: valid until the 31st includes the 31st. Raises
    InvalidRequest.
    """
    if value is None:
        return None
    try:
        day = _date(value)
        if day == date.max and end:  # personnel systems write it for "forever"
            return datetime.max.replace(tzinfo=UTC)
        if day is not None:
            return datetime.combine(day, datetime.min.time(), UTC) + timedelta(days=end)
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"{what} is {value!r}; expected a date like 2026-12-31 or a time like 2026-12-31T18:00:00+01:00"
        ) from error


def _date(value: str) -> date | None:
    """Returns the date in any ISO 8601 form, such as 20261231; None if `value` also has a time."""
    try:
        return date.fromisoformat(value)
    except ValueError:
        return None
