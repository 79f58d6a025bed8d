"""Embedders that come as an ONNX file and run on the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexer.types import Vectors, normalise
from indexer.vision.runtime import Session, to_blob

BATCH = 16
"""Crops run at a time. A face takes the same time in batches of 8, 16 or more (`benchmarks/runtime.py`)."""


class OnnxEmbedder:
    """Takes RGB, `(x - mean) * scale`. With `mirror`, the answer is the mean of the crop's embedding and that of
    its mirror image, as face recognition papers test (it lowers FNIR: `benchmarks/accuracy.py`)."""

    def __init__(self, session: Session, dim: int, mean: float, scale: float, mirror: bool) -> None:
        self.dim = dim
        self._session = session
        self._mean = mean
        self._scale = scale
        self._mirror = mirror

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        if len(crops) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        step = BATCH // 2 if self._mirror else BATCH
        return normalise(np.concatenate([self._embed(crops[i : i + step]) for i in range(0, len(crops), step)]))

    def _embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(crops)
        if self._mirror:
            crops = np.concatenate([crops, crops[:, :, ::-1]])
        blob = to_blob(crops, swap=False)
        if (self._mean, self._scale) != (0.0, 1.0):
            blob = (blob - np.float32(self._mean)) * np.float32(self._scale)
        (raw,) = self._session.run(blob)
        vectors = normalise(raw)
        return vectors[:count] + vectors[count:] if self._mirror else vectors
