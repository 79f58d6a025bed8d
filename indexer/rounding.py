"""Rounding of values that are shown together with their limits."""

from __future__ import annotations

MOST_DECIMALS = 17
"""With these, different numbers of a double's precision around 1 look different."""


SCORE_DECIMALS = 4
"""Decimals of the scores and thresholds that are reported. The fifth depends on the CPU."""

NARROW_DECIMALS = 2
"""Decimals of the scores that a caller gets who may see decisions only. Finer ones show the enrolled embeddings."""


def reaches(score: float, threshold: float) -> bool:
    """Returns whether a score reaches a threshold, both as they are reported, so that no report contradicts itself."""
    return round(score, SCORE_DECIMALS) >= round(threshold, SCORE_DECIMALS)


def decimals(value: float, limit: float, least: int) -> int:
    """Returns how many decimals, `least` or more, show truly whether `value` is below, at or above `limit`: 3.98 with a
    limit of 4 takes two, because 4.0 would not be below it."""

    def compared(a: float, b: float) -> int:
        return (a > b) - (a < b)

    return next(
        (
            count
            for count in range(least, MOST_DECIMALS)
            if compared(float(f"{value:.{count}f}"), float(f"{limit:.{count}f}")) == compared(value, limit)
        ),
        MOST_DECIMALS,
    )
