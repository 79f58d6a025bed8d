"""Where events are sent, and those on their way: whichever process claims a delivery sends it."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, CursorResult, Select, and_, delete, func, not_, or_, select, update
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, InvalidRequest, NotFound
from indexer.gallery.database import Repository
from indexer.gallery.schema import GalleryRow
from indexer.types import Gallery
from search_service.store.events import DEAD, WAITING, Event, event_of
from search_service.store.schema import DeliveryRow, WebhookRow

MAX_WEBHOOKS = 100
"""Each event costs a row for each webhook that wants it, in the transaction a door waits for."""

MAX_URL_LENGTH = 2000
"""Characters; what every client and proxy takes."""

MAX_PROBLEM_LENGTH = 200
"""Characters kept of what went wrong."""

MAX_WAIT = timedelta(hours=1)
"""Between two tries. What is due in twice that time was written before the clock was set back, and is due now."""

MAX_DELAY = timedelta(hours=26)
"""What waited for so long behind others, and still nothing arrives, is dead as well: had it been tried each time, it
would be by now."""


@dataclass(frozen=True)
class Webhook:
    id: str
    url: str
    gallery: str | None
    """Name of the gallery whose events it gets; None for all."""
    decisions: tuple[str, ...]
    created_at: datetime
    waiting: int
    """Events on their way to it."""
    dead: int
    """Events that were tried too often."""


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one webhook."""

    id: int
    webhook_id: str
    event_id: int
    state: str
    attempts: int
    next_at: datetime
    problem: str | None


