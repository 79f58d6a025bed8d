"""Ranks an index's hits. Identities that are not in SQL, or not valid now, are not returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from indexer.types import Hit, Identity, NamedIdentity


@dataclass(frozen=True)
class Candidate:
    """One identity of an answer. `score` is the fused cosine of its faces, `face_id` its most similar face."""

    rank: int
    identity: NamedIdentity
    score: float
    face_id: int


class Barred(StrEnum):
    """Why an identity in the gallery is not returned."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"


@dataclass(frozen=True)
class Outranked:
    """An identity that is not returned, although it is more similar than all candidates."""

    barred: Barred
    score: float


def rank(hits: Iterable[Hit], identities: Mapping[int, NamedIdentity], top_k: int) -> tuple[Candidate, ...]:
    """Returns the `top_k` best of `hits`, which are best first, that are among `identities`, by id.

    Scores are cosines, -1 to 1: those of embeddings in half precision may be off by 5e-4 to either side.
    """
    known = [(hit, identities[hit.identity_id]) for hit in hits if hit.identity_id in identities]
    return tuple(
        Candidate(i, identity, max(-1.0, min(hit.score, 1.0)), hit.face_id)
        for i, (hit, identity) in enumerate(known[:top_k], 1)
    )


def outranked(
    hits: Iterable[Hit], identities: Mapping[int, NamedIdentity], others: Mapping[int, Identity], at: datetime
) -> Outranked | None:
    """Returns the best of `hits`, which are best first, if it is not valid at that time.

    `identities` are the valid ones, by id, and `others` those in SQL that are not valid. Hits in neither were deleted,
    and are skipped.
    """
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
