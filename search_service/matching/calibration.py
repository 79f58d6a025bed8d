"""The threshold for a wanted false positive identification rate (FPIR), as a cosine.

Derived from how strangers score with a model pack, or from how a gallery's own people score against each other.
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray

from indexer.types import ScoreTail

LEAST_PEOPLE = 20
"""People from which a gallery's own scores are used; with fewer, the pack's are."""

CAUTION = 0.1
"""Factor on the FPIR of galleries with fewer people, whose similarity to each other is unknown: people in front of one
camera look more alike than strangers of LFW. The demo's stranger scores 0.33 with one of seven people, as one in 600 of
LFW's strangers would. This costs 0.06 of cosine, where mates score 0.6 and more."""

LEAST_PEOPLE_UNMEASURED = 100
"""The same for packs with borrowed statistics, of whose scores neither level nor width is known. FPIR 1 % became 1.9 %
on average with 100 people, 1.3 % with 300, 3.2 % with 50 (`benchmarks/results/calibration.csv`)."""

LEVEL_WEIGHT = 10.0
"""Weight of the pack's level, in own scores of the tail. In galleries of people who look alike, strangers came 1.5
times as often as the pack predicts, nearly half a logarithm; ten own scores are as uncertain, as they come in pairs."""

SLOPE_WEIGHT = 150.0
"""The same for the slope of the tail, which differs less between galleries: by 10 % or 20 %."""

FPIRS = tuple(digit / 10**power for power in range(1, 10) for digit in (5, 2, 1))
CURVE = (0.9, 0.75, *FPIRS)
"""The rates of a gallery's curve, falling. Thresholds in between are interpolated linearly."""

TAIL_SHARE = 0.15
"""Share of the people in the tail, up to 1,600 people: with a quarter of 300, FPIR 1 % became 0.83 % on average."""

DOUBT = 3.0
"""Standard deviations between the own scores and the pack's at which the pack's weight is halved. Beyond, it is less:
the gallery differs from the people that the pack was measured with."""

DUPLICATE_FMR = 1e-6
"""Two identities that score higher than all but one in a million pairs of strangers, by the pack, may be duplicates."""

DUPLICATES_EXPECTED = 0.2
"""They count as duplicates if the gallery's own scores predict less than this many strangers with such a score."""

LEAST_WIDTH = 1e-4
"""Minimum cosine between the lower quartile and the median; copies of one photo have none."""

LOWER, MIDDLE = 0.75, 0.5
"""Shares of the people whose best score is above the lower quartile and above the median, which a few duplicates
hardly change."""


def threshold_for(fpir: float, comparisons: float, tail: ScoreTail) -> float:
    """Returns the cosine at which a share `fpir` of strangers, compared with so many faces each, is matched.

    A stranger is accepted when any comparison errs, so each may err at FMR = 1 - (1 - FPIR)^(1/N). With a gallery's own
    curve, one comparison is a search of all faces it had then, and N the growth since then. The result is not below the
    lowest known score, because a higher threshold errs on the safe side, and not above 1, the highest cosine.
    """
    each = math.log1p(-fpir) / (comparisons if comparisons > 0 else 1)
    fmr = max(-math.expm1(each), sys.float_info.min)  # 0 has no logarithm
    lowest = tail.before[0][1] if tail.before else tail.start
    return min(max(tail.cosine(fmr), lowest), 1.0)


def by_pack(fpir: float, faces: int, people: int, pack: ScoreTail) -> float:
    """Returns the threshold of a gallery without a curve of its own, cautious with few people."""
    return threshold_for(fpir * (CAUTION if people < LEAST_PEOPLE else 1.0), faces, pack)


def comparisons(people: float, photos: float) -> float:
    """Returns to how many single faces so many people are equivalent, with so many photos each on average.

    The faces of one person are alike. Together they score as high with a stranger as 1 + ln(photos) different people:
    measured on LFW at the score of one face in 10,000, 1.7 with 2 photos, 2.2 with 3, 2.6 with 5 and 2.9 with 8
    (`benchmarks/results/fusion_strangers.csv`).
    """
    return people * (1 + math.log(max(photos, 1.0)))


