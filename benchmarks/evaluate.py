"""Runs the open-set protocol by `whosthere evaluate`: one and three photos per person, and smaller galleries.

    python -m benchmarks.evaluate [FOLDER] [--cache FOLDER]

The galleries of 100 and 300 people are drawn at random from those with several photos, DRAWS times; all people with one
photo are the strangers of each. Nothing is tuned on these people: thresholds come from the enrolled people alone.

Writes benchmarks/results/evaluate.csv, a row for each FPIR of each gallery.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import lfw
from benchmarks.lfw import Cell, say
from indexer.app_context import AppContext
from indexer.enrollment.rows import Row
from indexer.enrollment.sources import rows_of
from indexer.settings import read_settings
from indexer.types import Pick
from search_service.evaluation.protocol import Protocol
from search_service.evaluation.run import Evaluation, evaluate

PEOPLE = (100, 300)
DRAWS = 5
PHOTOS = (1, 3)


def main() -> None:
    parser = lfw.arguments(__doc__)
    parser.add_argument("--cache", type=Path, help="a home folder in which descriptions are stored for the next run")
    options = parser.parse_args()
    rows = rows_of([options.folder / "people"])
    with tempfile.TemporaryDirectory() as temporary:
        context = AppContext(read_settings({}, home=options.cache or Path(temporary)))
        cells: list[dict[str, Cell]] = []
        for photos in PHOTOS:
            say(f"everybody, {photos} photos")
            evaluation = evaluate(context, rows, Protocol(photos, Pick.CENTER), None, True, lambda *_: None)
            cells += list(_cells(evaluation, photos, 0))
        for people in PEOPLE:
            for draw in range(DRAWS):
                say(f"{people} people, draw {draw}")
                drawn = some(rows, people, draw)
                evaluation = evaluate(context, drawn, Protocol(1, Pick.CENTER), None, True, lambda *_: None)
                cells += list(_cells(evaluation, 1, draw))
        context.close()
    lfw.write_results(lfw.RESULTS / "evaluate.csv", cells)


def some(rows: Sequence[Row], people: int, seed: int) -> list[Row]:
    """Returns all photos of `people` drawn from those with several, and of all people with one."""
    ids = [row.person.external_id for row in rows]
    names, counts = np.unique(ids, return_counts=True)
    drawn = np.random.default_rng(seed).permutation(names[counts > 1])[:people]
    kept = {*drawn.tolist(), *names[counts == 1].tolist()}
    return [row for row in rows if row.person.external_id in kept]


def _cells(evaluation: Evaluation, photos: int, draw: int) -> Iterator[dict[str, Cell]]:
    metrics = evaluation.metrics
    for rate, calibrated in zip(metrics.rates, metrics.calibrated, strict=True):
        yield {
            "people": evaluation.enrollment.people,
            "photos": photos,
            "draw": draw,
            "mated_probes": evaluation.mated.photos,
            "mated_people": evaluation.mated.people,
            "strangers": evaluation.stranger_people,
            "not_enrolled": evaluation.enrollment.photos - evaluation.enrollment.enrolled,
            "rank_1": metrics.rank_1.value,
            "fpir": rate.fpir,
            "basis": rate.basis,
            "fnir": rate.fnir.value if rate.fnir else "",
            "fnir_low": rate.fnir.low if rate.fnir else "",
            "fnir_high": rate.fnir.high if rate.fnir else "",
            "requested_threshold": calibrated.threshold,
            "observed_fpir": calibrated.observed.value,
            "observed_low": calibrated.observed.low,
            "observed_high": calibrated.observed.high,
            "fnir_as_requested": calibrated.fnir.value,
            "verdict": calibrated.verdict,
        }


if __name__ == "__main__":
    main()
