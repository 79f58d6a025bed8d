"""What every embedder is: a network that answers an aligned crop with an embedding, run by any session."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexer.types import Vectors, normalise
from indexer.vision.runtime import Session


class Embedder:
    """With `mirror`, the answer is the mean of the crop's embedding and that of its mirror image, as face recognition
    papers test (it lowers FNIR: `benchmarks/accuracy.py`)."""

    def __init__(self, session: Session, dim: int, mirror: bool) -> None:
        self.dim = dim
        self._session = session
        self._mirror = mirror

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        """(N, 112, 112, 3) RGB uint8 -> (N, dim) float32 of unit length."""
        if len(crops) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        step = self._session.batch // 2 if self._mirror else self._session.batch
        return normalise(np.concatenate([self._embed(crops[i : i + step]) for i in range(0, len(crops), step)]))

    def _embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(crops)
        if self._mirror:
            crops = np.concatenate([crops, crops[:, :, ::-1]])
        (raw,) = self._session.run(crops)
        vectors = normalise(raw)
        return vectors[:count] + vectors[count:] if self._mirror else vectors
