"""Hits of an index -> ranked identities. Who is not in SQL, or not valid now, is not returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from indexer.types import Hit, Identity, Named


@dataclass(frozen=True)
class Candidate:
    """One identity in an answer. `score` is the cosine of its faces together, `face_id` the best of them."""

    rank: int
    identity: Named
    score: float
    face_id: int


class Barred(StrEnum):
    """Why somebody who is in the gallery is not returned."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"


@dataclass(frozen=True)
class Outranked:
    """Somebody who is not returned is more similar than everybody who is."""

    barred: Barred
    score: float


def rank(hits: Iterable[Hit], identities: Mapping[int, Named], top_k: int) -> tuple[Candidate, ...]:
    """The `top_k` best identities of `hits`, which come best first, that are among `identities`, by id."""
    there = [(hit, identities[hit.identity_id]) for hit in hits if hit.identity_id in identities]
    return tuple(Candidate(i, identity, hit.score, hit.face_id) for i, (hit, identity) in enumerate(there[:top_k], 1))


def outranked(
    hits: Iterable[Hit], identities: Mapping[int, Named], others: Mapping[int, Identity], at: datetime
) -> Outranked | None:
    """The best of `hits`, which come best first, where it is not among `identities`, by id, but among the `others` that
    are in SQL as well, because it is not valid at that time. Who is in neither was deleted, and is passed over."""
    for hit in hits:
        if hit.identity_id in identities:
            return None
        if (barred := _barred(others.get(hit.identity_id), at)) is not None:
            return Outranked(barred, hit.score)
    return None


def _barred(identity: Identity | None, at: datetime) -> Barred | None:
    if identity is None:
        return None
    if identity.valid_until is not None and identity.valid_until <= at:
        return Barred.EXPIRED
    if identity.valid_from is not None and identity.valid_from > at:
        return Barred.NOT_YET_VALID
    return None
