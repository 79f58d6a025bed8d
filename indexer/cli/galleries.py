"""`whosthere gallery create|list|show|delete|rebuild`."""

from __future__ import annotations

import json

import click

from indexer.app_context import AppContext
from indexer.cli.common import examples, json_option, print_json, show, table, with_context
from indexer.serializers import gallery_detail, gallery_object


@click.command("create", epilog=examples("whosthere gallery create staff"))
@click.argument("name")
@click.option("--model", metavar="PACK", help="Model pack it is bound to.")
@json_option
@with_context
def gallery_create(context: AppContext, name: str, model: str | None, as_json: bool) -> None:
    """Create an empty gallery."""
    pack = context.usable(model)
    gallery = context.store.galleries.create(name, pack.name, pack.fingerprint, pack.dim)
    if as_json:
        print_json(gallery_object(context.store, gallery))
    else:
        click.echo(f"Gallery {gallery.name} created, bound to model pack {gallery.model}.")


@click.command("list", epilog=examples("whosthere gallery list --json"))
@json_option
@with_context
def gallery_list(context: AppContext, as_json: bool) -> None:
    """List the galleries."""
    objects = [gallery_object(context.store, gallery) for gallery in context.store.galleries.list()]
    if as_json:
        print_json(objects)
        return
    rows = table("gallery", "model", "identities", "faces")
    for o in objects:
        rows.add_row(o["name"], o["model"], str(o["identities"]), str(o["faces"]))
    show(rows if objects else "There are no galleries. `whosthere enroll` creates one.")


@click.command("show", epilog=examples("whosthere gallery show staff --json"))
@click.argument("name")
@json_option
@with_context
def gallery_show(context: AppContext, name: str, as_json: bool) -> None:
    """Show a gallery and the state of its index."""
    gallery = context.store.galleries.get(name)
    shown = gallery_detail(context.store, gallery, context.indexes.get(gallery).state())
    if as_json:
        print_json(shown)
        return
    rows = table("", "")
    for key, value in shown.items():
        rows.add_row(key, json.dumps(value) if isinstance(value, dict) else str(value))
    show(rows)


@click.command("delete", epilog=examples("whosthere gallery delete staff --yes"))
@click.argument("name")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@json_option
@with_context
def gallery_delete(context: AppContext, name: str, yes: bool, as_json: bool) -> None:
    """Delete a gallery with all its identities and faces."""
    gallery = context.store.galleries.get(name)
    identities, faces = context.store.galleries.counts(gallery.id)
    question = f"Delete gallery {name} with {identities} identities and {faces} faces?"
    if not yes and not click.confirm(question, err=as_json):
        raise click.ClickException("nothing was deleted")
    context.store.galleries.delete(name)
    context.indexes.delete(gallery)
    if as_json:
        print_json({"gallery": name, "identities": identities, "faces": faces})
    else:
        click.echo(f"Gallery {name} deleted: {identities} identities, {faces} faces.")


@click.command("rebuild", epilog=examples("whosthere gallery rebuild staff"))
@click.argument("name")
@json_option
@with_context
def gallery_rebuild(context: AppContext, name: str, as_json: bool) -> None:
    """Rebuild a gallery's index and counts from the database."""
    gallery = context.store.galleries.get(name)
    context.store.galleries.correct_counts(gallery.id)
    faces = context.indexes.get(gallery).rebuild()
    if as_json:
        print_json({"gallery": name, "faces": faces})
    else:
        click.echo(f"The index of gallery {name} was rebuilt from {faces} faces.")
