"""First arrival, last departure and hours: shifts past midnight, clock changes, and missing events."""

from __future__ import annotations

import csv
import io
import random
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from search_service.events.attendance import COLUMNS, Mark, Row, days_of, span, write

BERLIN = ZoneInfo("Europe/Berlin")

Day = tuple[str, str | None, str | None, float | None, tuple[str, ...]]


def at(text: str) -> datetime:
    """Returns a time in Berlin, with `fold` 1 if the text ends with *."""
    return datetime.fromisoformat(text.rstrip("*")).replace(tzinfo=BERLIN, fold=text.endswith("*"))


def marks(*texts: str) -> list[Mark]:
    """Returns marks in UTC, as from the database: `> TIME` in, `< TIME` out, `. TIME` without a direction."""
    ways = {">": True, "<": False, ".": None}
    return [Mark(at(text[2:]).astimezone(UTC), ways[text[0]]) for text in texts]


def day_of(row: Row) -> Day:
    return (
        row.day.isoformat(),
        row.first_in.isoformat() if row.first_in else None,
        row.last_out.isoformat() if row.last_out else None,
        None if row.worked is None else row.worked / timedelta(hours=1),
        row.remarks,
    )


CASES: dict[str, tuple[list[str], list[Day]]] = {
    "a day": (
        ["> 2026-11-24 08:00", "< 2026-11-24 16:30"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T16:30:00+01:00", 8.5, ())],
    ),
    "a break": (
        ["> 2026-11-24 08:00", "< 2026-11-24 12:00", "> 2026-11-24 13:00", "< 2026-11-24 17:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T17:00:00+01:00", 8, ())],
    ),
    "a night shift is the evening's": (
        ["> 2026-11-24 22:00", "< 2026-11-25 06:00", "> 2026-11-25 22:00", "< 2026-11-26 06:00"],
        [
            ("2026-11-24", "2026-11-24T22:00:00+01:00", "2026-11-25T06:00:00+01:00", 8, ()),
            ("2026-11-25", "2026-11-25T22:00:00+01:00", "2026-11-26T06:00:00+01:00", 8, ()),
        ],
    ),
    "the night in which clocks go forward is an hour shorter": (
        ["> 2026-03-28 22:00", "< 2026-03-29 06:00"],
        [("2026-03-28", "2026-03-28T22:00:00+01:00", "2026-03-29T06:00:00+02:00", 7, ())],
    ),
    "the night in which they go back is an hour longer": (
        ["> 2026-10-24 22:00", "< 2026-10-25 06:00"],
        [("2026-10-24", "2026-10-24T22:00:00+02:00", "2026-10-25T06:00:00+01:00", 9, ())],
    ),
    "within the hour that occurs twice": (
        ["> 2026-10-25 02:30", "< 2026-10-25 02:15*"],
        [("2026-10-25", "2026-10-25T02:30:00+02:00", "2026-10-25T02:15:00+01:00", 0.75, ())],
    ),
    "without directions, when they go back": (
        [". 2026-10-25 00:30", ". 2026-10-25 03:30"],
        [("2026-10-25", "2026-10-25T00:30:00+02:00", "2026-10-25T03:30:00+01:00", 4, ())],
    ),
    "without directions, when they go forward": (
        [". 2026-03-29 00:30", ". 2026-03-29 03:30"],
        [("2026-03-29", "2026-03-29T00:30:00+01:00", "2026-03-29T03:30:00+02:00", 2, ())],
    ),
    "no out": (
        ["> 2026-11-24 08:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", None, None, ("missing_out",))],
    ),
    "no in": (
        ["< 2026-11-24 16:00"],
        [("2026-11-24", None, "2026-11-24T16:00:00+01:00", None, ("missing_in",))],
    ),
    "a forgotten out adds nothing": (
        ["> 2026-11-24 08:00", "> 2026-11-24 13:00", "< 2026-11-24 17:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T17:00:00+01:00", 4, ("missing_out",))],
    ),
    "a forgotten in adds nothing": (
        ["> 2026-11-24 08:00", "< 2026-11-24 12:00", "< 2026-11-24 17:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T17:00:00+01:00", 4, ("missing_in",))],
    ),
    "one forgotten each is no shift of 33 hours": (
        ["> 2026-11-24 08:00", "< 2026-11-25 17:00"],
        [
            ("2026-11-24", "2026-11-24T08:00:00+01:00", None, None, ("missing_out",)),
            ("2026-11-25", None, "2026-11-25T17:00:00+01:00", None, ("missing_in",)),
        ],
    ),
    "the longest shift": (
        ["> 2026-11-24 08:00", "< 2026-11-25 00:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-25T00:00:00+01:00", 16, ())],
    ),
    "cameras without directions do not count on a day with others": (
        [". 2026-11-24 07:00", "> 2026-11-24 08:00", ". 2026-11-24 12:00", "< 2026-11-24 16:00", ". 2026-11-25 09:00"],
        [
            ("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T16:00:00+01:00", 8, ("undirected_left_out",)),
            ("2026-11-25", "2026-11-25T09:00:00+01:00", None, None, ("missing_out",)),
        ],
    ),
    "a direction on one day takes nothing from another": (
        [
            *(f". 2026-11-{day} {hour}:00" for day in (23, 24, 25) for hour in ("08", "17")),
            "< 2026-11-25 17:30",
        ],
        [
            ("2026-11-23", "2026-11-23T08:00:00+01:00", "2026-11-23T17:00:00+01:00", 9, ()),
            ("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T17:00:00+01:00", 9, ()),
            ("2026-11-25", None, "2026-11-25T17:30:00+01:00", None, ("missing_in", "undirected_left_out")),
        ],
    ),
    "a sighting within a night shift is the shift's": (
        ["> 2026-11-24 22:00", ". 2026-11-25 03:00", "< 2026-11-25 06:00"],
        [("2026-11-24", "2026-11-24T22:00:00+01:00", "2026-11-25T06:00:00+01:00", 8, ("undirected_left_out",))],
    ),
    "sightings after a night shift are their day's": (
        ["> 2026-11-24 22:00", "< 2026-11-25 06:00", ". 2026-11-25 18:00", ". 2026-11-25 20:00"],
        [
            ("2026-11-24", "2026-11-24T22:00:00+01:00", "2026-11-25T06:00:00+01:00", 8, ()),
            ("2026-11-25", "2026-11-25T18:00:00+01:00", "2026-11-25T20:00:00+01:00", 2, ()),
        ],
    ),
    "without directions": (
        [". 2026-11-24 08:00", ". 2026-11-24 12:00", ". 2026-11-24 17:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T17:00:00+01:00", 9, ())],
    ),
    "seen once": (
        [". 2026-11-24 08:00", ". 2026-11-25 08:00"],
        [
            ("2026-11-24", "2026-11-24T08:00:00+01:00", None, None, ("missing_out",)),
            ("2026-11-25", "2026-11-25T08:00:00+01:00", None, None, ("missing_out",)),
        ],
    ),
    "a day is the time zone's": (
        [". 2026-11-24 00:10", ". 2026-11-24 23:50"],
        [("2026-11-24", "2026-11-24T00:10:00+01:00", "2026-11-24T23:50:00+01:00", 23 + 40 / 60, ())],
    ),
    "two cameras at one door see one passage": (
        ["> 2026-11-24 08:00", "> 2026-11-24 08:01", "< 2026-11-24 17:00", "< 2026-11-24 17:01"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T17:01:00+01:00", 9 + 1 / 60, ())],
    ),
    "lingering at a door is one passage": (
        [*(f"> 2026-11-24 08:{minute:02}" for minute in range(0, 60, 5)), "< 2026-11-24 17:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T17:00:00+01:00", 9, ())],
    ),
    "a longer pause is another passage": (
        ["> 2026-11-24 08:00", "> 2026-11-24 08:06", "< 2026-11-24 17:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T17:00:00+01:00", 8.9, ("missing_out",))],
    ),
    "other directions between them are other passages": (
        ["> 2026-11-24 08:00", "< 2026-11-24 08:01", "> 2026-11-24 08:02", "< 2026-11-24 17:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T17:00:00+01:00", 8 + 59 / 60, ())],
    ),
    "leaving after a night shift adds no day": (
        ["> 2026-11-24 22:00", "< 2026-11-25 05:59", "< 2026-11-25 06:01"],
        [("2026-11-24", "2026-11-24T22:00:00+01:00", "2026-11-25T06:01:00+01:00", 8 + 1 / 60, ())],
    ),
    "leaving around the end of the longest shift is one passage": (
        ["> 2026-11-24 14:00", "< 2026-11-25 05:59", "< 2026-11-25 06:01"],
        [("2026-11-24", "2026-11-24T14:00:00+01:00", "2026-11-25T06:01:00+01:00", 16 + 1 / 60, ())],
    ),
    "entering around the begin of the longest shift is one passage": (
        ["> 2026-11-24 13:59", "> 2026-11-24 14:01", "< 2026-11-25 06:00"],
        [("2026-11-24", "2026-11-24T13:59:00+01:00", "2026-11-25T06:00:00+01:00", 16 + 1 / 60, ())],
    ),
    "entering around midnight begins on the first day": (
        ["> 2026-11-24 23:58", "> 2026-11-25 00:02", "< 2026-11-25 06:00"],
        [("2026-11-24", "2026-11-24T23:58:00+01:00", "2026-11-25T06:00:00+01:00", 6 + 2 / 60, ())],
    ),
    "a passage out of nowhere is one departure": (
        ["< 2026-11-24 17:00", "< 2026-11-24 17:01"],
        [("2026-11-24", None, "2026-11-24T17:01:00+01:00", None, ("missing_in",))],
    ),
    "nobody": ([], []),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES)
