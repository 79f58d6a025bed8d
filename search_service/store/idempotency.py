"""Answers to requests with an `Idempotency-Key`, in SQL: shared by all processes and kept over restarts.

The first request with a key claims it until it is answered. The lease of a process that died ends LEASE_SECONDS after
it was last renewed. A process that was only delayed for so long may find that another one answered meanwhile, whose
answer is then kept.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Engine, and_, delete, func, insert, null, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from indexer.clock import now
from indexer.gallery.database import Repository, change_rows
from search_service.store.schema import AnswerRow

RETENTION = timedelta(hours=24)
"""How long an answer is repeated, the same time as in Stripe's API."""

LEASE_SECONDS = 15.0
"""Lease of a claim, renewed several times before it ends. Clients retry for more than twice that time, which a lease
can take if the clock was set back."""

MAX_ANSWER_BYTES = 256 * 2**10
"""The largest answer that is stored: 16 images of 100 faces each, with their events, have less."""

MAX_OWNER_BYTES = 64 * 2**20
"""Of all answers of one API key, ROW_BYTES for each included: 130,000 recorded searches of one face. Beyond, its oldest
ones are deleted, as a request is repeated within a minute or never."""

ROW_BYTES = 500
"""Of an answer besides its body: a key of up to 200 bytes, two hashes, headers, and entries of two indexes."""

TRIM_SHARE = 8
"""An owner's answers are counted after each eighth of MAX_OWNER_BYTES that this process stored."""

SWEEP_BATCH = 400
"""Answers deleted in one transaction, two parameters each. SQLite before version 3.32 allows 999 parameters."""


@dataclass(frozen=True)
class Claim:
    """The right to answer the first request with a key."""

    owner: str
    key: str
    holder: str
    """Identifies this claim; a later claim of the same key has another one."""


@dataclass(frozen=True)
class Pending:
    """Another request with the key is being answered."""


@dataclass(frozen=True)
class StoredAnswer:
    """The answer to the first request, or the data from which it is computed again."""

    request_sha256: str
    """SHA-256 of the request."""
    status: int
    headers: Mapping[str, str] | None
    """None if `body` is not an answer but the data from which the request's handler computes it again."""
    body: bytes


class IdempotencyStore(Repository):
    """The stored answers of one database. Thread-safe."""

    def __init__(self, engine: Engine, max_owner_bytes: int = MAX_OWNER_BYTES) -> None:
        super().__init__(engine)
        self._max_owner_bytes = max_owner_bytes
        self._lock = threading.Lock()
        self._added: Counter[str] = Counter()
        """Bytes that were stored for each owner since its answers were counted."""

    def claim(self, owner: str, key: str) -> Claim | Pending | StoredAnswer:
        """Returns the right to answer, which one of several callers gets, or the state of the other one's answer."""
        claim = Claim(owner, key, secrets.token_hex(16))
        while True:
            at = now()
            try:
                with self._write() as session:
                    session.execute(delete(AnswerRow).where(_has_key(claim), _is_expired(at)))
                    session.execute(insert(AnswerRow).values(**_new_row(claim, at)))
                return claim
            except IntegrityError:
                found = self._find(claim)
            if found is not None:
                return found  # otherwise it was just released

    def renew(self, claims: Collection[Claim]) -> None:
        """Extends the leases of claims; those that were lost meanwhile are skipped."""
        until = now() + timedelta(seconds=LEASE_SECONDS)
        with self._write() as session:
            for claim in claims:
                change_rows(session, update(AnswerRow).where(_is_claimed_by(claim)).values(locked_until=until))

    def put(self, claim: Claim, answer: StoredAnswer) -> bool:
        """Stores the answer and returns True; returns False if the claim was lost meanwhile."""
        headers = null() if answer.headers is None else dict(answer.headers)
        values = {"request_sha256": answer.request_sha256, "status": answer.status, "headers": headers}
        answered = update(AnswerRow).where(_is_claimed_by(claim)).values(**values, body=answer.body)
        with self._write() as session:
            is_stored = change_rows(session, answered) > 0
        with self._lock:
            self._added[claim.owner] += ROW_BYTES + len(answer.body)
            is_due = self._added[claim.owner] * TRIM_SHARE >= self._max_owner_bytes
            if is_due:
                del self._added[claim.owner]
        if is_due:
            self._trim(claim.owner)
        return is_stored

    def _trim(self, owner: str) -> None:
        """Deletes the oldest answers of a key beyond its bytes."""
        own = and_(AnswerRow.owner == owner, AnswerRow.status.is_not(None))
        size = ROW_BYTES + func.coalesce(func.length(AnswerRow.body), 0)
        total, oldest = 0, None
        with self._read() as session:
            for expires_at, size_of_one in session.execute(
                select(AnswerRow.expires_at, size).where(own).order_by(AnswerRow.expires_at.desc())
            ):
                total += size_of_one
                if total > self._max_owner_bytes:
                    oldest = expires_at
                    break
        if oldest is not None:
            with self._write() as session:
                session.execute(delete(AnswerRow).where(own, AnswerRow.expires_at <= oldest))

    def release(self, claim: Claim) -> None:
        """Gives the claim up: the next request with the key is the first one again."""
        with self._write() as session:
            session.execute(delete(AnswerRow).where(_is_claimed_by(claim)))

    def sweep(self) -> int:
        """Deletes expired answers, and those stored before the clock was set back, and returns how many."""
        swept = 0
        while True:
            with self._write() as session:
                old = session.execute(
                    select(AnswerRow.owner, AnswerRow.key)
                    .where(or_(AnswerRow.expires_at <= now(), AnswerRow.expires_at > now() + 2 * RETENTION))
                    .limit(SWEEP_BATCH)
                    .with_for_update(skip_locked=True)  # another process may be sweeping
                ).all()
                names = [(row.owner, row.key) for row in old]
                session.execute(delete(AnswerRow).where(tuple_(AnswerRow.owner, AnswerRow.key).in_(names)))
            swept += len(names)
            if len(names) < SWEEP_BATCH:
                return swept

    def _find(self, claim: Claim) -> Pending | StoredAnswer | None:
        with self._read() as session:
            row = session.scalar(select(AnswerRow).where(_has_key(claim)))
            if row is None:
                return None
            if row.status is None:
                return Pending()
            return StoredAnswer(row.request_sha256, row.status, row.headers, row.body or b"")


def _has_key(claim: Claim) -> ColumnElement[bool]:
    return and_(AnswerRow.owner == claim.owner, AnswerRow.key == claim.key)


def _is_expired(at: datetime) -> ColumnElement[bool]:
    """Returns the condition for an answer that is too old, or a claim whose lease has ended.

    A lease longer than any granted one was granted before the clock was set back.
    """
    ahead = at + timedelta(seconds=2 * LEASE_SECONDS)  # more than by a machine whose clock is a little ahead
    dead = or_(AnswerRow.locked_until <= at, AnswerRow.locked_until > ahead)
    return or_(AnswerRow.expires_at <= at, and_(AnswerRow.status.is_(None), dead))


def _is_claimed_by(claim: Claim) -> ColumnElement[bool]:
    return and_(_has_key(claim), AnswerRow.status.is_(None), AnswerRow.request_sha256 == claim.holder)


def _new_row(claim: Claim, at: datetime) -> dict[str, object]:
    return {
        "owner": claim.owner,
        "key": claim.key,
        "request_sha256": claim.holder,
        "locked_until": at + timedelta(seconds=LEASE_SECONDS),
        "expires_at": at + RETENTION,
    }
