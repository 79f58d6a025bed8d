"""`whosthere enroll`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

import click

from indexer.app_context import AppContext
from indexer.cli.common import (
    SHOWN_REJECTIONS,
    SOME_REJECTED,
    device_option,
    examples,
    gallery_option,
    json_option,
    liveness_option,
    print_counts,
    print_json,
    progress_count,
    show,
    summary_of,
    table,
    with_context,
)
from indexer.csv_files import row_writer
from indexer.enrollment.enroller import Result
from indexer.enrollment.rows import Row
from indexer.enrollment.sources import rows_of
from indexer.enrollment.sync import MissingFace, missing_faces, remove_faces
from indexer.types import LivenessMode, Outcome, Pick


@click.command(
    epilog=examples(
        "whosthere enroll photos/ --gallery staff",
        "whosthere enroll --manifest staff.csv --gallery staff --report report.csv",
        "whosthere enroll photos.zip --gallery staff --pick center --json",
    )
)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="PATH...")
@gallery_option
@click.option("--manifest", type=click.Path(path_type=Path), help="CSV: image, external_id, name, valid_from, ...")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the outcome of each row to this CSV file."
)
@click.option(
    "--pick",
    type=click.Choice([str(p) for p in Pick]),
    default=str(Pick.ONLY),
    show_default=True,
    help="Which face of several counts; `only` rejects a photo with a second face of half the size.",
)
@click.option("--sync", is_flag=True, help="List enrolled faces whose photos are not among the given ones.")
@click.option("--remove", is_flag=True, help="With --sync: delete these faces.")
@click.option("--model", metavar="PACK", help="Model pack of a gallery that does not exist yet.")
@liveness_option
@device_option
@json_option
@with_context
def enroll(
    context: AppContext,
    paths: tuple[Path, ...],
    gallery: str,
    manifest: Path | None,
    report: Path | None,
    pick: str,
    sync: bool,
    remove: bool,
    model: str | None,
    liveness: LivenessMode | None,
    as_json: bool,
) -> None:
    """Enroll photos into a gallery.

    A folder of folders has one folder for each identity; loose files are grouped by their stem (ana_1.jpg and
    ana_2.jpg are both ana if their faces agree); a folder of camera files is one identity. A manifest names image and
    external_id of each photo. A ZIP file of these works. Run it again to continue an interrupted run.

    A photo replaced under the same file name is enrolled, and the face of the old one stays until --sync --remove.

    Exit code: 0 all enrolled, 3 some rejected, 2 wrong usage, 1 failed.
    """
    if not paths and manifest is None:
        raise click.UsageError("name folders, images, a ZIP, or a --manifest")
    if remove and not sync:
        raise click.UsageError("--remove needs --sync")
    if model:
        context.packs.find(model)  # fails before the folders are read
    start = time.monotonic()
    rows = rows_of(paths, manifest)
    if not rows:
        named = [*paths, manifest] if manifest is not None else paths
        raise click.UsageError(f"there are no images in {', '.join(map(str, named))}")
    target = context.open_gallery(gallery, model)
    before = context.store.faces.owners(target.id) if sync else {}
    results: list[Result] = []  # of all photos only where they are needed
    shown: dict[Outcome, list[Result]] = {Outcome.ENROLLED: [], Outcome.REJECTED: []}
    updated = remarks = 0
    outcomes: Counter[Outcome] = Counter()
    with _report(report, rows) as write, progress_count("Enrolling", "images") as show_progress:
        enrolling = context.enroller(target, len(rows), liveness).enroll(rows, Pick(pick))
        try:
            for result in enrolling:
                write(result)
                outcomes[result.outcome] += 1
                updated += "updated" in result.details
                if as_json or sync:
                    results.append(result)
                has_remark = _has_remark(result)
                remarks += has_remark
                is_of_interest = has_remark or result.outcome is Outcome.REJECTED
                if is_of_interest and len(shown[result.outcome]) < SHOWN_REJECTIONS:
                    shown[result.outcome].append(result)
                rejected = outcomes[Outcome.REJECTED]
                show_progress(outcomes.total(), len(rows), f"{rejected} rejected" if rejected else "")
        finally:
            enrolling.close()
    missing = missing_faces(before, results)
    removed = remove_faces(context.store, target, missing) if remove else 0
    context.indexes.get(target).update()
    summary = summary_of(context, target, "images", outcomes, time.monotonic() - start)
    if as_json:
        synced = {"missing": [asdict(face) for face in missing], "removed": removed} if sync else {}
        print_json({**summary, **synced, "results": [asdict(result) for result in results]})
    else:
        print_counts(summary, "images")
        if updated:
            click.echo(f"{updated} of them changed the name, dates or metadata of an enrolled identity.")
        _show(shown[Outcome.ENROLLED], remarks, ("enrolled", "identity", "remark"), report)
        rejected = outcomes[Outcome.REJECTED]
        _show(shown[Outcome.REJECTED], rejected, ("rejected", "identity", "reason", "why"), report)
        if sync:
            _show_missing(missing, removed)
    if summary["rejected"]:
        sys.exit(SOME_REJECTED)


def _show_missing(missing: Sequence[MissingFace], removed: int) -> None:
    click.echo(f"{len(missing)} enrolled faces are of photos that are not among these; {removed} were deleted.")
    if not missing:
        return
    rows = table("face", "identity", "kept because")
    for face in missing[:SHOWN_REJECTIONS]:
        rows.add_row(str(face.face_id), face.external_id, face.kept or "")
    show(rows)
    if len(missing) > SHOWN_REJECTIONS:
        click.echo(f"... and {len(missing) - SHOWN_REJECTIONS} more: --json lists them all")


def _has_remark(result: Result) -> bool:
    """Returns whether the message of an enrolled photo says more than that its identity's fields changed."""
    says_more = result.message is not None and bool(result.details.keys() - {"updated"})
    return result.outcome is Outcome.ENROLLED and says_more


