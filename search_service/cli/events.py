"""`whosthere events`."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path

import click

from indexer.cli.common import examples, gallery_option, json_option, print_json, show, table
from indexer.enrollment.manifests import parse_time
from indexer.files import write_atomically
from search_service.cli.common import with_context
from search_service.events.attendance import LONGEST_PAUSE, LONGEST_SHIFT, write
from search_service.events.attendance_report import attendance, parse_days, parse_zone, row_object
from search_service.matching.decision import Decision, DecisionReason
from search_service.serializers import event_object
from search_service.service_context import ServiceContext
from search_service.store.event_pages import Direction, EventFilter

NOT_LIVE = str(DecisionReason.NOT_LIVE)
"""Reason of events that are attempted presentation attacks."""


@click.group("events")
def events_group() -> None:
    """List and forget recorded events; export attendance."""


@events_group.command(
    "list",
    epilog=examples(
        "whosthere events list --gallery staff --device north-door --limit 20",
        "whosthere events list --gallery staff --external-id ana --since 2026-11-01 --json",
    ),
)
@click.option("--gallery", "-g", metavar="G", help="The gallery's name; default: every gallery.")
@click.option("--since", metavar="TIME", help="At or after this time, as 2026-11-24T08:00+01:00; UTC without a zone.")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option("--external-id", metavar="ID", help="Of this person.")
@click.option("--device", "seen_by", metavar="DEVICE", help="At this device.")
@click.option("--decision", type=click.Choice([str(d) for d in Decision]))
@click.option("--direction", type=click.Choice([str(d) for d in Direction]))
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Number of events.")
@json_option
@with_context
def events_list(
    context: ServiceContext,
    gallery: str | None,
    since: str | None,
    until: str | None,
    external_id: str | None,
    seen_by: str | None,
    decision: str | None,
    direction: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the latest events, the newest last."""
    wanted = EventFilter(
        None if gallery is None else [context.store.galleries.get(gallery).name],
        parse_time("--since", since),
        parse_time("--until", until),
        external_id,
        seen_by,
        decision,
        None if direction is None else Direction(direction),
    )
    found = context.events.latest(wanted, limit)
    if as_json:
        print_json([event_object(event) for event in found])
        return
    rows = table("event", "time (UTC)", "gallery", "device", "", "identity", "name", "cosine", "decision")
    for e in found:
        score = "" if e.score is None else f"{e.score:.3f}"
        at, way = e.at.strftime("%Y-%m-%d %H:%M:%S"), e.direction or ""
        decision = f"{e.decision}, {NOT_LIVE}" if NOT_LIVE in e.reasons else e.decision
        rows.add_row(str(e.id), at, e.gallery, e.device, way, e.external_id or "", e.name or "", score, decision)
    show(rows if found else "There are no such events. A search with `record` records them.")


@events_group.command(
    "export",
    epilog=examples(
        "whosthere events export --gallery staff --from 2026-11-01 --to 2026-12-01 \\",
        "    --timezone Europe/Berlin --out attendance.csv",
    ),
)
@gallery_option
@click.option("--from", "first", required=True, metavar="DAY", help="First day, as 2026-11-01.")
@click.option("--to", "until", required=True, metavar="DAY", help="Day after the last one, as 2026-12-01.")
@click.option("--timezone", "zone", default="UTC", show_default=True, metavar="ZONE", help="As Europe/Berlin.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="CSV file; default: standard output.")
@click.option(
    "--longest-shift",
    type=click.FloatRange(min=0, max=168, min_open=True),
    default=LONGEST_SHIFT / timedelta(hours=1),
    show_default=True,
    metavar="HOURS",
    help="An `in` and an `out` further apart are not one shift.",
)
@click.option(
    "--longest-pause",
    type=click.FloatRange(min=0, max=1440),
    default=LONGEST_PAUSE / timedelta(minutes=1),
    show_default=True,
    metavar="MINUTES",
    help="Sightings in one direction no further apart are one passage: first `in`, last `out`.",
)
@json_option
@with_context
def events_export(
    context: ServiceContext,
    gallery: str,
    first: str,
    until: str,
    zone: str,
    out: Path | None,
    longest_shift: float,
    longest_pause: float,
    as_json: bool,
) -> None:
    """Export attendance as CSV: first in, last out and hours, by day and person.

    Only matches count. On a day with directions, hours are the sum of the stays from each `in` to the next `out`; a
    shift past midnight counts for the day on which it began. On a day without directions, hours run from the first
    sighting to the last.
    """
    days = parse_days(("--from", "--to"), first, until)
    found = context.store.galleries.get(gallery)
    limits = timedelta(hours=longest_shift), timedelta(minutes=longest_pause)
    rows = attendance(context.events, found, days, parse_zone("--timezone", zone), *limits)
    file = io.StringIO()
    write(rows, file)
    if out is not None:
        write_atomically(out, [file.getvalue().encode("utf-8-sig")])  # Excel needs the mark
    if as_json:
        print_json([row_object(row) for row in rows])
    elif out is None:
        click.echo(file.getvalue(), nl=False)
    else:
        people = len({row.external_id for row in rows})
        click.echo(f"{out}: {len(rows)} days of {people} people.")


@events_group.command(
    "forget",
    epilog=examples(
        "whosthere events forget ana --gallery staff --yes",
        "whosthere events forget --gallery staff --before 2025-01-01 --yes",
    ),
)
@click.argument("external_id", required=False)
@gallery_option
@click.option("--before", metavar="TIME", help="Only events before this time.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@json_option
@with_context
def events_forget(
    context: ServiceContext, external_id: str | None, gallery: str, before: str | None, yes: bool, as_json: bool
) -> None:
    """Delete the events of a person, or everybody's before a time, permanently."""
    found, time = context.store.galleries.get(gallery), parse_time("--before", before)
    if external_id is None and time is None:
        raise click.UsageError("give EXTERNAL_ID, --before, or both")
    whose = f"of {external_id}" if external_id else "of everybody"
    question = f"Delete the events {whose}{f' before {time.isoformat()}' if time else ''} permanently?"
    if not yes and not click.confirm(question, err=as_json):
        raise click.ClickException("nothing was deleted")
    forgotten = context.events.delete(found, external_id, time)
    if as_json:
        print_json({"forgotten": forgotten})
    else:
        click.echo(f"{forgotten} events deleted.")
