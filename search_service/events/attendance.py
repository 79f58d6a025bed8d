"""Events -> attendance: by day and person first in, last out and hours. Pure.

It is decided for each day by itself. Where a day has stays, an `in` and the `out` that follows it, hours are their sum.
A stay belongs to the day it began on, also past midnight. An `in` that another `in` follows, or nothing, has no end
(`missing_out`), an `out` without an `in` no beginning (`missing_in`); neither adds hours. The same holds of an `in` and
an `out` that are further apart than a shift may be long: one each was forgotten. Sightings without a direction do not
count beside stays, and the row says that there were some (`undirected_left_out`).

A day without stays is its first and last sighting, and whoever was seen once has no hours.

What a day is depends on nothing further from it than the longest shift, and so not on how many days are asked for.

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

MISSING_IN, MISSING_OUT, UNDIRECTED_LEFT_OUT = "missing_in", "missing_out", "undirected_left_out"

COLUMNS = ("day", "external_id", "name", "first_in", "last_out", "hours", "remarks")

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A cell that begins with one of these is computed by spreadsheets (OWASP, CSV injection)."""


@dataclass(frozen=True)
class Mark:
    """One sighting of a person. `entering` is None where the event has no direction; `name` is the one they had."""

    at: datetime
    entering: bool | None
    name: str | None = None


@dataclass(frozen=True)
class Stay:
    """From `begin` to `end`, one of which may not be known."""

    begin: Mark | None
    end: Mark | None

    def holds(self, mark: Mark) -> bool:
        return self.begin is not None and self.end is not None and self.begin.at <= mark.at <= self.end.at


@dataclass(frozen=True)
class Row:
    """A person's day. Times are in the time zone asked for; the name is the last one of the day."""

    day: date
    external_id: str
    name: str | None
    first_in: datetime | None
    last_out: datetime | None
    worked: timedelta | None
    """None where nothing says how long."""
    remarks: tuple[str, ...]


def days_of(external_id: str, marks: Iterable[Mark], zone: tzinfo, longest: timedelta = LONGEST_SHIFT) -> list[Row]:
    """A person's days in their order. `marks` may come in any order."""
    ordered = sorted(marks, key=lambda mark: mark.at)
    stays = stays_of([mark for mark in ordered if mark.entering is not None], longest)
    directed: dict[date, list[Stay]] = {}
    for stay in stays:
        directed.setdefault(_day(stay, zone), []).append(stay)
    undirected = _undirected([mark for mark in ordered if mark.entering is None], stays, zone)
    return [
        _row(day, external_id, directed.get(day, []), undirected.get(day, []), zone)
        for day in sorted(directed.keys() | undirected.keys())
    ]


def stays_of(marks: Sequence[Mark], longest: timedelta = LONGEST_SHIFT) -> list[Stay]:
    """Marks with directions, in the order of time, as stays in that order."""
    stays: list[Stay] = []
    inside: Mark | None = None
    for mark in marks:
        if inside is not None and (mark.entering or mark.at - inside.at > longest):
            stays.append(Stay(inside, None))
            inside = None
        if mark.entering:
            inside = mark
        else:
            stays.append(Stay(inside, mark))
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


def _undirected(marks: Iterable[Mark], stays: Sequence[Stay], zone: tzinfo) -> dict[date, list[Mark]]:
    """Marks without directions, in the order of time, by the day they belong to: that of the stay that they lie in,
    else their own. `stays` are in the order of time and do not overlap."""
    days: dict[date, list[Mark]] = {}
    coming = iter(stays)
    stay = next(coming, None)
    for mark in marks:
        while stay is not None and _last(stay).at < mark.at:
            stay = next(coming, None)
        day = _day(stay, zone) if stay is not None and stay.holds(mark) else mark.at.astimezone(zone).date()
        days.setdefault(day, []).append(mark)
    return days


def _day(stay: Stay, zone: tzinfo) -> date:
    mark = stay.begin or stay.end
    assert mark is not None  # noqa: S101 (one of them is known)
    return mark.at.astimezone(zone).date()


def _last(stay: Stay) -> Mark:
    mark = stay.end or stay.begin
    assert mark is not None  # noqa: S101 (one of them is known)
    return mark


def _row(day: date, external_id: str, directed: Sequence[Stay], undirected: Sequence[Mark], zone: tzinfo) -> Row:
    """Of the stays that began on a day and the other marks of it, both in the order of time; one of them may be none,
    and from the first mark to the last is a stay where there are no others."""
    stays = directed or [Stay(undirected[0], undirected[-1] if len(undirected) > 1 else None)]
    begins = [stay.begin.at for stay in stays if stay.begin is not None]
    ends = [stay.end.at for stay in stays if stay.end is not None]
    whole = [_passed(stay.begin.at, stay.end.at) for stay in stays if stay.begin is not None and stay.end is not None]
    remarks = (
        (MISSING_IN, len(begins) < len(stays)),
        (MISSING_OUT, len(ends) < len(stays)),
        (UNDIRECTED_LEFT_OUT, bool(directed and undirected)),
    )
    return Row(
        day,
        external_id,
        max([_last(stays[-1]), *undirected[-1:]], key=lambda mark: mark.at).name,
        min(begins).astimezone(zone) if begins else None,
        max(ends).astimezone(zone) if ends else None,
        sum(whole, timedelta()) if whole else None,
        tuple(remark for remark, holds in remarks if holds),
    )


def _passed(begin: datetime, end: datetime) -> timedelta:
    """The time that really passed: two times of one zone would be subtracted as a clock on the wall shows them."""
    return end.astimezone(UTC) - begin.astimezone(UTC)


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, datetime.min.time(), zone).astimezone(UTC)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULAS) else text
