"""API keys, events, webhooks and deliveries as JSON objects, for the command line and HTTP."""

from __future__ import annotations

from typing import Any

from indexer.rounding import SCORE_DECIMALS
from indexer.serializers import fields_of, utc
from search_service.store.api_keys import ApiKey
from search_service.store.event_pages import Event
from search_service.store.webhooks import Delivery, Webhook


def key_object(key: ApiKey) -> dict[str, Any]:
    """Returns the key, without its secret."""
    return fields_of(key)


def event_object(event: Event) -> dict[str, Any]:
    """Returns the event as HTTP answers and webhooks contain it."""
    score = None if event.score is None else round(event.score, SCORE_DECIMALS)
    return fields_of(event) | {"at": utc(event.at), "score": score}


def webhook_object(webhook: Webhook) -> dict[str, Any]:
    """Returns the webhook and its pending deliveries, without its secret."""
    return fields_of(webhook) | {"created_at": utc(webhook.created_at)}


def delivery_object(delivery: Delivery) -> dict[str, Any]:
    """Returns the delivery."""
    return fields_of(delivery) | {"next_at": utc(delivery.next_at)}
