"""Which threshold keeps strangers out: from a wanted false positive identification rate to a cosine, by what a pack's
strangers score, or by what a gallery's own people score against each other."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from indexer.types import ScoreTail

LEAST_PEOPLE = 20
"""Below, a gallery's own scores say nothing, and the pack's decide."""

CAUTION = 0.1
"""Of the FPIR asked for, what is aimed at with fewer people: how alike they look is not known, and people before one
camera look more alike than strangers of LFW. The demo's stranger scores 0.33 with one of seven people, as one in 600
of LFW's strangers would. It costs 0.06 of cosine, where mates score 0.6 and more."""

LEAST_PEOPLE_UNMEASURED = 100
"""The same where the pack's figures are borrowed, which know neither level nor width of its scores. FPIR 1 % asked for
was 1.9 % in the mean with 100 people, 1.3 % with 300, 3.2 % with 50 (`benchmarks/results/calibration.csv`)."""

LEVEL_WEIGHT = 10.0
"""How many own scores in the tail the pack's level is worth. To galleries of people who look alike, strangers came 1.5
times as often as the pack says, near half a logarithm; as many own scores tell no more, as they come in pairs."""

SLOPE_WEIGHT = 150.0
"""The same for how fast the tail falls, which differs less between galleries: by a tenth or two."""

FPIRS = tuple(digit / 10**power for power in range(1, 10) for digit in (5, 2, 1))
CURVE = (0.9, 0.75, *FPIRS)
"""The rates of a gallery's curve, falling: thresholds between two are on the line between them."""

TAIL_SHARE = 0.15
"""Of the people, while they are fewer than 1,600: with a quarter of 300, FPIR 1 % became 0.83 % in the mean."""

DOUBT = 3.0
"""Standard deviations of the difference between own scores and the pack at which the pack's weight is halved. Beyond,
it is less: the pack is not of this gallery's kind."""

DUPLICATE_FMR = 1e-6
"""Two people who score more than one pair of strangers in a million, by the pack, may be one under two ids."""

DUPLICATES_EXPECTED = 0.2
"""And are taken for one where the gallery's own scores expect less than this many so high."""

LEAST_WIDTH = 1e-4
"""Cosine between the lower quartile and the median that is taken at least: copies have none."""

LOWER, MIDDLE = 0.75, 0.5
"""Shares of the people whose best score is above the lower quartile and above the median: a few duplicates move them
little."""


def threshold_for(fpir: float, comparisons: float, tail: ScoreTail) -> float:
    """The cosine at which a stranger, compared with that many enrolled faces, is matched in `fpir` of the searches.

    A stranger is let in when any comparison errs, so each may err at FMR = 1 - (1 - FPIR)^(1/N); the pack's scores of
    strangers say where that is. Of a gallery's own curve one comparison is one search of all its faces as they were,
    and N how many times as many there are now. Not below the lowest score they tell of: a higher threshold errs on the
    safe side. Not above 1, which no cosine is.
    """
    each = math.log1p(-fpir) / (comparisons if comparisons > 0 else 1)
    fmr = max(-math.expm1(each), sys.float_info.min)  # 0 has no logarithm
    lowest = tail.before[0][1] if tail.before else tail.start
    return min(max(tail.cosine(fmr), lowest), 1.0)


def by_pack(fpir: float, faces: int, people: int, pack: ScoreTail) -> float:
    """The threshold of a gallery that has no curve of its own: of one with few people on the safe side, however many
    `faces` they have."""
    return threshold_for(fpir * (CAUTION if people < LEAST_PEOPLE else 1.0), faces, pack)


def comparisons(people: float, photos: float) -> float:
    """With how many single faces a search of so many people compares, of whom each has so many photos in the mean.

    The faces of one person are alike, and together they score as high with a stranger as 1 + ln(photos) of different
    people: measured on LFW, where one face in 10,000 scores so high, 1.7 with 2 photos, 2.2 with 3, 2.6 with 5 and 2.9
    with 8 (`benchmarks/results/fusion_strangers.csv`).
    """
    return people * (1 + math.log(max(photos, 1.0)))


