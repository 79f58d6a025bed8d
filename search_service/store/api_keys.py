"""API keys in SQL: their permissions and their authentication. Secrets are not stored.

A key is written `wt_ID_SECRET`. The id is public and finds the row. Of the secret, 256 random bits, the SHA-256 is
stored: a secret that cannot be guessed needs no slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, InvalidRequest, NotFound
from indexer.gallery.database import Repository
from indexer.gallery.schema import MAX_QUERY_VALUES
from indexer.gallery.validation import check_name
from search_service.store.schema import ApiKeyRow

ID_BYTES = 8
SECRET_BYTES = 32

KEY_PATTERN = re.compile(r"wt_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
"""ID_BYTES in hexadecimal, then SECRET_BYTES in URL-safe base64 without padding."""

NO_KEY_SHA256 = "0" * 64
"""Hash compared with if there is no key of an id. No secret with this hash is known."""

MAX_GALLERIES = MAX_QUERY_VALUES
"""Galleries that a key can be limited to, which are read with one query."""

MAX_PER_MINUTE = 1_000_000
"""Largest rate limit, far more than a machine can answer; the column's type allows a little more."""

MAX_DAILY_PROBES = 1_000_000_000
"""Largest daily budget of probes, more than a service can search in a day; the column's type allows a little more."""


class Scope(StrEnum):
    """A permission of a key; each scope includes those before it."""

    SEARCH = "search"
    """Detect, compare, list galleries and models, and search: the decision and the candidates above the threshold."""
    INVESTIGATE = "investigate"
    """Candidates below the threshold, any threshold, exact scores, embeddings and searching by them."""
    ENROLL = "enroll"
    """Identities, faces and enrollment jobs."""
    ADMIN = "admin"
    """Everything: galleries, events, webhooks and, if the key is not limited to galleries, keys."""


@dataclass(frozen=True)
class ApiKey:
    """An API key, without its secret."""

    id: str
    name: str
    scopes: frozenset[Scope]
    galleries: frozenset[str] | None
    """Names of the galleries it is limited to; None for all."""
    per_minute: int | None
    """Rate limit in requests a minute; None for no limit."""
    daily_probes: int | None
    """Budget of different probes a day (UTC); None for no limit."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def allows(self, scope: Scope) -> bool:
        ranks = list(Scope)
        return any(ranks.index(own) >= ranks.index(scope) for own in self.scopes)

    def allows_gallery(self, name: str) -> bool:
        return self.galleries is None or name in self.galleries

    def is_expired(self, time: datetime) -> bool:
        return self.expires_at is not None and time >= self.expires_at


class ApiKeyRepository(Repository):
    """The API keys of one database. Thread-safe."""

    def create(
        self,
        name: str,
        scopes: Collection[Scope],
        galleries: Collection[str] | None = None,
        expires_at: datetime | None = None,
        per_minute: int | None = None,
        daily_probes: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Creates a key and returns it with its text, which cannot be read again.

        Args:
            name: A unique name; a revoked key keeps its own.
            scopes: At least one scope.
            galleries: Names of the galleries it is limited to, which need not exist yet; None for all.
            expires_at: When it stops working; None for never.
            per_minute: Rate limit; None for no limit.
            daily_probes: Budget of probes a day; None for no limit.

        Raises:
            Conflict: There is a key of that name, possibly a revoked one.
            InvalidRequest: An argument is not valid.
        """
        _check(name, scopes, galleries, expires_at, per_minute, daily_probes)
        key_id, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
        row = ApiKeyRow(
            id=key_id,
            name=name,
            secret_sha256=_hashed(secret),
            scopes=sorted(set(scopes)),
            galleries=None if galleries is None else sorted(set(galleries)),
            per_minute=per_minute,
            daily_probes=daily_probes,
            created_at=now(),
            expires_at=expires_at,
            revoked_at=None,
        )
        try:
            with self._write() as session:
                session.add(row)
                session.flush()
                return _key(row), f"wt_{key_id}_{secret}"
        except IntegrityError as error:
            message = f"there is a key {name!r} already; a revoked key keeps its name"
            raise Conflict(message, code="key_exists") from error

    def authenticate(self, text: str) -> ApiKey | None:
        """Returns the key with that text, even if it is expired or revoked; None if there is none.

        A wrong secret takes as long as an unknown id.
        """
        parts = KEY_PATTERN.fullmatch(text)
        if parts is None:
            return None
        key_id, secret = parts.groups()
        with self._read() as session:
            row = session.get(ApiKeyRow, key_id)
            matches = hmac.compare_digest(_hashed(secret), NO_KEY_SHA256 if row is None else row.secret_sha256)
            return _key(row) if row is not None and matches else None

    def get(self, key_id: str) -> ApiKey:
        """Returns the key with that id. Raises NotFound."""
        with self._read() as session:
            return _key(_row(session, key_id))

    def list(self, after: str = "", limit: int | None = None) -> Sequence[ApiKey]:
        """Returns keys with a name after `after`, sorted by name, including revoked ones."""
        query = select(ApiKeyRow).where(ApiKeyRow.name > after).order_by(ApiKeyRow.name).limit(limit)
        with self._read() as session:
            return [_key(row) for row in session.scalars(query)]

    def revoke(self, key_id: str) -> ApiKey:
        """Revokes the key for all processes; a revoked key keeps its time of revocation. Raises NotFound."""
        with self._write() as session:
            row = _row(session, key_id)
            row.revoked_at = row.revoked_at or now()
            session.flush()
            return _key(row)

    def has_any(self) -> bool:
        """Returns whether a key was ever created, even if it no longer works: a service never becomes open again."""
        with self._read() as session:
            return session.scalar(select(ApiKeyRow.id).limit(1)) is not None


