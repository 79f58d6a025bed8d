"""`whosthere gallery reembed`"""

from __future__ import annotations

import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click

from indexer.app_context import AppContext
from indexer.cli.common import (
    SOME_REJECTED,
    device_option,
    examples,
    json_option,
    print_json,
    progress_count,
    show,
    table,
    with_context,
)
from indexer.enrollment.reembed import Missing, Reembedder, hashed
from indexer.errors import Conflict
from indexer.models.packs import Pack
from indexer.types import Gallery

SHOWN_MISSING = 20


@click.command(
    "reembed",
    epilog=examples(
        "whosthere gallery reembed staff --model ir50",
        "whosthere gallery reembed staff --model ir50 --images photos/",
        "whosthere gallery reembed staff --rollback",
        "whosthere gallery reembed staff --forget",
    ),
)
@click.argument("name")
@click.option("--model", metavar="PACK", help="The pack that the gallery is to be bound to.")
@click.option("--rollback", is_flag=True, help="Go back to the pack that the gallery was bound to before.")
@click.option("--forget", is_flag=True, help="Delete the embeddings by other packs than the gallery's.")
@click.option(
    "--images",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="The enrolled photos, or folders of them, for faces without a kept crop; their names do not matter.",
)
@click.option(
    "--drop-missing",
    is_flag=True,
    help="Delete the faces that cannot be embedded, for want of both; their identities stay.",
)
@device_option
@json_option
@with_context
def gallery_reembed(
    context: AppContext,
    name: str,
    model: str | None,
    rollback: bool,
    forget: bool,
    images: tuple[Path, ...],
    drop_missing: bool,
    as_json: bool,
) -> None:
    """Move a gallery to another model pack.

    The new embeddings are made beside the old ones, of the crops that were kept (WHOSTHERE_KEEP_CROPS=true when the
    faces were enrolled), or of the photos that --images names. The gallery goes on answering from the old ones until
    all are there, and switches in one transaction. Interrupted, run it again: it goes on where it was.

    The old embeddings are kept for --rollback, until --forget deletes them.

    Exit code: 0 switched, 3 not switched as faces are missing, 2 wrong usage, 1 failed.
    """
    if sum(map(bool, (model, rollback, forget))) != 1:
        raise click.UsageError("give one of --model, --rollback and --forget")
    if forget and (images or drop_missing):
        raise click.UsageError("--forget embeds nothing: --images and --drop-missing go with --model or --rollback")
    for path in images:
        if path.is_file() and zipfile.is_zipfile(path):
            raise click.UsageError(f"--images {path} is a ZIP; expected photos, or folders of them: unpack it")
    gallery = context.store.galleries.get(name)
    if forget:
        _forget(context, gallery, as_json)
        return
    pack = context.packs.find_installed(model) if model else _former(context, gallery)
    photos = hashed(images, context.settings.max_image_bytes) if images else {}
    reembedder = Reembedder(context.store, context.pipeline(pack), gallery, photos)
    with progress_count("Embedding", "faces") as tell:
        for progress in reembedder.embed():
            tell(progress.embedded, progress.faces, f"{progress.missing} missing" if progress.missing else "")
    ended = reembedder.switch(drop_missing)
    missing = reembedder.missing()
    if ended.switched:
        context.indexes.of(ended.gallery).caught_up()
    shown = {
        "gallery": name,
        "model": ended.gallery.model,
        "former": gallery.model,
        "switched": ended.switched,
        "missing": [vars(face) for face in missing],
        "dropped": ended.missing if ended.switched else 0,
    }
    if as_json:
        print_json(shown)
    else:
        _tell(shown, missing, pack.name)
    if not ended.switched:
        sys.exit(SOME_REJECTED)


def _tell(shown: dict[str, Any], missing: Sequence[Missing], wanted: str) -> None:
    name, former = shown["gallery"], shown["former"]
    if shown["switched"]:
        if shown["dropped"]:
            _list(missing)
            click.echo(f"{_faces(shown['dropped'])} with neither crop nor photo deleted.")
        click.echo(
            f"Gallery {name} is bound to {wanted} now; it was to {former}. The embeddings by {former} are kept: "
            "--rollback goes back to them, --forget deletes them."
        )
        return
    _list(missing)
    click.echo(
        f"Gallery {name} is bound to {shown['model']} as before: {_faces(len(missing))} cannot be embedded by "
        f"{wanted}, as no crop was kept and no photo that shows them is at hand. Name the photos' folder with "
        "--images, or delete these faces with --drop-missing. What is embedded already stays."
    )


def _list(missing: Sequence[Missing]) -> None:
    rows = table("face", "identity", "SHA-256 of its photo")
    for face in islice(missing, SHOWN_MISSING):
        rows.add_row(str(face.face_id), face.external_id, face.image_sha256)
    show(rows)
    if len(missing) > SHOWN_MISSING:
        click.echo(f"... and {len(missing) - SHOWN_MISSING} more; --json lists all.")


def _faces(count: int) -> str:
    return "1 face" if count == 1 else f"{count} faces"


def _former(context: AppContext, gallery: Gallery) -> Pack:
    """The pack that the gallery was bound to before. Raises Conflict where nothing is kept of one, or this program has
    other files by its name; NotFound and ModelUnavailable."""
    former = next((pack for pack in context.store.reembeddings.packs(gallery.id) if pack.was_bound), None)
    if former is None:
        raise Conflict(f"there is no way back: nothing is kept of a pack that gallery {gallery.name!r} had before")
    pack = context.packs.find_installed(former.model)
    if pack.fingerprint != former.fingerprint:
        raise Conflict(
            f"there is no way back: gallery {gallery.name!r} was bound to {former.model} {former.fingerprint}, and "
            f"{pack.name} is {pack.fingerprint} here now",
            code="model_mismatch",
        )
    return pack


def _forget(context: AppContext, gallery: Gallery, as_json: bool) -> None:
    forgotten: Counter[str] = Counter()
    for pack in context.store.reembeddings.packs(gallery.id):
        forgotten[pack.model] += context.store.reembeddings.delete(gallery.id, pack.fingerprint)
    if as_json:
        print_json({"gallery": gallery.name, "forgotten": forgotten})
        return
    for model, faces in forgotten.items():
        click.echo(f"The embeddings of {_faces(faces)} by {model} are deleted.")
    if not forgotten:
        click.echo(f"Nothing is kept of another pack for gallery {gallery.name}.")
