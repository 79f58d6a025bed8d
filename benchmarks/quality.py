"""Measures the limits of the quality gate in `indexer/vision/quality.py`.

    python -m benchmarks.quality [FOLDER]

For people with at least two photos, the first stays as it is and the second is degraded step by step: smaller, out of
focus, shaken, noisy, darker, brighter, flatter. A pair below the threshold of FMR 1e-4 counts as missed. Pose cannot be
changed in a photo; for it, all further photos of LFW are used as they are.

Writes to benchmarks/results:
- quality_steps.csv: each step with the measures, the faces still found, and the miss rate;
- quality.csv: the miss rate by the value of a measure, over the degradations that it should detect;
- quality_gate.csv: the photos of LFW's open-set protocol that the gate rejects.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import lfw
from benchmarks.lfw import Cell, Embedded, Shot
from indexer.models.packs import SFACE
from indexer.types import Face, Pixels
from indexer.vision import quality
from indexer.vision.align import align
from indexer.vision.decode import decode
from indexer.vision.pipeline import FacePipeline
from indexer.vision.quality import FACE_REGION

MISS_FMR = 1e-4
JPEG_QUALITY = 90
"""Degraded photos are saved as JPEG again."""

Degrade = Callable[[Pixels], Pixels]


@dataclass(frozen=True)
class Step:
    """One degradation at one strength."""

    family: str
    strength: float
    degrade: Degrade


@dataclass(frozen=True, eq=False)
class Record:
    """One degraded photo in which a face was found."""

    family: str
    strength: float
    face: Face
    score: float
    """Cosine to the same person's undegraded photo."""
    rivals: Mapping[str, float]
    """Other measures of sharpness, for the families in BLURS."""


@dataclass(frozen=True)
class Measure:
    """The measure of one limit, the degradations that it should detect, and the edges of the bins of misses."""

    name: str
    read: Callable[[Face], float]
    families: tuple[str, ...]
    edges: tuple[float, ...]


def smaller(side: float) -> Degrade:
    """Resizes to `side` pixels; the face takes about 0.44 of the width."""
    return lambda pixels: _image(cv2.resize(pixels, (int(side), int(side)), interpolation=cv2.INTER_AREA))


def defocus(sigma: float) -> Degrade:
    return lambda pixels: _image(cv2.GaussianBlur(pixels, (0, 0), sigma))


def shaken(length: float) -> Degrade:
    """Simulates a camera moved by `length` pixels, at an angle of 30 degrees."""
    kernel = np.zeros((int(length), int(length)), dtype=np.float32)
    middle = (length - 1) / 2
    dx, dy = middle * np.cos(np.pi / 6), middle * np.sin(np.pi / 6)
    ends = [(round(middle - dx), round(middle - dy)), (round(middle + dx), round(middle + dy))]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    kernel /= kernel.sum()
    return lambda pixels: _image(cv2.filter2D(pixels, -1, kernel))


def noisy_defocus(sigma: float) -> Degrade:
    """Blurs, then adds the noise of a dim room (sd 6 of 255), which a naive measure takes for detail."""
    random = np.random.default_rng(0)
    return lambda pixels: _image(defocus(sigma)(pixels) + random.normal(0, 6, (*pixels.shape[:2], 1)))


def exposed(factor: float) -> Degrade:
    """Multiplies the exposure by `factor`; values outside 0..255 are clipped."""
    return lambda pixels: _image(pixels.astype(np.float32) * factor)


def flatter(share: float) -> Degrade:
    """Reduces the contrast around the photo's mean to `share`."""
    return lambda pixels: _image(pixels.mean() + (pixels - pixels.mean()) * share)


def _image(values: NDArray[Any]) -> Pixels:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


