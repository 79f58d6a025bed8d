"""Webhooks and their deliveries in SQL: the process that claims a delivery sends it."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, Select, and_, delete, func, not_, or_, select, update
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, InvalidRequest, NotFound
from indexer.gallery.database import Repository, change_rows
from indexer.gallery.schema import GalleryRow
from indexer.types import Gallery
from search_service.store.event_pages import Event, event_of
from search_service.store.events import DEAD, WAITING
from search_service.store.schema import DeliveryRow, WebhookRow

MAX_WEBHOOKS = 100
"""Recording an event inserts a row for each webhook that subscribes to it, while the device waits."""

MAX_URL_LENGTH = 2000
"""Characters in a URL, a length that common clients and proxies accept."""

MAX_PROBLEM_LENGTH = 200
"""Characters stored of an error message."""

MAX_WAIT = timedelta(hours=1)
"""Longest wait between two attempts. A time more than twice that far away was written before the clock was set back
and counts as reached."""

MAX_DELAY = timedelta(hours=26)
"""Deliveries queued this long behind a failing endpoint are also marked dead, as if each had been attempted itself."""


@dataclass(frozen=True)
class Webhook:
    id: str
    url: str
    gallery: str | None
    """Name of the gallery whose events are sent; None for all."""
    decisions: tuple[str, ...]
    created_at: datetime
    waiting: int
    """Number of deliveries that will be attempted."""
    dead: int
    """Number of deliveries that failed too often."""


@dataclass(frozen=True)
class Delivery:
    """The delivery of one event to one webhook."""

    id: int
    webhook_id: str
    event_id: int
    state: str
    attempts: int
    next_at: datetime
    problem: str | None


@dataclass(frozen=True)
class DueDelivery:
    """A delivery that can be claimed."""

    id: int
    webhook_id: str


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that only the caller sends until its lease ends."""

    id: int
    webhook_id: str
    url: str
    secret: str
    attempts: int
    """Number of attempts, including this one."""
    event: Event
    failures: int = 0
    """Failures of its webhook since the last success."""


class WebhookRepository(Repository):
    """The webhooks of one database. Thread-safe; each call is one transaction."""

    def create(self, url: str, gallery: Gallery | None, decisions: Sequence[str]) -> tuple[Webhook, str]:
        """Creates a webhook and returns it with the secret that signs its deliveries.

        Args:
            url: An http or https URL.
            gallery: The gallery whose events are sent; None for all.
            decisions: Decisions of the events that are sent.

        Raises:
            Conflict: There are MAX_WEBHOOKS webhooks.
            InvalidRequest: The URL is not valid, or no decision is given.
        """
        check_url(url)
        if not decisions:
            raise InvalidRequest("a webhook needs at least one decision to be notified of; got none")
        secret = secrets.token_hex(32)  # 256 bits, the output size of the signature's hash
        row = WebhookRow(
            id=f"wh_{secrets.token_hex(8)}",
            url=url,
            secret=secret,
            gallery_id=gallery.id if gallery else None,
            decisions=list(dict.fromkeys(map(str, decisions))),
            created_at=now(),
        )
        with self._write() as session:
            if (session.scalar(select(func.count()).select_from(WebhookRow)) or 0) >= MAX_WEBHOOKS:
                raise Conflict(f"there are {MAX_WEBHOOKS} webhooks already, the most allowed; delete one first")
            session.add(row)
            session.flush()
            return _webhook(session, row), secret

    def list(self) -> Sequence[Webhook]:
        """Returns all webhooks, oldest first."""
        with self._read() as session:
            rows = session.scalars(select(WebhookRow).order_by(WebhookRow.created_at, WebhookRow.id))
            return [_webhook(session, row) for row in rows]

    def get(self, webhook_id: str) -> Webhook:
        """Returns the webhook. Raises NotFound."""
        with self._read() as session:
            return _webhook(session, _required(session, webhook_id))

    def delete(self, webhook_id: str) -> Webhook:
        """Deletes the webhook with its deliveries. Raises NotFound."""
        with self._write() as session:
            deleted = _webhook(session, _required(session, webhook_id))
            session.execute(delete(WebhookRow).where(WebhookRow.id == webhook_id))
            return deleted

    def deliveries(self, webhook_id: str, state: str, after: int = 0, limit: int | None = None) -> Sequence[Delivery]:
        """Returns deliveries in that state with an id above `after`, oldest first. Raises NotFound."""
        query = select(DeliveryRow).where(
            DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == state, DeliveryRow.id > after
        )
        with self._read() as session:
            _required(session, webhook_id)
            return [_delivery(row) for row in session.scalars(query.order_by(DeliveryRow.id).limit(limit))]

    def replay(self, webhook_id: str) -> int:
        """Queues the dead deliveries again and returns how many. Raises NotFound."""
        dead = update(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == DEAD)
        with self._write() as session:
            _required(session, webhook_id)
            _resume(session, webhook_id)
            return change_rows(session, dead.values(state=WAITING, attempts=0, since=now(), next_at=now()))

    def due(self, busy: Collection[str]) -> Sequence[DueDelivery]:
        """Returns, for each webhook that is neither paused nor `busy`, the delivery that has been due longest."""
        at = now()
        first = select(DeliveryRow.id).where(DeliveryRow.webhook_id == WebhookRow.id, _is_due(at))
        first = first.order_by(DeliveryRow.next_at, DeliveryRow.id).limit(
            1
        )  # one step in an index, however long the queue is
        query = select(first.scalar_subquery(), WebhookRow.id).where(_is_open(at))
        if busy:
            query = query.where(WebhookRow.id.not_in(busy))
        with self._read() as session:
            return [DueDelivery(found, webhook_id) for found, webhook_id in session.execute(query) if found is not None]

    def claim(self, delivery_id: int, lease: timedelta) -> ClaimedDelivery | None:
        """Claims a delivery, which is due again after `lease`.

        After a failure, only one delivery is attempted: claiming it pauses the webhook for the same time.

        Returns:
            The delivery; None if another process was faster or the webhook is paused.
        """
        at = now()
        hook_id = select(DeliveryRow.webhook_id).where(DeliveryRow.id == delivery_id).scalar_subquery()
        claim = update(DeliveryRow).where(DeliveryRow.id == delivery_id, _is_due(at))
        claim = claim.values(next_at=at + lease, attempts=DeliveryRow.attempts + 1)
        with self._write() as session:
            hook = session.scalar(_locked(WebhookRow.id == hook_id, _is_open(at)))
            if hook is None or not change_rows(session, claim):
                return None
            if hook.failures:
                hook.paused_until = at + lease
            row = session.get_one(DeliveryRow, delivery_id)
            event = event_of(session, row.event_id)
            if event is None:  # its gallery is being deleted, and so is this row
                return None
            return ClaimedDelivery(row.id, hook.id, hook.url, hook.secret, row.attempts, event, hook.failures)

    def mark_delivered(self, claimed: ClaimedDelivery) -> None:
        """Deletes a successful delivery and ends its webhook's pause."""
        with self._write() as session:
            _resume(session, claimed.webhook_id)
            session.execute(delete(DeliveryRow).where(DeliveryRow.id == claimed.id))

    def mark_failed(
        self, claimed: ClaimedDelivery, problem: str, again: timedelta | None, pause: timedelta = timedelta()
    ) -> None:
        """Records a failed attempt; without effect if the delivery was deleted or claimed again.

        The webhook is paused, and its deliveries that are older than MAX_DELAY are marked dead.

        Args:
            claimed: The delivery.
            problem: The error message.
            again: Time until the next attempt; None marks the delivery dead.
            pause: Time for which the webhook is paused.
        """
        at, message = now(), {"problem": problem[:MAX_PROBLEM_LENGTH]}
        later = {"state": DEAD} if again is None else {"next_at": at + again}
        row = update(DeliveryRow).where(DeliveryRow.id == claimed.id, DeliveryRow.attempts == claimed.attempts)
        late = update(DeliveryRow).where(
            DeliveryRow.webhook_id == claimed.webhook_id,
            DeliveryRow.state == WAITING,
            DeliveryRow.since <= at - MAX_DELAY,
        )
        with self._write() as session:
            hook = session.scalar(_locked(WebhookRow.id == claimed.webhook_id))
            if hook is not None and change_rows(session, row.values(**message, **later)):
                hook.failures, hook.paused_until = hook.failures + 1, at + pause
                change_rows(session, late.values(state=DEAD, **message))


