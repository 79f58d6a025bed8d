"""Error rates of an open-set evaluation with intervals, the thresholds for FPIRs, and curves. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FPIRS = (0.1, 0.03, 0.01, 0.003, 0.001)

ENOUGH = 5
"""Strangers expected above a threshold for it to count as measured, as in `gallery calibrate`: their number is then
right within a half."""

INTERVAL = (2.5, 97.5)
"""Percent."""

NOT_SEARCHED = -1.0
"""The score of a probe that could not be searched, below all others."""

BIN = 0.02
"""Width of a histogram's bin in cosine."""

CURVE_POINTS = 300


class Basis(StrEnum):
    """How well the strangers support an FPIR."""

    MEASURED = "measured"
    """At least ENOUGH of them are expected above its threshold."""
    FEW = "few_strangers"
    """One to four people are expected, who determine the threshold."""
    UNSUPPORTED = "unsupported"
    """Less than one is expected, so there is no threshold."""


class Verdict(StrEnum):
    """The observed share of strangers above a calibrated threshold, compared with the wanted share."""

    AS_ASKED = "as_asked"
    """Between half and double."""
    LESS = "less"
    MORE = "more"
    TOO_FEW = "too_few_strangers"


@dataclass(frozen=True, eq=False)
class Searches:
    """The results of P searches, one for each photo."""

    person: NDArray[np.int64]
    """(P,) the person in the photo, numbered over all people who are searched."""
    score: NDArray[np.float64]
    """(P,) of the top candidate; for strangers, of the best other person. NOT_SEARCHED if there is none."""
    right: NDArray[np.bool_]
    """(P,) whether the top candidate is the person in the photo."""

    @property
    def people(self) -> int:
        return len(np.unique(self.person))


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % confidence interval over the people."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """The FNIR at one FPIR."""

    fpir: float
    basis: Basis
    expected: float
    """Strangers expected above the threshold, counted by people."""
    threshold: float | None
    """The threshold that this share of the strangers is above; None if unsupported."""
    fnir: Estimate | None


@dataclass(frozen=True)
class CalibratedRate:
    """The rates at the threshold that the service applies for one FPIR."""

    fpir: float
    threshold: float
    observed: Estimate
    """The share of strangers that reached the threshold."""
    false_positives: int
    fnir: Estimate
    verdict: Verdict


@dataclass(frozen=True)
class Histogram:
    """The number of scores in each bin of width BIN, from `start` on."""

    start: float
    right: tuple[int, ...]
    """Of mated probes whose top candidate is right."""
    wrong: tuple[int, ...]
    """Of mated probes whose top candidate is wrong."""
    strangers: tuple[int, ...]


@dataclass(frozen=True)
class Metrics:
    rank_1: Estimate
    rates: tuple[Rate, ...]
    calibrated: tuple[CalibratedRate, ...]
    det: tuple[tuple[float, float], ...]
    """FPIRs and FNIRs at falling thresholds."""
    histogram: Histogram


def measure(
    mated: Searches, strangers: Searches, thresholds: Sequence[tuple[float, float]], draws: int, seed: int
) -> Metrics:
    """Computes the metrics. `thresholds` are FPIRs with the thresholds that the service applies for them.

    Intervals are percentiles over `draws` bootstrap draws of people, with all their photos. People with mated probes
    and people without are drawn separately.
    """
    sums = _Sums(mated, strangers, [threshold for _, threshold in thresholds])
    values = sums.rates(np.ones(sums.people))
    drawn = np.stack([sums.rates(weights) for weights in _draw(mated, strangers, sums.people, draws, seed)])
    lows, highs = np.percentile(drawn, INTERVAL, axis=0)
    people = strangers.people

    def estimate(place: int, of: Searches, counted: NDArray[np.bool_]) -> Estimate:
        value = float(values[place])
        low, high = min(float(lows[place]), value), max(float(highs[place]), value)
        return Estimate(value, *_widened(low, high, of.person, counted))

    rates = []
    for i, fpir in enumerate(FPIRS):
        basis, threshold = basis_of(fpir, people), sums.threshold(fpir)
        if basis is Basis.UNSUPPORTED:
            rates.append(Rate(fpir, basis, fpir * people, None, None))
            continue
        fnir = estimate(1 + i, mated, ~(mated.right & (mated.score > threshold)))
        rates.append(Rate(fpir, basis, fpir * people, threshold, fnir))
    calibrated, first = [], 1 + len(FPIRS)
    for i, (fpir, threshold) in enumerate(thresholds):
        above = strangers.score >= threshold
        observed = estimate(first + i, strangers, above)
        missed = estimate(first + len(thresholds) + i, mated, ~(mated.right & (mated.score >= threshold)))
        verdict = verdict_of(fpir, observed.value, people)
        calibrated.append(CalibratedRate(fpir, threshold, observed, int(above.sum()), missed, verdict))
    rank_1 = estimate(0, mated, mated.right)
    return Metrics(rank_1, tuple(rates), tuple(calibrated), det(mated, strangers), histogram(mated, strangers))


def basis_of(fpir: float, strangers: int) -> Basis:
    """Returns how well so many people support the FPIR."""
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
    """Returns FPIRs and FNIRs at thresholds that are scores of strangers: at most CURVE_POINTS, evenly spread in the
    logarithm of the FPIR."""
    count = len(strangers.score)
    thresholds = np.sort(strangers.score)[::-1]
    places = np.unique(np.geomspace(1, count + 1, CURVE_POINTS).astype(np.int64)) - 1
    hits = np.sort(mated.score[mated.right])
    points = {}
    for threshold in thresholds[places[places < count]]:
        if threshold > NOT_SEARCHED:
            above = float((strangers.score > threshold).mean())
            found = len(hits) - int(np.searchsorted(hits, threshold, side="right"))
            points[above] = 1 - found / len(mated.score)
    return tuple(points.items())


def histogram(mated: Searches, strangers: Searches) -> Histogram:
    """Returns the histograms of the scores of all probes that could be searched."""
    parts = [
        scores[scores > NOT_SEARCHED]
        for scores in (mated.score[mated.right], mated.score[~mated.right], strangers.score)
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
"""Tolerance, so that 0.003 * 1000 is 3 and not slightly less."""


class _Sums:
    """Computes rates with weighted people: scores are sorted once, and weights summed for every draw."""

    def __init__(self, mated: Searches, strangers: Searches, thresholds: Sequence[float]) -> None:
        self.people = 1 + int(max(mated.person.max(), strangers.person.max(initial=-1)))
        falling = np.argsort(-mated.score[mated.right], kind="stable")
        self._all = mated.person
        self._hits = mated.person[mated.right][falling]
        self._hit_scores = -mated.score[mated.right][falling]
        order = np.argsort(-strangers.score, kind="stable")
        self._strangers = strangers.person[order]
        self._scores = strangers.score[order]
        self._hits_at = np.searchsorted(self._hit_scores, -np.array(thresholds), side="right")
        self._strangers_at = np.searchsorted(-self._scores, -np.array(thresholds), side="right")

    def rates(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns rank-1, the FNIR at each of FPIRS, then the shares of strangers and the FNIRs at the thresholds."""
        total = float(weights[self._all].sum())
        hits = np.concatenate([[0.0], np.cumsum(weights[self._hits])])
        accepted = np.concatenate([[0.0], np.cumsum(weights[self._strangers])])
        thresholds = np.array([self._threshold(fpir, accepted) for fpir in FPIRS])
        found = np.searchsorted(self._hit_scores, -thresholds, side="left")
        return np.concatenate(
            [
                [hits[-1] / total],
                1 - hits[found] / total,
                accepted[self._strangers_at] / max(accepted[-1], 1.0),
                1 - hits[self._hits_at] / total,
            ]
        )

    def threshold(self, fpir: float) -> float:
        return self._threshold(fpir, np.arange(len(self._scores) + 1, dtype=np.float64))

    def _threshold(self, fpir: float, accepted: NDArray[np.float64]) -> float:
        """Returns the threshold that a share `fpir` of the strangers, or slightly less, is above.

        `accepted` are the cumulative sums of their weights.
        """
        if not len(self._scores):
            return NOT_SEARCHED
        place = int(np.searchsorted(accepted[1:], np.floor(fpir * accepted[-1] + _ROUNDING), side="right"))
        return float(self._scores[min(place, len(self._scores) - 1)])


def _draw(mated: Searches, strangers: Searches, people: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yields, for each draw, how often each person is in it."""
    random = np.random.default_rng(seed)
    groups = [np.unique(mated.person), np.setdiff1d(strangers.person, mated.person)]
    for _ in range(draws):
        weights = np.zeros(people)
        for group in groups:
            np.add.at(weights, random.choice(group, len(group)) if len(group) else group, 1.0)
        yield weights


def _widened(low: float, high: float, person: NDArray[np.int64], counted: NDArray[np.bool_]) -> tuple[float, float]:
    """Returns the bootstrap interval of the share of searches that are `counted`, widened if few people determine it.

    If no search is counted, or all are, every draw gives the same share; with one or two people the draws vary little
    more. So if fewer than ENOUGH people make up one side, the interval is extended as if nobody did: to the rate at
    which all of so many people are on the other side with a probability of 2.5 % (Clopper and Pearson).
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
