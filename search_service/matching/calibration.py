"""Which threshold keeps strangers out: from a wanted false positive identification rate to a cosine."""

from __future__ import annotations

import math

from indexer.vision.packs import ScoreTail


def threshold_for(fpir: float, comparisons: int, tail: ScoreTail) -> float:
    """The cosine at which a stranger, compared with that many enrolled faces, is matched in `fpir` of the searches.

    A stranger is let in when any comparison errs, so each may err at FMR = 1 - (1 - FPIR)^(1/N); the pack's tail
    says where that is. Not below the tail's start: nothing is known of scores there, and a higher threshold errs on
    the safe side.
    """
    fmr = -math.expm1(math.log1p(-fpir) / max(comparisons, 1))
    return max(tail.start, tail.start + tail.scale * math.log(tail.rate / fmr))