@dataclass(frozen=True)
class DueDelivery:
    """A delivery that is to be sent."""

    id: int
    webhook_id: str


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that the caller, and nobody else until its claim ends, is to send."""

    id: int
    webhook_id: str
    url: str
    secret: str
    attempts: int
    """This one counted."""
    event: Event
    failures: int = 0
    """Of its webhook, since something arrived there."""


class WebhookRepository(Repository):
    """The webhooks of one database. Thread-safe; each call is one transaction."""

    def create(self, url: str, gallery: Gallery | None, decisions: Sequence[str]) -> tuple[Webhook, str]:
        """The webhook and the secret that signs what is sent to it. Raises InvalidRequest on another URL than http and
        https, Conflict when there are MOST_WEBHOOKS."""
        check_url(url)
        if not decisions:
            raise InvalidRequest("a webhook must want events of at least one decision; got none")
        secret = secrets.token_hex(32)  # 256 bits, as many as the hash has
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
                raise Conflict(f"there are {MAX_WEBHOOKS} webhooks, as many as there may be; delete one first")
            session.add(row)
            session.flush()
            return _webhook(session, row), secret

    def list(self) -> Sequence[Webhook]:
        """In the order of their making."""
        with self._read() as session:
            rows = session.scalars(select(WebhookRow).order_by(WebhookRow.created_at, WebhookRow.id))
            return [_webhook(session, row) for row in rows]

    def get(self, webhook_id: str) -> Webhook:
        """Raises NotFound."""
        with self._read() as session:
            return _webhook(session, _required(session, webhook_id))

    def delete(self, webhook_id: str) -> Webhook:
        """With what was on its way to it. Raises NotFound."""
        with self._write() as session:
            row = _required(session, webhook_id)
            gone = _webhook(session, row)
            session.execute(delete(WebhookRow).where(WebhookRow.id == webhook_id))
            return gone

    def deliveries(self, webhook_id: str, state: str, after: int = 0, limit: int | None = None) -> Sequence[Delivery]:
        """Those in that state with an id above `after`, oldest first. Raises NotFound."""
        query = select(DeliveryRow).where(
            DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == state, DeliveryRow.id > after
        )
        with self._read() as session:
            _required(session, webhook_id)
            return [_delivery(row) for row in session.scalars(query.order_by(DeliveryRow.id).limit(limit))]

    def replay(self, webhook_id: str) -> int:
        """Lets the dead ones be tried anew; how many. Raises NotFound."""
        dead = update(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == DEAD)
        with self._write() as session:
            _required(session, webhook_id)
            _go_on(session, webhook_id)
            return _count(session, dead.values(state=WAITING, attempts=0, since=now(), next_at=now()))

    # What delivers

    def due(self, busy: Collection[str]) -> Sequence[DueDelivery]:
        """The delivery that has been due for longest of each webhook but those that are paused or `busy`; in no order:
        whoever sends knows whose turn it is."""
        at = now()
        first = select(DeliveryRow.id).where(DeliveryRow.webhook_id == WebhookRow.id, _is_due(at))
        first = first.order_by(DeliveryRow.next_at, DeliveryRow.id).limit(1)  # a step in an index, however many wait
        query = select(first.scalar_subquery(), WebhookRow.id).where(_is_open(at))
        if busy:
            query = query.where(WebhookRow.id.not_in(busy))
        with self._read() as session:
            return [DueDelivery(found, webhook_id) for found, webhook_id in session.execute(query) if found is not None]

    def claim(self, delivery_id: int, lease: timedelta) -> ClaimedDelivery | None:
        """Takes a delivery for the time of `lease`, after which it is due again; None when somebody else was first, or
        the webhook is paused. After a pause this one alone is sent: the webhook is paused for the same time."""
        at = now()
        hook_id = select(DeliveryRow.webhook_id).where(DeliveryRow.id == delivery_id).scalar_subquery()
        claim = update(DeliveryRow).where(DeliveryRow.id == delivery_id, _is_due(at))
        claim = claim.values(next_at=at + lease, attempts=DeliveryRow.attempts + 1)
        with self._write() as session:
            hook = session.scalar(_locked(WebhookRow.id == hook_id, _is_open(at)))
            if hook is None or not _count(session, claim):
                return None
            if hook.failures:
                hook.paused_until = at + lease
            row = session.get_one(DeliveryRow, delivery_id)
            event = event_of(session, row.event_id)
            if event is None:  # its gallery goes at this moment, and so does this row
                return None
            return ClaimedDelivery(row.id, hook.id, hook.url, hook.secret, row.attempts, event, hook.failures)

    def mark_delivered(self, claimed: ClaimedDelivery) -> None:
        """What else waits for the webhook is sent as well."""
        with self._write() as session:
            _go_on(session, claimed.webhook_id)
            session.execute(delete(DeliveryRow).where(DeliveryRow.id == claimed.id))

    def mark_failed(
        self, claimed: ClaimedDelivery, problem: str, again: timedelta | None, pause: timedelta = timedelta()
    ) -> None:
        """To be tried `again` after a while, or dead; the webhook is paused, and what has waited for it for
        LONGEST_DELAY is dead. Nothing happens where it is gone or claimed anew."""
        at, said = now(), {"problem": problem[:MAX_PROBLEM_LENGTH]}
        later = {"state": DEAD} if again is None else {"next_at": at + again}
        row = update(DeliveryRow).where(DeliveryRow.id == claimed.id, DeliveryRow.attempts == claimed.attempts)
        late = update(DeliveryRow).where(
            DeliveryRow.webhook_id == claimed.webhook_id,
            DeliveryRow.state == WAITING,
            DeliveryRow.since <= at - MAX_DELAY,
        )
        with self._write() as session:
            hook = session.scalar(_locked(WebhookRow.id == claimed.webhook_id))
            if hook is not None and _count(session, row.values(**said, **later)):
                hook.failures, hook.paused_until = hook.failures + 1, at + pause
                _count(session, late.values(state=DEAD, **said))


def check_url(url: str) -> None:
    """Raises InvalidRequest, which does not repeat it: it may hold a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a bracket or a port that is none
        host, port, parts = None, None, urlsplit("")
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in ("http", "https") or not host or port == 0 or len(url) > MAX_URL_LENGTH:
        raise InvalidRequest(
            f"a webhook's url must be http://HOST... or https://HOST..., of at most {MAX_URL_LENGTH} ASCII characters "
            "without spaces"
        )
    if "@" in parts.netloc or parts.fragment:
        raise InvalidRequest("a webhook's url must hold neither a user, a password nor a #fragment")


def _is_due(at: datetime) -> ColumnElement[bool]:
    return and_(DeliveryRow.state == WAITING, not_(_ahead(DeliveryRow.next_at, at)))


def _is_open(at: datetime) -> ColumnElement[bool]:
    """Whether a webhook is not paused."""
    return or_(WebhookRow.paused_until.is_(None), not_(_ahead(WebhookRow.paused_until, at)))


def _ahead(column: Any, at: datetime) -> ColumnElement[bool]:
    return and_(column > at, column <= at + 2 * MAX_WAIT)


def _locked(*which: ColumnElement[bool]) -> Select[WebhookRow]:
    """Webhooks, which nobody else claims for until the transaction ends; events are recorded meanwhile."""
    return select(WebhookRow).where(*which).with_for_update(key_share=True)


def _go_on(session: Session, webhook_id: str) -> None:
    """Ends the webhook's pause."""
    paused = update(WebhookRow).where(WebhookRow.id == webhook_id, WebhookRow.failures > 0)
    _count(session, paused.values(failures=0, paused_until=None))


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


def _count(session: Session, statement: Any) -> int:
    """How many rows it changed."""
    done = session.execute(statement.execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", done).rowcount
