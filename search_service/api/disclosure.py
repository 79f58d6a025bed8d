"""What an API key with no more than the scope `search` gets of an answer.

Scores of many probes against one identity determine its embedding, also the scores of people who do not match. So such
a key gets the decision and the candidates above the threshold, with scores that are rounded after the decision.
"""

from __future__ import annotations

from dataclasses import replace

from indexer.rounding import NARROW_DECIMALS, reaches
from indexer.types import Liveness
from search_service.matching.decision import Decision
from search_service.search import Answer, Comparison, FaceAnswer, Query
from search_service.store.api_keys import ApiKey, Scope
from search_service.store.events import Recorded

MAX_CANDIDATES = 10


def is_restricted(key: ApiKey | None) -> bool:
    """Returns whether the key, or None where no key is needed, gets no more than decisions."""
    return key is not None and not key.allows(Scope.INVESTIGATE)


def restricted_query(query: Query, key: ApiKey | None) -> Query:
    """Returns the query as far as the key may ask it."""
    if not is_restricted(key):
        return query
    return replace(query, top_k=min(query.top_k, MAX_CANDIDATES), may_lower=False)


def restricted_answer(answer: Answer, key: ApiKey | None) -> Answer:
    """Returns what the key may see of an answer."""
    if not is_restricted(key):
        return answer
    frames = answer.frames and tuple(replace(frame, liveness=_rounded(frame.liveness)) for frame in answer.frames)
    return replace(answer, faces=tuple(map(_restricted, answer.faces)), frames=frames)


def restricted_comparison(comparison: Comparison, key: ApiKey | None) -> Comparison:
    """Returns what the key may see of a comparison: exact scores of many pairs are as good as embeddings."""
    if not is_restricted(key):
        return comparison
    a, b = (replace(face, liveness=_rounded(face.liveness)) for face in comparison.faces)
    return replace(comparison, score=round(comparison.score, NARROW_DECIMALS), faces=(a, b))


def _restricted(face: FaceAnswer) -> FaceAnswer:
    candidates = tuple(
        replace(candidate, score=round(candidate.score, NARROW_DECIMALS))
        for candidate in face.candidates
        if reaches(candidate.score, face.threshold)
    )
    event = None if face.event is None else _event(face.event)
    return replace(face, candidates=candidates, event=event, liveness=_rounded(face.liveness))


def _rounded(liveness: Liveness | None) -> Liveness | None:
    """Rounds the score, which would guide an attacker who improves a forgery step by step."""
    return liveness and replace(liveness, score=round(liveness.score, NARROW_DECIMALS))


def _event(recorded: Recorded) -> Recorded:
    """Removes the score of a face that nobody matched, and rounds the others. The stored event keeps both."""
    event = recorded.event
    is_hidden = event.decision == Decision.NO_MATCH
    score = None if event.score is None or is_hidden else round(event.score, NARROW_DECIMALS)
    liveness = event.liveness and {**event.liveness, "score": round(event.liveness["score"], NARROW_DECIMALS)}
    return replace(recorded, event=replace(event, score=score, liveness=liveness))
