"""What an API key with no more than the scope `search` gets of an answer.

Scores of many probes against one identity determine its embedding, also the scores of people who do not match. So such
a key gets the decision and the candidates above the threshold, with scores that are rounded after the decision.
"""

from __future__ import annotations

from dataclasses import replace

from indexer.rounding import NARROW_DECIMALS, reaches
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
    return replace(answer, faces=tuple(map(_restricted, answer.faces))) if is_restricted(key) else answer


def restricted_comparison(comparison: Comparison, key: ApiKey | None) -> Comparison:
    """Returns what the key may see of a comparison: exact scores of many pairs are as good as embeddings."""
    return replace(comparison, score=round(comparison.score, NARROW_DECIMALS)) if is_restricted(key) else comparison


def _restricted(face: FaceAnswer) -> FaceAnswer:
    candidates = tuple(
        replace(candidate, score=round(candidate.score, NARROW_DECIMALS))
        for candidate in face.candidates
        if reaches(candidate.score, face.threshold)
    )
    return replace(face, candidates=candidates, event=None if face.event is None else _event(face.event))


def _event(recorded: Recorded) -> Recorded:
    """Removes the score of a face that nobody matched, and rounds the others. The stored event keeps both."""
    event = recorded.event
    is_hidden = event.decision == Decision.NO_MATCH
    score = None if event.score is None or is_hidden else round(event.score, NARROW_DECIMALS)
    return replace(recorded, event=replace(event, score=score))
