"""`whosthere gallery duplicates`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from indexer.app_context import AppContext
from indexer.cli.common import examples, json_option, print_json, progress_count, show, table, with_context
from indexer.enrollment.duplicates import Duplicates, Side, find_duplicates
from indexer.enrollment.lookalikes import lookalike_bound

SHOWN = 20
DECIMALS = 4


@click.command(
    "duplicates",
    epilog=examples(
        "whosthere gallery duplicates staff",
        "whosthere gallery duplicates staff --threshold 0.5 --json",
    ),
)
@click.argument("name")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="Cosine from which two identities look alike; default: the bound that enrollment uses.",
)
@json_option
@with_context
def gallery_duplicates(context: AppContext, name: str, threshold: float | None, as_json: bool) -> None:
    """List identities that look alike, most likely one person under two ids; photos that look more like another
    identity than like their own; and outliers, photos unlike all others of their identity."""
    gallery = context.store.galleries.get(name)
    if threshold is None:
        threshold = lookalike_bound(context.pack_of(gallery), context.store.galleries.counts(gallery.id)[1])
    with progress_count("Comparing", "faces") as show_progress:
        found = find_duplicates(
            context.store,
            gallery,
            context.indexes.get(gallery),
            threshold,
            lambda done, total: show_progress(done, total, ""),
            context.own_bound(gallery),
        )
    if as_json:
        print_json({"gallery": name} | _rounded(asdict(found)))
    else:
        _print(found, name)


def _rounded(value: Any) -> Any:
    """Rounds every float: the fifth decimal of a cosine depends on the CPU."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return round(value, DECIMALS) if isinstance(value, float) else value


def _print(found: Duplicates, gallery: str) -> None:
    how = "every pair" if found.exact else "the nearest faces of each"
    click.echo(f"{found.faces} faces of gallery {gallery} compared, {how}: threshold {found.threshold:.3f}.")
    more = "" if found.complete else " at least"
    counts = f"Wrong photos: {len(found.wrong_photos)}. Outliers: {len(found.outliers)}."
    click.echo(f"Identities that look alike:{more} {len(found.pairs)}. {counts}")
    if found.pairs:
        rows = table("cosine", "identity", "name", "face", "looks like", "name", "face")
        for pair in found.pairs[:SHOWN]:
            one, other = pair.identities
            rows.add_row(f"{pair.score:.3f}", *_cells(one), *_cells(other))
        show(rows)
    if found.wrong_photos:
        rows = table("cosine", "face", "of", "name", "its own", "looks like", "name", "face")
        for wrong in found.wrong_photos[:SHOWN]:
            who, named, face = _cells(wrong.face)
            own = f"{wrong.own_score:.3f}"
            rows.add_row(f"{wrong.score:.3f}", face, who, named, own, *_cells(wrong.looks_like))
        show(rows)
    if found.outliers:
        rows = table("outlier", "of", "name", "its own")
        for outlier in found.outliers[:SHOWN]:
            who, named, face = _cells(outlier.face)
            rows.add_row(face, who, named, f"{outlier.own_score:.3f}")
        show(rows)
    if max(len(found.pairs), len(found.wrong_photos), len(found.outliers)) > SHOWN:
        click.echo(f"The first {SHOWN} are shown; --json lists all.")
    if found.wrong_photos or found.outliers:
        click.echo(
            f"`whosthere identity delete A --gallery {gallery} --face N` deletes a wrong photo. Do so first: two "
            "identities that look alike only because of it are two people."
        )
    if found.pairs:
        click.echo(f"`whosthere identity merge A B --gallery {gallery}` merges two identities.")


def _cells(side: Side) -> tuple[str, str, str]:
    return side.external_id, side.name or "", str(side.face_id)