def check_url(url: str) -> None:
    """Raises InvalidRequest on a bad URL, without repeating it: it may contain a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # an invalid bracket or port
        host, port, parts = None, None, urlsplit("")
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in ("http", "https") or not host or port == 0 or len(url) > MAX_URL_LENGTH:
        raise InvalidRequest(
            f"a webhook's url must be http://HOST... or https://HOST..., of at most {MAX_URL_LENGTH} ASCII characters "
            "without spaces"
        )
    if "@" in parts.netloc or parts.fragment:
        raise InvalidRequest("a webhook's url must contain neither a user, a password nor a #fragment")


def _is_due(at: datetime) -> ColumnElement[bool]:
    return and_(DeliveryRow.state == WAITING, not_(_ahead(DeliveryRow.next_at, at)))


def _is_open(at: datetime) -> ColumnElement[bool]:
    """Returns the condition for a webhook that is not paused."""
    return or_(WebhookRow.paused_until.is_(None), not_(_ahead(WebhookRow.paused_until, at)))


def _ahead(column: Any, at: datetime) -> ColumnElement[bool]:
    return and_(column > at, column <= at + 2 * MAX_WAIT)


def _locked(*which: ColumnElement[bool]) -> Select[WebhookRow]:
    """Returns the query for webhooks, locked against other claims; recording events is not blocked."""
    return select(WebhookRow).where(*which).with_for_update(key_share=True)


def _resume(session: Session, webhook_id: str) -> None:
    """Ends the webhook's pause."""
    paused = update(WebhookRow).where(WebhookRow.id == webhook_id, WebhookRow.failures > 0)
    change_rows(session, paused.values(failures=0, paused_until=None))


def _required(session: Session, webhook_id: str) -> WebhookRow:
    row = session.get(WebhookRow, webhook_id)
    if row is None:
        raise NotFound(f"there is no webhook {webhook_id!r}", code="webhook_not_found")
    return row


def _webhook(session: Session, row: WebhookRow) -> Webhook:
    gallery = row.gallery_id and session.scalar(select(GalleryRow.name).where(GalleryRow.id == row.gallery_id))
    states = select(DeliveryRow.state, func.count()).where(DeliveryRow.webhook_id == row.id).group_by(DeliveryRow.state)
    counts: dict[str, int] = {found[0]: found[1] for found in session.execute(states)}
    return Webhook(
        row.id,
        row.url,
        gallery or None,
        tuple(row.decisions),
        row.created_at,
        counts.get(WAITING, 0),
        counts.get(DEAD, 0),
    )


def _delivery(row: DeliveryRow) -> Delivery:
    return Delivery(row.id, row.webhook_id, row.event_id, row.state, row.attempts, row.next_at, row.problem)
