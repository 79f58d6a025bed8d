"""Thresholds for an FPIR, from a pack's scores and from a gallery's own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.models.packs import SFACE, Pack
from indexer.types import ScoreTail
from search_service.matching.calibration import LEAST_PEOPLE, own_curve, threshold_for
from tests.search_service.calibration.people import BORROWED, PACK, people

TAIL = ScoreTail(start=0.3, rate=1e-2, scale=0.02)


# By the pack


@pytest.mark.parametrize(("fpir", "comparisons"), [(0.01, 100), (0.01, 5_000), (0.001, 1), (0.5, 1_000_000)])
def test_threshold_agrees_with_direct_computation(fpir: float, comparisons: int) -> None:
    fmr = 1 - (1 - fpir) ** (1 / comparisons)
    assert fmr < TAIL.rate
    expected = TAIL.start + TAIL.scale * math.log(TAIL.rate / fmr)
    assert threshold_for(fpir, comparisons, TAIL) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("fpir", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("comparisons", [500, 50_000])
def test_threshold_accepts_the_wanted_share_of_strangers(fpir: float, comparisons: int) -> None:
    """At the threshold, each comparison errs at the tail's rate, and N of them at the FPIR."""
    threshold = threshold_for(fpir, comparisons, TAIL)
    fmr = TAIL.rate * math.exp(-(threshold - TAIL.start) / TAIL.scale)
    assert 1 - (1 - fmr) ** comparisons == pytest.approx(fpir, rel=1e-6)


def test_threshold_of_the_embedded_pack_follows_its_tail() -> None:
    assert threshold_for(0.01, 10_000, SFACE.tail) == pytest.approx(
        SFACE.tail.start + SFACE.tail.scale * math.log(SFACE.tail.rate / (1 - 0.99 ** (1 / 10_000))), abs=1e-9
    )


def test_small_galleries_follow_the_measured_points() -> None:
    """Below the tail's start, thresholds are interpolated linearly in the logarithm of the rate."""
    assert threshold_for(0.1, 1, SFACE.tail) == pytest.approx(SFACE.tail.before[0][1])
    assert threshold_for(0.01, 1, SFACE.tail) == pytest.approx(SFACE.tail.before[1][1])
    assert threshold_for(0.5, 1, SFACE.tail) == SFACE.tail.before[0][1]
    middle = threshold_for(math.sqrt(0.1 * 0.01), 1, SFACE.tail)
    assert middle == pytest.approx((SFACE.tail.before[0][1] + SFACE.tail.before[1][1]) / 2)
    rising = [threshold_for(0.01, n, SFACE.tail) for n in range(1, 30)]
    assert rising == sorted(set(rising))


@pytest.mark.parametrize(("fpir", "comparisons"), [(0.011, 1), (0.01, 0), (0.99, 1), (0.5, 60)])
def test_threshold_is_never_below_the_lowest_known_score(fpir: float, comparisons: int) -> None:
    assert 1 - (1 - fpir) ** (1 / max(comparisons, 1)) >= TAIL.rate * 0.999
    assert threshold_for(fpir, comparisons, TAIL) == pytest.approx(TAIL.start, abs=1e-9)


@given(st.floats(1e-9, 0.999), st.floats(1e-9, 0.999), st.integers(0, 10**8), st.integers(0, 10**8))
def test_stricter_and_larger_galleries_have_higher_thresholds(a: float, b: float, m: int, n: int) -> None:
    strict, loose = sorted((a, b))
    small, large = sorted((m, n))
    assert threshold_for(strict, n, TAIL) >= threshold_for(loose, n, TAIL) >= TAIL.start
    assert threshold_for(a, large, TAIL) >= threshold_for(a, small, TAIL) >= TAIL.start


def test_tiny_rates_do_not_vanish() -> None:
    """1 - (1 - FPIR)^(1/N) in floating point would be 0."""
    assert 1 - (1 - 1e-9) ** (1 / 10**9) == 0
    narrow = ScoreTail(start=0.3, rate=1e-2, scale=0.01)
    expected = narrow.start + narrow.scale * math.log(narrow.rate / 1e-18)
    assert threshold_for(1e-9, 10**9, narrow) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("fpir", "comparisons"), [(5e-324, 1), (5e-324, 2), (1e-300, 10), (1e-9, 10**9)])
def test_threshold_is_never_above_the_highest_cosine(fpir: float, comparisons: int) -> None:
    assert threshold_for(fpir, comparisons, TAIL) == 1


# By the gallery's own scores


def scores_as_the_pack_predicts(size: int) -> NDArray[np.float64]:
    """Returns the best scores of so many people, (size,)."""
    return np.array([threshold_for((i + 0.5) / size, size - 1, PACK.tail) for i in range(size)])


def curve_of(best: NDArray[np.float64], pack: Pack = PACK) -> ScoreTail:
    curve = own_curve(best, len(best) - 1, len(best), pack.tail, pack.measured)
    assert curve is not None
    return curve


@pytest.mark.parametrize("size", [LEAST_PEOPLE, 100, 2_000])
@pytest.mark.parametrize("fpir", [0.3, 0.1, 0.01, 1e-3])
def test_gallery_that_scores_as_predicted_gets_the_pack_s_threshold(size: int, fpir: float) -> None:
    curve = curve_of(scores_as_the_pack_predicts(size))
    assert threshold_for(fpir, 1, curve) == pytest.approx(threshold_for(fpir, size, PACK.tail), abs=0.005)


def test_the_more_people_the_more_their_own_scores_count() -> None:
    """All score 0.01 higher than the pack predicts."""
    moved = []
    for size in (LEAST_PEOPLE, 100, 2_000):
        best = scores_as_the_pack_predicts(size)
        moved.append(threshold_for(0.1, 1, curve_of(best + 0.01)) - threshold_for(0.1, 1, curve_of(best)))
    assert 0 < moved[0] < 0.0035 < moved[1] < moved[2]
    assert moved[2] > 0.009


def test_pack_that_is_far_off_does_not_count() -> None:
    """Hundreds of people who score 0.3 higher than predicted determine the threshold."""
    best = scores_as_the_pack_predicts(400) + 0.3
    assert (best >= threshold_for(0.1, 1, curve_of(best))).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("pack", "least"), [(PACK, 20), (BORROWED, 100)], ids=["measured", "borrowed"])
def test_too_few_people_have_no_curve(pack: Pack, least: int) -> None:
    scores = people(least, 0.2)[:, 0].astype(np.float64)
    assert own_curve(scores[:-1], least - 2, least - 1, pack.tail, pack.measured) is None
    assert own_curve(scores, least - 1, least, pack.tail, pack.measured) is not None


@pytest.mark.parametrize("pack", [PACK, BORROWED, replace(PACK, tail=replace(PACK.tail, before=()))])
@pytest.mark.parametrize("score", [-1.0, 0.3, 1.0])
def test_equal_scores_have_a_finite_curve(pack: Pack, score: float) -> None:
    curve = curve_of(np.full(120, score), pack)
    thresholds = [threshold_for(fpir, 1, curve) for fpir in (0.5, 0.1, 1e-3, 1e-9)]
    assert thresholds == sorted(thresholds)
    assert all(np.isfinite(thresholds))
