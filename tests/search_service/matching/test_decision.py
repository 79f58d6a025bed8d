"""Decisions and their reasons, at a threshold of 0.4."""

from __future__ import annotations

import pytest

from indexer.types import NamedIdentity
from search_service.matching.decision import REVIEW_MARGIN, Decision, DecisionReason, Verdict, decide
from search_service.matching.ranking import Barred, Candidate, Outranked

EXPIRED, NOT_YET = Barred.EXPIRED, Barred.NOT_YET_VALID


def candidates(*scores: float) -> list[Candidate]:
    return [Candidate(i, NamedIdentity(i, f"e-{i}", None, {}, 1), score, 10 * i) for i, score in enumerate(scores, 1)]


@pytest.mark.parametrize(
    ("scores", "is_poor", "frames_disagree", "decision", "reasons"),
    [
        ([0.9], False, False, Decision.MATCH, []),
        ([0.4], False, False, Decision.MATCH, []),
        ([0.4, 0.2], False, False, Decision.MATCH, []),
        ([0.9, 0.84], False, False, Decision.MATCH, []),
        ([0.9, 0.5, 0.49], False, False, Decision.MATCH, []),
        ([0.75, 0.75 - REVIEW_MARGIN], False, False, Decision.MATCH, []),
        ([], False, False, Decision.NO_MATCH, ["no_candidates"]),
        ([-0.2], False, False, Decision.NO_MATCH, ["below_threshold"]),
        ([0.39], False, False, Decision.NO_MATCH, ["below_threshold"]),
        ([0.39, 0.38], False, False, Decision.NO_MATCH, ["below_threshold"]),
        ([0.39, 0.38], True, True, Decision.NO_MATCH, ["below_threshold", "poor_probe", "frames_disagree"]),
        ([], True, False, Decision.NO_MATCH, ["no_candidates", "poor_probe"]),
        ([0.9, 0.86], False, False, Decision.REVIEW, ["close_runner_up"]),
        ([0.42, 0.38], False, False, Decision.REVIEW, ["close_runner_up"]),
        ([0.9, 0.1], True, False, Decision.REVIEW, ["poor_probe"]),
        ([0.4], True, False, Decision.REVIEW, ["poor_probe"]),
        ([0.9], False, True, Decision.REVIEW, ["frames_disagree"]),
        ([0.9, 0.9], True, True, Decision.REVIEW, ["close_runner_up", "poor_probe", "frames_disagree"]),
    ],
)
def test_decision_follows_from_scores_and_probe(
    scores: list[float], is_poor: bool, frames_disagree: bool, decision: Decision, reasons: list[str]
) -> None:
    expected = Verdict(decision, tuple(map(DecisionReason, reasons)))
    assert decide(candidates(*scores), 0.4, is_poor, frames_disagree) == expected


@pytest.mark.parametrize(
    ("scores", "better", "decision", "reasons"),
    [
        ([], Outranked(EXPIRED, 0.8), Decision.NO_MATCH, ["identity_expired"]),
        ([], Outranked(NOT_YET, 0.4), Decision.NO_MATCH, ["identity_not_yet_valid"]),
        ([], Outranked(EXPIRED, 0.39), Decision.NO_MATCH, ["below_threshold"]),
        ([0.2], Outranked(EXPIRED, 0.8), Decision.NO_MATCH, ["identity_expired"]),
        ([0.2], Outranked(EXPIRED, 0.3), Decision.NO_MATCH, ["below_threshold"]),
        ([0.45, 0.1], Outranked(EXPIRED, 0.8), Decision.REVIEW, ["identity_expired"]),
        ([0.45, 0.44], Outranked(NOT_YET, 0.8), Decision.REVIEW, ["identity_not_yet_valid", "close_runner_up"]),
    ],
)
def test_face_more_similar_to_an_invalid_identity_is_no_match(
    scores: list[float], better: Outranked, decision: Decision, reasons: list[str]
) -> None:
    verdict = decide(candidates(*scores), 0.4, outranked=better)
    assert verdict == Verdict(decision, tuple(map(DecisionReason, reasons)))
