"""Events -> attendance: by day and person first in, last out and hours. Pure.

Where a person's events have directions, only those count, and hours are the sum of the stays: an `in` and the `out`
that follows it. A stay belongs to the day it began on, also past midnight. An `in` that another `in` follows, or
nothing, has no end (`missing_out`), an `out` without an `in` no beginning (`missing_in`); neither adds hours. The same
holds of an `in` and an `out` that are further apart than a shift may be long: one each was forgotten.

Where there are no directions, a day is its first and last sighting, and whoever was seen once has no hours.

Days begin at midnight in a time zone; hours are those that passed, also in the nights in which clocks are changed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import TextIO

LONGEST_SHIFT = timedelta(hours=16)
"""Longer than a shift with overtime, shorter than from one morning to the next evening."""

MISSING_IN, MISSING_OUT = "missing_in", "missing_out"

COLUMNS = ("day", "external_id", "name", "first_in", "last_out", "hours", "remarks")

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A cell that begins with one of these is computed by spreadsheets (OWASP, CSV injection)."""


@dataclass(frozen=True)
class Mark:
    """One sighting of a person. `entering` is None where the event has no direction."""

    at: datetime
    entering: bool | None


@dataclass(frozen=True)
class Stay:
    """From `begin` to `end`, one of which may not be known."""

    begin: datetime | None
    end: datetime | None


@dataclass(frozen=True)
class Row:
    """A person's day. Times are in the time zone asked for."""

    day: date
    external_id: str
    name: str | None
    first_in: datetime | None
    last_out: datetime | None
    worked: timedelta | None
    """None where nothing says how long."""
    remarks: tuple[str, ...]


def days_of(
    external_id: str, name: str | None, marks: Iterable[Mark], zone: tzinfo, longest: timedelta = LONGEST_SHIFT
) -> list[Row]:
    """A person's days in their order. `marks` may come in any order."""
    ordered = sorted(marks, key=lambda mark: mark.at)
    directed = [mark for mark in ordered if mark.entering is not None]
    stays = stays_of(directed, longest) if directed else _days_seen(ordered, zone)
    days: dict[date, list[Stay]] = {}
    for stay in stays:
        days.setdefault(_day(stay, zone), []).append(stay)
    return [_row(day, external_id, name, days[day], zone) for day in sorted(days)]


def stays_of(marks: Sequence[Mark], longest: timedelta = LONGEST_SHIFT) -> list[Stay]:
    """Marks with directions, in the order of time, as stays in that order."""
    stays: list[Stay] = []
    inside: datetime | None = None
    for mark in marks:
        if inside is not None and (mark.entering or mark.at - inside > longest):
            stays.append(Stay(inside, None))
            inside = None
        if mark.entering:
            inside = mark.at
        else:
            stays.append(Stay(inside, mark.at))
            inside = None
    return stays if inside is None else [*stays, Stay(inside, None)]


def span(first: date, until: date, zone: tzinfo, longest: timedelta = LONGEST_SHIFT) -> tuple[datetime, datetime]:
    """From when and before when events count for the days from `first` on and before `until`: a stay that began within
    them may end after, and an `out` in the first hours belongs to a stay that began before."""
    return _midnight(first, zone) - longest, _midnight(until, zone) + longest


def write(rows: Iterable[Row], file: TextIO) -> None:
    """As CSV. Times with their offset, hours with two decimals; what a spreadsheet would compute begins with `'`."""
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(
            (
                row.day.isoformat(),
                _harmless(row.external_id),
                _harmless(row.name or ""),
                row.first_in.isoformat(timespec="seconds") if row.first_in else "",
                row.last_out.isoformat(timespec="seconds") if row.last_out else "",
                "" if row.worked is None else f"{hours_of(row):.2f}",
                " ".join(row.remarks),
            )
        )


def hours_of(row: Row) -> float | None:
    return None if row.worked is None else round(row.worked / timedelta(hours=1), 2)


def _days_seen(marks: Sequence[Mark], zone: tzinfo) -> list[Stay]:
    """A stay a day, from the first mark of it to the last; without an end where there is one mark."""
    days: dict[date, list[datetime]] = {}
    for mark in marks:
        days.setdefault(mark.at.astimezone(zone).date(), []).append(mark.at)
    return [Stay(times[0], times[-1] if len(times) > 1 else None) for times in days.values()]


def _day(stay: Stay, zone: tzinfo) -> date:
    at = stay.begin or stay.end
    assert at is not None  # noqa: S101 (one of them is known)
    return at.astimezone(zone).date()


def _row(day: date, external_id: str, name: str | None, stays: Sequence[Stay], zone: tzinfo) -> Row:
    begins = [stay.begin for stay in stays if stay.begin is not None]
    ends = [stay.end for stay in stays if stay.end is not None]
    whole = [_passed(stay.begin, stay.end) for stay in stays if stay.begin is not None and stay.end is not None]
    missing = ((MISSING_IN, len(begins) < len(stays)), (MISSING_OUT, len(ends) < len(stays)))
    return Row(
        day,
        external_id,
        name,
        min(begins).astimezone(zone) if begins else None,
        max(ends).astimezone(zone) if ends else None,
        sum(whole, timedelta()) if whole else None,
        tuple(remark for remark, holds in missing if holds),
    )


def _passed(begin: datetime, end: datetime) -> timedelta:
    """The time that really passed: two times of one zone would be subtracted as a clock on the wall shows them."""
    return end.astimezone(UTC) - begin.astimezone(UTC)


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, datetime.min.time(), zone).astimezone(UTC)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULAS) else text
