"""/v1/webhooks"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from indexer.errors import NotFound
from search_service.api import security
from search_service.api.errors import Forbidden
from search_service.api.payloads import Payload
from search_service.api.permissions import requires
from search_service.api.requests import cursor_after, page_of
from search_service.api.routes.galleries import Cursor, Limit
from search_service.api.routes.openapi import failures
from search_service.api.state import Service
from search_service.matching.decision import Decision
from search_service.serializers import delivery_object, webhook_object
from search_service.store.api_keys import Scope
from search_service.store.events import DEAD, WAITING
from search_service.store.webhooks import Webhook

# The service sends requests to any address that a webhook names.
router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], dependencies=[requires(Scope.ADMIN)])


class NewWebhook(Payload):
    url: str = Field(examples=["https://payroll.example.com/doors"])
    gallery: str | None = Field(default=None, description="Whose events it gets; null for every gallery.")
    decisions: list[Decision] = Field(default=[Decision.MATCH], min_length=1, description="Which events it gets.")


class WebhookPayload(NewWebhook):
    """A webhook, without its secret."""

    id: str
    created_at: datetime
    waiting: int = Field(description="Events on their way to it.")
    dead: int = Field(description="Events that were tried too often; `replay` tries them anew.")


class MadeWebhook(WebhookPayload):
    secret: str = Field(description="Signs what is sent. Shown this once.")


class WebhookList(Payload):
    webhooks: list[WebhookPayload]


class DeliveryPayload(Payload):
    """One event on its way to one webhook. What has arrived is not kept."""

    id: int = Field(description="As in the header `X-Whosthere-Delivery`.")
    webhook_id: str
    event_id: int
    state: Literal["waiting", "dead"]
    attempts: int
    next_at: datetime
    problem: str | None = Field(description="Why the last try failed.")


class DeliveryList(Payload):
    deliveries: list[DeliveryPayload]
    cursor: str | None


class Replayed(Payload):
    replayed: int


class WebhookDeleted(Payload):
    deleted: str
    undelivered: int = Field(description="Events that were on their way to it, or dead, and are not sent any more.")


State = Annotated[Literal["waiting", "dead"], Query(description="`dead`: tried too often.")]


@router.get("", response_model=WebhookList)
async def list_webhooks(service: Service, request: Request) -> Any:
    """All of them, at most 100, in the order of their making."""
    hooks = await service.off_loop(service.context.webhooks.list)
    return {"webhooks": [webhook_object(hook) for hook in _opened(request, hooks)]}


@router.post("", status_code=201, response_model=MadeWebhook, responses=failures(409, 413))
async def create_webhook(service: Service, request: Request, new: NewWebhook) -> Any:
    """Sends every event from now on to a URL."""
    if new.gallery is not None:
        security.check_gallery(request, new.gallery)
    elif (key := security.key_of(request)) is not None and key.galleries is not None:
        message = f"the API key {key.name!r} is limited to single galleries; say which one's events the webhook gets"
        raise Forbidden(message, code="forbidden_gallery")
    gallery = None if new.gallery is None else await service.gallery(new.gallery)
    made, secret = await service.off_loop(service.context.webhooks.create, new.url, gallery, new.decisions)
    return webhook_object(made) | {"secret": secret}


@router.get("/{webhook_id}", response_model=WebhookPayload)
async def show_webhook(service: Service, request: Request, webhook_id: str) -> Any:
    """One webhook."""
    return webhook_object(await _webhook(service, request, webhook_id))


@router.delete("/{webhook_id}", response_model=WebhookDeleted)
async def delete_webhook(service: Service, request: Request, webhook_id: str) -> Any:
    """Sends nothing more to it, also what was on its way."""
    await _webhook(service, request, webhook_id)
    gone = await service.off_loop(service.context.webhooks.delete, webhook_id)
    return WebhookDeleted(deleted=gone.id, undelivered=gone.waiting + gone.dead)


@router.get("/{webhook_id}/deliveries", response_model=DeliveryList)
async def list_deliveries(
    service: Service,
    request: Request,
    webhook_id: str,
    state: State = "dead",
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Any:
    """The dead letters, oldest first; or what is on its way."""
    await _webhook(service, request, webhook_id)
    wanted = DEAD if state == "dead" else WAITING
    found = await service.off_loop(
        service.context.webhooks.deliveries, webhook_id, wanted, cursor_after(cursor), limit + 1
    )
    shown, following = page_of(found, limit)
    return {"deliveries": [delivery_object(one) for one in shown], "cursor": following}


@router.post("/{webhook_id}/replay", response_model=Replayed)
async def replay(service: Service, request: Request, webhook_id: str) -> Any:
    """Tries the dead letters anew, from now on."""
    await _webhook(service, request, webhook_id)
    replayed = await service.off_loop(service.context.webhooks.replay, webhook_id)
    service.deliverer.wake()
    return Replayed(replayed=replayed)


async def _webhook(service: Service, request: Request, webhook_id: str) -> Webhook:
    """Raises NotFound, also where the request's key does not open its gallery."""
    found = await service.off_loop(service.context.webhooks.get, webhook_id)
    if not _opened(request, [found]):
        raise NotFound(f"there is no webhook {webhook_id!r}", code="webhook_not_found")
    return found


def _opened(request: Request, hooks: Sequence[Webhook]) -> list[Webhook]:
    """Those whose gallery the request's key opens. Those of every gallery are for keys of every gallery."""
    key = security.key_of(request)
    return [hook for hook in hooks if key is None or key.galleries is None or hook.gallery in key.galleries]