FAMILIES: dict[str, tuple[Callable[[float], Degrade], tuple[float, ...]]] = {
    "undegraded": (lambda _: lambda pixels: pixels, (0,)),
    "smaller, side in px": (smaller, (160, 96, 80, 64, 56, 48, 40)),
    "defocus, sigma in px": (defocus, (1, 1.5, 2, 2.5, 3, 3.5, 4, 6)),
    "shaken, length in px": (shaken, (5, 9, 11, 13, 17, 25)),
    "noisy defocus, sigma in px": (noisy_defocus, (0.5, 1.5, 2.5, 3.5, 5)),
    "darker, exposure": (exposed, (0.5, 0.25, 0.18, 0.14, 0.12, 0.09)),
    "brighter, exposure": (exposed, (1.5, 1.8, 2.2, 2.6, 3, 4)),
    "flatter, share": (flatter, (0.5, 0.35, 0.25, 0.18, 0.12)),
}
BLURS = ("undegraded", "defocus, sigma in px", "shaken, length in px", "noisy defocus, sigma in px")
SURE = (0.6, 0.7, 0.8, 0.85, 0.88, 0.89, 0.9, 0.91, 0.92, 0.93, 0.94, 1)
MEASURES = (
    Measure(
        "size",
        lambda f: f.quality.size,
        ("undegraded", "smaller, side in px"),
        (0, 12, 14, 16, 18, 20, 22, 24, 26, 28, 32, 36, 40, 48, 64, 80, 200),
    ),
    Measure(
        "sharpness",
        lambda f: f.quality.sharpness,
        BLURS,
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 1e9),
    ),
    Measure(
        "brightness, low",
        lambda f: f.quality.brightness,
        ("undegraded", "darker, exposure"),
        (0, 4, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60, 80, 120),
    ),
    Measure(
        "brightness, high",
        lambda f: f.quality.brightness,
        ("undegraded", "brighter, exposure"),
        (120, 160, 180, 200, 210, 220, 230, 235, 240, 245, 250, 256),
    ),
    Measure(
        "contrast",
        lambda f: f.quality.contrast,
        ("undegraded", "flatter, share"),
        (0, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 40, 100),
    ),
    Measure("detection", lambda f: f.detection.score, tuple(FAMILIES), SURE),
)
YAWS = (0, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 1.01)


def steps() -> Iterator[Step]:
    for family, (make, strengths) in FAMILIES.items():
        for strength in strengths:
            yield Step(family, strength, make(strength))


def degraded(shot: Shot, step: Step) -> bytes:
    data = shot.path.read_bytes()
    if step.family == "undegraded":
        return data
    file = io.BytesIO()
    Image.fromarray(step.degrade(decode(data).pixels)).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def measure_step(pipeline: FacePipeline, data: Embedded, pairs: Sequence[tuple[int, Shot]], step: Step) -> list[Record]:
    """Degrades the second photo of each of `pairs`: a row of `data`, and another photo."""
    photos = [degraded(shot, step) for _, shot in pairs]
    answers = lfw.describe_all(pipeline, photos, len(pairs))
    records = []
    for (row, _), photo, seen in zip(pairs, photos, answers, strict=True):
        for face in seen.faces:
            score = float(face.embedding @ data.vectors[row])
            rivals = rival_sharpness(photo, face) if step.family in BLURS else {}
            records.append(Record(step.family, step.strength, face, score, rivals))
    return records


def rival_sharpness(photo: bytes, face: Face) -> dict[str, float]:
    """Returns the crop's relative Laplacian, and its sharpness with other strengths of smoothing."""
    grey = cv2.cvtColor(align(decode(photo).pixels, face.detection.landmarks), cv2.COLOR_RGB2GRAY)
    wide = grey.astype(np.float32)
    found = {
        "Laplacian": float(cv2.Laplacian(wide[FACE_REGION], cv2.CV_32F).var() / max(wide[FACE_REGION].var(), 1e-6))
    }
    for sigma in (1.0, 1.5, 2.5):
        smooth = np.asarray(cv2.GaussianBlur(wide, (0, 0), sigma), dtype=np.float32)
        found[f"smoothed by {sigma:g}"] = quality._sharpness(smooth)
    return found


def roc_area(values: NDArray[np.float64], missed: NDArray[np.bool_]) -> float:
    """Returns how often a missed face has a lower value than a found one: 0.5 is chance, 1 perfect."""
    poor, good = values[missed], np.sort(values[~missed])
    return 1 - float(np.searchsorted(good, poor, side="right").mean()) / len(good)


def sharpness_rows(records: Sequence[Record], limit: float) -> list[dict[str, Cell]]:
    used = [record for record in records if record.family in BLURS]
    missed = np.array([record.score < limit for record in used])
    measures = {"sharpness": np.array([record.face.quality.sharpness for record in used])}
    measures |= {name: np.array([record.rivals[name] for record in used]) for name in used[0].rivals}
    return [
        {"measure": f"area under ROC: {name}", "faces": len(used), "roc_area": roc_area(values, missed)}
        for name, values in measures.items()
    ]


