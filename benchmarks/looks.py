"""Measures the contribution of each part of the pipeline: accuracy with one part left out or changed.

    python -m benchmarks.looks [FOLDER]

The open-set protocol of LFW over embeddings, without the quality gate: rank-1 and FNIR at FPIR 10, 3 and 1 %; also,
over all pairs of photos, the false non-match rate at a false match rate of 1e-3, 1e-4 and 1e-5. With 20 million pairs
of different people it varies less than FNIR, which depends on the 20 strangers that score highest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.lfw import (
    RESULTS,
    Cell,
    Embedded,
    OpenSet,
    arguments,
    embed,
    list_shots,
    load_pipeline,
    open_set,
    write_results,
)
from indexer.models.packs import SFACE, Pack
from indexer.types import Precision
from indexer.vision import detection
from indexer.vision.pipeline import Options

FPIRS = (0.1, 0.03, 0.01)
FMRS = (1e-3, 1e-4, 1e-5)
BINS = 20_000
BLOCK = 1024


@dataclass(frozen=True)
class Variant:
    name: str
    pack: Pack = SFACE
    precision: Precision = Precision.NATIVE
    side: int = detection.REFINE_SIDE
    """Side of the square of the second detection pass; 0 leaves that pass out."""
    face: int = detection.REFINE_FACE_SIZE
    levels: tuple[int, ...] = detection.DETECTION_SIDES


VARIANTS = (
    Variant("as shipped"),
    Variant("embedder in float32", precision=Precision.FLOAT32),
    Variant("without the mirrored crop", pack=replace(SFACE, mirror=False)),
    Variant("without the second pass", side=0),
    Variant("second pass: face at 160 in 256", side=256, face=160),
    Variant("second pass: face at 130 in 256", side=256, face=130),
    Variant("first pass from 320 on", levels=detection.DETECTION_SIDES[1:]),
)


def main() -> None:
    shots = list_shots(arguments(__doc__).parse_args().folder)
    rows: list[dict[str, Cell]] = []
    for variant in VARIANTS:
        print(variant.name, file=sys.stderr, flush=True)
        with changed(variant):
            pipeline = load_pipeline(variant.pack, Options(precision=variant.precision))
            data = embed(pipeline, shots)
        rows.append({"variant": variant.name, **identification(data, open_set(data, shots)), **verification(data)})
    write_results(RESULTS / "looks.csv", rows)


@contextmanager
def changed(variant: Variant) -> Iterator[None]:
    """Sets the detection module's constants for a variant until the end of the block."""
    shipped = detection.REFINE_SIDE, detection.REFINE_FACE_SIZE, detection.DETECTION_SIDES, detection.refine_detections
    detection.REFINE_SIDE, detection.REFINE_FACE_SIZE, detection.DETECTION_SIDES = (
        variant.side,
        variant.face,
        variant.levels,
    )
    if variant.side == 0:
        detection.refine_detections = lambda detector, faces: [face for _, face in faces]
    try:
        yield
    finally:
        detection.REFINE_SIDE, detection.REFINE_FACE_SIZE, detection.DETECTION_SIDES, detection.refine_detections = (
            shipped
        )


def identification(data: Embedded, people: OpenSet) -> dict[str, Cell]:
    gallery = data.vectors[people.gallery]
    scores = data.vectors[people.mated] @ gallery.T
    right = data.person[people.gallery][scores.argmax(1)] == data.person[people.mated]
    best = scores.max(1)
    strangers = np.sort((data.vectors[people.non_mated] @ gallery.T).max(1))[::-1]
    fnir = {
        f"fnir_at_fpir_{fpir:g}": float(1 - (right & (best > strangers[int(fpir * len(strangers))])).mean())
        for fpir in FPIRS
    }
    return {"rank_1": float(right.mean()), **fnir}


def verification(data: Embedded) -> dict[str, Cell]:
    """Returns the false non-match rate at each false match rate, over all pairs of photos."""
    mated, strangers = (np.zeros(BINS + 1, np.int64) for _ in range(2))
    for start in range(0, len(data.vectors), BLOCK):
        some = slice(start, start + BLOCK)
        scores = data.vectors[some] @ data.vectors.T
        same = data.person[some, None] == data.person[None]
        later = np.arange(len(data.vectors))[None] > np.arange(start, start + len(scores))[:, None]
        for counts, pairs in ((mated, same & later), (strangers, ~same & later)):
            bins = ((np.clip(scores[pairs], -1, 1) + 1) * (BINS / 2)).astype(np.int64)
            counts += np.bincount(bins, minlength=BINS + 1)
    above = strangers[::-1].cumsum()[::-1]
    below = np.concatenate([[0], mated.cumsum()[:-1]])
    return {f"fnmr_at_fmr_{fmr:g}": float(below[np.argmax(above <= fmr * above[0])] / mated.sum()) for fmr in FMRS}


if __name__ == "__main__":
    main()
