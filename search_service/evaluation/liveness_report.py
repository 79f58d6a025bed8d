"""The report of `evaluate --liveness`: one HTML file that needs no other, and a JSON object."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from search_service.evaluation.liveness import LivenessEvaluation, Presentation, Share
from search_service.evaluation.report import date, render


def liveness_object(evaluation: LivenessEvaluation) -> dict[str, Any]:
    """Returns the evaluation as JSON, without pictures."""
    apcer = evaluation.apcer
    unscored = [one for one in evaluation.presentations if one.score is None]
    return {
        "model": evaluation.model,
        "threshold": evaluation.threshold,
        "wanted_bpcer": evaluation.wanted_bpcer,
        "images": len(evaluation.presentations),
        "live": evaluation.bpcer.total,
        "attacks": {species: share.total for species, share in apcer.items()},
        "apcer": {species: share.value for species, share in apcer.items()},
        "apcer_intervals": {species: _limits(share) for species, share in apcer.items()},
        "apcer_max": apcer[evaluation.worst_species].value,
        "bpcer": evaluation.bpcer.value,
        "bpcer_interval": _limits(evaluation.bpcer),
        "without_score": [{"image": one.image, "reason": one.reason} for one in unscored],
        "mistakes": {
            "accepted_attacks": [_mistake(one) for one, _ in evaluation.accepted_attacks if _is_live(one, evaluation)],
            "refused_faces": [_mistake(one) for one, _ in evaluation.refused_faces if not _is_live(one, evaluation)],
        },
    }


def _limits(share: Share) -> tuple[float, float]:
    return share.estimate.low, share.estimate.high


def _is_live(presentation: Presentation, evaluation: LivenessEvaluation) -> bool:
    return presentation.score is not None and presentation.score >= evaluation.threshold


def _mistake(presentation: Presentation) -> dict[str, Any]:
    return {"image": presentation.image, "score": presentation.score}


def liveness_page(evaluation: LivenessEvaluation, title: str, at: datetime) -> str:
    """Renders the report."""
    return render(
        "liveness.html.j2",
        evaluation=evaluation,
        title=title,
        date=date(at),
        attacks=sum(share.total for share in evaluation.apcer.values()),
        unscored=sum(one.score is None for one in evaluation.presentations),
    )
