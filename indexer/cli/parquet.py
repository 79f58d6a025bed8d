"""`whosthere gallery export` and `whosthere gallery import`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from indexer.app_context import AppContext
from indexer.cli.common import (
    SHOWN_REJECTIONS,
    SOME_REJECTED,
    examples,
    json_option,
    print_counts,
    print_json,
    progress_count,
    show,
    summary_of,
    table,
    with_context,
)
from indexer.types import Outcome

if TYPE_CHECKING:  # PyArrow takes 0.1 s to load, and only these commands need it
    from indexer.enrollment.parquet.importer import RowResult

MOST_REJECTIONS = 1_000
"""Rejected rows listed one by one: a file with only wrong rows must not fill the memory."""


@click.command("export", epilog=examples("whosthere gallery export staff staff.parquet"))
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@with_context
def gallery_export(context: AppContext, name: str, file: Path, as_json: bool) -> None:
    """Write a gallery's identities, metadata and embeddings to a Parquet file.

    The file holds the gallery as it is when the command starts. Kept crops are not exported.
    """
    from indexer.enrollment.parquet.export import export_gallery

    start = time.monotonic()
    with progress_count("Exporting", "rows") as show_progress:
        exported = export_gallery(
            context.migrated_engine, name, file, lambda done, total: show_progress(done, total, "")
        )
    seconds = time.monotonic() - start
    if as_json:
        print_json(
            {
                "gallery": exported.gallery.name,
                "model": exported.gallery.model,
                "identities": exported.identities,
                "faces": exported.faces,
                "file": click.format_filename(file),
                "bytes": exported.bytes,
                "seconds": round(seconds, 3),
            }
        )
        return
    gallery = exported.gallery
    click.echo(
        f"Gallery {gallery.name} ({gallery.model}): {exported.identities} identities with {exported.faces} faces "
        f"written to {click.format_filename(file)}, {exported.bytes / 1e6:.1f} MB, in {seconds:.1f} s."
    )


@click.command(
    "import",
    epilog=examples(
        "whosthere gallery import staff staff.parquet",
        "whosthere gallery import staff embeddings.parquet --model buffalo_l",
    ),
)
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--model", metavar="PACK", help="Model pack that made the embeddings, where the file does not say.")
@json_option
@with_context
def gallery_import(context: AppContext, name: str, file: Path, model: str | None, as_json: bool) -> None:
    """Enroll the identities and embeddings of a Parquet file into a gallery, which is created if it does not exist.

    The file comes from `gallery export`, or has the columns external_id (text) and embedding (lists of floats of unit
    length, computed by the gallery's model pack) and optionally name, metadata (JSON), valid_from, valid_until,
    image_sha256, box, landmarks, detection_score and quality. Rows are numbered from 0. Run it again to continue an
    interrupted import.

    Exit code: 0 all imported, 3 some rejected, 2 wrong usage, 1 failed.
    """
    from indexer.enrollment.parquet.file import open_gallery_file
    from indexer.enrollment.parquet.importer import gallery_for, import_rows

    start = time.monotonic()
    outcomes: Counter[Outcome] = Counter()
    rejections: list[RowResult] = []
    with open_gallery_file(file) as source, progress_count("Importing", "rows") as show_progress:
        target = gallery_for(context.store, context.packs, lambda: context.pack, name, source, model)
        with closing(
            import_rows(context.store, target, source, lambda done, total: show_progress(done, total, ""))
        ) as results:
            for result in results:
                outcomes[result.outcome] += 1
                if result.outcome is Outcome.REJECTED and len(rejections) < MOST_REJECTIONS:
                    rejections.append(result)
    summary = summary_of(context, target, "rows", outcomes, time.monotonic() - start)
    if as_json:
        rows = [asdict(rejection) for rejection in rejections]
        left = [{key: value for key, value in one.items() if key != "outcome"} for one in rows]
        print_json({**summary, "rejections": left})
    else:
        print_counts(summary, "rows")
        _show_rejected(rejections, summary["rejected"])
    if summary["rejected"]:
        sys.exit(SOME_REJECTED)


def _show_rejected(rejections: Sequence[RowResult], count: int) -> None:
    if not rejections:
        return
    rows = table("rejected row", "identity", "reason", "why")
    for r in rejections[:SHOWN_REJECTIONS]:
        rows.add_row(str(r.row), r.external_id, str(r.reason), r.message)
    show(rows)
    if count > SHOWN_REJECTIONS:
        click.echo(f"... and {count - SHOWN_REJECTIONS} more: --json lists the first {MOST_REJECTIONS}")
