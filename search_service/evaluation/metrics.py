"""What an open-set evaluation's scores say: error rates with intervals, the thresholds for FPIRs, curves. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FPIRS = (0.1, 0.03, 0.01, 0.003, 0.001)

ENOUGH = 5
"""Strangers expected above a threshold from which on it counts as measured, as in `gallery calibrate`: their number is
then right within a half."""

INTERVAL = (2.5, 97.5)
"""Percent."""

NOTHING = -1.0
"""The score of a probe that could not be searched: below every other."""

BIN = 0.02
"""Cosine, of the histograms."""

CURVE_POINTS = 300


class Basis(StrEnum):
    """How far the strangers support an FPIR."""

    MEASURED = "measured"
    """ENOUGH of them or more are expected above its threshold."""
    FEW = "few_strangers"
    """Fewer are: the threshold hangs on one to four people."""
    UNSUPPORTED = "unsupported"
    """Less than one is: there is no such threshold to be had."""


class Verdict(StrEnum):
    """The share of strangers above a threshold that calibration gave, against the share asked for."""

    AS_ASKED = "as_asked"
    """From half to double."""
    LESS = "less"
    MORE = "more"
    TOO_FEW = "too_few_strangers"


@dataclass(frozen=True, eq=False)
class Searches:
    """What came of P searches, one a photo."""

    person: NDArray[np.int64]
    """(P,) whom each shows, numbered over all people that are searched."""
    score: NDArray[np.float64]
    """(P,) of the top candidate; of strangers, of the best who is not themselves. NOTHING where there was none."""
    right: NDArray[np.bool_]
    """(P,) whether the top candidate is whom the photo shows."""

    @property
    def people(self) -> int:
        return len(np.unique(self.person))


@dataclass(frozen=True)
class Estimate:
    """A share, and the interval in which it would be for 95 of 100 draws of other people of the same kind."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """FNIR at one FPIR."""

    fpir: float
    basis: Basis
    expected: float
    """Strangers at that FPIR, by people."""
    threshold: float | None
    """Which so many strangers are above; None where it is unsupported."""
    fnir: Estimate | None


@dataclass(frozen=True)
class Asked:
    """What a threshold of the service's own for one FPIR did."""

    fpir: float
    threshold: float
    observed: Estimate
    """The share of strangers that reached it."""
    false_positives: int
    fnir: Estimate
    verdict: Verdict


@dataclass(frozen=True)
class Histogram:
    """How many scores are in each bin of BIN, from `start` on."""

    start: float
    right: tuple[int, ...]
    """Mated probes whose top candidate is the right one."""
    wrong: tuple[int, ...]
    """Those whose is not."""
    strangers: tuple[int, ...]


@dataclass(frozen=True)
class Numbers:
    rank_1: Estimate
    rates: tuple[Rate, ...]
    asked: tuple[Asked, ...]
    det: tuple[tuple[float, float], ...]
    """FPIR and FNIR at falling thresholds."""
    histogram: Histogram


def numbers(
    mated: Searches, strangers: Searches, thresholds: Sequence[tuple[float, float]], draws: int, seed: int
) -> Numbers:
    """`thresholds`: FPIRs, and what the service answers to each. Intervals are percentiles over `draws` bootstrap draws
    of people, with all their photos; people who have mated probes and those who have none are drawn apart."""
    sums = _Sums(mated, strangers, [threshold for _, threshold in thresholds])
    once = sums.rates(np.ones(sums.people))
    drawn = np.stack([sums.rates(weights) for weights in _drawn(mated, strangers, sums.people, draws, seed)])
    lows, highs = np.percentile(drawn, INTERVAL, axis=0)
    of_strangers = strangers.people

    def estimate(place: int, of: Searches, counted: NDArray[np.bool_]) -> Estimate:
        value = float(once[place])
        low, high = min(float(lows[place]), value), max(float(highs[place]), value)
        return Estimate(value, *_honest(low, high, of.person, counted))

    rates = []
    for i, fpir in enumerate(FPIRS):
        basis = basis_of(fpir, of_strangers)
        some = basis is not Basis.UNSUPPORTED
        threshold = sums.threshold(fpir)
        fnir = estimate(1 + i, mated, ~(mated.right & (mated.score > threshold))) if some else None
        rates.append(Rate(fpir, basis, fpir * of_strangers, threshold if some else None, fnir))
    asked, first = [], 1 + len(FPIRS)
    for i, (fpir, threshold) in enumerate(thresholds):
        above = strangers.score >= threshold
        observed = estimate(first + i, strangers, above)
        missed = estimate(first + len(thresholds) + i, mated, ~(mated.right & (mated.score >= threshold)))
        verdict = verdict_of(fpir, observed.value, of_strangers)
        asked.append(Asked(fpir, threshold, observed, int(above.sum()), missed, verdict))
    rank_1 = estimate(0, mated, mated.right)
    return Numbers(rank_1, tuple(rates), tuple(asked), det(mated, strangers), histogram(mated, strangers))


def basis_of(fpir: float, strangers: int) -> Basis:
    """`strangers` is how many people they are."""
    expected = fpir * strangers + _ROUNDING
    if expected < 1:
        return Basis.UNSUPPORTED
    return Basis.MEASURED if expected >= ENOUGH else Basis.FEW


