"""What every detector offers, and what detectors share."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.types import Box, Detection

ALL_OUTPUTS = slice(None)
"""All outputs of a network."""


class Detector(Protocol):
    """A network that finds faces in canvases of one size."""

    stride: int
    """Heights and widths must be multiples of this."""
    confident_score: float
    """From this score on a face is surely one: see `detection.CONFIDENT_FACE_SIZE`."""
    enrollment_score: float
    """From this score on, at the second look, a face may be enrolled."""

    def detect(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        """Faces in each of (N, H, W, 3) RGB canvases, in their pixels, best first, overlaps suppressed."""
        ...

    def detect_large(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        """The same where the faces that matter are as large as at a second look: smaller ones may be missing."""
        ...


def select_cells(
    scores: NDArray[np.float32], least: float, columns: int, each: int = 1
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Which of `scores` (K,) reach `least`, (M,), and the column and row of the cell of each, (M, 2). Scores come row
    by row, `each` a cell and `columns` cells a row."""
    (kept,) = np.nonzero(scores >= least)
    row, column = np.divmod(kept // each, columns)
    return kept, np.stack([column, row], axis=1).astype(np.float32)


def suppress_overlaps(
    boxes: NDArray[np.float32], points: NDArray[np.float32], scores: NDArray[np.float32], overlap: float
) -> list[Detection]:
    """Detections without those that overlap a better one by more than `overlap` (intersection over union).

    `boxes` (K, 4) as x, y, w, h; `points` (K, 5, 2); `scores` (K,).
    """
    if len(scores) == 0:
        return []
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, overlap)
    return [
        Detection(Box(*(float(v) for v in boxes[i])), points[i].astype(np.float32), float(scores[i]))
        for i in np.asarray(kept).ravel()
    ]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    across = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    down = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    if across <= 0 or down <= 0:
        return 0.0
    both = across * down
    return both / (a.area + b.area - both)
