"""Hits of an index -> ranked identities. Who is not in SQL, or not valid now, is not returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from indexer.types import Hit, Named


@dataclass(frozen=True)
class Candidate:
    """One identity in an answer. `score` is the cosine of its best face, `face_id`."""

    rank: int
    identity: Named
    score: float
    face_id: int


def rank(hits: Iterable[Hit], identities: Mapping[int, Named], top_k: int) -> tuple[Candidate, ...]:
    """The `top_k` best identities of `hits`, which come best first, that are among `identities`, by id."""
    there = [(hit, identities[hit.identity_id]) for hit in hits if hit.identity_id in identities]
    return tuple(Candidate(i, identity, hit.score, hit.face_id) for i, (hit, identity) in enumerate(there[:top_k], 1))
