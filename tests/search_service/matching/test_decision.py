"""Why a decision is what it is, and what somebody does to it who is in the gallery but not valid now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from indexer.types import Hit, Identity, Named
from search_service.matching.decision import Decision, DecisionReason, Verdict, decide
from search_service.matching.ranking import Barred, Candidate, Outranked, outranked

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)

EXPIRED, NOT_YET = Barred.EXPIRED, Barred.NOT_YET_VALID


def candidates(*scores: float) -> list[Candidate]:
    return [Candidate(i, Named(i, f"e-{i}", None, {}, 1), score, 10 * i) for i, score in enumerate(scores, 1)]


def identity(number: int, valid_from: datetime | None = None, valid_until: datetime | None = None) -> Identity:
    return Identity(number, f"e-{number}", None, {}, valid_from, valid_until, 1, NOON, NOON)


@pytest.mark.parametrize(
    ("scores", "poor", "disagree", "decision", "reasons"),
    [
        ([0.9], False, False, Decision.MATCH, []),
        ([0.4, 0.2], False, False, Decision.MATCH, []),
        ([], False, False, Decision.NO_MATCH, ["no_candidates"]),
        ([0.39], False, False, Decision.NO_MATCH, ["below_threshold"]),
        ([0.39, 0.38], False, False, Decision.NO_MATCH, ["below_threshold"]),
        ([0.39, 0.38], True, True, Decision.NO_MATCH, ["below_threshold", "poor_probe", "frames_disagree"]),
        ([], True, False, Decision.NO_MATCH, ["no_candidates", "poor_probe"]),
        ([0.9, 0.86], False, False, Decision.REVIEW, ["close_runner_up"]),
        ([0.42, 0.38], False, False, Decision.REVIEW, ["close_runner_up"]),
        ([0.9], True, False, Decision.REVIEW, ["poor_probe"]),
        ([0.9], False, True, Decision.REVIEW, ["frames_disagree"]),
        ([0.9, 0.9], True, True, Decision.REVIEW, ["close_runner_up", "poor_probe", "frames_disagree"]),
    ],
)
def test_reasons_at_a_threshold_of_0_4(
    scores: list[float], poor: bool, disagree: bool, decision: Decision, reasons: list[str]
) -> None:
    expected = Verdict(decision, tuple(map(DecisionReason, reasons)))
    assert decide(candidates(*scores), 0.4, poor, disagree) == expected


@pytest.mark.parametrize(
    ("scores", "barred", "decision", "reasons"),
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
def test_who_looks_like_somebody_who_is_not_valid_is_no_match(
    scores: list[float], barred: Outranked, decision: Decision, reasons: list[str]
) -> None:
    verdict = decide(candidates(*scores), 0.4, outranked=barred)
    assert verdict == Verdict(decision, tuple(map(DecisionReason, reasons)))


def test_the_best_hit_counts_unless_it_was_deleted() -> None:
    hits = [Hit(1, 10, 0.9), Hit(2, 20, 0.8), Hit(3, 30, 0.7), Hit(4, 40, 0.6)]
    valid = {3: Named(3, "e-3", None, {}, 1)}
    expired, early = identity(2, valid_until=NOON), identity(2, valid_from=NOON + SECOND)
    assert outranked(hits, valid, {2: expired}, NOON) == Outranked(EXPIRED, 0.8)
    assert outranked(hits, valid, {2: early}, NOON) == Outranked(NOT_YET, 0.8)
    assert outranked(hits, valid, {2: early, 1: identity(1, valid_until=NOON)}, NOON) == Outranked(EXPIRED, 0.9)
    assert outranked(hits, valid, {4: identity(4, valid_until=NOON)}, NOON) is None
    assert outranked(hits, valid, {}, NOON) is None
    assert outranked([], valid, {2: expired}, NOON) is None


def test_from_and_until_are_the_moments_themselves() -> None:
    """As `Store.valid_identities` has it: valid from `valid_from` on and before `valid_until`."""
    [hit] = hits = [Hit(2, 20, 0.8)]
    for person, barred in (
        (identity(2, valid_until=NOON), EXPIRED),
        (identity(2, valid_until=NOON + SECOND), None),
        (identity(2, valid_from=NOON), None),
        (identity(2, valid_from=NOON + SECOND), NOT_YET),
        (identity(2, NOON - SECOND, NOON), EXPIRED),
        (identity(2), None),  # it changed between the two looks at it
    ):
        assert outranked(hits, {}, {2: person}, NOON) == (Outranked(barred, hit.score) if barred else None)
