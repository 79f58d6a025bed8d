"""/v1/webhooks"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from indexer.errors import NotFound
from search_service.api import security
from search_service.api.errors import Forbidden
from search_service.api.models.events import (
    DeliveryList,
    MadeWebhook,
    NewWebhook,
    Replayed,
    WebhookDeleted,
    WebhookList,
    WebhookPayload,
)
from search_service.api.pages import BY_ID, Paged
from search_service.api.permissions import requires
from search_service.api.routes.openapi import failures
from search_service.api.state import Service
from search_service.api.threads import writes
from search_service.serializers import delivery_object, webhook_object
from search_service.store.api_keys import Scope
from search_service.store.events import DEAD, WAITING
from search_service.store.webhooks import Webhook

# The service sends requests to any address that a webhook names.
router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], dependencies=[requires(Scope.ADMIN)])

DeliveryState = Annotated[Literal["waiting", "dead"], Query(description="`dead`: failed too often.")]


@router.get("", response_model=WebhookList)
def list_webhooks(service: Service, request: Request) -> Any:
    """Lists all webhooks, at most 100, oldest first."""
    hooks = _permitted(request, service.context.webhooks.list())
    return {"webhooks": [webhook_object(hook) for hook in hooks]}


@router.post("", status_code=201, response_model=MadeWebhook, responses=failures(409, 413))
@writes
def create_webhook(service: Service, request: Request, new: NewWebhook) -> Any:
    """Sends every event from now on to a URL."""
    if new.gallery is not None:
        security.check_gallery(request, new.gallery)
    elif (key := security.key_of(request)) is not None and key.galleries is not None:
        message = f"the API key {key.name!r} is limited to certain galleries; name the gallery whose events are sent"
        raise Forbidden(message, code="forbidden_gallery")
    gallery = None if new.gallery is None else service.context.store.galleries.get(new.gallery)
    webhook, secret = service.context.webhooks.create(new.url, gallery, new.decisions)
    return webhook_object(webhook) | {"secret": secret}


@router.get("/{webhook_id}", response_model=WebhookPayload)
def show_webhook(service: Service, request: Request, webhook_id: str) -> Any:
    """Returns one webhook."""
    return webhook_object(_webhook(service, request, webhook_id))


@router.delete("/{webhook_id}", response_model=WebhookDeleted)
@writes
def delete_webhook(service: Service, request: Request, webhook_id: str) -> Any:
    """Deletes a webhook and its pending deliveries."""
    _webhook(service, request, webhook_id)
    gone = service.context.webhooks.delete(webhook_id)
    return WebhookDeleted(deleted=gone.id, undelivered=gone.waiting + gone.dead)


@router.get("/{webhook_id}/deliveries", response_model=DeliveryList)
def list_deliveries(
    service: Service, request: Request, webhook_id: str, page: Paged, state: DeliveryState = "dead"
) -> Any:
    """Lists the deliveries that failed too often, oldest first, or those that are still waiting."""
    _webhook(service, request, webhook_id)
    wanted, after = DEAD if state == "dead" else WAITING, BY_ID.decode(page.cursor)
    found = service.context.webhooks.deliveries(webhook_id, wanted, after, page.wanted)
    return page.answer("deliveries", found, delivery_object)


@router.post("/{webhook_id}/replay", response_model=Replayed)
@writes
def replay(service: Service, request: Request, webhook_id: str) -> Any:
    """Tries the deliveries that failed too often again, starting now."""
    _webhook(service, request, webhook_id)
    replayed = service.context.webhooks.replay(webhook_id)
    service.deliverer.wake()
    return Replayed(replayed=replayed)


def _webhook(service: Service, request: Request, webhook_id: str) -> Webhook:
    """Returns a webhook. Raises NotFound, also where the request's key may not use its gallery."""
    found = service.context.webhooks.get(webhook_id)
    if not _permitted(request, [found]):
        raise NotFound(f"there is no webhook {webhook_id!r}", code="webhook_not_found")
    return found


def _permitted(request: Request, hooks: Sequence[Webhook]) -> list[Webhook]:
    """Returns the webhooks whose gallery the request's key may use. Those of every gallery need a key for all."""
    key = security.key_of(request)
    return [hook for hook in hooks if key is None or key.galleries is None or hook.gallery in key.galleries]
