"""`whosthere gallery export` and `whosthere gallery import`"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from indexer.cli.common import (
    PLAIN_LINE_EVERY_SECONDS,
    SOME_REJECTED,
    examples,
    json_option,
    print_json,
    show,
    table,
    with_home,
)
from indexer.home import Home
from indexer.types import Gallery, Outcome

if TYPE_CHECKING:  # PyArrow takes a tenth of a second to load, and only these commands need it
    from indexer.exchange import RowResult

SHOWN_REJECTIONS = 20

MOST_REJECTIONS = 1_000
"""That are told one by one. A file whose every row is wrong needs no more, and must not fill the memory."""


@click.command("export", epilog=examples("whosthere gallery export staff staff.parquet"))
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@with_home
def gallery_export(home: Home, name: str, file: Path, as_json: bool) -> None:
    """Write a gallery's identities, metadata and embeddings to a Parquet file.

    The file holds the gallery as it is when the command starts, whoever enrols meanwhile. Kept crops are not in it.
    """
    from indexer.exchange import export_gallery

    start = time.monotonic()
    with _progress("Exporting") as tell:
        made = export_gallery(home, name, file, tell)
    seconds = time.monotonic() - start
    if as_json:
        print_json(
            {
                "gallery": made.gallery.name,
                "model": made.gallery.model,
                "identities": made.identities,
                "faces": made.faces,
                "file": click.format_filename(file),
                "bytes": made.bytes,
                "seconds": round(seconds, 3),
            }
        )
        return
    click.echo(
        f"Gallery {made.gallery.name} ({made.gallery.model}): {made.identities} identities with {made.faces} faces "
        f"written to {click.format_filename(file)}, {made.bytes / 1e6:.1f} MB, in {seconds:.1f} s."
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
@with_home
def gallery_import(home: Home, name: str, file: Path, model: str | None, as_json: bool) -> None:
    """Enrol the identities and embeddings of a Parquet file into a gallery, making it where it is missing.

    The file is one of `gallery export`, or of one's own with the columns external_id (text) and embedding (lists of
    floats of unit length, by the gallery's model pack); name, metadata (JSON), valid_from, valid_until, image_sha256,
    box, landmarks, detection_score and quality may be there too. Rows count from 0. Running it again goes on where it
    was.

    Exit code: 0 all in, 3 some rejected, 2 wrong usage, 1 failed.
    """
    from indexer.exchange import gallery_for, import_rows, opened

    start = time.monotonic()
    outcomes: Counter[Outcome] = Counter()
    rejections: list[RowResult] = []
    with opened(file) as source, _progress("Importing") as tell:
        target = gallery_for(home, name, source, model)
        with closing(import_rows(home, target, source, tell)) as results:
            for result in results:
                outcomes[result.outcome] += 1
                if result.outcome is Outcome.REJECTED and len(rejections) < MOST_REJECTIONS:
                    rejections.append(result)
    summary = _summary(home, target, outcomes, rejections, time.monotonic() - start)
    print_json(summary) if as_json else _print_summary(summary, rejections)
    if outcomes[Outcome.REJECTED]:
        sys.exit(SOME_REJECTED)


def _summary(
    home: Home, gallery: Gallery, outcomes: Counter[Outcome], rejections: list[RowResult], seconds: float
) -> dict[str, Any]:
    identities, faces = home.store.counts(gallery.id)
    told = [asdict(rejection) for rejection in rejections]
    return {
        "gallery": gallery.name,
        "model": gallery.model,
        "rows": outcomes.total(),
        "enrolled": outcomes[Outcome.ENROLLED],
        "unchanged": outcomes[Outcome.UNCHANGED],
        "rejected": outcomes[Outcome.REJECTED],
        "identities": identities,
        "faces": faces,
        "seconds": round(seconds, 3),
        "rejections": [{key: value for key, value in one.items() if key != "outcome"} for one in told],
    }


def _print_summary(summary: dict[str, Any], rejections: list[RowResult]) -> None:
    click.echo(
        f"{summary['rows']} rows: {summary['enrolled']} enrolled, {summary['unchanged']} unchanged, "
        f"{summary['rejected']} rejected, in {summary['seconds']:.1f} s."
    )
    click.echo(
        f"Gallery {summary['gallery']} ({summary['model']}) holds {summary['identities']} identities "
        f"with {summary['faces']} faces."
    )
    if not rejections:
        return
    rows = table("rejected row", "identity", "reason", "why")
    for r in rejections[:SHOWN_REJECTIONS]:
        rows.add_row(str(r.row), r.external_id, str(r.reason), r.message)
    show(rows)
    if summary["rejected"] > SHOWN_REJECTIONS:
        click.echo(f"... and {summary['rejected'] - SHOWN_REJECTIONS} more: --json tells the first {MOST_REJECTIONS}")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a plain line every few seconds elsewhere; on standard error."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= PLAIN_LINE_EVERY_SECONDS:
            told = time.monotonic()
            click.echo(f"{what}: {done} of {total} rows", err=True)

    yield tell
