"""API keys, events, webhooks and deliveries as JSON objects, for the command line and HTTP."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from indexer.serializers import SCORE_DECIMALS, utc
from search_service.store.api_keys import ApiKey
from search_service.store.events import Event
from search_service.store.webhooks import Delivery, Webhook


def key_object(key: ApiKey) -> dict[str, Any]:
    """The key, without its secret."""
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "galleries": None if key.galleries is None else sorted(key.galleries),
        "per_minute": key.per_minute,
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }


def event_object(event: Event) -> dict[str, Any]:
    """The event, as it is sent to webhooks too."""
    return {
        "id": event.id,
        "gallery": event.gallery,
        "at": utc(event.at),
        "identity_id": event.identity_id,
        "external_id": event.external_id,
        "name": event.name,
        "device": event.device,
        "direction": event.direction,
        "decision": event.decision,
        "score": None if event.score is None else round(event.score, SCORE_DECIMALS),
        "threshold": event.threshold,
        "request_id": event.request_id,
    }


def webhook_object(webhook: Webhook) -> dict[str, Any]:
    """The webhook and how much is on its way to it, without its secret."""
    return asdict(webhook) | {
        "decisions": list(webhook.decisions),
        "created_at": utc(webhook.created_at),
    }


def delivery_object(delivery: Delivery) -> dict[str, Any]:
    return asdict(delivery) | {"next_at": utc(delivery.next_at)}
