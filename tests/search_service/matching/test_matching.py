"""From hits to a ranked answer and a decision."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.models.packs import SFACE
from indexer.types import Hit, NamedIdentity, ScoreTail
from search_service.matching.calibration import threshold_for
from search_service.matching.decision import REVIEW_MARGIN, Decision, decide
from search_service.matching.ranking import Candidate, rank

TAIL = ScoreTail(start=0.3, rate=1e-2, scale=0.02)
THEN = datetime(2026, 1, 1, tzinfo=UTC)


def identity(number: int) -> NamedIdentity:
    return NamedIdentity(number, f"e-{number}", None, {}, 1)


def candidates(*scores: float) -> list[Candidate]:
    return [Candidate(i, identity(i), score, 10 * i) for i, score in enumerate(scores, 1)]


# Calibration


@pytest.mark.parametrize(("fpir", "comparisons"), [(0.01, 100), (0.01, 5_000), (0.001, 1), (0.5, 1_000_000)])
def test_the_threshold_by_direct_computation(fpir: float, comparisons: int) -> None:
    fmr = 1 - (1 - fpir) ** (1 / comparisons)
    assert fmr < TAIL.rate
    expected = TAIL.start + TAIL.scale * math.log(TAIL.rate / fmr)
    assert threshold_for(fpir, comparisons, TAIL) == pytest.approx(expected, abs=1e-6)


def test_the_threshold_lets_in_what_was_asked_for() -> None:
    """Back again: at that threshold each comparison errs at the tail's rate, and N of them at the FPIR."""
    for fpir in (0.001, 0.01, 0.1):
        for comparisons in (500, 50_000):
            threshold = threshold_for(fpir, comparisons, TAIL)
            fmr = TAIL.rate * math.exp(-(threshold - TAIL.start) / TAIL.scale)
            assert 1 - (1 - fmr) ** comparisons == pytest.approx(fpir, rel=1e-6)


def test_a_known_threshold_of_the_pack() -> None:
    assert threshold_for(0.01, 10_000, SFACE.tail) == pytest.approx(
        SFACE.tail.start + SFACE.tail.scale * math.log(SFACE.tail.rate / (1 - 0.99 ** (1 / 10_000))), abs=1e-9
    )


def test_small_galleries_get_what_they_ask_for() -> None:
    """Over the tail's start the threshold follows the measured points, evenly in the logarithm of the rate."""
    assert threshold_for(0.1, 1, SFACE.tail) == pytest.approx(SFACE.tail.before[0][1])
    assert threshold_for(0.01, 1, SFACE.tail) == pytest.approx(SFACE.tail.before[1][1])
    assert threshold_for(0.5, 1, SFACE.tail) == SFACE.tail.before[0][1]
    middle = threshold_for(math.sqrt(0.1 * 0.01), 1, SFACE.tail)
    assert middle == pytest.approx((SFACE.tail.before[0][1] + SFACE.tail.before[1][1]) / 2)
    growing = [threshold_for(0.01, n, SFACE.tail) for n in range(1, 30)]
    assert growing == sorted(set(growing))


@pytest.mark.parametrize(("fpir", "comparisons"), [(0.011, 1), (0.01, 0), (0.99, 1), (0.5, 60)])
def test_below_the_tail_s_start_nothing_is_known(fpir: float, comparisons: int) -> None:
    assert 1 - (1 - fpir) ** (1 / max(comparisons, 1)) >= TAIL.rate * 0.999
    assert threshold_for(fpir, comparisons, TAIL) == pytest.approx(TAIL.start, abs=1e-9)


@given(st.floats(1e-9, 0.999), st.floats(1e-9, 0.999), st.integers(0, 10**8), st.integers(0, 10**8))
def test_stricter_and_larger_galleries_need_higher_thresholds(a: float, b: float, m: int, n: int) -> None:
    strict, loose = sorted((a, b))
    small, large = sorted((m, n))
    assert threshold_for(strict, n, TAIL) >= threshold_for(loose, n, TAIL) >= TAIL.start
    assert threshold_for(a, large, TAIL) >= threshold_for(a, small, TAIL) >= TAIL.start


def test_tiny_rates_do_not_vanish() -> None:
    """1 - (1 - FPIR)^(1/N) in floating point would be 0 here."""
    assert 1 - (1 - 1e-9) ** (1 / 10**9) == 0
    narrow = ScoreTail(start=0.3, rate=1e-2, scale=0.01)
    expected = narrow.start + narrow.scale * math.log(narrow.rate / 1e-18)
    assert threshold_for(1e-9, 10**9, narrow) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("fpir", "comparisons"), [(5e-324, 1), (5e-324, 2), (1e-300, 10), (1e-9, 10**9)])
def test_no_threshold_is_above_any_cosine(fpir: float, comparisons: int) -> None:
    assert threshold_for(fpir, comparisons, TAIL) == 1


# Ranking


def test_ranking_keeps_the_order_and_numbers_it() -> None:
    hits = [Hit(7, 70, 0.9), Hit(3, 31, 0.8), Hit(5, 50, -0.1)]
    assert rank(hits, {i: identity(i) for i in (3, 5, 7)}, 10) == (
        Candidate(1, identity(7), 0.9, 70),
        Candidate(2, identity(3), 0.8, 31),
        Candidate(3, identity(5), -0.1, 50),
    )


def test_who_is_not_there_is_left_out_and_leaves_no_gap() -> None:
    hits = [Hit(1, 10, 0.9), Hit(2, 20, 0.8), Hit(3, 30, 0.7), Hit(4, 40, 0.6)]
    ranked = rank(iter(hits), {i: identity(i) for i in (2, 4)}, 5)
    assert [(c.rank, c.identity.id, c.score, c.face_id) for c in ranked] == [(1, 2, 0.8, 20), (2, 4, 0.6, 40)]
    assert rank(hits, {i: identity(i) for i in (2, 4)}, 1) == ranked[:1]
    assert rank(hits, {}, 5) == ()
    assert rank([], {1: identity(1)}, 5) == ()


# Decision


@pytest.mark.parametrize(
    ("scores", "poor", "decision"),
    [
        ([], False, Decision.NO_MATCH),
        ([], True, Decision.NO_MATCH),
        ([0.39], False, Decision.NO_MATCH),
        ([0.39], True, Decision.NO_MATCH),
        ([0.39, 0.38], False, Decision.NO_MATCH),
        ([-0.2], False, Decision.NO_MATCH),
        ([0.4], False, Decision.MATCH),
        ([0.4], True, Decision.REVIEW),
        ([0.9, 0.1], False, Decision.MATCH),
        ([0.9, 0.1], True, Decision.REVIEW),
        ([0.9, 0.86], False, Decision.REVIEW),
        ([0.9, 0.9], False, Decision.REVIEW),
        ([0.9, 0.84], False, Decision.MATCH),
        ([0.42, 0.38], False, Decision.REVIEW),
        ([0.9, 0.5, 0.49], False, Decision.MATCH),
        ([0.75, 0.75 - REVIEW_MARGIN], False, Decision.MATCH),
    ],
)
def test_decision_at_a_threshold_of_0_4(scores: list[float], poor: bool, decision: Decision) -> None:
    assert decide(candidates(*scores), 0.4, poor).decision is decision
