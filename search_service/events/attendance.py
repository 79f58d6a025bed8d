"""Attendance from events: for each day and person the first arrival, the last departure and the hours. Pure functions.

Sightings in one direction that follow each other within the longest pause are one passage, as where two cameras watch
one door or somebody lingers there: it is entered at the first one and left at the last one.

Each day is computed separately. A passage `in` and the passage `out` that follows it are a stay, and the hours of a day
are the sum of its stays. A stay belongs to the day on which it began, also past midnight. An `in` that is followed by
another `in`, or by nothing, has no end (`missing_out`); an `out` without an `in` has no beginning (`missing_in`);
neither adds hours. An `in` and an `out` that are further apart than the longest shift are treated the same: one of each
is missing. Sightings without a direction do not count on days with stays, and the row has a remark
(`undirected_left_out`).

On a day without stays, the first and the last sighting count. A person who was seen once has no hours.

A day depends only on events within two of the longest shifts around it, and so not on how many days are requested,
unless a passage is longer than a shift.

Days begin at midnight in a time zone. Hours are elapsed time, also in nights with a clock change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import TextIO

from indexer.csv_files import row_writer

LONGEST_SHIFT = timedelta(hours=16)
"""Longer than a shift with overtime, shorter than the time from a morning to the next evening."""

LONGEST_PAUSE = timedelta(minutes=5)
"""Longer than the way past all cameras of a door, shorter than most absences: one that no camera saw ending would
otherwise count as work without a remark."""

MISSING_IN, MISSING_OUT, UNDIRECTED_LEFT_OUT = "missing_in", "missing_out", "undirected_left_out"

COLUMNS = ("day", "external_id", "name", "first_in", "last_out", "hours", "remarks")


@dataclass(frozen=True)
class Mark:
    """One sighting of a person. `entering` is None if the event has no direction; `name` is the name at that time."""

    at: datetime
    entering: bool | None
    name: str | None = None


@dataclass(frozen=True)
class Passage:
    """Sightings of one passage through a door, all in the same direction."""

    first: Mark
    last: Mark


@dataclass(frozen=True)
class Stay:
    """A stay from `begin` to `end`, one of which may be unknown."""

    begin: Mark | None
    end: Mark | None

    def contains(self, mark: Mark) -> bool:
        return self.begin is not None and self.end is not None and self.begin.at <= mark.at <= self.end.at


@dataclass(frozen=True)
class Row:
    """One day of a person. Times are in the requested time zone; the name is the last one of the day."""

    day: date
    external_id: str
    name: str | None
    first_in: datetime | None
    last_out: datetime | None
    worked: timedelta | None
    """None if unknown."""
    remarks: tuple[str, ...]


def days_of(
    external_id: str,
    marks: Iterable[Mark],
    zone: tzinfo,
    longest: timedelta = LONGEST_SHIFT,
    pause: timedelta = LONGEST_PAUSE,
) -> list[Row]:
    """Returns a person's days, in order. `marks` may be in any order."""
    ordered = sorted(marks, key=lambda mark: mark.at)
    stays = stays_of(passages_of([mark for mark in ordered if mark.entering is not None], pause), longest)
    directed: dict[date, list[Stay]] = {}
    for stay in stays:
        directed.setdefault(_day(stay, zone), []).append(stay)
    undirected = _undirected([mark for mark in ordered if mark.entering is None], stays, zone)
    return [
        _row(day, external_id, directed.get(day, []), undirected.get(day, []), zone)
        for day in sorted(directed.keys() | undirected.keys())
    ]


def passages_of(marks: Iterable[Mark], pause: timedelta) -> list[Passage]:
    """Returns the passages of marks with directions. Both are ordered by time."""
    passages: list[Passage] = []
    for mark in marks:
        last = passages[-1].last if passages else None
        if last is not None and mark.entering == last.entering and mark.at - last.at <= pause:
            passages[-1] = Passage(passages[-1].first, mark)
        else:
            passages.append(Passage(mark, mark))
    return passages


def stays_of(passages: Iterable[Passage], longest: timedelta) -> list[Stay]:
    """Returns the stays of passages. Both are ordered by time.

    A shift ends when a passage `out` begins: whether it is too long does not depend on how long somebody lingers.
    """
    stays: list[Stay] = []
    inside: Passage | None = None
    for passage in passages:
        entering = passage.first.entering
        if inside is not None and (entering or passage.first.at - inside.last.at > longest):
            stays.append(Stay(inside.first, None))
            inside = None
        if entering:
            inside = passage
        else:
            stays.append(Stay(inside.first if inside is not None else None, passage.last))
            inside = None
    return stays if inside is None else [*stays, Stay(inside.first, None)]


def span(
    first: date,
    until: date,
    zone: tzinfo,
    longest: timedelta = LONGEST_SHIFT,
    pause: timedelta = LONGEST_PAUSE,
) -> tuple[datetime, datetime]:
    """Returns the range of events needed for the days from `first` on and before `until`.

    A stay that began on them may end later, and an `out` in the first hours belongs to a stay that began earlier. A
    passage may be as long as a shift.
    """
    margin = 2 * longest + pause
    return _midnight(first, zone) - margin, _midnight(until, zone) + margin


def write(rows: Iterable[Row], file: TextIO) -> None:
    """Writes CSV: times with their offset, hours with two decimals."""
    write_row = row_writer(file)
    write_row(COLUMNS)
    for row in rows:
        write_row(
            (
                row.day.isoformat(),
                row.external_id,
                row.name or "",
                row.first_in.isoformat(timespec="seconds") if row.first_in else "",
                row.last_out.isoformat(timespec="seconds") if row.last_out else "",
                "" if row.worked is None else f"{hours_of(row):.2f}",
                " ".join(row.remarks),
            )
        )


def hours_of(row: Row) -> float | None:
    return None if row.worked is None else round(row.worked / timedelta(hours=1), 2)


def _undirected(marks: Iterable[Mark], stays: Sequence[Stay], zone: tzinfo) -> dict[date, list[Mark]]:
    """Returns marks without directions by their day: that of the stay that contains them, otherwise their own.

    `marks` and `stays` are ordered by time; stays do not overlap.
    """
    days: dict[date, list[Mark]] = {}
    remaining = iter(stays)
    stay = next(remaining, None)
    for mark in marks:
        while stay is not None and _last(stay).at < mark.at:
            stay = next(remaining, None)
        day = _day(stay, zone) if stay is not None and stay.contains(mark) else mark.at.astimezone(zone).date()
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
    """Returns the row of a day with these stays and undirected marks, both ordered by time; one of them may be empty.

    Without stays, the time from the first mark to the last is one.
    """
    stays = directed or [Stay(undirected[0], undirected[-1] if len(undirected) > 1 else None)]
    begins = [stay.begin.at for stay in stays if stay.begin is not None]
    ends = [stay.end.at for stay in stays if stay.end is not None]
    whole = [_elapsed(stay.begin.at, stay.end.at) for stay in stays if stay.begin is not None and stay.end is not None]
    conditions = (
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
        tuple(remark for remark, holds in conditions if holds),
    )


def _elapsed(begin: datetime, end: datetime) -> timedelta:
    """Returns the elapsed time. Subtracting two times of one zone would ignore clock changes."""
    return end.astimezone(UTC) - begin.astimezone(UTC)


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, datetime.min.time(), zone).astimezone(UTC)
