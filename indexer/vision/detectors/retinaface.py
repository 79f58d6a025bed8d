"""RetinaFace with ResNet-50, the detector of the `ir50` pack: what its network answers, read as biubug6's
`Pytorch_Retinaface` does. The network itself is `retinaface_network`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from indexer.types import Detection
from indexer.vision.detectors.base import ALL_OUTPUTS, suppress_overlaps
from indexer.vision.runtime import Preprocessing, Session

STRIDES = (8, 16, 32)
ANCHORS = ((16, 32), (64, 128), (256, 512))
"""Sides of the square priors of a cell, in pixels, a stride each."""
CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
"""What the network's offsets were divided by for training (SSD, Liu et al. 2016)."""
MIN_SCORE = 0.9
"""What ModelScope's `cv_resnet50_face-detection_retinaface` keeps."""
MAX_OVERLAP = 0.4
"""ModelScope's too."""
KEPT_SIZES = 32
"""Canvas sizes whose priors are remembered: a few of 1280 pixels take 1 MB each."""


class RetinaFace:
    """Takes BGR less the means of ImageNet. Outputs boxes, probabilities and landmarks a prior (see
    `retinaface_network.RetinaFaceNetwork`)."""

    preprocessing = Preprocessing(mean=(104.0, 117.0, 123.0), bgr=True)
    output_slices = (ALL_OUTPUTS,)
    stride = 32
    confident_score = 0.9
    enrollment_score = 0.9
    """ModelScope's threshold: without the weights nothing better can be measured."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def detect(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        boxes, probabilities, landmarks = self._session.run(canvases)
        among = priors(*canvases.shape[1:3])
        return [_read(among, *one) for one in zip(boxes, probabilities[..., 1], landmarks, strict=True)]

    def detect_large(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        return self.detect(canvases)


def _read(
    among: NDArray[np.float32],
    offsets: NDArray[np.float32],
    scores: NDArray[np.float32],
    points: NDArray[np.float32],
) -> list[Detection]:
    """The faces of one canvas; only what is kept is decoded."""
    (kept,) = np.nonzero(scores >= MIN_SCORE)
    chosen = among[kept]
    return suppress_overlaps(
        decode_boxes(chosen, offsets[kept]), decode_points(chosen, points[kept]), scores[kept], MAX_OVERLAP
    )


@lru_cache(maxsize=KEPT_SIZES)
def priors(height: int, width: int) -> NDArray[np.float32]:
    """(K, 4): centre x, centre y, width, height in pixels, in the order of the network's outputs. Not to be written to.

    Upstream counts in fractions of the canvas: these times its sides.
    """
    levels = [
        _level(height // stride, width // stride, stride, np.array(s))
        for stride, s in zip(STRIDES, ANCHORS, strict=True)
    ]
    among = np.concatenate(levels).astype(np.float32)
    among.flags.writeable = False
    return among


def _level(rows: int, columns: int, stride: int, sides: NDArray[np.int64]) -> NDArray[np.float64]:
    """Row by row, cell by cell, the smaller prior first."""
    y, x, side = np.meshgrid(np.arange(rows), np.arange(columns), sides, indexing="ij")
    return np.stack([(x + 0.5) * stride, (y + 0.5) * stride, side, side], axis=-1).reshape(-1, 4)


def decode_boxes(among: NDArray[np.float32], offsets: NDArray[np.float32]) -> NDArray[np.float32]:
    """(K, 4) as x, y, w, h in pixels."""
    center = among[:, :2] + offsets[:, :2] * CENTER_VARIANCE * among[:, 2:]
    size = among[:, 2:] * np.exp(offsets[:, 2:] * SIZE_VARIANCE)
    return np.concatenate([center - size / 2, size], axis=1)


def decode_points(among: NDArray[np.float32], offsets: NDArray[np.float32]) -> NDArray[np.float32]:
    """(K, 5, 2) in pixels."""
    return among[:, None, :2] + offsets.reshape(-1, 5, 2) * np.float32(CENTER_VARIANCE) * among[:, None, 2:]
