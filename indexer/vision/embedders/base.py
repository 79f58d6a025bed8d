"""What every embedder is: a network that answers an aligned crop with an embedding, run by any session."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexer.types import Vectors, normalize
from indexer.vision.runtime import Session


class Embedder:
    """With `mirror`, the answer is the mean of the crop's embedding and that of its mirror image, as face recognition
    papers test. From that the `center` (D,) is taken, what the embeddings of all faces have in common: without it
    strangers score more evenly around 0. Both lower FNIR (`benchmarks/results/variants.csv`)."""

    def __init__(self, session: Session, dim: int, mirror: bool, center: NDArray[np.float32] | None = None) -> None:
        self.dim = dim
        self._center = center
        self._session = session
        self._mirror = mirror

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        """(N, 112, 112, 3) RGB uint8 -> (N, dim) float32 of unit length."""
        return self.embed_views(crops[:, None])

    def embed_views(self, crops: NDArray[np.uint8]) -> Vectors:
        """(N, V, 112, 112, 3) RGB uint8, V crops of each face -> (N, dim) float32 of unit length, of their mean."""
        faces, views, *shape = crops.shape
        if faces == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        each = crops.reshape(-1, *shape)
        step = self._session.batch // 2 if self._mirror else self._session.batch
        found = np.concatenate([self._embed(each[i : i + step]) for i in range(0, len(each), step)])
        vectors = normalize(found.reshape(faces, views, -1).sum(1))
        return vectors if self._center is None else normalize(vectors - self._center)

    def _embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(crops)
        if self._mirror:
            crops = np.concatenate([crops, crops[:, :, ::-1]])
        (raw,) = self._session.run(crops)
        vectors = normalize(raw)
        return vectors[:count] + vectors[count:] if self._mirror else vectors
