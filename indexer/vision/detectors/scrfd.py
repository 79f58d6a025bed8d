"""SCRFD (Guo et al. 2021, https://arxiv.org/abs/2105.04714), the detector of InsightFace's `buffalo_l`, read as its own
`model_zoo/scrfd.py` does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexer.types import Detection
from indexer.vision.detectors.base import ALL_OUTPUTS, select_cells, suppress_overlaps
from indexer.vision.runtime import Preprocessing, Session

STRIDES = (8, 16, 32)
ANCHORS = 2
"""A cell. Both have its corner for their centre."""
MIN_SCORE = 0.5
"""InsightFace's default, as the overlap."""
MAX_OVERLAP = 0.4
"""InsightFace counts boxes as a pixel wider and higher when it compares them; `suppress` does not."""


class Scrfd:
    """Takes RGB as (x - 127.5) / 128. Outputs a level: scores, then boxes, then points, each anchor telling them as
    distances from its centre in strides. Outputs are (N * anchors, values) or (N, anchors, values): image after image
    (see `prepare.prepare`)."""

    preprocessing = Preprocessing(mean=(127.5, 127.5, 127.5), scale=1 / 128)
    output_slices = (ALL_OUTPUTS,)
    stride = 32
    confident_score = 0.5
    enrollment_score = 0.5
    """InsightFace's own threshold: without the weights nothing better can be measured."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def detect(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        count, _, width = canvases.shape[:3]
        outputs = self._session.run(canvases)
        levels = len(STRIDES)
        scores, boxes, points = (
            [output.reshape(count, -1, output.shape[-1]) for output in outputs[i * levels : (i + 1) * levels]]
            for i in range(3)
        )
        return [
            _read([s[n, :, 0] for s in scores], [b[n] for b in boxes], [p[n] for p in points], width)
            for n in range(count)
        ]

    def detect_large(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        return self.detect(canvases)


def _read(
    scores: list[NDArray[np.float32]],
    boxes: list[NDArray[np.float32]],
    points: list[NDArray[np.float32]],
    width: int,
) -> list[Detection]:
    """The faces of one canvas `width` pixels wide."""
    found_boxes, found_points, found_scores = [], [], []
    for stride, score, box, point in zip(STRIDES, scores, boxes, points, strict=True):
        kept, origin = select_cells(score, MIN_SCORE, width // stride, ANCHORS)
        center = origin * stride
        # Distances to the left, upper, right and lower side.
        first, last = box[kept, :2] * stride, box[kept, 2:] * stride
        found_boxes.append(np.concatenate([center - first, first + last], axis=1))
        found_points.append(center[:, None] + point[kept].reshape(-1, 5, 2) * stride)
        found_scores.append(score[kept])
    return suppress_overlaps(
        np.concatenate(found_boxes), np.concatenate(found_points), np.concatenate(found_scores), MAX_OVERLAP
    )
