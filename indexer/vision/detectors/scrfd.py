"""SCRFD (Guo et al. 2021, https://arxiv.org/abs/2105.04714), the detector of InsightFace's `buffalo_l`.

Decodes the network's outputs as InsightFace's `model_zoo/scrfd.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.types import Detection
from indexer.vision.detectors.base import ALL_OUTPUTS, Candidates, select_cells, suppress_overlaps
from indexer.vision.runtime import Preprocessing, Session

STRIDES = (8, 16, 32)
ANCHORS = 2
"""Anchors of a cell. Both are centered on the cell's upper left corner."""
MIN_SCORE = 0.5
"""InsightFace's default."""
MAX_OVERLAP = 0.4
"""InsightFace's default. It compares boxes as if they were one pixel wider and higher; `suppress_overlaps` does not."""


class Scrfd:
    """Takes RGB as (x - 127.5) / 128.

    Outputs the scores of each stride, then the boxes, then the landmarks, as distances from the anchor's center in
    units of the stride. Their shape is (N * anchors, values) or (N, anchors, values), image after image (see
    `onnx_prepare.prepare`).
    """

    preprocessing = Preprocessing(mean=(127.5, 127.5, 127.5), scale=1 / 128)
    output_slices = (ALL_OUTPUTS,)
    stride = 32
    confident_score = 0.5
    enrollment_score = 0.5
    """InsightFace's own threshold; nothing better can be measured without the weights."""
    upright_score = 0.5
    """The same, for the same reason."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def detect(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        count, _, width = canvases.shape[:3]
        outputs = [output.reshape(count, -1, output.shape[-1]) for output in self._session.run(canvases)]
        return [suppress_overlaps(_decode([o[n] for o in outputs], width), MAX_OVERLAP) for n in range(count)]

    detect_large = detect


def _decode(outputs: Sequence[NDArray[np.float32]], width: int) -> Iterator[Candidates]:
    """Yields the faces of each stride in one canvas that is `width` pixels wide."""
    levels = len(STRIDES)
    scores, boxes, points = (outputs[i * levels : (i + 1) * levels] for i in range(3))
    for stride, score, box, point in zip(STRIDES, scores, boxes, points, strict=True):
        kept, origin = select_cells(score[:, 0], MIN_SCORE, width // stride, ANCHORS)
        center = origin * stride
        # Boxes are distances to the left, upper, right and lower side.
        first, last = box[kept, :2] * stride, box[kept, 2:] * stride
        landmarks = center[:, None] + point[kept].reshape(-1, 5, 2) * stride
        yield np.concatenate([center - first, first + last], axis=1), landmarks, score[kept, 0]
