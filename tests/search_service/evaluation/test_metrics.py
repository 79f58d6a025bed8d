"""Error rates from scores: what counts as missed, where thresholds are, how sure it all is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from search_service.evaluation.metrics import (
    BIN,
    FPIRS,
    NOTHING,
    Basis,
    Numbers,
    Searches,
    Verdict,
    basis_of,
    det,
    histogram,
    numbers,
    verdict_of,
)


def searches(people: list[int], scores: list[float], right: list[bool] | None = None) -> Searches:
    found = np.array([True] * len(people) if right is None else right, np.bool_)
    return Searches(np.array(people, np.int64), np.array(scores, np.float64), found)


def strangers(count: int, first: int = 1_000) -> Searches:
    """Of scores 0.001, 0.002, ..."""
    return searches(list(range(first, first + count)), [(i + 1) / 1000 for i in range(count)], [False] * count)


def measured(mated: Searches, non_mated: Searches, draws: int = 200, seed: int = 0) -> Numbers:
    return numbers(mated, non_mated, [(0.1, 0.05)], draws, seed)


def fnir(told: Numbers, fpir: float) -> float:
    rate = next(rate for rate in told.rates if rate.fpir == fpir)
    assert rate.fnir is not None
    return rate.fnir.value


def test_a_probe_is_missed_unless_its_person_is_first_and_above_the_threshold() -> None:
    """Of 100 strangers 10 are above 0.090 and 3 above 0.097."""
    mated = searches([0, 1, 2, 3, 4], [0.095, 0.9, 0.9, 0.090, NOTHING], [True, True, False, True, False])
    told = measured(mated, strangers(100))
    assert told.rank_1.value == pytest.approx(3 / 5)
    assert [rate.threshold for rate in told.rates[:3]] == pytest.approx([0.090, 0.097, 0.099])
    assert fnir(told, 0.1) == pytest.approx(3 / 5)  # wrong, at the threshold and not above, not searched
    assert fnir(told, 0.03) == pytest.approx(4 / 5)


def test_a_stranger_that_could_not_be_searched_counts_as_not_let_in() -> None:
    half = strangers(50)
    refused = searches(list(range(50)), [NOTHING] * 50, [False] * 50)
    both = Searches(*(np.concatenate(pair) for pair in zip(_parts(half), _parts(refused), strict=True)))
    told = measured(searches([0, 1], [0.9, 0.046]), both)
    assert told.rates[0].threshold == pytest.approx(0.040)  # ten of a hundred are above, not five of fifty
    assert fnir(told, 0.1) == 0


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
def test_how_many_strangers_an_fpir_needs(fpir: float, people: int, basis: Basis) -> None:
    assert basis_of(fpir, people) is basis


def test_where_strangers_are_too_few_there_is_no_number() -> None:
    told = measured(searches([0, 1], [0.9, 0.8]), strangers(200))
    assert [rate.fnir is None for rate in told.rates] == [False, False, False, True, True]
    assert [rate.threshold is None for rate in told.rates] == [False, False, False, True, True]


def test_without_strangers_rank_1_is_told_and_nothing_else() -> None:
    told = measured(searches([0, 1], [0.9, 0.8], [True, False]), strangers(0))
    assert told.rank_1.value == 0.5
    assert all(rate.fnir is None for rate in told.rates)
    assert (told.asked[0].observed.low, told.asked[0].observed.high) == (0, 1)
    assert told.det == ()


def test_intervals_are_over_people_and_not_over_photos() -> None:
    """One person of ten has a hundred photos, all missed: as photos, 10 % is missed, give or take one; as people, it
    may be none or three."""
    people = [i for i in range(10) for _ in range(100)]
    told = measured(searches(people, [0.9] * 1000, [person != 0 for person in people]), strangers(100))
    assert told.rank_1.value == pytest.approx(0.9)
    assert told.rank_1.low <= 0.75
    assert told.rank_1.high == 1


def test_intervals_hold_what_is_uncertain_about_the_threshold_as_well() -> None:
    """Every mated score lies between the highest and the lowest of the ten strangers that decide."""
    mated = searches(list(range(400)), [0.9 + 0.05 * i / 400 for i in range(400)])
    few = searches(list(range(1000, 1100)), [0.1] * 90 + [0.9 + 0.005 * i for i in range(10)], [False] * 100)
    rate = measured(mated, few, draws=1000).rates[1]
    assert rate.fnir is not None
    assert rate.fnir.high - rate.fnir.low > 0.15  # three of the strangers, by people alone, would give 0.1 at most


def test_the_same_seed_draws_the_same() -> None:
    people = [i for i in range(50) for _ in range(i + 1)]
    mated = searches(people, [0.9] * len(people), [i % 7 > 0 for i in people])
    one, same, other = (measured(mated, strangers(100), seed=seed).rank_1 for seed in (1, 1, 2))
    assert one == same
    assert one.value == other.value
    assert one != other


def test_no_mistake_among_few_people_is_no_proof() -> None:
    """Clopper and Pearson's interval for none of 20 ends at 16.8 %, for none of 200 at 1.8 %."""
    told = measured(searches(list(range(20)), [0.9] * 20), strangers(40))
    assert told.rank_1.low == pytest.approx(1 - 0.1684, abs=1e-4)
    above = numbers(searches([0], [0.9]), strangers(200), [(0.1, 0.5)], 100, 0).asked[0]
    assert above.observed.value == 0
    assert above.observed.high == pytest.approx(0.0183, abs=1e-4)


