"""Manifests: CSV files that say whom each photo shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from indexer.csv_files import restore
from indexer.enrollment.containers import Container, Reader
from indexer.enrollment.manifest_files import Manifest
from indexer.enrollment.rows import Row, invalid_row
from indexer.errors import InvalidRequest, RejectedImage, WhosthereError
from indexer.gallery.spelling import normalize_text
from indexer.gallery.validation import check_person
from indexer.types import Person, Reason

COLUMNS = ("image", "external_id", "name", "valid_from", "valid_until")

CLEAR = "\\N"
"""A cell that removes the stored value, as in PostgreSQL's COPY. An empty cell keeps it: of several photos of a person,
often only the first row has the name."""


def manifest_rows(manifest: Manifest, containers: Sequence[Container]) -> list[Row]:
    text, label = manifest.text, manifest.label
    reader = csv.DictReader(io.StringIO(text), dialect=_dialect(text), restkey="")
    header = [
        name.strip().lower() if name.strip().lower() in COLUMNS else name.strip() for name in _header(reader, label)
    ]
    for column in COLUMNS[:2]:
        if column not in header:
            raise InvalidRequest(f"the manifest {label} has no column {column!r}; it has {', '.join(header)}")
    named = [name for name in header if name]  # spreadsheets leave unnamed columns
    if len(set(named)) != len(named):
        raise InvalidRequest(f"the manifest {label} has duplicate columns: {', '.join(header)}")
    reader.fieldnames = header
    values: dict[tuple[str, str], tuple[int, object]] = {}
    return list(_checked_rows(reader, containers, values, label))


def _header(reader: csv.DictReader[str], label: str) -> Sequence[str]:
    try:
        names = reader.fieldnames
    except csv.Error as error:
        raise InvalidRequest(f"the manifest {label} is not CSV: {error}") from error
    if not names:
        raise InvalidRequest(f"the manifest {label} is empty; expected a header line")
    return names


def _dialect(text: str) -> type[csv.Dialect]:
    """Detects the delimiter: a comma, or the semicolon or tab that spreadsheets use in many countries."""
    first = text.splitlines()[0] if text else ""

    class Dialect(csv.excel):
        delimiter = max(",;\t", key=first.count)
        strict = True

    return Dialect


def _checked_rows(
    reader: csv.DictReader[str],
    containers: Sequence[Container],
    values: dict[tuple[str, str], tuple[int, object]],
    label: str,
) -> Iterator[Row]:
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidRequest(f"the manifest {label}, line {reader.reader.line_num}, is not CSV: {error}") from error
        if not any(cells.values()):
            continue  # spreadsheets leave lines of commas
        line = reader.line_num
        image = _text(cells.get("image"))
        external_id = normalize_text(_text(cells.get("external_id")))
        try:
            if _has_extra_cells(cells):
                raise InvalidRequest("it has more cells than the header has columns")
            person = _person(external_id, cells)
            _check_same_person(person, line, values)
            if not image:
                raise InvalidRequest("it names no image")
            yield Row(image, person, _find_image(image, containers))
        except RejectedImage as error:
            yield invalid_row(image, external_id, error.message, Reason(error.code))
        except WhosthereError as error:
            yield invalid_row(image, external_id, f"line {line} of the manifest: {error.message}", Reason.INVALID_ROW)


def _has_extra_cells(cells: Mapping[str, Any]) -> bool:
    """Returns whether cells without a column have text; spreadsheets leave empty ones."""
    rest = cells.get("") or ()
    return any(cell.strip() for cell in ([rest] if isinstance(rest, str) else rest))


def _text(cell: str | None) -> str:
    """Returns a cell's text; reports and attendance lists of this program are protected from spreadsheets."""
    return restore((cell or "").strip())


def _person(external_id: str, cells: Mapping[str, str | None]) -> Person:
    def cell(name: str) -> str | None:
        value = _text(cells.get(name))
        return None if value in ("", CLEAR) else value

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


def _check_same_person(person: Person, line: int, values: dict[tuple[str, str], tuple[int, object]]) -> None:
    """Raises InvalidRequest if an earlier line gave the same external_id another name or date."""
    for column in ("name", "valid_from", "valid_until"):
        here = CLEAR if column in person.cleared else getattr(person, column)
        if here is None:
            continue
        first_line, before = values.setdefault((person.external_id, column), (line, here))
        if before != here:
            raise InvalidRequest(
                f"duplicate external_id {person.external_id!r}: its {column} is {here} here "
                f"and {before} in line {first_line}"
            )


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
