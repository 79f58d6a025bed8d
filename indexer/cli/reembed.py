"""`whosthere gallery reembed`"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import click

from indexer.cli.common import (
    SOME_REJECTED,
    device_option,
    examples,
    json_option,
    print_json,
    progress_count,
    show,
    table,
    with_home,
)
from indexer.gallery.embeddings import Beside
from indexer.home import Home
from indexer.reembedding import Missing, Reembedder, hashed
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
@click.option("--model", metavar="PACK", help="The pack that is to take the place of the gallery's.")
@click.option("--rollback", is_flag=True, help="Go back to the pack that the gallery had before.")
@click.option("--forget", is_flag=True, help="Delete the embeddings by other packs; there is no way back then.")
@click.option(
    "--images",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Photos, or folders of them, for faces of which no crop was kept; they are known by their bytes.",
)
@click.option("--drop-missing", is_flag=True, help="Delete the faces that there is neither crop nor photo of.")
@device_option
@json_option
@with_home
def gallery_reembed(
    home: Home,
    name: str,
    model: str | None,
    rollback: bool,
    forget: bool,
    images: tuple[Path, ...],
    drop_missing: bool,
    as_json: bool,
) -> None:
    """Move a gallery to another model pack.

    The new embeddings are made beside the old ones, of the crops that were kept (WHOSTHERE_KEEP_CROPS) or of the
    photos. The gallery goes on answering from the old ones until all are there, and switches in one transaction.
    Interrupted, it goes on where it was.

    Exit code: 0 switched, 3 not switched as faces are missing, 2 wrong usage, 1 failed.
    """
    if sum(map(bool, (model, rollback, forget))) != 1:
        raise click.UsageError("give one of --model, --rollback and --forget")
    gallery = home.store.gallery(name)
    if forget:
        _forget(home, gallery, as_json)
        return
    wanted = model or _former(home, gallery).model
    pack = home.packs.usable(wanted)
    photos = hashed(images, home.settings.max_image_bytes) if images else {}
    reembedder = Reembedder(home.store, home.pipeline(pack), gallery, photos)
    with progress_count("Embedding", "faces") as tell:
        for progress in reembedder.embed():
            tell(progress.embedded, progress.faces, f"{progress.missing} missing" if progress.missing else "")
    ended = reembedder.switch(drop_missing)
    if ended.switched:
        home.indexes.of(ended.gallery).caught_up()
    missing = [] if ended.switched else list(reembedder.missing())
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


def _tell(shown: dict[str, Any], missing: list[Missing], wanted: str) -> None:
    if shown["switched"]:
        dropped = f", {shown['dropped']} faces without crop or photo deleted" if shown["dropped"] else ""
        click.echo(f"Gallery {shown['gallery']} is bound to {wanted} now, and was to {shown['former']}{dropped}.")
        return
    rows = table("missing", "identity", "SHA-256 of its photo")
    for face in islice(missing, SHOWN_MISSING):
        rows.add_row(str(face.face_id), face.external_id, face.image_sha256)
    show(rows)
    more = f"... and {len(missing) - SHOWN_MISSING} more, all in --json. " if len(missing) > SHOWN_MISSING else ""
    click.echo(
        f"{more}Gallery {shown['gallery']} is still bound to {shown['model']}: of {len(missing)} faces there is "
        "neither crop nor photo. Name folders with --images, or delete them with --drop-missing."
    )


def _former(home: Home, gallery: Gallery) -> Beside:
    """The pack that the gallery had before."""
    beside = home.store.former_packs(gallery.id)
    if not beside:
        raise click.ClickException(f"there is no way back: nothing is kept of another pack for gallery {gallery.name}")
    return beside[0]


def _forget(home: Home, gallery: Gallery, as_json: bool) -> None:
    forgotten = {
        pack.model: home.store.forget_embeddings(gallery.id, pack.fingerprint)
        for pack in home.store.former_packs(gallery.id)
    }
    if as_json:
        print_json({"gallery": gallery.name, "forgotten": forgotten})
        return
    for model, faces in forgotten.items():
        click.echo(f"{faces} embeddings by {model} deleted.")
    if not forgotten:
        click.echo(f"Nothing is kept of another pack for gallery {gallery.name}.")
