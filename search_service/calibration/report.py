"""What `gallery calibrate` tells: thresholds for wanted FPIRs, how sure they are, and what they cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.gallery.store import Store
from search_service.calibration.survey import Calibrated
from search_service.matching.calibration import by_pack, own_curve, threshold_for

FPIRS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)

ENOUGH = 5
"""Scores expected above a threshold from which on it counts as measured: their number is then right within a half."""

RESAMPLED = 200
INTERVAL = (5, 95)
"""Percent."""


class Basis(StrEnum):
    """What a threshold follows from."""

    MEASURED = "measured"
    """ENOUGH scores of the gallery's own people or more are expected above it."""
    EXTRAPOLATED = "extrapolated"
    """Fewer are: the fall of their tail, and that of the pack's, goes on as it began."""
    PACK = "pack"
    """The gallery holds too few people: the pack's own statistics decide."""
    BORROWED = "borrowed"
    """And those of this pack are another one's."""


@dataclass(frozen=True)
class Row:
    """One wanted FPIR."""

    fpir: float
    threshold: float
    low: float | None
    """The interval of the threshold in INTERVAL, over the people searched; None where they do not decide."""
    high: float | None
    fnir: float | None
    """Share of the people with several photos whose one is not found by the others; None where there are none."""
    scores: int
    """Of the gallery's people, how many have a stranger above the threshold."""
    basis: Basis


@dataclass(frozen=True, eq=False)
class Report:
    rows: tuple[Row, ...]
    people: int
    """Searched among the others."""
    mated: int
    """Of them, those with several photos."""
    supported: float | None
    """The lowest FPIR that the scores support; None where they support none."""
    strangers: NDArray[np.float64]
    """(P,) each person's best score that is a stranger's."""
    mates: NDArray[np.float64]
    """(M,) each person's best score that is their own."""


def report(made: Calibrated, mates: dict[int, float]) -> Report:
    """`mates` as `Thresholds.mates` answers."""
    strangers = made.strangers.best
    people = len(strangers)
    best = dict(zip(made.strangers.row.tolist(), strangers.tolist(), strict=True))
    pairs = np.array([(score, best.get(row, -1.0)) for row, score in sorted(mates.items())]).reshape(-1, 2)
    curves = [thresholds(made, some) for some in _resampled(strangers)] if made.curve is not None else []
    intervals = np.percentile(curves, INTERVAL, axis=0).T.tolist() if curves else [(None, None)] * len(FPIRS)
    rows = []
    for fpir, threshold, (low, high) in zip(FPIRS, thresholds(made), intervals, strict=True):
        scores = int((strangers >= threshold).sum())
        found = (pairs[:, 0] >= threshold) & (pairs[:, 0] > pairs[:, 1])
        fnir = float(1 - found.mean()) if len(pairs) else None
        rows.append(Row(fpir, threshold, low, high, fnir, scores, _basis(made, fpir)))
    supported = ENOUGH / people if made.curve is not None else None
    return Report(tuple(rows), people, len(pairs), supported, strangers, pairs[:, 0])


def thresholds(made: Calibrated, best: NDArray[np.float64] | None = None) -> list[float]:
    """For each of FPIRS, by the curve of all people or that of `best`."""
    pack, found = made.pack, made.survey
    curve = made.curve
    if best is not None:
        curve = own_curve(best.tolist(), found.compared, found.total, pack.tail, pack.measured)
    if curve is None:
        return [by_pack(fpir, made.survey.faces, len(found.probes.face_ids), pack.tail) for fpir in FPIRS]
    return [threshold_for(fpir, 1, curve) for fpir in FPIRS]


def said(told: Report, made: Calibrated) -> str:
    """In words, what the gallery's scores support."""
    if told.supported is None:
        whose = "the pack's own" if made.pack.measured else "borrowed from another pack"
        return (
            f"{told.people} people are too few to tell how strangers score here: the thresholds are {whose}. "
            "They become this gallery's own as it grows."
        )
    lowest = f"{100 * told.supported:.2g} %"
    if all(row.basis is Basis.MEASURED for row in told.rows):
        return f"{told.people:,} people support every FPIR down to {lowest}."
    return (
        f"{told.people:,} people support an FPIR of {lowest} or more. Below, thresholds go on as their scores "
        "began, a little higher for being unsure; how many strangers they let in is not known before more are enrolled."
    )


def calibration_object(made: Calibrated, told: Report, duplicates: list[dict[str, Any]]) -> dict[str, Any]:
    """All that as JSON, for the command line and HTTP alike."""
    return {
        "gallery": made.gallery.name,
        "model": made.pack.name,
        "faces": made.survey.faces,
        "people": told.people,
        "mated": told.mated,
        "supported_fpir": told.supported,
        "summary": said(told, made),
        "interval_percent": list(INTERVAL),
        "thresholds": [_row_object(row) for row in told.rows],
        "duplicates": duplicates,
    }


def duplicates_of(made: Calibrated, store: Store) -> list[dict[str, Any]]:
    """Who is likely one person under two ids, and was left out."""
    pairs = made.strangers.duplicates
    people = store.identities_by_id({id_ for pair in pairs for id_ in (pair.a, pair.b)})
    return [
        {"external_ids": [people[pair.a].external_id, people[pair.b].external_id], "score": round(pair.score, 4)}
        for pair in pairs
        if pair.a in people and pair.b in people  # else somebody deleted them this moment
    ]


def _row_object(row: Row) -> dict[str, Any]:
    cosines = {"threshold": row.threshold, "low": row.low, "high": row.high}
    return asdict(row) | {key: None if value is None else round(value, 4) for key, value in cosines.items()}


def _basis(made: Calibrated, fpir: float) -> Basis:
    if made.curve is None:
        return Basis.PACK if made.pack.measured else Basis.BORROWED
    return Basis.MEASURED if fpir * len(made.strangers.best) >= ENOUGH else Basis.EXTRAPOLATED


def _resampled(scores: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """As many people drawn with replacement, RESAMPLED times, always the same."""
    random = np.random.default_rng(0)
    return [random.choice(scores, len(scores)) for _ in range(RESAMPLED)]
