"""The interface of face detectors, and functions that they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.types import Box, Detection

ALL_OUTPUTS = slice(None)
"""Selects all outputs of a network."""

Candidates = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""Boxes (K, 4) as x, y, w, h; landmarks (K, 5, 2); scores (K,). In pixels of the canvas."""


class Detector(Protocol):
    """A network that finds faces in a batch of canvases, which are images of one size."""

    stride: int
    """Canvas heights and widths must be multiples of this."""
    confident_score: float
    """Faces from this score on are certain: see `detection.CONFIDENT_FACE_SIZE`."""
    enrollment_score: float
    """Lowest score in the second detection pass at which a face may be enrolled."""
    upright_score: float
    """Lowest score at which a face is certainly not upside down or on its side."""

    def detect(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        """Returns the faces in each of (N, H, W, 3) RGB canvases, in canvas pixels, best first, without overlaps."""
        ...

    def detect_large(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        """Does the same for faces as large as in the second detection pass; smaller faces may be missing."""
        ...


def select_cells(
    scores: NDArray[np.float32], min_score: float, columns: int, anchors: int = 1
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Returns the indices (M,) of `scores` (K,) that reach `min_score`, and the column and row of their cells, (M, 2).

    Scores are ordered row by row, with `columns` cells in a row and `anchors` scores in a cell.
    """
    (kept,) = np.nonzero(scores >= min_score)
    row, column = np.divmod(kept // anchors, columns)
    return kept, np.stack([column, row], axis=1).astype(np.float32)


def suppress_overlaps(levels: Iterable[Candidates], max_overlap: float) -> list[Detection]:
    """Returns the detections of all levels, without those that overlap a better one by more than `max_overlap`
    (non-maximum suppression by intersection over union)."""
    boxes, points, scores = (np.concatenate(arrays) for arrays in zip(*levels, strict=True))
    if len(scores) == 0:
        return []
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, max_overlap)
    return [
        Detection(Box(*(float(v) for v in boxes[i])), points[i].astype(np.float32), float(scores[i]))
        for i in np.asarray(kept).ravel()
    ]


def iou(a: Box, b: Box) -> float:
    """Returns the intersection over union of two boxes."""
    width = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    height = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (a.area + b.area - intersection)


def boxes_of(faces: Sequence[Detection]) -> NDArray[np.float64]:
    """Returns left, top, width and height of each face, (N, 4)."""
    return np.array([(f.box.x, f.box.y, f.box.w, f.box.h) for f in faces], np.float64).reshape(-1, 4)


def ious(a: Box, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the intersection over union of a box with each of `boxes` (N, 4)."""
    x, y, w, h = boxes.T
    width = np.minimum(a.x + a.w, x + w) - np.maximum(a.x, x)
    height = np.minimum(a.y + a.h, y + h) - np.maximum(a.y, y)
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    union = a.area + w * h - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0))
