"""`whosthere gallery calibrate`."""

from __future__ import annotations

from pathlib import Path

import click

from indexer.cli.common import examples, json_option, print_json, show, table
from indexer.files import write_atomically
from search_service.calibration.plot import chart
from search_service.calibration.report import INTERVAL, Report, calibrate, calibration_object, summary
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
    "--picture",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the score distributions to an SVG file.",
)
@json_option
@with_context
def gallery_calibrate(context: ServiceContext, name: str, target: Path | None, as_json: bool) -> None:
    """Compute a gallery's thresholds from its own identities, and show their uncertainty.

    Searches recompute them as the gallery grows. Likely duplicates, one person under two ids, are listed.
    """
    gallery = context.store.galleries.get(name)
    report = calibrate(context, gallery)
    if target is not None:
        faces, pack = report.calibrated.survey.faces, report.calibrated.pack.name
        title = f"{name}: {len(report.strangers):,} people of {faces:,} faces, {pack}"
        write_atomically(target, [chart(report, title).encode()])
    if as_json:
        print_json(calibration_object(report))
    else:
        _print(report)


def _print(report: Report) -> None:
    low, high = INTERVAL
    rows = table("FPIR", "threshold", f"{low} to {high} %", "expected FNIR", "scores above", "how sure")
    for row in report.rows:
        interval = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
        fnir = "" if row.fnir is None else f"{100 * row.fnir:.2f} %"
        rows.add_row(f"{100 * row.fpir:g} %", f"{row.threshold:.4f}", interval, fnir, f"{row.scores:,}", str(row.basis))
    show(rows)
    show(f"\n{summary(report)}")
    if len(report.mated_scores):
        show(f"FNIR is expected from {len(report.mated_scores):,} people with several photos.")
    duplicates = report.duplicates
    if duplicates:
        show(f"\nLikely one person under two ids, left out of this: {len(duplicates):,}")
        pairs = table("external id", "external id", "score")
        for a, b, score in duplicates[:SHOWN_DUPLICATES]:
            pairs.add_row(a, b, f"{score:.3f}")
        show(pairs)
        if len(duplicates) > SHOWN_DUPLICATES:
            show(f"and {len(duplicates) - SHOWN_DUPLICATES:,} more; --json lists all")
