"""Computes embeddings of aligned crops with a network that any session runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexer.types import Vectors, normalize
from indexer.vision.runtime import Session


class Embedder:
    """Embeds aligned crops. Thread-safe.

    Args:
        dim: Length of an embedding.
        mirror: Whether to average the embeddings of the crop and its mirror image, as face recognition papers test.
        center: (dim,), the mean embedding of many people, which is subtracted so that scores of different people are
            spread more evenly around 0. Both lower FNIR (`benchmarks/results/variants.csv`).
    """

    def __init__(self, session: Session, dim: int, mirror: bool, center: NDArray[np.float32] | None = None) -> None:
        self.dim = dim
        self._center = center
        self._session = session
        self._mirror = mirror

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        """Returns embeddings (N, dim) float32 of unit length for (N, 112, 112, 3) RGB uint8 crops."""
        return self.embed_views(crops[:, None])

    def embed_views(self, crops: NDArray[np.uint8]) -> Vectors:
        """Returns embeddings (N, dim) float32 of unit length, each averaged over the V crops of one face;
        `crops` is (N, V, 112, 112, 3) RGB uint8."""
        faces, views, *shape = crops.shape
        if faces == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        flat = crops.reshape(-1, *shape)
        step = self._session.batch // 2 if self._mirror else self._session.batch
        found = np.concatenate([self._embed(flat[i : i + step]) for i in range(0, len(flat), step)])
        vectors = normalize(found.reshape(faces, views, -1).sum(1))
        return vectors if self._center is None else normalize(vectors - self._center)

    def _embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(crops)
        if self._mirror:
            crops = np.concatenate([crops, crops[:, :, ::-1]])
        (raw,) = self._session.run(crops)
        vectors = normalize(raw)
        return vectors[:count] + vectors[count:] if self._mirror else vectors