def test_days_follow_from_events(given: list[str], expected: list[Day]) -> None:
    for some in (marks(*given), marks(*reversed(given))):
        assert [day_of(row) for row in days_of("ana", some, BERLIN)] == expected


def test_longest_shift_can_be_extended() -> None:
    (row,) = days_of("ana", marks("> 2026-11-24 08:00", "< 2026-11-25 09:00"), BERLIN, timedelta(hours=26))
    assert row.worked == timedelta(hours=25)


@pytest.mark.parametrize(
    ("minutes", "remarks"), [(0, ("missing_in", "missing_out")), (1, ("missing_in", "missing_out")), (2, ())]
)
def test_longest_pause_within_a_passage_can_be_changed(minutes: int, remarks: tuple[str, ...]) -> None:
    seen = marks("> 2026-11-24 08:00", "> 2026-11-24 08:02", "< 2026-11-24 16:00", "< 2026-11-24 16:02")
    (row,) = days_of("ana", seen, BERLIN, pause=timedelta(minutes=minutes))
    assert row.remarks == remarks


def test_name_is_the_last_one_of_the_day() -> None:
    seen = [
        Mark(mark.at, mark.entering, name)
        for mark, name in zip(
            marks("> 2026-11-24 22:00", "< 2026-11-25 06:00", ". 2026-11-26 08:00", ". 2026-11-27 08:00"),
            ("Ana", "Ana Ruiz", None, "Ana Roth"),
            strict=True,
        )
    ]
    assert [(row.day.day, row.name) for row in days_of("ana", seen, BERLIN)] == [
        (24, "Ana Ruiz"),
        (26, None),
        (27, "Ana Roth"),
    ]


