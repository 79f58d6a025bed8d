"""`whosthere gallery reembed`."""

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
from indexer.enrollment.reembed import Missing, Reembedder, hash_images
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
@click.option("--model", metavar="PACK", help="Model pack to bind the gallery to.")
@click.option("--rollback", is_flag=True, help="Bind the gallery to its former pack again.")
@click.option("--forget", is_flag=True, help="Delete the embeddings of other packs.")
@click.option(
    "--images",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="The enrolled photos, or folders of them, for faces without a kept crop. Their names do not matter.",
)
@click.option(
    "--drop-missing",
    is_flag=True,
    help="Delete the faces that have neither a kept crop nor a photo; their identities stay.",
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

    The new embeddings are computed from the kept crops (WHOSTHERE_KEEP_CROPS=true when the faces were enrolled) or from
    the photos given by --images. The gallery answers from its old embeddings until all new ones exist, and switches in
    one transaction. Run it again to continue an interrupted run.

    The old embeddings are kept for --rollback, until --forget deletes them.

    Exit code: 0 switched, 3 not switched because faces are missing, 2 wrong usage, 1 failed.
    """
    if sum(map(bool, (model, rollback, forget))) != 1:
        raise click.UsageError("give one of --model, --rollback and --forget")
    if forget and (images or drop_missing):
        raise click.UsageError("--images and --drop-missing need --model or --rollback")
    for path in images:
        if path.is_file() and zipfile.is_zipfile(path):
            raise click.UsageError(f"--images {path} is a ZIP file; expected photos or folders of photos: unpack it")
    gallery = context.store.galleries.get(name)
    if forget:
        _forget(context, gallery, as_json)
        return
    pack = context.packs.find_installed(model) if model else _former(context, gallery)
    photos = hash_images(images, context.settings.max_image_bytes) if images else {}
    reembedder = Reembedder(context.store, context.pipeline(pack), gallery, photos, context.indexes)
    with progress_count("Embedding", "faces") as show_progress:
        for progress in reembedder.embed():
            show_progress(progress.embedded, progress.faces, f"{progress.missing} missing" if progress.missing else "")
    ended = reembedder.switch(drop_missing)
    missing = reembedder.missing()
    if ended.switched:
        context.indexes.get(ended.gallery).update()
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
        _print(shown, missing, pack.name)
    if not ended.switched:
        sys.exit(SOME_REJECTED)


def _print(shown: dict[str, Any], missing: Sequence[Missing], wanted: str) -> None:
    name, former = shown["gallery"], shown["former"]
    if shown["switched"]:
        if shown["dropped"]:
            _list(missing)
            click.echo(f"{_faces(shown['dropped'])} without a crop and without a photo deleted.")
        click.echo(
            f"Gallery {name} is now bound to {wanted}; before, it was bound to {former}. The embeddings of {former} "
            "are kept: --rollback uses them again, --forget deletes them."
        )
        return
    _list(missing)
    click.echo(
        f"Gallery {name} is still bound to {shown['model']}: {_faces(len(missing))} cannot be embedded with "
        f"{wanted}, because no crop was kept and none of the photos shows them. Name the folder of the photos with "
        "--images, or delete these faces with --drop-missing. The embeddings computed so far are kept."
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
    """Returns the pack that the gallery was bound to before.

    Raises:
        Conflict: No embeddings of it are kept, or the installed pack of that name has other files.
        NotFound, ModelUnavailable: The pack is unknown or not installed.
    """
    former = next((pack for pack in context.store.reembeddings.packs(gallery.id) if pack.was_bound), None)
    if former is None:
        raise Conflict(f"gallery {gallery.name!r} cannot be rolled back: no embeddings of a former pack are kept")
    pack = context.packs.find_installed(former.model)
    if pack.fingerprint != former.fingerprint:
        raise Conflict(
            f"gallery {gallery.name!r} cannot be rolled back: it was bound to {former.model} {former.fingerprint}, but "
            f"the installed {pack.name} is {pack.fingerprint}",
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
        click.echo(f"The embeddings of {_faces(faces)} by {model} were deleted.")
    if not forgotten:
        click.echo(f"Gallery {gallery.name} has no embeddings of other packs.")
