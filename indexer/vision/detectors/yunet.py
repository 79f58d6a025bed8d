"""YuNet (Wu et al. 2023, https://doi.org/10.1007/s11633-023-1423-y), the detector of the `sface` pack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.types import Detection
from indexer.vision.detectors.base import ALL_OUTPUTS, Candidates, select_cells, suppress_overlaps
from indexer.vision.runtime import Preprocessing, Session

STRIDES = (8, 16, 32)
MIN_SCORE = 0.6
"""The threshold of `FaceDetectorYN` in OpenCV's accuracy tests. OpenCV Zoo's demo keeps scores over 0.9 and misses
small and turned faces. Enrollment needs a higher score: see `YuNet.enrollment_score`."""
MAX_OVERLAP = 0.3
"""OpenCV's default for `FaceDetectorYN`."""


class YuNet:
    """Takes BGR, 0..255.

    Outputs the class scores of each stride, then the objectness, then boxes and landmarks as offsets of each cell in
    units of the stride, decoded as OpenCV's `face_detect.cpp` does.
    """

    preprocessing = Preprocessing(bgr=True)
    stride = 32
    confident_score = 0.8
    enrollment_score = 0.9
    """Of degraded photos, 51 % miss their mate at scores from 0.89 to 0.9 and 40 % from 0.9 to 0.91
    (`benchmarks/quality.py`, see `quality`). Of LFW's unchanged probes, two of the eight from 0.9 to 0.91 do, about
    one in four."""
    upright_score = 0.925
    """Of 1,068 photos of LFW, 98.1 % reach it as they are, and none does upside down (0.92: 99.4 and 0.1 %). On their
    side, 401 photos have up to 0.91."""

    output_slices = ALL_OUTPUTS, slice(len(STRIDES) - 1, None, len(STRIDES))
    """All outputs, and those of the coarsest stride, which finds the faces of the second detection pass: all 12,820 of
    LFW have their highest score there. Without the others the network is a fifth faster (`benchmarks/runtime.py`)."""

    def __init__(self, session: Session, large: Session) -> None:
        """Takes one session for each of `output_slices`."""
        self._session = session
        self._large = large

    def detect(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        return _detect(self._session, canvases, STRIDES)

    def detect_large(self, canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        """Runs the whole network only on canvases in which the coarsest stride finds no face."""
        found = _detect(self._large, canvases, STRIDES[-1:])
        empty = [i for i, faces in enumerate(found) if not faces]
        for i, faces in zip(empty, self.detect(canvases[empty]) if empty else (), strict=True):
            found[i] = faces
        return found


def _detect(session: Session, canvases: NDArray[np.uint8], strides: Sequence[int]) -> list[list[Detection]]:
    outputs = session.run(canvases)
    return [
        suppress_overlaps(_decode([output[n] for output in outputs], strides, canvases.shape[2]), MAX_OVERLAP)
        for n in range(len(canvases))
    ]


def _decode(outputs: Sequence[NDArray[np.float32]], strides: Sequence[int], width: int) -> Iterator[Candidates]:
    """Yields the faces of each stride in one canvas that is `width` pixels wide."""
    levels = len(strides)
    kinds = (outputs[i * levels : (i + 1) * levels] for i in range(4))
    for stride, class_score, objectness, box, point in zip(strides, *kinds, strict=True):
        score = np.sqrt(np.clip(class_score[:, 0], 0, 1) * np.clip(objectness[:, 0], 0, 1))
        kept, origin = select_cells(score, MIN_SCORE, width // stride)
        center = (origin + box[kept, :2]) * stride
        size = np.exp(box[kept, 2:]) * stride
        landmarks = (point[kept].reshape(-1, 5, 2) + origin[:, None]) * stride
        yield np.concatenate([center - size / 2, size], axis=1), landmarks, score[kept]
