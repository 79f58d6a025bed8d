"""Answers to requests that carry an `Idempotency-Key`, in SQL: the same for every process, and after a restart.

Whoever is the first with a key holds it until the request is answered. One that dies holds it no longer than
LOCKED_SECONDS after it last said that it is alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Update, and_, delete, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from indexer.gallery.clock import now
from indexer.gallery.database import Door
from indexer.gallery.schema import AnswerRow

KEPT = timedelta(hours=24)
"""How long an answer is given again: as long as Stripe gives its own, whom callers know keys from."""

LOCKED_SECONDS = 60.0
"""How long a key is held by whoever does not say that it is alive. It says so several times in between."""

SWEPT_AT_ONCE = 400
"""Answers deleted in one transaction: two values each, and SQLite allowed 999 before version 3.32."""


@dataclass(frozen=True)
class Claim:
    """The right to answer the first request with a key."""

    owner: str
    key: str
    locked_until: datetime
    """Tells this claim from a later one."""


@dataclass(frozen=True)
class Pending:
    """Another request with the key is being answered."""


@dataclass(frozen=True)
class Stored:
    """The answer that was given to the first request."""

    request_sha256: str
    """Of what was asked."""
    status: int
    headers: Mapping[str, str]
    body: bytes


class Answers(Door):
    """The answers of one database. Thread-safe."""

    def claim(self, owner: str, key: str) -> Claim | Pending | Stored:
        """The right to answer, or what became of the one who has it. Of several at once one gets it."""
        while True:
            at = now()
            claim = Claim(owner, key, at + timedelta(seconds=LOCKED_SECONDS))
            try:
                with self._write() as session:
                    session.execute(delete(AnswerRow).where(_is(claim), _over(at)))
                    session.execute(insert(AnswerRow).values(**_unanswered(claim, at)))
                return claim
            except IntegrityError:
                found = self._find(claim)
            if found is not None:
                return found  # else it was given up this moment

    def renew(self, claim: Claim) -> Claim | None:
        """Whoever holds the claim is alive; None where another one has taken it meanwhile."""
        until = now() + timedelta(seconds=LOCKED_SECONDS)
        with self._write() as session:
            held = session.execute(_held(claim).values(locked_until=until).returning(AnswerRow.key)).one_or_none()
        return Claim(claim.owner, claim.key, until) if held is not None else None

    def put(self, claim: Claim, answer: Stored) -> None:
        """Keeps the answer, unless another one has taken the claim meanwhile."""
        said = {"status": answer.status, "headers": dict(answer.headers), "body": answer.body}
        with self._write() as session:
            session.execute(_held(claim).values(request_sha256=answer.request_sha256, **said))

    def give_up(self, claim: Claim) -> None:
        """The next request with the key is the first again."""
        with self._write() as session:
            session.execute(
                delete(AnswerRow).where(
                    _is(claim), AnswerRow.status.is_(None), AnswerRow.locked_until == claim.locked_until
                )
            )

    def sweep(self) -> int:
        """Deletes what is no longer given again; how many."""
        swept = 0
        while True:
            with self._write() as session:
                old = session.execute(
                    select(AnswerRow.owner, AnswerRow.key)
                    .where(AnswerRow.expires_at <= now())
                    .limit(SWEPT_AT_ONCE)
                    .with_for_update(skip_locked=True)  # another one sweeps as well
                ).all()
                names = [(row.owner, row.key) for row in old]
                session.execute(delete(AnswerRow).where(tuple_(AnswerRow.owner, AnswerRow.key).in_(names)))
            swept += len(names)
            if len(names) < SWEPT_AT_ONCE:
                return swept

    def _find(self, claim: Claim) -> Pending | Stored | None:
        with self._read() as session:
            row = session.scalar(select(AnswerRow).where(_is(claim)))
            if row is None:
                return None
            if row.status is None:
                return Pending()
            return Stored(row.request_sha256, row.status, row.headers or {}, row.body or b"")


def _is(claim: Claim) -> ColumnElement[bool]:
    return and_(AnswerRow.owner == claim.owner, AnswerRow.key == claim.key)


def _over(at: datetime) -> ColumnElement[bool]:
    """The answer is too old, or whoever was to give it is taken for dead. A key that is held for longer than is ever
    asked for was taken before the clock was set back."""
    ahead = at + timedelta(seconds=2 * LOCKED_SECONDS)  # and not by a machine whose clock is a little ahead
    dead = or_(AnswerRow.locked_until <= at, AnswerRow.locked_until > ahead)
    return or_(AnswerRow.expires_at <= at, and_(AnswerRow.status.is_(None), dead))


def _held(claim: Claim) -> Update:
    held = _is(claim), AnswerRow.status.is_(None), AnswerRow.locked_until == claim.locked_until
    return update(AnswerRow).where(*held).execution_options(synchronize_session=False)


def _unanswered(claim: Claim, at: datetime) -> dict[str, object]:
    return {
        "owner": claim.owner,
        "key": claim.key,
        "request_sha256": "",
        "locked_until": claim.locked_until,
        "expires_at": at + KEPT,
    }
