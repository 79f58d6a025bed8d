"""Which threshold keeps strangers out: from a wanted false positive identification rate to a cosine."""

from __future__ import annotations

import math
import sys
from itertools import pairwise

from indexer.vision.packs import ScoreTail


def threshold_for(fpir: float, comparisons: int, tail: ScoreTail) -> float:
    """The cosine at which a stranger, compared with that many enrolled faces, is matched in `fpir` of the searches.

    A stranger is let in when any comparison errs, so each may err at FMR = 1 - (1 - FPIR)^(1/N); the pack's scores of
    strangers say where that is. Not below the lowest score they tell of: a higher threshold errs on the safe side.
    Not above 1, which no cosine is.
    """
    fmr = max(-math.expm1(math.log1p(-fpir) / max(comparisons, 1)), sys.float_info.min)  # 0 has no logarithm
    if fmr <= tail.rate:
        return min(tail.start + tail.scale * math.log(tail.rate / fmr), 1.0)
    for (high, low_cosine), (low, high_cosine) in pairwise((*tail.before, (tail.rate, tail.start))):
        if low <= fmr <= high:
            return low_cosine + (high_cosine - low_cosine) * math.log(high / fmr) / math.log(high / low)
    return tail.before[0][1] if tail.before else tail.start
