"""Wire models of events, and of webhooks and their deliveries."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from search_service.api.models.base import Cursor, Payload, Time
from search_service.matching.decision import Decision, DecisionReason
from search_service.store.event_pages import Direction

WEBHOOK_ID = ["3f0c9a5e7b1d4c28"]


class LivenessPayload(Payload):
    """The result of a check for presentation attacks."""

    score: float = Field(description="0 to 1, higher for live faces.", examples=[0.9312])
    live: bool
    model: str = Field(description="The liveness pack.", examples=["minifasnet"])


class EventPayload(Payload):
    """A face was recognized, or not. Its identity is described as it was at that time."""

    id: int = Field(examples=[5012])
    gallery: str = Field(examples=["staff"])
    at: Time
    identity_id: int | None = Field(
        description="Null, with `external_id` and `name`, where nobody was recognized.", examples=[17]
    )
    external_id: str | None = Field(examples=["e-1042"])
    name: str | None = Field(examples=["Ana Kovač"])
    device: str = Field(examples=["north-door"])
    direction: Direction | None
    decision: Decision
    score: float | None = Field(description="Cosine of the best candidate; null without one.", examples=[0.7213])
    threshold: float = Field(examples=[0.4127])
    request_id: str | None = Field(examples=["5b0e3f0c2d8a4d6f"])
    reasons: list[DecisionReason] = Field(
        description="Why it is no match or a review. `not_live`: an attempted presentation attack.", examples=[[]]
    )
    liveness: LivenessPayload | None = Field(description="Null where it was not checked.")


class RecordedPayload(EventPayload):
    recorded: bool = Field(
        description="false: this earlier event is within its cooldown, and no new event was recorded."
    )


class EventList(Payload):
    events: list[EventPayload]
    cursor: Cursor


class AttendanceRow(Payload):
    """One day of a person."""

    day: str = Field(examples=["2026-11-02"])
    external_id: str = Field(examples=["e-1042"])
    name: str | None = Field(examples=["Ana Kovač"])
    first_in: str | None = Field(examples=["2026-11-02T08:03:11+01:00"])
    last_out: str | None = Field(examples=["2026-11-02T16:45:09+01:00"])
    hours: float | None = Field(examples=[8.7])
    remarks: list[str] = Field(description="`missing_in`, `missing_out`, `undirected_left_out`.", examples=[[]])


class AttendancePayload(Payload):
    rows: list[AttendanceRow]


class Forgotten(Payload):
    forgotten: int = Field(examples=[1204])


class NewWebhook(Payload):
    url: str = Field(examples=["https://payroll.example.com/doors"])
    gallery: str | None = Field(
        default=None, description="The gallery whose events are sent; null for every gallery.", examples=["staff"]
    )
    decisions: list[Decision] = Field(default=[Decision.MATCH], min_length=1, description="Which events are sent.")


class WebhookPayload(NewWebhook):
    """A webhook, without its secret."""

    id: str = Field(examples=WEBHOOK_ID)
    created_at: Time
    waiting: int = Field(description="Events waiting to be delivered.", examples=[0])
    dead: int = Field(description="Events whose delivery failed too often; `replay` tries them again.", examples=[0])


class MadeWebhook(WebhookPayload):
    secret: str = Field(description="Signs what is sent. Shown only once.", examples=["whsec_4fK1..."])


class WebhookList(Payload):
    webhooks: list[WebhookPayload]


class DeliveryPayload(Payload):
    """The delivery of one event to one webhook. It is deleted when it has succeeded."""

    id: int = Field(description="Sent as the header `X-Whosthere-Delivery`.", examples=[771])
    webhook_id: str = Field(examples=WEBHOOK_ID)
    event_id: int = Field(examples=[5012])
    state: Literal["waiting", "dead"]
    attempts: int = Field(examples=[2])
    next_at: Time
    problem: str | None = Field(description="Why the last attempt failed.", examples=["the server answered 502"])


class DeliveryList(Payload):
    deliveries: list[DeliveryPayload]
    cursor: Cursor


class Replayed(Payload):
    replayed: int = Field(examples=[3])


class WebhookDeleted(Payload):
    deleted: str = Field(examples=WEBHOOK_ID)
    undelivered: int = Field(description="Waiting and dead events that are no longer delivered.", examples=[0])
