"""Every face is scored on the GPUs there are, in half precision; the best are scored again as in `compressed`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.errors import StorageUnavailable
from indexer.vectors.mapped_file import Resting

ADD_AT_ONCE = 65_536

MOST_GPU = 2048
"""The most rows that a search on a GPU returns (FAISS, `GpuIndex`)."""


def problem() -> str | None:
    """Why there is no GPU for FAISS here; None where there is."""
    if not hasattr(faiss, "GpuIndexFlat"):
        return "this FAISS is built without CUDA: pip install faiss-gpu in place of faiss-cpu"
    return None if faiss.get_num_gpus() > 0 else "FAISS finds no GPU; is there one, and its driver?"


class GpuScan:
    """The rows spread over all GPUs, a `GpuIndexFlat` in half precision each; what is added goes to the smallest."""

    def __init__(self, base: Resting) -> None:
        """Raises StorageUnavailable when they cannot hold it."""
        with _holding(len(base)):
            self._fill(base)

    def _fill(self, base: Resting) -> None:
        dim = base.vectors.shape[1]
        self._resources = [faiss.StandardGpuResources() for _ in range(faiss.get_num_gpus())]
        self._shards = [_flat(resources, dim, gpu) for gpu, resources in enumerate(self._resources)]
        shards: Any = faiss.IndexShards  # FAISS's stubs know less of it than its documentation
        self._all = shards(dim, True, False)  # each in a thread of its own; ids are the rows' own
        for shard in self._shards:
            self._all.add_shard(shard)
        self._rows = 0
        for start in range(0, len(base), ADD_AT_ONCE):
            self._add(base.vectors[start : start + ADD_AT_ONCE].astype(np.float32))

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Raises StorageUnavailable when they cannot hold it."""
        with _holding(self._rows + len(vectors)):
            self._add(vectors)

    def _add(self, vectors: NDArray[np.float32]) -> None:
        rows = np.arange(self._rows, self._rows + len(vectors), dtype=np.int64)
        smallest = min(self._shards, key=lambda shard: int(shard.ntotal))
        smallest.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), rows)
        self._all.syncWithSubIndexes()
        self._rows += len(vectors)

    def search(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        _, rows = self._all.search(np.ascontiguousarray(queries, dtype=np.float32), min(count, MOST_GPU))
        return np.asarray(rows, dtype=np.int64)


@contextmanager
def _holding(faces: int) -> Iterator[None]:
    """Turns what FAISS raises of CUDA into StorageUnavailable."""
    try:
        yield
    except RuntimeError as error:
        raise StorageUnavailable(
            f"the GPUs cannot hold {faces} faces in half precision: {error}; WHOSTHERE_VECTORS=auto needs none"
        ) from error


def _flat(resources: Any, dim: int, gpu: int) -> Any:
    config = faiss.GpuIndexFlatConfig()
    config.device = gpu
    config.useFloat16 = True
    return faiss.IndexIDMap(faiss.GpuIndexFlat(resources, dim, faiss.METRIC_INNER_PRODUCT, config))
