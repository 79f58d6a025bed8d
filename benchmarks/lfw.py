"""Shared code of the benchmarks: a folder of labeled photos, the open-set protocol, and result files.

The folder has the layout of LFW: people/NAME/NAME_0001.jpg, and optionally pairs.csv (image_a, image_b, same).
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.csv_files import row_writer
from indexer.models.model_files import ModelFiles
from indexer.models.packs import Pack
from indexer.types import Face, Pick, Vectors
from indexer.vision.pipeline import FacePipeline, ImageResult, Options
from indexer.vision.runtime import usable_cores

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_FOLDER = ROOT.parent / "shared" / "lfw"
RESULTS = ROOT / "benchmarks" / "results"
BATCH = 32
"""Photos described at a time."""

Cell = str | int | float


@dataclass(frozen=True)
class Shot:
    """One photo of one person."""

    person: str
    path: Path


@dataclass(frozen=True, eq=False)
class Embedded:
    """Photos in which a face was found, one row each. The people are numbered 0.. in the order of `names`."""

    shots: tuple[Shot, ...]
    faces: tuple[Face, ...]
    vectors: Vectors
    """(M, D)."""
    person: NDArray[np.int64]
    """(M,) each photo's person."""
    names: tuple[str, ...]

    @property
    def rows(self) -> dict[Path, int]:
        return {shot.path: row for row, shot in enumerate(self.shots)}


@dataclass(frozen=True, eq=False)
class OpenSet:
    """The enrolled photos and the probes, as rows of an `Embedded`."""

    gallery: NDArray[np.int64]
    mated: NDArray[np.int64]
    non_mated: NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    a: Path
    b: Path
    same: bool


def arguments(about: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the argument of every benchmark over photos: `folder`."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER, help="an LFW folder")
    return parser


def list_shots(folder: Path) -> list[Shot]:
    """Returns all photos, ordered by person and number."""
    shots = [Shot(path.parent.name, path) for path in sorted((folder / "people").glob("*/*.jpg"))]
    if not shots:
        raise SystemExit(f"{folder} holds no people/NAME/*.jpg")
    return shots


def list_pairs(folder: Path) -> list[Pair]:
    """Returns the verification pairs of LFW's View 2 from pairs.csv."""
    with (folder / "pairs.csv").open(newline="") as file:
        return [
            Pair(folder / row["image_a"], folder / row["image_b"], row["same"] == "1") for row in csv.DictReader(file)
        ]


def by_person(shots: Sequence[Shot]) -> dict[str, list[Shot]]:
    """Returns the photos of each person, in order."""
    return {name: list(group) for name, group in groupby(shots, key=lambda shot: shot.person)}


def enrolled(shots: Sequence[Shot]) -> list[Shot]:
    """Returns the open-set protocol's gallery: the first photo of each person with at least two."""
    return [photos[0] for photos in by_person(shots).values() if len(photos) > 1]


def open_set(data: Embedded, shots: Sequence[Shot]) -> OpenSet:
    """Enrolls the first photo of people with at least two, whose others are mated probes; people with one photo are
    non-mated probes. Photos without a face are left out; `shots` are all photos."""
    rows = data.rows
    gallery, mated, non_mated = [], [], []
    for photos in by_person(shots).values():
        found = [rows[shot.path] for shot in photos if shot.path in rows]
        if len(photos) == 1:
            non_mated += found
        elif photos[0].path in rows:
            gallery += found[:1]
            mated += found[1:]
    return OpenSet(*(np.array(part, dtype=np.int64) for part in (gallery, mated, non_mated)))


def load_pipeline(pack: Pack, options: Options = Options()) -> FacePipeline:
    """Returns a pipeline whose networks are in memory, with nothing left on disk."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = FacePipeline(pack, ModelFiles(Path(folder)), options)
        pipeline.load()
        return pipeline


def say(what: str) -> None:
    """Prints the progress of a benchmark to stderr."""
    print(time.strftime("%H:%M:%S"), what, file=sys.stderr, flush=True)


def describe_all(pipeline: FacePipeline, images: Iterator[bytes] | Sequence[bytes], total: int) -> list[ImageResult]:
    """Describes the central face of each image without the quality gate, with progress on stderr."""
    seen: list[ImageResult] = []
    batch: list[bytes] = []
    begun = time.monotonic()
    for image in images:
        batch.append(image)
        if len(batch) == BATCH or len(seen) + len(batch) == total:
            seen += pipeline.describe(batch, Pick.CENTER)
            batch = []
            if len(seen) % (BATCH * 20) == 0 or len(seen) == total:
                print(f"{len(seen)}/{total} photos, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return seen


def embed(pipeline: FacePipeline, shots: Sequence[Shot]) -> Embedded:
    """Embeds the central face of each photo; photos without one are left out."""
    seen = describe_all(pipeline, (shot.path.read_bytes() for shot in shots), len(shots))
    found = [(shot, answer.faces[0]) for shot, answer in zip(shots, seen, strict=True) if answer.faces]
    names = tuple(dict.fromkeys(shot.person for shot, _ in found))
    number = {name: index for index, name in enumerate(names)}
    return Embedded(
        tuple(shot for shot, _ in found),
        tuple(face for _, face in found),
        np.stack([face.embedding for _, face in found]),
        np.array([number[shot.person] for shot, _ in found], dtype=np.int64),
        names,
    )


def hardware() -> str:
    """Returns the CPU's name, its family and model number (some clouds hide the name), and the usable cores."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass  # no Linux
    name = fields.get("model name") or platform.processor() or platform.machine()
    number = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return f"{name}{number}, {usable_cores()} cores{memory}, {platform.system()}, Python {platform.python_version()}"


def write_results(path: Path, rows: Sequence[Mapping[str, Cell]]) -> None:
    """Writes and prints `rows` as CSV below a comment line with hardware and date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        file.write(f"# {hardware()}; {today}\n")
        write_row = row_writer(file, line_end="\n")
        write_row(columns)
        for row in rows:
            write_row(_shown(row.get(column, "")) for column in columns)
    print(path.read_text(), end="")


def _shown(value: Cell) -> Cell:
    return float(f"{value:.5g}") if isinstance(value, float) else value
