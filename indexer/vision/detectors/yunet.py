"""YuNet (Wu et al. 2023, https://doi.org/10.1007/s11633-023-1423-y), the detector of the `sface` pack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.types import Detection
from indexer.vision.detectors.base import ALL_OUTPUTS, select_cells, suppress_overlaps
from indexer.vision.runtime import Preprocessing, Session

STRIDES = (8, 16, 32)
MIN_SCORE = 0.6
"""OpenCV Zoo's demo keeps scores over 0.9 and misses small and turned faces; 0.6 is `FaceDetectorYN`'s range in
OpenCV's own accuracy tests. Surer answers are asked of a face that is enrolled: see `YuNet.enrollment_score`."""
MAX_OVERLAP = 0.3
"""OpenCV's default for `FaceDetectorYN`."""


class YuNet:
    """Takes BGR, 0..255. Outputs a level: class, objectness, box and points, each cell telling them as offsets
    in strides (decoded as OpenCV's `face_detect.cpp` does)."""

    preprocessing = Preprocessing(bgr=True)
    stride = 32
    confident_score = 0.8
    enrollment_score = 0.9
    """Of photos made worse 51 % are missed from 0.89 to 0.9, 40 % from 0.9 to 0.91 (`benchmarks/quality.py`, see
    `quality`); of LFW's probes as they are two of the eight from 0.9 to 0.91 are missed, which says one in four."""

    output_slices = ALL_OUTPUTS, slice(len(STRIDES) - 1, None, len(STRIDES))
    """All outputs, and those of the last of STRIDES: the faces of a second look are found there. On LFW every one of
    12,820 was surest at it, and the network is a fifth faster without the others (`benchmarks/runtime.py`)."""

    def __init__(self, session: Session, large: Session) -> None:
        """One session for each of `parts`."""
        self._session = session
        self._large = large

    def detect(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        return _read_all(self._session.run(canvases), STRIDES, canvases.shape[2])

    def detect_large(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        """A canvas in which the coarsest stride sees nothing is given to the whole network."""
        found = _read_all(self._large.run(canvases), STRIDES[-1:], canvases.shape[2])
        empty = [i for i, faces in enumerate(found) if not faces]
        for i, faces in zip(empty, self.detect(canvases[empty]) if empty else (), strict=True):
            found[i] = faces
        return found


def _read_all(outputs: Sequence[NDArray[np.float32]], strides: Sequence[int], width: int) -> list[list[Detection]]:
    """The faces of each of several canvases `width` pixels wide."""
    levels = len(strides)
    classes, objects, boxes, points = (outputs[i * levels : (i + 1) * levels] for i in range(4))
    scores = [
        np.sqrt(np.clip(c[..., 0], 0, 1) * np.clip(o[..., 0], 0, 1)) for c, o in zip(classes, objects, strict=True)
    ]
    return [
        _read(strides, [s[n] for s in scores], [b[n] for b in boxes], [p[n] for p in points], width)
        for n in range(len(classes[0]))
    ]


def _read(
    strides: Sequence[int],
    scores: Sequence[NDArray[np.float32]],
    boxes: Sequence[NDArray[np.float32]],
    points: Sequence[NDArray[np.float32]],
    width: int,
) -> list[Detection]:
    """The faces of one canvas `width` pixels wide."""
    found_boxes, found_points, found_scores = [], [], []
    for stride, score, box, point in zip(strides, scores, boxes, points, strict=True):
        kept, origin = select_cells(score, MIN_SCORE, width // stride)
        center = (origin + box[kept, :2]) * stride
        size = np.exp(box[kept, 2:]) * stride
        found_boxes.append(np.concatenate([center - size / 2, size], axis=1))
        found_points.append((point[kept].reshape(-1, 5, 2) + origin[:, None]) * stride)
        found_scores.append(score[kept])
    return suppress_overlaps(
        np.concatenate(found_boxes), np.concatenate(found_points), np.concatenate(found_scores), MAX_OVERLAP
    )
