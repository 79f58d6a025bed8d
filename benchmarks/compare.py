"""Compares this checkout with an older one: speed, memory and accuracy, both in turns in one run.

    python -m benchmarks.compare OLD_CHECKOUT [--rows search enroll ...] [--faces 200000] [--embeddings FILE]

`benchmarks.compare_turns` runs in a process of either checkout, of which one works while the other one waits. Values
are medians over the rounds; the ratio is the median of the ratios of each round, so that it holds on a machine whose
speed changes. A plain loop with the same embedder, one look and one crop runs in the same turns.

Writes benchmarks/results/compare.csv, and keeps those rows of earlier runs that are not measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import lfw
from benchmarks.compare_turns import ROWS, Values
from benchmarks.lfw import Cell, say
from benchmarks.synthetic_faces import PHOTOS, Population, make_vectors, measure
from indexer.models.packs import SFACE

DIM, MATED = 512, 1000
"""Numbers in a synthetic embedding, and mated probes of the synthetic gallery."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, help="a checkout of the older version")
    parser.add_argument("--folder", type=Path, default=lfw.DEFAULT_FOLDER, help="an LFW folder")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--faces", type=int, default=200_000, help="faces in the vector index and in the Parquet file")
    parser.add_argument("--embeddings", type=Path, help="an .npz that keeps the folder's embeddings between runs")
    options = parser.parse_args()
    path = lfw.RESULTS / "compare.csv"
    with tempfile.TemporaryDirectory() as folder:
        vectors = Path(folder) / "vectors.npz"
        if {"vectors", "import"} & {*options.rows}:
            _make_vectors(options, vectors)
        measured = [
            one for row in options.rows for one in _compare(row, options.old, options.folder.resolve(), vectors)
        ]
    names = {row["what"] for row in measured}
    lfw.write_results(path, [*(row for row in _stored(path) if row["what"] not in names), *measured])


def _compare(row: str, old: Path, photos: Path, vectors: Path) -> list[dict[str, Cell]]:
    """Measures one row in turns."""
    workers = [_start(checkout.resolve(), row, str(photos), str(vectors)) for checkout in (old, lfw.ROOT)]
    rounds: list[tuple[Values, Values]] = []
    for number in range(ROWS[row][1]):
        before, after = map(_next_values, workers)
        rounds.append((before, after))
        say(f"{row}, round {number + 1}: {before} {after}")
    for worker in workers:
        worker.communicate()
    return [_row(name, [before[name] for before, _ in rounds], [after[name] for _, after in rounds]) for name in before]


def _row(what: str, old: list[float], new: list[float]) -> dict[str, Cell]:
    ratios = [after / before for before, after in zip(old, new, strict=True) if before]
    return {
        "what": what,
        "old": statistics.median(old),
        "new": statistics.median(new),
        "new_to_old": statistics.median(ratios) if ratios else "",
        "rounds": len(old),
    }


def _start(checkout: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts this checkout's `compare_turns` with the other modules of `checkout`."""
    command = [sys.executable, "-P", str(lfw.ROOT / "benchmarks" / "compare_turns.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=checkout, env=environment, stdin=pipe, stdout=pipe, text=True)


def _next_values(worker: subprocess.Popen[str]) -> Values:
    if worker.stdin is None or worker.stdout is None:
        raise ValueError("the process has no pipes")
    worker.stdin.write("next\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a measurement ended with {worker.wait()}")
    values: Values = json.loads(line)
    return values


def _make_vectors(options: argparse.Namespace, path: Path) -> None:
    """Writes a synthetic gallery with the score distributions of the photos."""
    kept = options.embeddings
    if kept is None or not kept.exists():
        data = lfw.embed(lfw.load_pipeline(SFACE), lfw.list_shots(options.folder))
        if kept is not None:
            np.savez(kept, vectors=data.vectors, person=data.person, names=np.array(data.names))
    else:
        with np.load(kept) as file:
            data = lfw.Embedded((), (), file["vectors"], file["person"], tuple(file["names"].tolist()))
    population = Population(measure(data), DIM)
    faces, groups = make_vectors(population, options.faces)
    rng = np.random.default_rng(len(faces))
    rows = rng.choice(len(faces), MATED, replace=False)
    probes = population.photos(faces[rows], groups[rows], rng)
    np.savez(path, faces=faces, identities=np.arange(len(faces)) // PHOTOS, probes=probes, right=rows // PHOTOS)


def _stored(path: Path) -> list[dict[str, Cell]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(line for line in file if not line.startswith("#"))]


if __name__ == "__main__":
    main()