def verdict_of(fpir: float, observed: float, strangers: int) -> Verdict:
    if basis_of(fpir, strangers) is not Basis.MEASURED:
        return Verdict.TOO_FEW
    if observed > 2 * fpir:
        return Verdict.MORE
    return Verdict.LESS if observed < fpir / 2 else Verdict.AS_ASKED


def det(mated: Searches, strangers: Searches) -> tuple[tuple[float, float], ...]:
    """FPIR and FNIR at the thresholds of the strangers' scores, at most CURVE_POINTS of them, spread by the logarithm
    of the FPIR."""
    count = len(strangers.score)
    thresholds = np.sort(strangers.score)[::-1]
    places = np.unique(np.geomspace(1, count + 1, CURVE_POINTS).astype(np.int64)) - 1
    hits = np.sort(mated.score[mated.right])
    points = {}
    for threshold in thresholds[places[places < count]]:
        if threshold > NOTHING:
            above = float((strangers.score > threshold).mean())
            found = len(hits) - int(np.searchsorted(hits, threshold, side="right"))
            points[above] = 1 - found / len(mated.score)
    return tuple(points.items())


def histogram(mated: Searches, strangers: Searches) -> Histogram:
    """Of those that could be searched."""
    parts = [
        scores[scores > NOTHING] for scores in (mated.score[mated.right], mated.score[~mated.right], strangers.score)
    ]
    everything = np.concatenate(parts)
    if not len(everything):
        return Histogram(0.0, (), (), ())
    first, last = (int(np.floor(edge / BIN)) for edge in (everything.min(), everything.max()))
    bins = [
        np.bincount(np.floor(part / BIN).astype(np.int64) - first, minlength=last - first + 1).tolist()
        for part in parts
    ]
    return Histogram(round(first * BIN, 6), *map(tuple, bins))


_ROUNDING = 1e-9
"""0.003 * 1000 is 3 and not a little less."""


class _Sums:
    """The rates of weighted people: sorted once, summed for every draw."""

    def __init__(self, mated: Searches, strangers: Searches, asked: Sequence[float]) -> None:
        self.people = 1 + int(max(mated.person.max(), strangers.person.max(initial=-1)))
        falling = np.argsort(-mated.score[mated.right], kind="stable")
        self._all = mated.person
        self._hits = mated.person[mated.right][falling]
        self._hit_scores = -mated.score[mated.right][falling]
        order = np.argsort(-strangers.score, kind="stable")
        self._strangers = strangers.person[order]
        self._scores = strangers.score[order]
        self._asked_hits = np.searchsorted(self._hit_scores, -np.array(asked), side="right")
        self._asked_strangers = np.searchsorted(-self._scores, -np.array(asked), side="right")

    def rates(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rank-1; FNIR at each of FPIRS; the share of strangers, and FNIR, at each threshold asked about."""
        total = float(weights[self._all].sum())
        hits = np.concatenate([[0.0], np.cumsum(weights[self._hits])])
        let_in = np.concatenate([[0.0], np.cumsum(weights[self._strangers])])
        thresholds = np.array([self._threshold(fpir, let_in) for fpir in FPIRS])
        found = np.searchsorted(self._hit_scores, -thresholds, side="left")
        return np.concatenate(
            [
                [hits[-1] / total],
                1 - hits[found] / total,
                let_in[self._asked_strangers] / max(let_in[-1], 1.0),
                1 - hits[self._asked_hits] / total,
            ]
        )

    def threshold(self, fpir: float) -> float:
        return self._threshold(fpir, np.arange(len(self._scores) + 1, dtype=np.float64))

    def _threshold(self, fpir: float, let_in: NDArray[np.float64]) -> float:
        """That a share `fpir` of the strangers is above, or a little less. `let_in` are their weights, summed up."""
        if not len(self._scores):
            return NOTHING
        place = int(np.searchsorted(let_in[1:], np.floor(fpir * let_in[-1] + _ROUNDING), side="right"))
        return float(self._scores[min(place, len(self._scores) - 1)])


def _drawn(mated: Searches, strangers: Searches, people: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """For each draw, how often each person is in it."""
    random = np.random.default_rng(seed)
    groups = [np.unique(mated.person), np.setdiff1d(strangers.person, mated.person)]
    for _ in range(draws):
        weights = np.zeros(people)
        for group in groups:
            np.add.at(weights, random.choice(group, len(group)) if len(group) else group, 1.0)
        yield weights


def _honest(low: float, high: float, person: NDArray[np.int64], counted: NDArray[np.bool_]) -> tuple[float, float]:
    """The bootstrap's interval of the share of the searches that are `counted`, where it can be trusted.

    Where none is, or all are, every draw says the same, and of one or two people the draws know little more. So where
    fewer than ENOUGH people make up one side, the interval reaches as far as where nobody did: to the rate at which so
    many people would all be on the other side with a probability of 2.5 % (Clopper and Pearson).
    """
    people = len(np.unique(person))
    if not people:
        return 0.0, 1.0
    bound = 1 - (INTERVAL[0] / 100) ** (1 / people)
    if len(np.unique(person[counted])) < ENOUGH:
        high = max(high, bound)
    if len(np.unique(person[~counted])) < ENOUGH:
        low = min(low, 1 - bound)
    return low, high
