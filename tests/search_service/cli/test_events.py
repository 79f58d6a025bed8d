"""`whosthere events` and `whosthere webhooks`."""

from __future__ import annotations

import codecs
import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from indexer.errors import InvalidRequest, NotFound
from indexer.types import Gallery, NamedIdentity
from search_service.cli.app import whosthere
from search_service.service_context import ServiceContext
from search_service.store import events as module
from search_service.store.event_pages import PAGE, Direction
from search_service.store.events import Sighting
from tests.indexer.gallery.faces import make_gallery

DAYS = ["--from", "2026-11-24", "--to", "2026-11-25"]


@pytest.fixture
def staff(context: ServiceContext) -> Gallery:
    return make_gallery(context.store)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The time of the next event, as its only entry."""
    at = [datetime(2026, 11, 24, 12, tzinfo=UTC)]
    monkeypatch.setattr(module, "now", lambda: at[0])
    return at


def record(
    context: ServiceContext,
    gallery: Gallery,
    external_id: str = "ana",
    direction: Direction | None = None,
    decision: str = "match",
) -> None:
    person = NamedIdentity(3, external_id, f"Name of {external_id}", {}, 1)
    seen = Sighting("door", direction, decision, decision == "match", person, 0.61, 0.4)
    context.events.record(gallery, seen, timedelta())


def run(context: ServiceContext, *arguments: str, text: str | None = None) -> Result:
    result = CliRunner().invoke(whosthere, ["--home", str(context.settings.home), *arguments], input=text)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_events_are_listed_and_filtered(context: ServiceContext, staff: Gallery, clock: list[datetime]) -> None:
    assert "There are no such events" in run(context, "events", "list").output
    record(context, staff)
    record(context, staff, "ben", Direction.OUT, "review")
    shown = run(context, "events", "list").output.splitlines()
    assert len(shown) == 3
    assert shown[1].split() == [
        "1", "2026-11-24", "12:00:00", "staff", "door", "ana", "Name", "of", "ana", "0.610", "match",
    ]  # fmt: skip
    for wanted in (
        ["--limit", "1"],
        ["--external-id", "ben"],
        ["--decision", "review"],
        ["--direction", "out", "--gallery", "staff", "--device", "door"],
        ["--since", "2026-11-24T13:00+01:00", "--until", "2026-11-24T12:00:01", "--external-id", "ben"],
    ):
        (event,) = json.loads(run(context, "events", "list", *wanted, "--json").output)
        assert event["external_id"] == "ben"
    assert json.loads(run(context, "events", "list", "--since", "2026-11-25", "--json").output) == []


def test_attendance_is_exported(context: ServiceContext, staff: Gallery, clock: list[datetime], tmp_path: Path) -> None:
    for hour, direction, decision in ((23, "in", "match"), (25, "out", "review"), (31, "out", "match")):
        clock[0] = datetime(2026, 11, 24, tzinfo=UTC) + timedelta(hours=hour)
        record(context, staff, direction=Direction(direction), decision=decision)
    record(context, make_gallery(context.store, "visitors"), "ben")
    export = ["events", "export", "--gallery", "staff"]
    printed = run(context, *export, *DAYS).output
    assert list(csv.reader(printed.splitlines()))[1:] == [
        ["2026-11-24", "ana", "Name of ana", "2026-11-24T23:00:00+00:00", "2026-11-25T07:00:00+00:00", "8.00", ""]
    ]
    # In Berlin the shift began on the next day.
    assert run(context, *export, *DAYS, "--timezone", "Europe/Berlin").output.splitlines()[1:] == []
    out = tmp_path / "folder" / "attendance.csv"
    november = ["--from", "2026-11-01", "--to", "2026-12-01", "--timezone", "Europe/Berlin", "--out", str(out)]
    assert run(context, *export, *november).output == f"{out}: 1 days of 1 people.\n"
    assert out.read_bytes().startswith(codecs.BOM_UTF8), "Excel reads other files in the encoding of the system"
    assert out.read_text().splitlines()[1].startswith("2026-11-25,ana,Name of ana,2026-11-25T00:00:00+01:00,")
    (row,) = json.loads(run(context, *export, *DAYS, "--longest-shift", "7", "--json").output)
    assert (row["hours"], row["remarks"]) == (None, ["missing_out"])


def test_export_takes_repeated_sightings_as_one_passage(
    context: ServiceContext, staff: Gallery, clock: list[datetime]
) -> None:
    for minute, direction in ((0, "in"), (1, "in"), (540, "out"), (541, "out")):
        clock[0] = datetime(2026, 11, 24, 8, tzinfo=UTC) + timedelta(minutes=minute)
        record(context, staff, direction=Direction(direction))
    export = ["events", "export", "--gallery", "staff", *DAYS]
    assert run(context, *export).output.splitlines()[1:] == [
        "2026-11-24,ana,Name of ana,2026-11-24T08:00:00+00:00,2026-11-24T17:01:00+00:00,9.02,"
    ]
    strict = run(context, *export, "--longest-pause", "0").output
    assert strict.splitlines()[1].endswith(",8.98,missing_in missing_out")


def test_exported_day_does_not_depend_on_the_range(
    context: ServiceContext, staff: Gallery, clock: list[datetime]
) -> None:
    """Five days of two sightings, a night shift, and one `out` at the end of the fifth."""
    november = datetime(2026, 11, 1, tzinfo=UTC)
    seen: list[tuple[int, int, str | None, str]] = [(day, hour, None, "ana") for day in range(1, 6) for hour in (7, 16)]
    seen += [(3, 22, "in", "ben"), (4, 2, None, "ben"), (4, 6, "out", "ben"), (5, 17, "out", "ana")]
    for day, hour, direction, who in sorted(seen, key=lambda one: one[:2]):
        clock[0] = november + timedelta(days=day, hours=hour)
        record(context, staff, who, Direction(direction) if direction else None)

    def exported(first: int, until: int) -> list[list[str]]:
        days = ["--from", f"2026-11-{first:02}", "--to", f"2026-11-{until:02}", "--timezone", "Europe/Berlin"]
        printed = run(context, "events", "export", "--gallery", "staff", *days).output
        return list(csv.reader(printed.splitlines()))[1:]

    month = exported(1, 30)
    assert [[row[0], row[1], *row[5:]] for row in month] == [
        ["2026-11-02", "ana", "9.00", ""],
        ["2026-11-03", "ana", "9.00", ""],
        ["2026-11-04", "ana", "9.00", ""],
        ["2026-11-04", "ben", "8.00", "undirected_left_out"],
        ["2026-11-05", "ana", "9.00", ""],
        ["2026-11-06", "ana", "", "missing_in undirected_left_out"],
    ]
    assert [row for day in range(1, 30) for row in exported(day, day + 1)] == month
    assert exported(2, 6) == month[:-1]


def test_export_reads_every_page(context: ServiceContext, staff: Gallery, clock: list[datetime]) -> None:
    with context.engine.connect().execution_options(writing=True) as connection, connection.begin():
        connection.exec_driver_sql(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO events "
            "(gallery_id, at, external_id, device, decision, threshold) "
            "SELECT ?, '2026-11-24 12:00:00.000000', 'person-' || i, 'door', 'match', 0.4 FROM n",
            (2 * PAGE, staff.id),
        )
    rows = json.loads(run(context, "events", "export", "--gallery", "staff", *DAYS, "--json").output)
    assert len({row["external_id"] for row in rows}) == len(rows) == 2 * PAGE + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "2026-11-25", "--to", "2026-11-25"], "--to is 2026-11-25; expected a day after --from"),
        (["--from", "November", "--to", "2026-11-25"], "--from is 'November'; expected a day"),
        (["--from", "2026-11-01", "--to", "9999-12-31"], "--to is '9999-12-31'; expected a day"),
        ([*DAYS, "--timezone", "Berlin"], "--timezone is 'Berlin', unknown on this machine"),
        ([*DAYS, "--timezone", "Europe"], "--timezone is 'Europe', unknown on this machine"),
        ([*DAYS, "--timezone", ""], "--timezone is '', unknown on this machine"),
        ([*DAYS, "--timezone", "../../etc/passwd"], "unknown on this machine"),
    ],
)
def test_invalid_days_are_rejected(context: ServiceContext, staff: Gallery, arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        run(context, "events", "export", "--gallery", "staff", *arguments)


def test_wrong_usage_is_rejected(context: ServiceContext, staff: Gallery) -> None:
    with pytest.raises(NotFound, match="there is no gallery 'none'"):
        run(context, "events", "list", "--gallery", "none")
    with pytest.raises(InvalidRequest, match="--since is 'yesterday'; expected a date like"):
        run(context, "events", "list", "--since", "yesterday")
    assert run(context, "events", "forget", "--gallery", "staff").exit_code == 2
    assert run(context, "events", "list", "--decision", "maybe").exit_code == 2
    assert run(context, "webhooks", "create", "--url", "http://a", "--decision", "maybe").exit_code == 2
    with pytest.raises(NotFound, match="there is no webhook 'none'"):
        run(context, "webhooks", "replay", "none")


def test_forget_asks_for_confirmation(context: ServiceContext, staff: Gallery, clock: list[datetime]) -> None:
    record(context, staff)
    record(context, staff, "ben")
    forget = ["events", "forget", "ana", "--gallery", "staff"]
    refused = run(context, *forget, text="n\n")
    assert refused.exit_code == 1
    assert "Delete the events of ana permanently?" in refused.output
    assert "1 events deleted." in run(context, *forget, text="y\n").output
    before = ["events", "forget", "--gallery", "staff", "--yes", "--before"]
    assert run(context, *before, "2026-11-24T12:00").output == "0 events deleted.\n"
    assert run(context, *before, "2026-11-24T13:00:01+01:00").output == "1 events deleted.\n"


def test_webhook_from_creation_to_deletion(context: ServiceContext, staff: Gallery, clock: list[datetime]) -> None:
    assert "There are no webhooks" in run(context, "webhooks", "list").output
    made = run(context, "webhooks", "create", "--url", "http://a/x", "--gallery", "staff", "--decision", "review")
    (hook,) = context.webhooks.list()
    assert (hook.url, hook.gallery, hook.decisions) == ("http://a/x", "staff", ("review",))
    secret = made.stdout.splitlines()[1]
    assert made.stdout.splitlines()[0] == f"Webhook {hook.id} created. Its secret, shown only once:"
    assert len(secret) == 64
    assert "signed but not encrypted" in made.stderr
    assert run(context, "webhooks", "create", "--url", "https://a").stderr == ""
    record(context, staff, decision="review")
    shown = run(context, "webhooks", "list").output
    assert shown.splitlines()[1].split() == [hook.id, "http://a/x", "staff", "review", "1", "0"]
    assert secret not in shown
    assert "No deliveries to" in run(context, "webhooks", "dead", hook.id).output
    claimed = context.webhooks.claim(context.webhooks.due(())[0].id, timedelta(seconds=1))
    assert claimed is not None
    context.webhooks.mark_failed(claimed, "answered 500", None)
    dead = run(context, "webhooks", "dead", hook.id).output.splitlines()[1]
    assert dead.split() == ["1", "1", "1", "answered", "500"]
    assert run(context, "webhooks", "replay", hook.id).output == "1 deliveries will be retried.\n"
    deleted = run(context, "webhooks", "delete", hook.id).output
    assert deleted == f"Webhook {hook.id} deleted; 1 deliveries were still waiting.\n"


def test_attack_is_listed_as_one_with_a_cooldown_of_its_own(context: ServiceContext, staff: Gallery) -> None:
    liveness = {"score": 0.1, "live": False, "model": "light"}
    nobody = Sighting("door", None, "no_match", False, None, 0.2, 0.4, reasons=("below_threshold",))
    attack = Sighting("door", None, "no_match", False, None, None, 0.4, None, ("not_live",), liveness, is_attack=True)
    recorded = [
        context.events.record(staff, seen, timedelta(seconds=60)).recorded for seen in (nobody, attack, nobody, attack)
    ]
    assert recorded == [True, True, False, False]
    events = json.loads(run(context, "events", "list", "--json").output)
    assert [(one["reasons"], one["liveness"]) for one in events] == [
        (["below_threshold"], None),
        (["not_live"], liveness),
    ]
    assert run(context, "events", "list").output.count("no_match, not_live") == 1
