"""Error rates, thresholds and intervals from scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from search_service.evaluation.metrics import (
    BIN,
    FPIRS,
    NOT_SEARCHED,
    Basis,
    Metrics,
    Searches,
    Verdict,
    basis_of,
    det,
    histogram,
    measure,
    verdict_of,
)


def searches(people: list[int], scores: list[float], right: list[bool] | None = None) -> Searches:
    found = np.array([True] * len(people) if right is None else right, np.bool_)
    return Searches(np.array(people, np.int64), np.array(scores, np.float64), found)


def strangers(count: int, first: int = 1_000) -> Searches:
    """With scores 0.001, 0.002, ..."""
    return searches(list(range(first, first + count)), [(i + 1) / 1000 for i in range(count)], [False] * count)


def measured(mated: Searches, non_mated: Searches, draws: int = 200, seed: int = 0) -> Metrics:
    return measure(mated, non_mated, [(0.1, 0.05)], draws, seed)


def fnir(metrics: Metrics, fpir: float) -> float:
    rate = next(rate for rate in metrics.rates if rate.fpir == fpir)
    assert rate.fnir is not None
    return rate.fnir.value


def test_probe_is_missed_unless_its_person_is_first_and_above_the_threshold() -> None:
    """Of 100 strangers 10 are above 0.090 and 3 above 0.097."""
    mated = searches([0, 1, 2, 3, 4], [0.095, 0.9, 0.9, 0.090, NOT_SEARCHED], [True, True, False, True, False])
    metrics = measured(mated, strangers(100))
    assert metrics.rank_1.value == pytest.approx(3 / 5)
    assert [rate.threshold for rate in metrics.rates[:3]] == pytest.approx([0.090, 0.097, 0.099])
    assert fnir(metrics, 0.1) == pytest.approx(3 / 5)  # wrong, at the threshold and not above, not searched
    assert fnir(metrics, 0.03) == pytest.approx(4 / 5)


def test_stranger_that_could_not_be_searched_counts_as_not_accepted() -> None:
    half = strangers(50)
    refused = searches(list(range(50)), [NOT_SEARCHED] * 50, [False] * 50)
    both = Searches(*(np.concatenate(pair) for pair in zip(_parts(half), _parts(refused), strict=True)))
    metrics = measured(searches([0, 1], [0.9, 0.046]), both)
    assert metrics.rates[0].threshold == pytest.approx(0.040)  # ten of a hundred are above, not five of fifty
    assert fnir(metrics, 0.1) == 0


def _parts(found: Searches) -> tuple[NDArray[Any], ...]:
    return found.person, found.score, found.right


@pytest.mark.parametrize(
    ("fpir", "people", "basis"),
    [
        (0.1, 50, Basis.MEASURED),
        (0.1, 49, Basis.FEW),
        (0.01, 100, Basis.FEW),
        (0.01, 99, Basis.UNSUPPORTED),
        (0.003, 1000, Basis.FEW),
        (0.001, 200, Basis.UNSUPPORTED),
        (0.001, 5000, Basis.MEASURED),
        (0.1, 0, Basis.UNSUPPORTED),
    ],
)
def test_low_fpirs_need_many_strangers(fpir: float, people: int, basis: Basis) -> None:
    assert basis_of(fpir, people) is basis


def test_fpir_with_too_few_strangers_has_no_fnir() -> None:
    metrics = measured(searches([0, 1], [0.9, 0.8]), strangers(200))
    assert [rate.fnir is None for rate in metrics.rates] == [False, False, False, True, True]
    assert [rate.threshold is None for rate in metrics.rates] == [False, False, False, True, True]


def test_without_strangers_only_rank_1_is_known() -> None:
    metrics = measured(searches([0, 1], [0.9, 0.8], [True, False]), strangers(0))
    assert metrics.rank_1.value == 0.5
    assert all(rate.fnir is None for rate in metrics.rates)
    assert (metrics.calibrated[0].observed.low, metrics.calibrated[0].observed.high) == (0, 1)
    assert metrics.det == ()


def test_intervals_are_over_people_not_photos() -> None:
    """All hundred photos of one person in ten are missed: with independent photos, 9 to 11 % would be missed; with
    other people, none to 30 %."""
    people = [i for i in range(10) for _ in range(100)]
    metrics = measured(searches(people, [0.9] * 1000, [person != 0 for person in people]), strangers(100))
    assert metrics.rank_1.value == pytest.approx(0.9)
    assert metrics.rank_1.low <= 0.75
    assert metrics.rank_1.high == 1


def test_intervals_include_the_uncertainty_of_the_threshold() -> None:
    """Every mated score lies between those of the ten strangers that determine the threshold."""
    mated = searches(list(range(400)), [0.9 + 0.05 * i / 400 for i in range(400)])
    few = searches(list(range(1000, 1100)), [0.1] * 90 + [0.9 + 0.005 * i for i in range(10)], [False] * 100)
    rate = measured(mated, few, draws=1000).rates[1]
    assert rate.fnir is not None
    assert rate.fnir.high - rate.fnir.low > 0.15  # three of the strangers, by people alone, would give 0.1 at most


def test_same_seed_gives_same_intervals() -> None:
    people = [i for i in range(50) for _ in range(i + 1)]
    mated = searches(people, [0.9] * len(people), [i % 7 > 0 for i in people])
    one, same, other = (measured(mated, strangers(100), seed=seed).rank_1 for seed in (1, 1, 2))
    assert one == same
    assert one.value == other.value
    assert one != other


def test_no_mistake_among_few_people_leaves_a_wide_interval() -> None:
    """Clopper and Pearson's interval for none of 20 ends at 16.8 %, for none of 200 at 1.8 %."""
    metrics = measured(searches(list(range(20)), [0.9] * 20), strangers(40))
    assert metrics.rank_1.low == pytest.approx(1 - 0.1684, abs=1e-4)
    above = measure(searches([0], [0.9]), strangers(200), [(0.1, 0.5)], 100, 0).calibrated[0]
    assert above.observed.value == 0
    assert above.observed.high == pytest.approx(0.0183, abs=1e-4)


