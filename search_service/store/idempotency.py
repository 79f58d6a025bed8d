"""Answers to requests that carry an `Idempotency-Key`, in SQL: the same for every process, and after a restart.

Whoever is the first with a key holds it until the request is answered. One that dies holds it no longer than
LOCKED_SECONDS after it last said that it is alive. One that is only held up for so long may find that another one has
done the same meanwhile; the other one's answer is kept then.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, insert, null, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from indexer.clock import now
from indexer.gallery.database import Repository
from search_service.store.schema import AnswerRow

RETENTION = timedelta(hours=24)
"""How long an answer is given again: as long as Stripe gives its own, whom callers know keys from."""

LEASE_SECONDS = 15.0
"""How long a key is held by whoever does not say that it is alive, as a job is. It says so several times in between. A
caller tries again for longer than twice that, which it may be where the clock was set back."""

SWEPT_AT_ONCE = 400
"""Answers deleted in one transaction: two values each, and SQLite allowed 999 before version 3.32."""


@dataclass(frozen=True)
class Claim:
    """The right to answer the first request with a key."""

    owner: str
    key: str
    holder: str
    """Tells this claim from a later one."""


@dataclass(frozen=True)
class Pending:
    """Another request with the key is being answered."""


@dataclass(frozen=True)
class StoredAnswer:
    """The answer that was given to the first request, or what it is made from once more."""

    request_sha256: str
    """Of what was asked."""
    status: int
    headers: Mapping[str, str] | None
    """None where `body` is no answer, but what whoever answered wants to know when it is to answer again."""
    body: bytes


class IdempotencyStore(Repository):
    """The answers of one database. Thread-safe."""

    def claim(self, owner: str, key: str) -> Claim | Pending | StoredAnswer:
        """The right to answer, or what became of the one who has it. Of several at once one gets it."""
        claim = Claim(owner, key, secrets.token_hex(16))
        while True:
            at = now()
            try:
                with self._write() as session:
                    session.execute(delete(AnswerRow).where(_is(claim), _over(at)))
                    session.execute(insert(AnswerRow).values(**_unanswered(claim, at)))
                return claim
            except IntegrityError:
                found = self._find(claim)
            if found is not None:
                return found  # else it was given up this moment

    def renew(self, claims: Collection[Claim]) -> None:
        """Whoever holds them is alive. Those that another one has taken meanwhile stay the other one's."""
        until = now() + timedelta(seconds=LEASE_SECONDS)
        with self._write() as session:
            for claim in claims:
                held = update(AnswerRow).where(_held(claim)).values(locked_until=until)
                session.execute(held.execution_options(synchronize_session=False))

    def put(self, claim: Claim, answer: StoredAnswer) -> bool:
        """Keeps the answer; False where another one has taken the claim meanwhile."""
        headers = null() if answer.headers is None else dict(answer.headers)
        said = {"request_sha256": answer.request_sha256, "status": answer.status, "headers": headers}
        kept = update(AnswerRow).where(_held(claim)).values(**said, body=answer.body).returning(AnswerRow.key)
        with self._write() as session:
            return session.execute(kept.execution_options(synchronize_session=False)).one_or_none() is not None

    def release(self, claim: Claim) -> None:
        """The next request with the key is the first again."""
        with self._write() as session:
            session.execute(delete(AnswerRow).where(_held(claim)))

    def sweep(self) -> int:
        """Deletes what is no longer given again, and what was kept before the clock was set back; how many."""
        swept = 0
        while True:
            with self._write() as session:
                old = session.execute(
                    select(AnswerRow.owner, AnswerRow.key)
                    .where(or_(AnswerRow.expires_at <= now(), AnswerRow.expires_at > now() + 2 * RETENTION))
                    .limit(SWEPT_AT_ONCE)
                    .with_for_update(skip_locked=True)  # another one sweeps as well
                ).all()
                names = [(row.owner, row.key) for row in old]
                session.execute(delete(AnswerRow).where(tuple_(AnswerRow.owner, AnswerRow.key).in_(names)))
            swept += len(names)
            if len(names) < SWEPT_AT_ONCE:
                return swept

    def _find(self, claim: Claim) -> Pending | StoredAnswer | None:
        with self._read() as session:
            row = session.scalar(select(AnswerRow).where(_is(claim)))
            if row is None:
                return None
            if row.status is None:
                return Pending()
            return StoredAnswer(row.request_sha256, row.status, row.headers, row.body or b"")


def _is(claim: Claim) -> ColumnElement[bool]:
    return and_(AnswerRow.owner == claim.owner, AnswerRow.key == claim.key)


def _over(at: datetime) -> ColumnElement[bool]:
    """The answer is too old, or whoever was to give it is taken for dead. A key that is held for longer than is ever
    asked for was taken before the clock was set back."""
    ahead = at + timedelta(seconds=2 * LEASE_SECONDS)  # and not by a machine whose clock is a little ahead
    dead = or_(AnswerRow.locked_until <= at, AnswerRow.locked_until > ahead)
    return or_(AnswerRow.expires_at <= at, and_(AnswerRow.status.is_(None), dead))


def _held(claim: Claim) -> ColumnElement[bool]:
    return and_(_is(claim), AnswerRow.status.is_(None), AnswerRow.request_sha256 == claim.holder)


def _unanswered(claim: Claim, at: datetime) -> dict[str, object]:
    return {
        "owner": claim.owner,
        "key": claim.key,
        "request_sha256": claim.holder,
        "locked_until": at + timedelta(seconds=LEASE_SECONDS),
        "expires_at": at + RETENTION,
    }
