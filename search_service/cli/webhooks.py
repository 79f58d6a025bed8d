"""`whosthere webhooks`."""

from __future__ import annotations

import click

from indexer.cli.common import examples, json_option, print_json, show, table
from search_service.cli.common import with_context
from search_service.matching.decision import Decision
from search_service.serializers import delivery_object, webhook_object
from search_service.service_context import ServiceContext
from search_service.store.events import DEAD


@click.group("webhooks")
def webhooks_group() -> None:
    """Manage the webhooks to which `serve` sends events."""


@webhooks_group.command(
    "create",
    epilog=examples(
        "whosthere webhooks create --url https://payroll.example.com/doors --gallery staff",
        "whosthere webhooks create --url http://10.0.0.7:9000/ --decision no_match --decision review",
    ),
)
@click.option("--url", required=True, help="Events are posted to this http or https URL.")
@click.option("--gallery", "-g", metavar="G", help="Only events of this gallery; default: every gallery.")
@click.option(
    "--decision",
    "decisions",
    type=click.Choice([str(d) for d in Decision]),
    multiple=True,
    default=(str(Decision.MATCH),),
    show_default=True,
    help="Only events with this decision; may be repeated.",
)
@json_option
@with_context
def webhooks_create(
    context: ServiceContext, url: str, gallery: str | None, decisions: tuple[str, ...], as_json: bool
) -> None:
    """Send every new event to a URL. Prints the signing secret, only once."""
    found = None if gallery is None else context.store.galleries.get(gallery)
    webhook, secret = context.webhooks.create(url, found, decisions)
    if as_json:
        print_json(webhook_object(webhook) | {"secret": secret})
        return
    click.echo(f"Webhook {webhook.id} created. Its secret, shown only once:\n{secret}")
    if url.startswith("http:"):
        click.echo("Deliveries to it are signed but not encrypted: others on the network can read them.", err=True)


@webhooks_group.command("list", epilog=examples("whosthere webhooks list --json"))
@json_option
@with_context
def webhooks_list(context: ServiceContext, as_json: bool) -> None:
    """List the webhooks and the number of deliveries waiting for each."""
    hooks = context.webhooks.list()
    if as_json:
        print_json([webhook_object(hook) for hook in hooks])
        return
    rows = table("webhook", "url", "gallery", "decisions", "waiting", "dead")
    for h in hooks:
        rows.add_row(h.id, h.url, h.gallery or "(all)", ", ".join(h.decisions), str(h.waiting), str(h.dead))
    show(rows if hooks else "There are no webhooks. `whosthere webhooks create` creates one.")


@webhooks_group.command("delete", epilog=examples("whosthere webhooks delete wh_0123456789abcdef"))
@click.argument("webhook_id", metavar="ID")
@json_option
@with_context
def webhooks_delete(context: ServiceContext, webhook_id: str, as_json: bool) -> None:
    """Delete a webhook with its waiting deliveries."""
    deleted = context.webhooks.delete(webhook_id)
    undelivered = deleted.waiting + deleted.dead
    if as_json:
        print_json({"deleted": deleted.id, "undelivered": undelivered})
    else:
        click.echo(f"Webhook {deleted.id} deleted; {undelivered} deliveries were still waiting.")


@webhooks_group.command("dead", epilog=examples("whosthere webhooks dead wh_0123456789abcdef --json"))
@click.argument("webhook_id", metavar="ID")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Show at most this many.")
@json_option
@with_context
def webhooks_dead(context: ServiceContext, webhook_id: str, limit: int, as_json: bool) -> None:
    """List the deliveries that failed too often, oldest first."""
    dead = context.webhooks.deliveries(webhook_id, DEAD, limit=limit)
    if as_json:
        print_json([delivery_object(one) for one in dead])
        return
    rows = table("delivery", "event", "tries", "problem")
    for one in dead:
        rows.add_row(str(one.id), str(one.event_id), str(one.attempts), one.problem or "")
    show(rows if dead else f"No deliveries to {webhook_id} are dead.")


@webhooks_group.command("replay", epilog=examples("whosthere webhooks replay wh_0123456789abcdef"))
@click.argument("webhook_id", metavar="ID")
@json_option
@with_context
def webhooks_replay(context: ServiceContext, webhook_id: str, as_json: bool) -> None:
    """Retry the dead deliveries; a running `serve` sends them at once."""
    replayed = context.webhooks.replay(webhook_id)
    if as_json:
        print_json({"replayed": replayed})
    else:
        click.echo(f"{replayed} deliveries will be retried.")
