"""`whosthere keys`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import click

from indexer.cli.common import examples, json_option, print_json, show, table
from indexer.clock import now
from indexer.enrollment.manifests import parse_time
from indexer.errors import InvalidRequest
from search_service.cli.common import with_context
from search_service.serializers import key_object
from search_service.service_context import ServiceContext
from search_service.store.api_keys import ApiKey, Scope, daily_budget


@click.group("keys")
def keys_group() -> None:
    """Create, list and revoke the API keys that `serve` requires."""


@keys_group.command(
    "create",
    epilog=examples(
        "whosthere keys create --name admin --scope admin",
        "whosthere keys create --name north-door --scope search --gallery staff --expires 365d",
        "whosthere keys create --name personnel --scope enroll --gallery staff --per-minute 600 --json",
    ),
)
@click.option("--name", required=True, help="What the key is for; must be unique.")
@click.option(
    "--scope",
    "scopes",
    required=True,
    multiple=True,
    type=click.Choice([str(scope) for scope in Scope]),
    help="What it allows; each scope includes those before it.",
)
@click.option(
    "--gallery", "-g", "galleries", multiple=True, metavar="G", help="Only for this gallery; may be repeated."
)
@click.option("--expires", metavar="WHEN", help="When it expires: 2027-01-01, a time, or 90d from now.")
@click.option("--per-minute", type=int, metavar="N", help="Requests a minute that each worker accepts with it.")
@click.option(
    "--daily-probes", type=int, metavar="N", help="Different probes a day; 0 for any number (WHOSTHERE_DAILY_PROBES)."
)
@json_option
@with_context
def keys_create(
    context: ServiceContext,
    name: str,
    scopes: tuple[str, ...],
    galleries: tuple[str, ...],
    expires: str | None,
    per_minute: int | None,
    daily_probes: int | None,
    as_json: bool,
) -> None:
    """Create an API key and print it, only once. As soon as one key exists, `serve` requires keys."""
    opened = [Scope(scope) for scope in scopes]
    budget = daily_budget(opened, daily_probes, context.settings.daily_probes)
    key, text = context.keys.create(name, opened, galleries or None, _expiry(expires), per_minute, budget)
    there = {gallery.name for gallery in context.store.galleries.list()}
    for gallery in sorted(set(galleries) - there):
        click.echo(f"There is no gallery {gallery} yet; the key will be valid for it once it is created.", err=True)
    if as_json:
        print_json({"id": key.id, "key": text})
    else:
        click.echo(text)
        click.echo(
            f"Key {key.id} created. It cannot be shown again; `whosthere keys revoke {key.id}` revokes it.", err=True
        )


@keys_group.command("list", epilog=examples("whosthere keys list --json"))
@json_option
@with_context
def keys_list(context: ServiceContext, as_json: bool) -> None:
    """List the API keys, including revoked ones, without their secrets."""
    keys = context.keys.list()
    if as_json:
        print_json([key_object(key) for key in keys])
        return
    rows = table("id", "name", "scopes", "galleries", "a minute", "probes a day", "state")
    for key in keys:
        galleries = "all" if key.galleries is None else ", ".join(sorted(key.galleries))
        limits = ["" if limit is None else str(limit) for limit in (key.per_minute, key.daily_probes)]
        rows.add_row(key.id, key.name, ", ".join(sorted(key.scopes)), galleries, *limits, _state(key))
    show(rows if keys else "There are no keys: `serve` only answers this machine. `keys create` creates one.")


@keys_group.command("revoke", epilog=examples("whosthere keys revoke 0123456789abcdef"))
@click.argument("key_id", metavar="ID")
@json_option
@with_context
def keys_revoke(context: ServiceContext, key_id: str, as_json: bool) -> None:
    """Revoke an API key in every running service of this database."""
    key = context.keys.revoke(key_id)
    if as_json:
        print_json(key_object(key))
    else:
        click.echo(f"Key {key.id} ({key.name}) is revoked.")


def _expiry(text: str | None) -> datetime | None:
    """Parses `--expires`. Raises InvalidRequest."""
    days = re.fullmatch(r"(\d{1,5})d", text or "", re.ASCII)
    if days:
        return now() + timedelta(days=int(days[1]))
    try:
        return parse_time("--expires", text)
    except InvalidRequest as error:
        raise InvalidRequest(f"{error.message}, or 90d for days from now") from error


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_minute(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'expired' if key.is_expired(now()) else 'valid until'} {_minute(key.expires_at)}"


def _minute(time: datetime) -> str:
    return time.isoformat(timespec="minutes")
