"""`whosthere demo`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from indexer.app_context import AppContext
from indexer.cli.common import examples, show, table
from indexer.enrollment.sources import rows_of
from indexer.settings import read_settings
from indexer.types import Outcome
from search_service.calibration.thresholds import Thresholds
from search_service.demo import PROBES, make_photos
from search_service.search import Answer, Query, SearchService


@click.command(epilog=examples("whosthere demo", "whosthere demo --serve", "whosthere demo --folder /tmp/faces"))
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/demo"),
    show_default=True,
    help="Folder for the demo's photos and gallery.",
)
@click.option("--serve", "is_served", is_flag=True, help="Then serve the demo's gallery with the web page.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of the web page.")
def demo(folder: Path, is_served: bool, port: int) -> None:
    """Enroll real faces and search probes that are other photos of them."""
    photos, probes = make_photos(folder)
    settings = read_settings({}, home=folder / "home", keep_crops=True, port=port)
    context = AppContext(settings)
    try:
        gallery = context.open_gallery("demo")
        results = list(context.enroller(gallery).enroll(rows_of([photos])))
        outcomes = Counter(result.outcome for result in results)
        counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in Outcome if outcomes[outcome])
        click.echo(f"Enrolled the faces in {photos}: {counts}.\n")
        images = [(probes / probe.file).read_bytes() for probe in PROBES]
        answers = SearchService(context, Thresholds(context)).search(images, gallery, Query(top_k=3))
    finally:
        context.close()
    rows = table("probe", "what was done to it", "top candidates (cosine)", "decision")
    for probe, answer in zip(PROBES, answers, strict=True):
        rows.add_row(probe.file, probe.how, *_cells(answer))
    show(rows)
    click.echo(
        f"\nNow with your own photos: add a folder for each person to {photos} and run this again, or\n"
        f"  whosthere enroll YOUR_FOLDER --gallery staff\n  whosthere search PROBE.jpg --gallery staff"
    )
    if not is_served:
        click.echo("\nIn the browser: whosthere demo --serve")
        return
    from search_service.server import run

    click.echo(f"\nOpen http://127.0.0.1:{port}/console/ and search the photos in {probes}. Ctrl+C ends the service.")
    run(settings)


def _cells(answer: Answer) -> tuple[str, str]:
    if not answer.faces:
        return "", str(answer.error.code) if answer.error else "no_face"
    face = answer.faces[0]
    return ", ".join(f"{c.identity.external_id} {c.score:.2f}" for c in face.candidates), str(face.decision)