def own_curve(
    best: NDArray[np.float64], compared: float, total: float, pack: ScoreTail, measured: bool
) -> ScoreTail | None:
    """Returns how often a gallery's best score is above t when a stranger is searched in `total` comparisons.

    `best`, (P,), are the best scores of some of its people, each searched as a stranger to all others in `compared`
    comparisons. FPIR is about exactly these scores, so comparisons need not be independent. Converted to what the pack
    expects of them, -log FMR, their tail is exponential; its level and slope are weighted means of those of the scores
    and of the pack. The uncertainty of the slope counts as well: rates that few scores support get a higher threshold.

    The curve is for `threshold_for`. Returns None for too few people.
    """
    if len(best) < (LEAST_PEOPLE if measured else LEAST_PEOPLE_UNMEASURED):
        return None
    shape = _shape(best, compared, pack, measured)
    scores = _surprises(best, shape)
    count = tail_count(len(scores))
    start = float(scores[count - 1] + scores[count]) / 2
    own = math.log(-math.log1p(-count / len(scores)))
    by_pack = math.log(compared) - start
    level_weight = _doubted(LEVEL_WEIGHT, own - by_pack, count)
    level = (count * own + level_weight * by_pack) / (count + level_weight)
    beyond_start = float(scores[:count].mean()) - start
    slope_weight = _doubted(SLOPE_WEIGHT, beyond_start - 1, count)
    weight = count + slope_weight
    scale = (count * beyond_start + slope_weight) / weight

    def beyond(log_ratio: float) -> float:
        """Returns the distance to a level rarer by that factor: `scale * log_ratio` for an exponential, and more far
        out, because the scale is known from `weight` scores only."""
        return scale * weight * math.expm1(log_ratio / weight)

    points = []
    for fpir in CURVE:
        rate = -math.log1p(-fpir) * compared / total
        above = -math.expm1(-rate) * len(scores)
        is_in_tail = above <= count
        at = start + beyond(level - math.log(rate)) if is_in_tail else _at(scores, above) + beyond(level - own)
        points.append((fpir, shape.cosine_at(at)))
    (rate, low), (last, high) = points[-2:]
    return ScoreTail(high, last, (high - low) / math.log(rate / last), tuple(points[:-1]))


def tail_count(scores: int) -> int:
    """Returns how many of so many scores are the tail. Nearer the middle they fall more slowly, and thresholds would be
    too high."""
    return max(1, min(int(TAIL_SHARE * scores), int(6 * math.sqrt(scores))))


def duplicate_limit(best: NDArray[np.float64], compared: float, pack: ScoreTail, measured: bool) -> float:
    """Returns the score from which two identities count as one person; infinite for too few people.

    `best` and `compared` are those of `own_curve`. Level and slope are estimated in the middle of the scores, where
    duplicates have little influence.
    """
    if len(best) < LEAST_PEOPLE:
        return math.inf
    shape = _shape(best, compared, pack, measured)
    scores = _surprises(best, shape)
    lower, middle = (_at(scores, share * len(scores)) for share in (LOWER, MIDDLE))
    scale = (middle - lower) / (_gumbel(MIDDLE) - _gumbel(LOWER))
    rarest = middle + scale * (math.log(len(scores) / DUPLICATES_EXPECTED) - _gumbel(MIDDLE))
    return max(pack.cosine(DUPLICATE_FMR), shape.cosine_at(rarest))


def _doubted(weight: float, difference: float, count: int) -> float:
    """Returns the pack's weight relative to `count` own scores, which come in pairs and so vary like half as many."""
    return weight / (1 + difference**2 / (1 / weight + 2 / count) / DOUBT**2)


def _shape(best: NDArray[np.float64], compared: float, pack: ScoreTail, measured: bool) -> ScoreTail:
    """Returns how strangers' scores fall: the pack's tail, or a borrowed one fitted to the middle of `best`."""
    if measured:
        return pack
    scores = np.sort(best)[::-1]
    lower, middle = (_at(scores, share * len(scores)) for share in (LOWER, MIDDLE))
    pack_lower, pack_middle = (pack.cosine_at(math.log(compared) + _gumbel(share)) for share in (LOWER, MIDDLE))
    stretch = max(middle - lower, LEAST_WIDTH) / (pack_middle - pack_lower)
    before = tuple((rate, middle + stretch * (cosine - pack_middle)) for rate, cosine in pack.before)
    return ScoreTail(middle + stretch * (pack.start - pack_middle), pack.rate, stretch * pack.scale, before)


def _surprises(best: NDArray[np.float64], shape: ScoreTail) -> NDArray[np.float64]:
    """Returns -log FMR of the scores by that shape, falling."""
    return np.sort([shape.surprise(score) for score in best.tolist()])[::-1]


def _gumbel(share: float) -> float:
    """Returns the value that a share of the best of many exponential scores exceeds, in units of their scale, relative
    to the value that one score is expected to exceed."""
    return -math.log(-math.log1p(-share))


def _at(falling: NDArray[np.float64], position: float) -> float:
    """Returns the score that so many of the falling scores are above, interpolated linearly."""
    return float(np.interp(position - 0.5, np.arange(len(falling)), falling))
