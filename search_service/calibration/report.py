"""The result of `gallery calibrate`: thresholds for usual FPIRs, how certain they are, and the FNIR they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.app_context import AppContext
from indexer.gallery.store import Store
from indexer.types import Gallery
from search_service.calibration.survey import Pair
from search_service.calibration.thresholds import Calibrated, Thresholds
from search_service.matching.calibration import by_pack, own_curve, threshold_for

FPIRS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)

ENOUGH = 5
"""Scores expected above a threshold for it to count as measured: their number is then right within a half."""

RESAMPLES = 200
INTERVAL = (5, 95)
"""Percent."""


class Basis(StrEnum):
    """What a threshold is derived from."""

    MEASURED = "measured"
    """At least ENOUGH scores of the gallery's own people are expected above it."""
    EXTRAPOLATED = "extrapolated"
    """Fewer are expected: the tails of the gallery's and the pack's scores are continued."""
    PACK = "pack"
    """The pack's own statistics, because the gallery holds too few people."""
    BORROWED = "borrowed"
    """The statistics of a different pack, because this pack was not measured either."""


@dataclass(frozen=True)
class Row:
    """One FPIR."""

    fpir: float
    threshold: float
    low: float | None
    """Confidence interval of the threshold in INTERVAL, over the people searched; None if they do not determine it."""
    high: float | None
    fnir: float | None
    """Share of the people with several photos who are not found by their other photos; None if there are none."""
    scores: int
    """People of the survey with a stranger above the threshold."""
    basis: Basis


@dataclass(frozen=True, eq=False)
class Report:
    calibrated: Calibrated
    rows: tuple[Row, ...]
    supported: float | None
    """The lowest FPIR that the scores support; None if they support none."""
    mated_scores: NDArray[np.float64]
    """(M,) the scores of people with several photos, each with their own other photos."""
    duplicates: tuple[tuple[str, str, float], ...]
    """Likely duplicates, which were left out: two external ids and their score."""

    @property
    def strangers(self) -> NDArray[np.float64]:
        """(S,) each person's best score with a stranger."""
        return self.calibrated.strangers.best


def calibrate(context: AppContext, gallery: Gallery) -> Report:
    """Calibrates the gallery now, and reports the result. Raises the same errors as `Thresholds.calibrate`."""
    thresholds = Thresholds(context)
    calibrated = thresholds.calibrate(gallery)
    duplicates = _named(calibrated.strangers.duplicates, context.store)
    return build_report(calibrated, thresholds.mated_scores(calibrated), duplicates)


def build_report(
    calibrated: Calibrated, mated_scores: NDArray[np.float64], duplicates: Sequence[tuple[str, str, float]] = ()
) -> Report:
    """Takes `mated_scores` as `Thresholds.mated_scores` returns them."""
    strangers = calibrated.strangers
    best_stranger = np.full(len(mated_scores), -1.0)
    best_stranger[strangers.row] = strangers.best
    is_mated = ~np.isnan(mated_scores)
    mated, best_stranger = mated_scores[is_mated], best_stranger[is_mated]
    rows = []
    intervals = _intervals(calibrated)
    for fpir, threshold, (low, high) in zip(FPIRS, thresholds_of(calibrated), intervals, strict=True):
        are_found = (mated >= threshold) & (mated > best_stranger)
        fnir = float(1 - are_found.mean()) if len(mated) else None
        above = int((strangers.best >= threshold).sum())
        rows.append(Row(fpir, threshold, low, high, fnir, above, _basis(calibrated, fpir)))
    supported = ENOUGH / len(strangers.best) if calibrated.curve is not None else None
    return Report(calibrated, tuple(rows), supported, mated, tuple(duplicates))


def thresholds_of(calibrated: Calibrated, best: NDArray[np.float64] | None = None) -> list[float]:
    """Returns the threshold for each of FPIRS, by the curve of all people or that of the scores `best`."""
    pack, found, curve = calibrated.pack, calibrated.survey, calibrated.curve
    if best is not None:
        curve = own_curve(best, found.compared, found.total, pack.tail, pack.measured)
    if curve is None:
        return [by_pack(fpir, found.faces, len(found.probes.face_ids), pack.tail) for fpir in FPIRS]
    return [threshold_for(fpir, 1, curve) for fpir in FPIRS]


def summary(report: Report) -> str:
    """Returns a sentence on which FPIRs the gallery's scores support."""
    people = len(report.strangers)
    if report.supported is None:
        source = "the pack's own" if report.calibrated.pack.measured else "borrowed from another pack"
        return (
            f"{people} people are too few to know how strangers score in this gallery: the thresholds are {source}. "
            "They become the gallery's own as it grows."
        )
    lowest = f"{100 * report.supported:.2g} %"
    if all(row.basis is Basis.MEASURED for row in report.rows):
        return f"{people:,} people support every FPIR down to {lowest}."
    return (
        f"{people:,} people support an FPIR of {lowest} or more. Thresholds for lower FPIRs are extrapolated, with a "
        "small margin for uncertainty; how many strangers they accept is unknown until more people are enrolled."
    )


def calibration_object(report: Report) -> dict[str, Any]:
    """Returns the report as JSON, for the command line and HTTP alike."""
    calibrated = report.calibrated
    return {
        "gallery": calibrated.gallery.name,
        "model": calibrated.pack.name,
        "faces": calibrated.survey.faces,
        "people": len(report.strangers),
        "mated": len(report.mated_scores),
        "supported_fpir": report.supported,
        "summary": summary(report),
        "interval_percent": list(INTERVAL),
        "thresholds": [_row_object(row) for row in report.rows],
        "duplicates": [{"external_ids": [a, b], "score": round(score, 4)} for a, b, score in report.duplicates],
    }


def _row_object(row: Row) -> dict[str, Any]:
    cosines = {"threshold": row.threshold, "low": row.low, "high": row.high}
    return asdict(row) | {key: None if value is None else round(value, 4) for key, value in cosines.items()}


def _named(pairs: Sequence[Pair], store: Store) -> list[tuple[str, str, float]]:
    people = store.identities.by_id({id_ for pair in pairs for id_ in (pair.a, pair.b)})
    return [
        (people[pair.a].external_id, people[pair.b].external_id, pair.score)
        for pair in pairs
        if pair.a in people and pair.b in people  # otherwise one of them was just deleted
    ]


def _basis(calibrated: Calibrated, fpir: float) -> Basis:
    if calibrated.curve is None:
        return Basis.PACK if calibrated.pack.measured else Basis.BORROWED
    return Basis.MEASURED if fpir * len(calibrated.strangers.best) >= ENOUGH else Basis.EXTRAPOLATED


def _intervals(calibrated: Calibrated) -> list[tuple[float | None, float | None]]:
    """Returns the bootstrap interval of each threshold: as many people drawn with replacement, always the same."""
    if calibrated.curve is None:
        return [(None, None)] * len(FPIRS)
    random, best = np.random.default_rng(0), calibrated.strangers.best
    curves = [thresholds_of(calibrated, random.choice(best, len(best))) for _ in range(RESAMPLES)]
    lows, highs = np.percentile(curves, INTERVAL, axis=0).tolist()
    return list(zip(lows, highs, strict=True))