@pytest.mark.parametrize("erring", range(6))
def test_a_few_mistakes_tell_no_more_than_none(erring: int) -> None:
    """Of 22 people with four photos each, one photo of some is missed: by the bootstrap alone, of one person it would
    be 3.4 % at most, and of nobody 15.4 %."""
    people = [i for i in range(22) for _ in range(4)]
    right = [i % 4 > 0 or i // 4 >= erring for i in range(len(people))]
    told = measured(searches(people, [0.9] * len(people), right), strangers(100), draws=1000).rank_1
    assert told.value == pytest.approx(1 - erring / 88)
    if erring < 5:
        assert told.low == pytest.approx(1 - 0.1544, abs=1e-4)
    else:
        assert 0.88 < told.low < 0.93


def test_what_calibration_asked_for_is_held_against_what_came() -> None:
    told = numbers(searches([0, 1], [0.95, 0.02]), strangers(100), [(0.1, 0.091), (0.03, 0.05)], 100, 0)
    first, second = told.asked
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
def test_within_half_and_double_is_as_asked(observed: float, verdict: Verdict) -> None:
    assert verdict_of(0.1, observed, 500) is verdict


def test_someone_who_is_a_stranger_to_the_others_is_drawn_once_for_both() -> None:
    """Everyone is mated and a stranger: a draw without person 0 has neither their miss nor their false match, so the
    two rates are the same in every draw."""
    people = list(range(60))
    mated = searches(people, [0.9] * 60, [person != 0 for person in people])
    alike = searches(people, [0.8] + [0.1] * 59, [False] * 60)
    told = numbers(mated, alike, [(0.1, 0.5)], 300, 0)
    assert told.asked[0].observed.high == pytest.approx(told.asked[0].fnir.high)


def test_the_curve_falls_and_passes_through_the_table() -> None:
    random = np.random.default_rng(3)
    mated = searches(list(range(500)), random.normal(0.7, 0.2, 500).tolist(), (random.random(500) > 0.05).tolist())
    others = searches(list(range(1000, 3000)), random.normal(0.3, 0.1, 2000).tolist(), [False] * 2000)
    curve, told = det(mated, others), measured(mated, others)
    fpirs, fnirs = zip(*curve, strict=True)
    assert list(fpirs) == sorted(fpirs)
    assert list(fnirs) == sorted(fnirs, reverse=True)
    for fpir in FPIRS[:3]:
        near = min(curve, key=lambda point: abs(point[0] - fpir))
        assert near[1] == pytest.approx(fnir(told, fpir), abs=0.01)


def test_the_histogram_counts_everyone_who_was_searched() -> None:
    mated = searches([0, 1, 2, 3], [0.5, 0.519, 0.1, NOTHING], [True, True, False, False])
    told = histogram(mated, searches([9], [0.3], [False]))
    assert (sum(told.right), sum(told.wrong), sum(told.strangers)) == (2, 1, 1)
    assert told.start == pytest.approx(0.1)
    assert told.right[round((0.5 - told.start) / BIN)] == 2


def test_nothing_that_was_searched_has_no_histogram() -> None:
    nothing = searches([0], [NOTHING], [False])
    assert histogram(nothing, replace(nothing)).right == ()
