"""The decision on a ranked answer, and the reasons for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from indexer.rounding import reaches
from search_service.matching.ranking import Barred, Candidate, Outranked

REVIEW_MARGIN = 0.05
"""Cosine to the runner-up below which an answer goes to review. Of the answers above the threshold for FPIR 1 %, these
are 61 % of the wrong mated ones and 0.09 % of the right ones (`benchmarks/results/thresholds_margin.csv`)."""


class Decision(StrEnum):
    MATCH = "match"
    NO_MATCH = "no_match"
    REVIEW = "review"
    """A person should look: the score is above the threshold, but there is a reason for doubt."""


class DecisionReason(StrEnum):
    """Why an answer is no match or needs a review, and what may have caused that. A match has no reasons."""

    NO_CANDIDATES = "no_candidates"
    """No identity in the gallery is valid now and has a face."""
    BELOW_THRESHOLD = "below_threshold"
    """No identity in the gallery is similar enough."""
    CLOSE_RUNNER_UP = "close_runner_up"
    """The next candidate is nearly as similar as the first."""
    POOR_PROBE = "poor_probe"
    """The probe's face would fail the quality gate of enrollment; see its `quality`."""
    FRAMES_DISAGREE = "frames_disagree"
    """Some of the images, which should show one person, seem to show somebody else."""
    IDENTITY_EXPIRED = "identity_expired"
    """An expired identity is more similar than every candidate, and similar enough. It is not named, because people who
    have left are not disclosed to everybody who may search."""
    IDENTITY_NOT_YET_VALID = "identity_not_yet_valid"
    """The same with an identity that is not valid yet."""
    NOT_LIVE = "not_live"
    """The face seems to be shown on a print, a screen or a mask, and a live one is required."""


@dataclass(frozen=True)
class Verdict:
    decision: Decision
    reasons: tuple[DecisionReason, ...] = ()


NOT_LIVE = Verdict(Decision.NO_MATCH, (DecisionReason.NOT_LIVE,))
"""The verdict on a face that is not live where that is required, also if it is similar to an enrolled one."""

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
    """Decides on `candidates`, best first.

    `outranked` is set if an identity that is not valid now is more similar than the first candidate. The face is more
    likely theirs, so the first candidate is then no match.
    """
    is_found = bool(candidates) and reaches(candidates[0].score, threshold)
    is_barred = outranked is not None and reaches(outranked.score, threshold)
    conditions = (
        (not candidates and outranked is None, DecisionReason.NO_CANDIDATES),
        (not is_found and not is_barred and bool(candidates or outranked), DecisionReason.BELOW_THRESHOLD),
        (is_barred, _BARRED[outranked.barred] if outranked is not None else None),
        (is_found and _margin(candidates) < REVIEW_MARGIN, DecisionReason.CLOSE_RUNNER_UP),
        (poor_probe, DecisionReason.POOR_PROBE),
        (frames_disagree, DecisionReason.FRAMES_DISAGREE),
    )
    reasons = tuple(reason for holds, reason in conditions if holds and reason is not None)
    if not is_found:
        return Verdict(Decision.NO_MATCH, reasons)
    return Verdict(Decision.REVIEW if reasons else Decision.MATCH, reasons)


def _margin(candidates: Sequence[Candidate]) -> float:
    """Returns the cosine between the first candidate and the runner-up; infinite without a runner-up."""
    return candidates[0].score - candidates[1].score if len(candidates) > 1 else math.inf
