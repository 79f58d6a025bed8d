"""The report of `evaluate`: one HTML file that needs no other, and a JSON object."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import PurePath
from typing import Any

from search_service.calibration import svg
from search_service.evaluation.metrics import ENOUGH, Basis, Estimate, Verdict
from search_service.evaluation.mistakes import Mistake, Shot
from search_service.evaluation.plots import det_chart, histogram_chart
from search_service.evaluation.run import Evaluation

MAIN_FPIR = 0.01
"""The FPIR of the summary."""

BASES = {
    Basis.MEASURED: "",
    Basis.FEW: f"fewer than {ENOUGH} strangers: an indication",
    Basis.UNSUPPORTED: "unknown with so few strangers",
}
VERDICTS = {
    Verdict.AS_ASKED: "as requested",
    Verdict.LESS: "less than half of the requested share",
    Verdict.MORE: "more than double",
    Verdict.TOO_FEW: "too few strangers to judge",
}
DECISIONS = {
    "match": "match, the right person",
    "review": "review, the right person",
    "wrong_match": "match, somebody else",
    "wrong_review": "review, somebody else",
    "no_match": "no match",
    "not_searched": "could not be searched",
}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def short_percent(fpir: float) -> str:
    return f"{100 * fpir:g} %"


def interval(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.2f} to {100 * estimate.high:.2f} %"


def date(at: datetime) -> str:
    return f"{at.day} {at:%B %Y}"


def describe_strangers(evaluation: Evaluation) -> str:
    """Returns who the strangers are, in words."""
    if not evaluation.are_mates_strangers:
        return f"the {evaluation.stranger_people:,} people with one photo, who are not enrolled"
    alone = evaluation.strangers.people
    return (
        f"only {alone:,} {'person has' if alone == 1 else 'people have'} one photo, too few for a result, so the "
        f"{evaluation.mated.people:,} people who are searched are strangers to the others as well: their own identity "
        "is then ignored"
    )


def evaluation_object(evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """Returns the evaluation as JSON, without pictures."""
    protocol, metrics, mistakes = evaluation.protocol, evaluation.metrics, evaluation.mistakes
    return {
        "model": evaluation.model,
        "fingerprint": evaluation.fingerprint,
        "photos_per_person": protocol.photos,
        "pick": {"enrolling": protocol.enrolling, "searching": protocol.searching},
        "bootstrap": {"draws": protocol.draws, "seed": protocol.seed, "interval": [0.025, 0.975]},
        "settings": dict(evaluation.settings),
        "fpir_of_decisions": evaluation.fpir,
        "rows_without_identity": evaluation.unlabelled,
        "copies_left_out": evaluation.copies,
        "enrolment": asdict(evaluation.enrollment),
        "mated": asdict(evaluation.mated),
        "strangers": asdict(evaluation.strangers),
        "strangers_are": "one_photo_and_others" if evaluation.are_mates_strangers else "one_photo",
        "non_mated_people": evaluation.stranger_people,
        "non_mated_searches": evaluation.stranger_searches,
        "rank_1": asdict(metrics.rank_1),
        "fnir": [asdict(rate) for rate in metrics.rates],
        "calibration": [asdict(rate) for rate in metrics.calibrated],
        "det": [{"fpir": fpir, "fnir": fnir} for fpir, fnir in metrics.det],
        "histogram": asdict(metrics.histogram),
        "mistakes": {
            "threshold": mistakes.threshold,
            "strangers_let_in": [_mistake_object(one) for one in mistakes.strangers_let_in],
            "confused": [_mistake_object(one) for one in mistakes.confused],
            "missed": [_mistake_object(one) for one in mistakes.missed],
            "not_enrolled": [_refused_object(shot, reason) for shot, reason in mistakes.not_enrolled],
            "not_searched": [_refused_object(shot, reason) for shot, reason in mistakes.not_searched],
        },
        "computed": evaluation.computed,
        "from_cache": evaluation.from_cache,
        "seconds": round(seconds, 3),
    }


def _mistake_object(one: Mistake) -> dict[str, Any]:
    return {
        "image": one.probe.image,
        "external_id": one.probe.external_id,
        "candidate": one.other and one.other.external_id,
        "candidate_image": one.other and one.other.image,
        "candidate_score": one.other_score,
        "own_image": one.own and one.own.image,
        "own_score": one.own_score,
    }


def _refused_object(shot: Shot, reason: str) -> dict[str, Any]:
    return {"image": shot.image, "external_id": shot.external_id, "reason": reason}


def render(template: str, **values: Any) -> str:
    """Renders a template as one HTML file that contains everything. It loads nothing from a network, and forbids the
    browser to."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("search_service.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def breakable(name: str) -> Markup:
        """Allows line breaks after underscores."""
        return Markup(str(escape(name)).replace("_", "_<wbr>"))  # noqa: S704 (the name is escaped)

    filters: dict[str, Callable[..., Any]] = {
        "percent": percent,
        "short_percent": short_percent,
        "interval": interval,
        "count": "{:,}".format,
        "score": "{:.3f}".format,
        "words": lambda code: str(code).replace("_", " "),
        "base64": lambda data: base64.b64encode(data).decode(),
        "file_name": _file_name,
        "breakable": breakable,
    }
    environment.filters.update(filters)
    return re.sub(r"\n\s*\n", "\n", environment.get_template(template).render(svg=svg, **values))


def page(evaluation: Evaluation, title: str, at: datetime) -> str:
    """Renders the report of an evaluation."""
    from markupsafe import Markup

    return render(
        "report.html.j2",
        evaluation=evaluation,
        metrics=evaluation.metrics,
        mistakes=evaluation.mistakes,
        title=title,
        date=date(at),
        main_rate=next(rate for rate in evaluation.metrics.rates if rate.fpir == MAIN_FPIR),
        main_calibrated=next(rate for rate in evaluation.metrics.calibrated if rate.fpir == MAIN_FPIR),
        strangers=describe_strangers(evaluation),
        bases=BASES,
        verdicts=VERDICTS,
        decisions=DECISIONS,
        enough=ENOUGH,
        det=Markup(det_chart(evaluation.metrics)),  # noqa: S704 (made of numbers)
        histogram=Markup(histogram_chart(evaluation.metrics)),  # noqa: S704 (made of numbers)
    )


def _file_name(shot: Shot) -> str:
    """Returns the name of the file, without the person's if it begins with that."""
    name = PurePath(shot.image).name
    rest = name.removeprefix(shot.external_id)
    return f"\u2026{rest}" if rest != name and len(rest) > 1 else name