@pytest.mark.parametrize("erring", range(6))
def test_few_mistakes_have_an_interval_as_wide_as_none(erring: int) -> None:
    """Of 22 people with four photos each, one photo of some people is missed. The bootstrap alone would end at 3.4 %
    for one person, and at 15.4 % for nobody."""
    people = [i for i in range(22) for _ in range(4)]
    right = [i % 4 > 0 or i // 4 >= erring for i in range(len(people))]
    metrics = measured(searches(people, [0.9] * len(people), right), strangers(100), draws=1000).rank_1
    assert metrics.value == pytest.approx(1 - erring / 88)
    if erring < 5:
        assert metrics.low == pytest.approx(1 - 0.1544, abs=1e-4)
    else:
        assert 0.88 < metrics.low < 0.93


def test_wanted_fpirs_are_compared_with_observed_ones() -> None:
    metrics = measure(searches([0, 1], [0.95, 0.02]), strangers(100), [(0.1, 0.091), (0.03, 0.05)], 100, 0)
    first, second = metrics.calibrated
    assert first.false_positives == 10
    assert first.observed.value == pytest.approx(0.1)
    assert first.fnir.value == pytest.approx(0.5)
    assert first.verdict is Verdict.AS_ASKED
    assert second.observed.value == pytest.approx(0.51)
    assert second.verdict is Verdict.TOO_FEW


@pytest.mark.parametrize(
    ("observed", "verdict"),
    [(0.049, Verdict.LESS), (0.05, Verdict.AS_ASKED), (0.2, Verdict.AS_ASKED), (0.201, Verdict.MORE)],
)
def test_share_between_half_and_double_is_as_asked(observed: float, verdict: Verdict) -> None:
    assert verdict_of(0.1, observed, 500) is verdict


def test_mate_who_is_also_a_stranger_is_drawn_once_for_both() -> None:
    """Everyone is mated and a stranger: a draw without person 0 has neither their miss nor their false match, so the
    two rates are the same in every draw."""
    people = list(range(60))
    mated = searches(people, [0.9] * 60, [person != 0 for person in people])
    alike = searches(people, [0.8] + [0.1] * 59, [False] * 60)
    metrics = measure(mated, alike, [(0.1, 0.5)], 300, 0)
    assert metrics.calibrated[0].observed.high == pytest.approx(metrics.calibrated[0].fnir.high)


def test_curve_falls_and_agrees_with_the_table() -> None:
    random = np.random.default_rng(3)
    mated = searches(list(range(500)), random.normal(0.7, 0.2, 500).tolist(), (random.random(500) > 0.05).tolist())
    others = searches(list(range(1000, 3000)), random.normal(0.3, 0.1, 2000).tolist(), [False] * 2000)
    curve, metrics = det(mated, others), measured(mated, others)
    fpirs, fnirs = zip(*curve, strict=True)
    assert list(fpirs) == sorted(fpirs)
    assert list(fnirs) == sorted(fnirs, reverse=True)
    for fpir in FPIRS[:3]:
        near = min(curve, key=lambda point: abs(point[0] - fpir))
        assert near[1] == pytest.approx(fnir(metrics, fpir), abs=0.01)


def test_histogram_counts_every_probe_that_was_searched() -> None:
    mated = searches([0, 1, 2, 3], [0.5, 0.519, 0.1, NOT_SEARCHED], [True, True, False, False])
    metrics = histogram(mated, searches([9], [0.3], [False]))
    assert (sum(metrics.right), sum(metrics.wrong), sum(metrics.strangers)) == (2, 1, 1)
    assert metrics.start == pytest.approx(0.1)
    assert metrics.right[round((0.5 - metrics.start) / BIN)] == 2


def test_histogram_is_empty_if_nothing_was_searched() -> None:
    nothing = searches([0], [NOT_SEARCHED], [False])
    assert histogram(nothing, replace(nothing)).right == ()