@pytest.mark.parametrize(
    ("zone", "first"),
    [
        ("Europe/Berlin", date(2026, 3, 15)),  # clocks go forward within a night
        ("Europe/Berlin", date(2026, 10, 11)),  # and back
        ("Africa/Cairo", date(2026, 4, 10)),  # forward at midnight: a day that begins at one
        ("America/Havana", date(2026, 10, 18)),  # back to midnight: a day that begins twice
        ("Pacific/Apia", date(2011, 12, 17)),  # a day that did not exist
        ("UTC", date(2026, 11, 1)),
    ],
)
@pytest.mark.parametrize(
    ("longest", "pause"),
    [
        (timedelta(hours=16), timedelta()),
        (timedelta(hours=16), timedelta(minutes=5)),
        (timedelta(hours=40), timedelta(minutes=5)),
        (timedelta(hours=8), timedelta(minutes=30)),
    ],
)
def test_day_does_not_depend_on_the_requested_days(
    zone: str, first: date, longest: timedelta, pause: timedelta
) -> None:
    there = ZoneInfo(zone)
    begin, _ = span(first, first, there, timedelta(hours=24))
    for seed in range(20):
        draw = random.Random(seed)
        minutes = [draw.randrange(32 * 24 * 60) for _ in range(draw.choice((10, 60, 200)))]
        minutes += [minute + 60 * draw.choice((8, 16, 40)) for minute in minutes[:20]]  # exactly the longest shift
        minutes += [minute + lingering for minute in minutes[:20] for lingering in range(4, 60, 4)]
        ways = draw.choice(((True, False), (True, False, None), (None, None, None, None, True, False)))
        seen = [Mark(begin + timedelta(minutes=m), draw.choice(ways), draw.choice("ABC")) for m in minutes]

        def requested(day: date, days: int, seen: list[Mark] = seen) -> list[Row]:
            since, until = span(day, day + timedelta(days=days), there, longest, pause)
            rows = days_of("ana", [mark for mark in seen if since <= mark.at < until], there, longest, pause)
            return [row for row in rows if day <= row.day < day + timedelta(days=days)]

        month = requested(first, 28)
        assert len(month) > 5
        assert [row for day in range(28) for row in requested(first + timedelta(days=day), 1)] == month
        assert [row for day in range(0, 28, 7) for row in requested(first + timedelta(days=day), 7)] == month


