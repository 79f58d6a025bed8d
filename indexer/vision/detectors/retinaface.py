"""RetinaFace with ResNet-50, the detector of the `ir50` pack.

Decodes the network's outputs as biubug6's `Pytorch_Retinaface` does. The network itself is
`indexer.models.architectures.retinaface`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from indexer.types import Detection
from indexer.vision.detectors.base import ALL_OUTPUTS, suppress_overlaps
from indexer.vision.runtime import Preprocessing, Session

STRIDES = (8, 16, 32)
ANCHOR_SIDES = ((16, 32), (64, 128), (256, 512))
"""Sides of the square priors of a cell in pixels, for each stride."""
CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
"""Factors by which offsets were divided in training (SSD, Liu et al. 2016)."""
MIN_SCORE = 0.9
"""Threshold of ModelScope's `cv_resnet50_face-detection_retinaface`."""
MAX_OVERLAP = 0.4
"""ModelScope's threshold too."""
CACHED_SIZES = 32
"""Canvas sizes whose priors are cached; those of a 1280 pixel canvas take about 1 MB."""


class RetinaFace:
    """Takes BGR minus the means of ImageNet. Outputs boxes (N, K, 4), probabilities (N, K, 2) and landmarks (N, K, 10)
    relative to K priors."""

    preprocessing = Preprocessing(mean=(104.0, 117.0, 123.0), bgr=True)
    output_slices = (ALL_OUTPUTS,)
    stride = 32
    confident_score = 0.9
    enrollment_score = 0.9
    """ModelScope's threshold; nothing better can be measured without the weights."""
    upright_score = 0.9
    """The same, for the same reason."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def detect(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        boxes, probabilities, landmarks = self._session.run(canvases)
        anchors = priors(*canvases.shape[1:3])
        return [_decode(anchors, *outputs) for outputs in zip(boxes, probabilities[..., 1], landmarks, strict=True)]

    detect_large = detect


def _decode(
    anchors: NDArray[np.float32],
    offsets: NDArray[np.float32],
    scores: NDArray[np.float32],
    points: NDArray[np.float32],
) -> list[Detection]:
    """Returns the faces of one canvas."""
    (kept,) = np.nonzero(scores >= MIN_SCORE)
    chosen = anchors[kept]
    faces = decode_boxes(chosen, offsets[kept]), decode_points(chosen, points[kept]), scores[kept]
    return suppress_overlaps([faces], MAX_OVERLAP)


@lru_cache(maxsize=CACHED_SIZES)
def priors(height: int, width: int) -> NDArray[np.float32]:
    """Returns the priors of a canvas, (K, 4): center x, center y, width, height in pixels, in the order of the
    network's outputs. The array is read-only.

    Upstream uses fractions of the canvas instead of pixels.
    """
    levels = [
        _level(height // stride, width // stride, stride, np.array(sides))
        for stride, sides in zip(STRIDES, ANCHOR_SIDES, strict=True)
    ]
    anchors = np.concatenate(levels).astype(np.float32)
    anchors.flags.writeable = False
    return anchors


def _level(rows: int, columns: int, stride: int, sides: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the priors of one stride, row by row and cell by cell, the smaller prior first."""
    y, x, side = np.meshgrid(np.arange(rows), np.arange(columns), sides, indexing="ij")
    return np.stack([(x + 0.5) * stride, (y + 0.5) * stride, side, side], axis=-1).reshape(-1, 4)


def decode_boxes(anchors: NDArray[np.float32], offsets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns boxes (K, 4) as x, y, w, h in pixels."""
    center = anchors[:, :2] + offsets[:, :2] * CENTER_VARIANCE * anchors[:, 2:]
    size = anchors[:, 2:] * np.exp(offsets[:, 2:] * SIZE_VARIANCE)
    return np.concatenate([center - size / 2, size], axis=1)


def decode_points(anchors: NDArray[np.float32], offsets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns landmarks (K, 5, 2) in pixels."""
    return anchors[:, None, :2] + offsets.reshape(-1, 5, 2) * np.float32(CENTER_VARIANCE) * anchors[:, None, 2:]
