"""First in, last out and hours: shifts past midnight, clocks that change, and what somebody forgot."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from search_service.attendance import COLUMNS, Mark, Row, days_of, span, write

BERLIN = ZoneInfo("Europe/Berlin")

Told = tuple[str, str | None, str | None, float | None, tuple[str, ...]]


def at(text: str) -> datetime:
    """In Berlin; `fold` 1 where it ends with *."""
    return datetime.fromisoformat(text.rstrip("*")).replace(tzinfo=BERLIN, fold=text.endswith("*"))


def marks(*texts: str) -> list[Mark]:
    """`> TIME` in, `< TIME` out, `. TIME` without a direction. They come as the database tells them, in UTC."""
    ways = {">": True, "<": False, ".": None}
    return [Mark(at(text[2:]).astimezone(UTC), ways[text[0]]) for text in texts]


def told(row: Row) -> Told:
    return (
        row.day.isoformat(),
        row.first_in.isoformat() if row.first_in else None,
        row.last_out.isoformat() if row.last_out else None,
        None if row.worked is None else row.worked / timedelta(hours=1),
        row.remarks,
    )


CASES: dict[str, tuple[list[str], list[Told]]] = {
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
    "the night clocks go forward is an hour shorter": (
        ["> 2026-03-28 22:00", "< 2026-03-29 06:00"],
        [("2026-03-28", "2026-03-28T22:00:00+01:00", "2026-03-29T06:00:00+02:00", 7, ())],
    ),
    "the night they go back is an hour longer": (
        ["> 2026-10-24 22:00", "< 2026-10-25 06:00"],
        [("2026-10-24", "2026-10-24T22:00:00+02:00", "2026-10-25T06:00:00+01:00", 9, ())],
    ),
    "within the hour that comes twice": (
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
    "cameras without directions do not count where there are others": (
        [". 2026-11-24 07:00", "> 2026-11-24 08:00", ". 2026-11-24 12:00", "< 2026-11-24 16:00", ". 2026-11-25 09:00"],
        [("2026-11-24", "2026-11-24T08:00:00+01:00", "2026-11-24T16:00:00+01:00", 8, ())],
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
    "nobody": ([], []),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES)
def test_days(given: list[str], expected: list[Told]) -> None:
    for some in (marks(*given), marks(*reversed(given))):
        assert [told(row) for row in days_of("ana", "Ana", some, BERLIN)] == expected


def test_a_longer_shift() -> None:
    (row,) = days_of("ana", None, marks("> 2026-11-24 08:00", "< 2026-11-25 09:00"), BERLIN, timedelta(hours=26))
    assert row.worked == timedelta(hours=25)


@pytest.mark.parametrize(("first", "hours"), [(date(2026, 3, 29), 23), (date(2026, 10, 25), 25)])
def test_the_span_of_a_day_whose_clocks_change(first: date, hours: int) -> None:
    since, until = span(first, first + timedelta(days=1), BERLIN, timedelta(hours=1))
    assert until - since == timedelta(hours=hours + 2)
    assert (since.astimezone(BERLIN) + timedelta(hours=1)).isoformat() == at(first.isoformat()).isoformat()


def test_csv_is_text_to_a_spreadsheet() -> None:
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