def step_row(step: Step, records: Sequence[Record], photos: int, limit: float) -> dict[str, Cell]:
    """Returns medians of the measures over the faces that are still found."""
    row: dict[str, Cell] = {
        "family": step.family,
        "strength": step.strength,
        "photos": photos,
        "found": len(records) / photos,
        "missed": float(np.mean([record.score < limit for record in records])) if records else 1.0,
        "score": float(np.mean([record.score for record in records])) if records else 0.0,
    }
    for name in ("size", "sharpness", "brightness", "contrast"):
        row[name] = float(np.median([getattr(record.face.quality, name) for record in records] or [0]))
    row["detection"] = float(np.median([record.face.detection.score for record in records] or [0]))
    return row


def curve(
    name: str, values: NDArray[np.float64], missed: NDArray[np.bool_], edges: Sequence[float], usual: float
) -> list[dict[str, Cell]]:
    """Returns the miss rate of each bin, also relative to undegraded photos."""
    rows: list[dict[str, Cell]] = []
    for low, high in pairwise(edges):
        inside = (values >= low) & (values < high)
        if inside.any():
            rate = float(missed[inside].mean())
            rows.append(
                {
                    "measure": name,
                    "from": low,
                    "below": high,
                    "faces": int(inside.sum()),
                    "missed": rate,
                    "times_undegraded": rate / usual,
                }
            )
    return rows


def curves(records: Sequence[Record], limit: float) -> list[dict[str, Cell]]:
    usual = float(np.mean([r.score < limit for r in records if r.family == "undegraded"]))
    rows: list[dict[str, Cell]] = []
    for measure in MEASURES:
        used = [record for record in records if record.family in measure.families]
        values = np.array([measure.read(record.face) for record in used])
        rows += curve(measure.name, values, np.array([r.score < limit for r in used]), measure.edges, usual)
    return rows


def natural_curves(data: Embedded, shots: Sequence[Shot], limit: float) -> list[dict[str, Cell]]:
    """Returns yaw and detection score of the mated probes of the open-set protocol."""
    people = lfw.open_set(data, shots)
    row_of = dict(zip(data.person[people.gallery].tolist(), people.gallery.tolist(), strict=True))
    mates = np.array([row_of[person] for person in data.person[people.mated].tolist()])
    missed = (data.vectors[people.mated] * data.vectors[mates]).sum(1) < limit
    faces = [data.faces[row] for row in people.mated]
    yaws = np.array([abs(face.quality.yaw) for face in faces])
    sure = np.array([face.detection.score for face in faces])
    usual = float(missed.mean())
    return [
        *curve("|yaw|, LFW as it is", yaws, missed, YAWS, usual),
        *curve("detection, LFW as it is", sure, missed, SURE, usual),
    ]


def gate_rows(data: Embedded, shots: Sequence[Shot]) -> list[dict[str, Cell]]:
    """Returns the rejected photos of the open-set gallery by first reason, then of all photos."""
    rows: list[dict[str, Cell]] = []
    row_of = data.rows
    for name, part in (("gallery", lfw.enrolled(shots)), ("all photos", list(shots))):
        faces = [data.faces[row_of[shot.path]] for shot in part if shot.path in row_of]
        reasons = Counter(str(face.quality.reasons[0]) for face in faces if face.quality.reasons)
        reasons["no_face"] = len(part) - len(faces)
        reasons["rejected in all"] = reasons.total()
        rows += [
            {"photos": name, "of": len(part), "reason": reason, "rejected": count, "share": count / len(part)}
            for reason, count in sorted(reasons.items())
        ]
    return rows


def main() -> None:
    folder = lfw.arguments(__doc__).parse_args().folder
    shots = lfw.list_shots(folder)
    pipeline = lfw.load_pipeline(SFACE)
    data = lfw.embed(pipeline, shots)
    limit = SFACE.tail.cosine(MISS_FMR)
    lfw.write_results(lfw.RESULTS / "quality_gate.csv", gate_rows(data, shots))
    row_of = data.rows
    pairs = [(row_of[p[0].path], p[1]) for p in lfw.by_person(shots).values() if len(p) > 1 and p[0].path in row_of]
    records: list[Record] = []
    rows: list[dict[str, Cell]] = []
    for step in steps():
        found = measure_step(pipeline, data, pairs, step)
        records += found
        rows.append(step_row(step, found, len(pairs), limit))
        print(f"{step.family} {step.strength:g}: missed {rows[-1]['missed']:.3f}", flush=True)
    lfw.write_results(lfw.RESULTS / "quality_steps.csv", rows)
    table = curves(records, limit) + natural_curves(data, shots, limit) + sharpness_rows(records, limit)
    lfw.write_results(lfw.RESULTS / "quality.csv", table)


if __name__ == "__main__":
    main()