def own_curve(
    best: Sequence[float], compared: float, total: float, pack: ScoreTail, measured: bool
) -> ScoreTail | None:
    """How often the best of a gallery scores above t when a stranger is searched, in `total` comparisons, for
    `threshold_for`; None where too few people are in it.

    `best` are the scores of some of its people, each a stranger to all others: of the best of these, in `compared`
    comparisons. They are the very scores that FPIR is about, and no comparison is taken for
    independent of another one. Turned into what the pack expects of them, -log FMR, their tail is exponential; its
    level and slope are those of the scores and of the pack, by their weights. How unsure the slope is counts as well:
    rates that few scores tell of get a higher threshold.
    """
    if len(best) < (LEAST_PEOPLE if measured else LEAST_PEOPLE_UNMEASURED):
        return None
    shape = _shape(best, compared, pack, measured)
    scores = sorted(map(shape.surprise, best), reverse=True)
    count = tail_count(len(scores))
    start = (scores[count - 1] + scores[count]) / 2
    own = math.log(-math.log1p(-count / len(scores)))
    by_pack = math.log(compared) - start
    level_weight = _doubted(LEVEL_WEIGHT, own - by_pack, count)
    level = (count * own + level_weight * by_pack) / (count + level_weight)
    beyond_start = sum(scores[:count]) / count - start
    slope_weight = _doubted(SLOPE_WEIGHT, beyond_start - 1, count)
    weight = count + slope_weight
    scale = (count * beyond_start + slope_weight) / weight

    def beyond(log_ratio: float) -> float:
        """How far it is to a level so much rarer: an exponential's `scale * log_ratio`, and more far out, as the scale
        is known from `weight` scores only."""
        return scale * weight * math.expm1(log_ratio / weight)

    points = []
    for fpir in CURVE:
        rate = -math.log1p(-fpir) * compared / total
        above = -math.expm1(-rate) * len(scores)
        in_tail = above <= count
        at = start + beyond(level - math.log(rate)) if in_tail else _at(scores, above) + beyond(level - own)
        points.append((fpir, shape.cosine_at(at)))
    (rate, low), (last, high) = points[-2:]
    return ScoreTail(high, last, (high - low) / math.log(rate / last), tuple(points[:-1]))


def _doubted(weight: float, difference: float, count: int) -> float:
    """The pack's weight beside `count` own scores, which come in pairs and so vary like half as many."""
    return weight / (1 + difference**2 / (1 / weight + 2 / count) / DOUBT**2)


def tail_count(scores: int) -> int:
    """How many of so many scores are the tail. Nearer the middle they fall slower, and thresholds would be too high."""
    return max(1, min(int(TAIL_SHARE * scores), int(6 * math.sqrt(scores))))


def duplicate_limit(best: Sequence[float], compared: float, pack: ScoreTail, measured: bool) -> float:
    """The score from which two identities are taken for one person, by scores as `own_curve` takes them; above every
    cosine where there are too few to tell. Level and slope are those of the middle of the scores, so that duplicates
    among them move it little."""
    if len(best) < LEAST_PEOPLE:
        return math.inf
    shape = _shape(best, compared, pack, measured)
    scores = sorted(map(shape.surprise, best), reverse=True)
    lower, middle = (_at(scores, share * len(scores)) for share in (LOWER, MIDDLE))
    scale = (middle - lower) / (_gumbel(MIDDLE) - _gumbel(LOWER))
    rarest = middle + scale * (math.log(len(scores) / DUPLICATES_EXPECTED) - _gumbel(MIDDLE))
    return max(pack.cosine(DUPLICATE_FMR), shape.cosine_at(rarest))


def _shape(best: Sequence[float], compared: float, pack: ScoreTail, measured: bool) -> ScoreTail:
    """How strangers' scores fall: the pack's own, or the borrowed one moved and stretched to the middle of `best`."""
    if measured:
        return pack
    scores = sorted(best, reverse=True)
    lower, middle = (_at(scores, share * len(scores)) for share in (LOWER, MIDDLE))
    there, center = (pack.cosine_at(math.log(compared) + _gumbel(share)) for share in (LOWER, MIDDLE))
    stretch = max(middle - lower, LEAST_WIDTH) / (center - there)
    before = tuple((rate, middle + stretch * (cosine - center)) for rate, cosine in pack.before)
    return ScoreTail(middle + stretch * (pack.start - center), pack.rate, stretch * pack.scale, before)


def _gumbel(share: float) -> float:
    """Where `share` of the best of many exponential scores lie above, in their scale, from where one is expected to."""
    return -math.log(-math.log1p(-share))


def _at(scores: Sequence[float], position: float) -> float:
    """Of falling scores, the one that so many are above, on the line between two."""
    place = min(max(position - 0.5, 0.0), len(scores) - 1.0)
    low = int(place)
    high = min(low + 1, len(scores) - 1)
    return scores[low] + (scores[high] - scores[low]) * (place - low)