def _show(results: Sequence[Result], count: int, columns: Sequence[str], report: Path | None) -> None:
    """Shows the first results of so many with their messages."""
    if not results:
        return
    rows = table(*columns)
    for result in results:
        reason = [str(result.reason)] if result.reason is not None else []
        rows.add_row(result.image, result.external_id, *reason, result.message)
    show(rows)
    if count > len(results):
        where = str(report) if report else "--report FILE.csv lists them all"
        click.echo(f"... and {count - len(results)} more: {where}")


@contextmanager
def _report(path: Path | None, of_rows: Sequence[Row]) -> Iterator[Callable[[Result], None]]:
    """Yields a function that writes a result to the report at once, so that an interrupted run leaves a valid report.

    A full disk ends the report, not the run. If file names or ids have letters beyond ASCII, it begins with a byte
    order mark, without which Excel reads them in the encoding of the system.
    """
    if path is None:
        yield lambda result: None
        return
    is_ascii = all(row.image.isascii() and row.person.external_id.isascii() for row in of_rows)
    encoding = "utf-8" if is_ascii else "utf-8-sig"
    try:
        file: IO[str] = path.open("w", buffering=1, newline="", encoding=encoding)
    except OSError as error:
        raise click.UsageError(f"the report {path} cannot be written: {error.strerror}") from error
    write_row = row_writer(file)

    def attempt(write: Callable[..., object], *arguments: object) -> None:
        if file.closed:
            return
        try:
            write(*arguments)
        except OSError as error:
            with suppress(OSError):
                file.close()
            click.echo(f"Warning: the report {path} ends early, enrollment continues: {error.strerror}", err=True)

    attempt(write_row, ["image", "external_id", "outcome", "reason", "face_id", "message"])
    try:
        yield lambda r: attempt(
            write_row,
            [r.image, r.external_id, r.outcome, r.reason or "", r.face_id or "", r.message or ""],
        )
    finally:
        attempt(file.close)
