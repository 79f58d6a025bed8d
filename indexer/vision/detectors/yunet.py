"""YuNet (Wu et al. 2023, https://doi.org/10.1007/s11633-023-1423-y), the detector of the `sface` pack."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexer.types import Detection
from indexer.vision.detectors.base import cells, suppress
from indexer.vision.runtime import Feed, Session

STRIDES = (8, 16, 32)
MIN_SCORE = 0.6
"""OpenCV Zoo's demo keeps scores over 0.9 and misses small and turned faces; 0.6 is `FaceDetectorYN`'s range in
OpenCV's own accuracy tests. Surer answers are asked of a face that is enrolled: see `YuNet.enrolled`."""
MAX_OVERLAP = 0.3
"""OpenCV's default for `FaceDetectorYN`."""


class YuNet:
    """Takes BGR, 0..255. Outputs a level: class, objectness, box and points, each cell telling them as offsets
    in strides (decoded as OpenCV's `face_detect.cpp` does)."""

    feed = Feed(bgr=True)
    stride = 32
    plain = 0.8
    enrolled = 0.9
    """Of photos made worse 51 % are missed from 0.89 to 0.9, 40 % from 0.9 to 0.91 (`benchmarks/quality.py`, see
    `quality`); of LFW's probes as they are two of the eight from 0.9 to 0.91 are missed, which says one in four."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def detect(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        outputs = self._session.run(canvases)
        levels = len(STRIDES)
        classes, objects, boxes, points = (outputs[i * levels : (i + 1) * levels] for i in range(4))
        scores = [
            np.sqrt(np.clip(c[..., 0], 0, 1) * np.clip(o[..., 0], 0, 1)) for c, o in zip(classes, objects, strict=True)
        ]
        return [
            _read([s[n] for s in scores], [b[n] for b in boxes], [p[n] for p in points], canvases.shape[2])
            for n in range(len(canvases))
        ]


def _read(
    scores: list[NDArray[np.float32]],
    boxes: list[NDArray[np.float32]],
    points: list[NDArray[np.float32]],
    width: int,
) -> list[Detection]:
    """The faces of one canvas `width` pixels wide."""
    found_boxes, found_points, found_scores = [], [], []
    for stride, score, box, point in zip(STRIDES, scores, boxes, points, strict=True):
        kept, origin = cells(score, MIN_SCORE, width // stride)
        center = (origin + box[kept, :2]) * stride
        size = np.exp(box[kept, 2:]) * stride
        found_boxes.append(np.concatenate([center - size / 2, size], axis=1))
        found_points.append((point[kept].reshape(-1, 5, 2) + origin[:, None]) * stride)
        found_scores.append(score[kept])
    return suppress(
        np.concatenate(found_boxes), np.concatenate(found_points), np.concatenate(found_scores), MAX_OVERLAP
    )
