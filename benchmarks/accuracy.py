"""Measures the open-set protocol of LFW through the program: `whosthere enroll` enrolls, SearchService searches.

    python -m benchmarks.accuracy [FOLDER]

People with at least two photos are enrolled with the first, through the default quality gate; their other photos are
mated probes. People with one photo are non-mated probes. A mated probe is missed unless its own identity is the top
candidate and reaches the threshold of that FPIR; probes of people whose photo was rejected are missed as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lfw import RESULTS, Cell, Shot, arguments, by_person, enrolled, list_shots, write_results
from indexer.app_context import AppContext
from indexer.csv_files import row_writer
from indexer.settings import read_settings
from indexer.types import Pick
from search_service.calibration.thresholds import Thresholds
from search_service.search import Query, SearchService

FPIRS = (0.1, 0.03, 0.01, 0.003)
AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Searched:
    """The top candidate of each probe: its identity and its score, or -1 without a candidate."""

    right: NDArray[np.bool_]
    score: NDArray[np.float64]


def main() -> None:
    shots = list_shots(arguments(__doc__).parse_args().folder)
    groups = by_person(shots)
    mated = [shot for photos in groups.values() if len(photos) > 1 for shot in photos[1:]]
    non_mated = [photos[0] for photos in groups.values() if len(photos) == 1]
    with tempfile.TemporaryDirectory() as folder:
        summary = enroll(enrolled(shots), Path(folder))
        context = AppContext(read_settings({}, home=Path(folder) / "home"))
        found = search(context, [*mated, *non_mated])
        context.close()
    reasons = Counter(r["reason"] for r in summary["results"] if r["outcome"] == "rejected")
    n = len(mated)
    rows: list[dict[str, Cell]] = [
        {"measure": "enrolled of", "value": summary["images"], "share": summary["enrolled"] / summary["images"]}
    ]
    rows += [{"measure": f"rejected: {reason}", "value": count} for reason, count in reasons.most_common()]
    rows += [
        {"measure": "mated probes", "value": n},
        {"measure": "non-mated probes", "value": len(non_mated)},
        {"measure": "rank-1", "value": int(found.right[:n].sum()), "share": float(found.right[:n].mean())},
    ]
    strangers = np.sort(found.score[n:])[::-1]
    for fpir in FPIRS:
        threshold = float(strangers[int(fpir * len(strangers))])
        missed = ~(found.right[:n] & (found.score[:n] > threshold))
        rows.append(
            {
                "measure": f"FNIR at FPIR {fpir:g}",
                "value": int(missed.sum()),
                "share": float(missed.mean()),
                "threshold": threshold,
            }
        )
    write_results(RESULTS / "accuracy.csv", rows)


def enroll(shots: Sequence[Shot], folder: Path) -> dict[str, Any]:
    """Runs `whosthere enroll --json` and returns its output."""
    manifest = folder / "gallery.csv"
    with manifest.open("w", newline="") as file:
        write_row = row_writer(file)
        write_row(["image", "external_id"])
        for shot in shots:
            write_row([str(shot.path), shot.person])
    whosthere = Path(sys.executable).parent / "whosthere"
    command = f"{whosthere} enroll --gallery lfw --manifest {manifest} --pick center --json --home {folder / 'home'}"
    done = subprocess.run(command.split(), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"enroll ended with {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def search(context: AppContext, shots: Sequence[Shot]) -> Searched:
    service, gallery = SearchService(context, Thresholds(context)), context.store.galleries.get("lfw")
    query = Query(top_k=1, pick=Pick.CENTER)
    right, scores = [], []
    for start in range(0, len(shots), AT_ONCE):
        some = shots[start : start + AT_ONCE]
        for shot, answer in zip(some, service.search([s.path.read_bytes() for s in some], gallery, query), strict=True):
            top = answer.faces[0].candidates[0] if answer.faces else None
            right.append(top is not None and top.identity.external_id == shot.person)
            scores.append(top.score if top is not None else -1.0)
        if start % (AT_ONCE * 20) == 0:
            print(f"{start}/{len(shots)} probes", file=sys.stderr, flush=True)
    return Searched(np.array(right), np.array(scores))


if __name__ == "__main__":
    main()
