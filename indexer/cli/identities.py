"""`whosthere identity`."""

from __future__ import annotations

from typing import Any

import click

from indexer.app_context import AppContext
from indexer.cli.common import examples, gallery_option, json_option, print_json, show, table, with_context
from indexer.errors import NotFound
from indexer.gallery.identity_search import EVERYBODY, IdentityFilter, parse_metadata
from indexer.serializers import face_object, identity_object


@click.group("identity")
def identity_group() -> None:
    """List, show, delete and merge the identities of a gallery."""


@identity_group.command(
    "list",
    epilog=examples(
        "whosthere identity list --gallery staff --limit 20",
        "whosthere identity list --gallery staff --query 'ana ruiz' --metadata department=sales",
    ),
)
@gallery_option
@click.option("--query", default="", metavar="TEXT", help="Only with these words in id or name, in any case.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Only with this value; can be repeated.")
@click.option("--limit", type=click.IntRange(min=1), help="Show at most this many.")
@json_option
@with_context
def identity_list(
    context: AppContext, gallery: str, query: str, metadata: tuple[str, ...], limit: int | None, as_json: bool
) -> None:
    """List the identities of a gallery, or search them."""
    wanted = IdentityFilter(query, parse_metadata(metadata))
    people = context.store.identities.list(context.store.galleries.get(gallery).id, limit=limit, wanted=wanted)
    if as_json:
        print_json([identity_object(person) for person in people])
        return
    rows = table("identity", "name", "faces", "valid from", "valid until")
    for p in people:
        rows.add_row(p.external_id, p.name or "", str(p.faces), _day(p.valid_from), _day(p.valid_until))
    show(rows if people else f"Gallery {gallery} is empty." if wanted == EVERYBODY else "There are no such identities.")


@identity_group.command("show", epilog=examples("whosthere identity show ana --gallery staff --json"))
@click.argument("external_id")
@gallery_option
@json_option
@with_context
def identity_show(context: AppContext, external_id: str, gallery: str, as_json: bool) -> None:
    """Show one identity with its faces."""
    gallery_id = context.store.galleries.get(gallery).id
    person = context.store.identities.get(gallery_id, external_id)
    faces = context.store.faces.list(gallery_id, external_id)
    shown = identity_object(person) | {"faces": [face_object(face) for face in faces]}
    if as_json:
        print_json(shown)
        return
    rows = table("", "")
    for key, value in shown.items():
        rows.add_row(key, ", ".join(str(f.id) for f in faces) if key == "faces" else str(value or ""))
    show(rows)


@identity_group.command(
    "delete",
    epilog=examples(
        "whosthere identity delete ana --gallery staff", "whosthere identity delete ana --gallery staff --face 93"
    ),
)
@click.argument("external_id")
@gallery_option
@click.option("--face", "face_id", type=click.IntRange(min=1), help="Delete only this face.")
@json_option
@with_context
def identity_delete(context: AppContext, external_id: str, gallery: str, face_id: int | None, as_json: bool) -> None:
    """Delete an identity with all its faces, or one wrong face of it. It is never returned again."""
    found = context.store.galleries.get(gallery)
    if face_id is None:
        faces = context.store.identities.delete(found.id, external_id)
    else:
        own = context.store.faces.list(found.id, external_id, after=face_id - 1, limit=1)
        if [face.id for face in own] != [face_id]:
            raise NotFound(f"identity {external_id!r} has no face {face_id}", code="face_not_found")
        context.store.faces.delete(found.id, face_id)
        faces = 1
    context.indexes.get(found).update()
    if as_json:
        print_json({"external_id": external_id, "faces": faces})
    elif face_id is None:
        click.echo(f"Identity {external_id} deleted with {faces} faces.")
    else:
        click.echo(f"Face {face_id} of identity {external_id} deleted.")


@identity_group.command("merge", epilog=examples("whosthere identity merge ana ana-old --gallery staff"))
@click.argument("into", metavar="A")
@click.argument("other", metavar="B")
@gallery_option
@json_option
@with_context
def identity_merge(context: AppContext, into: str, other: str, gallery: str, as_json: bool) -> None:
    """Merge identity B into identity A: one person under two ids.

    The faces of B become those of A, and B is deleted. A keeps its name, metadata and validity dates; B's name and
    metadata fill in what A does not have.
    """
    found = context.store.galleries.get(gallery)
    person, faces = context.store.identities.merge(found.id, into, other)
    context.indexes.get(found).update()
    if as_json:
        print_json({"identity": identity_object(person), "merged": other, "faces": faces})
    else:
        click.echo(f"Identity {other} merged into {into}: {faces} faces moved, {into} now has {person.faces}.")


def _day(time: Any) -> str:
    return time.isoformat(timespec="minutes") if time else ""
