"""`whosthere gallery calibrate`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from indexer.cli.common import examples, json_option, print_json, show, table
from indexer.files import write_atomically
from search_service.calibration.plot import picture
from search_service.calibration.report import INTERVAL, Report, calibration_object, duplicates_of, report, said
from search_service.calibration.survey import Calibrated, Thresholds
from search_service.cli.common import with_context
from search_service.service_context import ServiceContext

SHOWN_DUPLICATES = 20


@click.command(
    "calibrate",
    epilog=examples(
        "whosthere gallery calibrate staff",
        "whosthere gallery calibrate staff --picture thresholds.svg",
        "whosthere gallery calibrate staff --json",
    ),
)
@click.argument("name")
@click.option(
    "--picture", "target", type=click.Path(path_type=Path, dir_okay=False), help="Draw the scores into an SVG file."
)
@json_option
@with_context
def gallery_calibrate(context: ServiceContext, name: str, target: Path | None, as_json: bool) -> None:
    """Compute a gallery's thresholds from its own people now, and show how sure they are.

    Searches do so by themselves as a gallery grows. Who looks like one person under two ids is listed.
    """
    gallery = context.store.gallery(name)
    service = Thresholds(context)
    made = service.calibrate(gallery)
    told = report(made, service.mates(made.survey, gallery))
    if target is not None:
        title = f"{name}: {told.people:,} people of {made.survey.faces:,} faces, {made.pack.name}"
        write_atomically(target, [picture(told, title).encode()])
    duplicates = duplicates_of(made, context.store)
    if as_json:
        print_json(calibration_object(made, told, duplicates))
    else:
        _print(made, told, duplicates)


def _print(made: Calibrated, told: Report, duplicates: list[dict[str, Any]]) -> None:
    low, high = INTERVAL
    rows = table("FPIR", "threshold", f"{low} to {high} %", "expected FNIR", "scores above", "how sure")
    for row in told.rows:
        interval = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
        fnir = "" if row.fnir is None else f"{100 * row.fnir:.2f} %"
        rows.add_row(f"{100 * row.fpir:g} %", f"{row.threshold:.4f}", interval, fnir, f"{row.scores:,}", str(row.basis))
    show(rows)
    show(f"\n{said(told, made)}")
    if told.mated:
        show(f"FNIR is expected from {told.mated:,} people with several photos.")
    if duplicates:
        show(f"\nLikely one person under two ids, left out of this: {len(duplicates):,}")
        pairs = table("external id", "external id", "score")
        for one in duplicates[:SHOWN_DUPLICATES]:
            pairs.add_row(*one["external_ids"], f"{one['score']:.3f}")
        show(pairs)
        if len(duplicates) > SHOWN_DUPLICATES:
            show(f"and {len(duplicates) - SHOWN_DUPLICATES:,} more; --json lists all")