@pytest.mark.parametrize(("first", "hours"), [(date(2026, 3, 29), 23), (date(2026, 10, 25), 25)])
def test_span_of_a_day_with_a_clock_change(first: date, hours: int) -> None:
    since, until = span(first, first + timedelta(days=1), BERLIN, timedelta(hours=0.5), timedelta())
    assert until - since == timedelta(hours=hours + 2)
    assert (since.astimezone(BERLIN) + timedelta(hours=1)).isoformat() == at(first.isoformat()).isoformat()


def test_csv_contains_no_formulas() -> None:
    rows = [
        Row(date(2026, 11, 24), who, name, at("2026-11-24 08:00"), at("2026-11-24 16:20"), timedelta(hours=8.333), ())
        for who, name in (('=HYPERLINK("http://x")', "+1"), ("-7", "@SUM(A1)"), ("\tx", "\ry"), ("ana", 'O"Hara, Ana'))
    ]
    rows.append(Row(date(2026, 11, 25), "ben", None, None, None, None, ("missing_in", "missing_out")))
    file = io.StringIO()
    write(rows, file)
    read = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert read[0] == list(COLUMNS)
    assert [row[1:3] for row in read[1:]] == [
        ['\'=HYPERLINK("http://x")', "'+1"],
        ["'-7", "'@SUM(A1)"],
        ["'\tx", "'\ry"],
        ["ana", 'O"Hara, Ana'],
        ["ben", ""],
    ]
    assert read[1][0] == "2026-11-24"
    assert read[1][3:] == ["2026-11-24T08:00:00+01:00", "2026-11-24T16:20:00+01:00", "8.33", ""]
    assert read[5][3:] == ["", "", "", "missing_in missing_out"]
