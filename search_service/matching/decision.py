"""A ranked answer -> what a door should do, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from search_service.matching.ranking import Barred, Candidate, Outranked

REVIEW_MARGIN = 0.05
"""Cosine to the runner-up below which an answer goes to review. Of answers above the threshold for FPIR 1 %, this sends
61 % of the wrong mated ones there and 0.09 % of the right ones (`benchmarks/results/thresholds_margin.csv`)."""


class Decision(StrEnum):
    MATCH = "match"
    NO_MATCH = "no_match"
    REVIEW = "review"
    """Above the threshold, but too close to the runner-up, or the probe is too poor to trust."""


class DecisionReason(StrEnum):
    """Why an answer is no match, or one that somebody should look at; what may have spoilt it as well. A match has
    none."""

    NO_CANDIDATES = "no_candidates"
    """Nobody in the gallery is valid now and has a face."""
    BELOW_THRESHOLD = "below_threshold"
    """Nobody in the gallery is similar enough."""
    CLOSE_RUNNER_UP = "close_runner_up"
    """The next candidate is nearly as similar as the first."""
    POOR_PROBE = "poor_probe"
    """The probe's `quality` has reasons for which it would not be enrolled."""
    FRAMES_DISAGREE = "frames_disagree"
    """Of several images that should show one person, some look like somebody else."""
    IDENTITY_EXPIRED = "identity_expired"
    """Somebody who is not valid any more is more similar than every candidate, and similar enough. Who it is stays
    unsaid: they have left, and whoever may search need not learn of them; whoever keeps the gallery can look."""
    IDENTITY_NOT_YET_VALID = "identity_not_yet_valid"
    """The same of somebody who is not valid yet."""


@dataclass(frozen=True)
class Verdict:
    decision: Decision
    reasons: tuple[DecisionReason, ...] = ()


_BARRED = {
    Barred.EXPIRED: DecisionReason.IDENTITY_EXPIRED,
    Barred.NOT_YET_VALID: DecisionReason.IDENTITY_NOT_YET_VALID,
}


def decide(
    candidates: Sequence[Candidate],
    threshold: float,
    poor_probe: bool = False,
    frames_disagree: bool = False,
    outranked: Outranked | None = None,
) -> Verdict:
    """`candidates` best first; `outranked` where somebody who is not valid now is more similar than the first. Such a
    face is more likely theirs, so the first candidate is no match then."""
    found = bool(candidates) and candidates[0].score >= threshold
    barred = outranked is not None and outranked.score >= threshold
    held = (
        (not candidates and outranked is None, DecisionReason.NO_CANDIDATES),
        (not found and not barred and bool(candidates or outranked), DecisionReason.BELOW_THRESHOLD),
        (barred, _BARRED[outranked.barred] if outranked is not None else None),
        (found and _margin(candidates) < REVIEW_MARGIN, DecisionReason.CLOSE_RUNNER_UP),
        (poor_probe, DecisionReason.POOR_PROBE),
        (frames_disagree, DecisionReason.FRAMES_DISAGREE),
    )
    reasons = tuple(reason for holds, reason in held if holds and reason is not None)
    if not found:
        return Verdict(Decision.NO_MATCH, reasons)
    return Verdict(Decision.REVIEW if reasons else Decision.MATCH, reasons)


def _margin(candidates: Sequence[Candidate]) -> float:
    """Cosine from the first to the runner-up, whom there need not be."""
    return candidates[0].score - candidates[1].score if len(candidates) > 1 else math.inf
