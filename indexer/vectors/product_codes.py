"""Product quantization of embeddings, and FAISS's fast scan over the codes.

See Jégou et al. 2011 (product quantization) and André et al. 2017, https://arxiv.org/abs/1704.07355 (fast scan).
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.vectors.faiss_threads import single_thread
from indexer.vectors.mapped_file import Codes, Float16Vectors, MappedFile

SUBQUANTIZERS = 64
"""32 bytes per face. Half as many lose mates near the threshold; twice as many double the time of a scan
(`benchmarks/results/vectors.csv`)."""

CENTROIDS = 16
"""Per sub-quantizer: 4 bits."""

BATCH_ROWS = 65_536
"""Rows trained on, and encoded at once. FAISS recommends at least 39 training rows per centroid."""


class ProductCodeScan:
    """Scans the codes of all rows."""

    def __init__(self, base: MappedFile) -> None:
        dim = base.vectors.shape[1]
        index = faiss.IndexPQ(dim + -dim % SUBQUANTIZERS, SUBQUANTIZERS, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.ascontiguousarray(base.centroids).ravel(), index.pq.centroids)
        index.is_trained = True
        if len(base):
            faiss.copy_array_to_vector(np.ascontiguousarray(base.codes).ravel(), index.codes)
        index.ntotal = len(base)
        self._codes: Any = faiss.IndexPQFastScan(index)  # type: ignore[arg-type]

    def add(self, vectors: NDArray[np.float32]) -> None:
        with single_thread():
            self._codes.add(_padded(vectors))

    def search(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        with single_thread():
            _, rows = self._codes.search(_padded(queries), count)
        return np.asarray(rows, dtype=np.int64)


def encode(vectors: Float16Vectors) -> tuple[Codes, NDArray[np.float32]]:
    """Trains sub-quantizers on (N, D) vectors and encodes them.

    Returns:
        Codes (N, SUBQUANTIZERS / 2), and centroids (SUBQUANTIZERS, CENTROIDS, D / SUBQUANTIZERS) with D rounded up.
    """
    dim = vectors.shape[1] + -vectors.shape[1] % SUBQUANTIZERS
    shape = SUBQUANTIZERS, CENTROIDS, dim // SUBQUANTIZERS
    if len(vectors) == 0:
        return np.empty((0, SUBQUANTIZERS // 2), np.uint8), np.zeros(shape, np.float32)
    quantizer = faiss.ProductQuantizer(dim, SUBQUANTIZERS, 4)
    quantizer.cp.min_points_per_centroid = 1  # no warning for small galleries
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(BATCH_ROWS, len(vectors))).astype(np.int64))
    sample = vectors[np.resize(rows, max(len(rows), CENTROIDS))]  # FAISS needs at least one row per centroid
    quantizer.train(_padded(sample.astype(np.float32)))
    codes = [
        quantizer.compute_codes(_padded(vectors[start : start + BATCH_ROWS].astype(np.float32)))
        for start in range(0, len(vectors), BATCH_ROWS)
    ]
    return np.concatenate(codes), faiss.vector_to_array(quantizer.centroids).reshape(shape)


def _padded(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Appends zeros until SUBQUANTIZERS divides the dimension, which changes no inner product."""
    pad = -vectors.shape[1] % SUBQUANTIZERS
    return np.pad(vectors, ((0, 0), (0, pad))) if pad else np.ascontiguousarray(vectors)