def daily_budget(scopes: Collection[Scope], given: int | None, default: int) -> int | None:
    """Returns the budget of probes of a new key, None for no limit.

    `given` is None without a wish, and 0 in it and in `default` means no limit. Keys that may change galleries have no
    budget by default, because they learn as much without a search.
    """
    if given is None:
        given = 0 if {Scope.ENROLL, Scope.ADMIN} & set(scopes) else default
    return given or None


def _check(
    name: str,
    scopes: Collection[Scope],
    galleries: Collection[str] | None,
    expires_at: datetime | None,
    per_minute: int | None,
    daily_probes: int | None,
) -> None:
    """Raises InvalidRequest."""
    check_name("a key's name", name)
    if not scopes:
        raise InvalidRequest(f"a key needs at least one scope; expected {', '.join(Scope)}")
    if galleries is not None:
        if not 0 < len(galleries) <= MAX_GALLERIES:
            raise InvalidRequest(
                f"a key may be limited to 1 to {MAX_GALLERIES} galleries; got {len(galleries)} (give none for all)"
            )
        for gallery in galleries:
            check_name("a gallery's name", gallery)
    if expires_at is not None and expires_at.utcoffset() is None:
        raise InvalidRequest(f"expires_at ({expires_at.isoformat()}) must have a time zone")
    if expires_at is not None and expires_at <= now():
        raise InvalidRequest(f"expires_at is {expires_at.isoformat()}; expected a time in the future")
    if per_minute is not None and not 1 <= per_minute <= MAX_PER_MINUTE:
        raise InvalidRequest(f"per_minute is {per_minute}; expected 1 to {MAX_PER_MINUTE}")
    if daily_probes is not None and not 1 <= daily_probes <= MAX_DAILY_PROBES:
        raise InvalidRequest(f"daily_probes is {daily_probes}; expected 1 to {MAX_DAILY_PROBES}")


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def _row(session: Session, key_id: str) -> ApiKeyRow:
    row = session.get(ApiKeyRow, key_id) if key_id.isprintable() else None  # PostgreSQL accepts no NUL
    if row is None:
        raise NotFound(f"there is no key {key_id!r}", code="key_not_found")
    return row


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=frozenset(map(Scope, row.scopes)),
        galleries=None if row.galleries is None else frozenset(row.galleries),
        per_minute=row.per_minute,
        daily_probes=row.daily_probes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
