"""A ranked answer -> what a door should do."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from search_service.matching.ranking import Candidate

REVIEW_MARGIN = 0.05
"""Cosine to the runner-up below which an answer goes to review. Of answers above the threshold for FPIR 1 %, this sends
43 % of the wrong mated ones there and 0.16 % of the right ones (`benchmarks/results/thresholds_margin.csv`)."""


class Decision(StrEnum):
    MATCH = "match"
    NO_MATCH = "no_match"
    REVIEW = "review"
    """Above the threshold, but too close to the runner-up, or the probe is too poor to trust."""


def decide(candidates: Sequence[Candidate], threshold: float, poor_probe: bool) -> Decision:
    """`candidates` best first."""
    if not candidates or candidates[0].score < threshold:
        return Decision.NO_MATCH
    if poor_probe:
        return Decision.REVIEW
    if len(candidates) > 1 and candidates[0].score - candidates[1].score < REVIEW_MARGIN:
        return Decision.REVIEW
    return Decision.MATCH
