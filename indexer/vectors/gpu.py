"""Scans every face in half precision on all GPUs; the best are rescored as in `compressed`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.errors import StorageUnavailable
from indexer.vectors.mapped_file import MappedFile

ADD_ROWS = 65_536
"""Rows copied to a GPU at once: 128 MiB of float32 with 512 dimensions."""

MAX_GPU_ROWS = 2048
"""Most rows that a FAISS search on a GPU returns (`GpuIndex`)."""


def unavailable_reason() -> str | None:
    """Returns why FAISS has no GPU here; None if it has one."""
    if not hasattr(faiss, "GpuIndexFlat"):
        return "this FAISS is built without CUDA: pip install faiss-gpu in place of faiss-cpu"
    return None if faiss.get_num_gpus() > 0 else "FAISS finds no GPU: check the GPU and its driver"


class GpuScan:
    """Holds the rows in one half-precision `GpuIndexFlat` per GPU; new rows go to the smallest."""

    def __init__(self, base: MappedFile) -> None:
        """Raises StorageUnavailable if the GPUs cannot hold the rows."""
        dim = base.vectors.shape[1]
        with _gpu_errors(len(base)):
            self._resources = [faiss.StandardGpuResources() for _ in range(faiss.get_num_gpus())]
            self._shards = [_flat(resources, dim, gpu) for gpu, resources in enumerate(self._resources)]
            shards: Any = faiss.IndexShards  # FAISS's type stubs lack these parameters
            self._all = shards(dim, True, False)  # threaded, and without renumbering the ids
            for shard in self._shards:
                self._all.add_shard(shard)
            self._rows = 0
            for start in range(0, len(base), ADD_ROWS):
                self._add(base.vectors[start : start + ADD_ROWS].astype(np.float32))

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Adds (N, D) rows. Raises StorageUnavailable if the GPUs cannot hold them."""
        with _gpu_errors(self._rows + len(vectors)):
            self._add(vectors)

    def search(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        _, rows = self._all.search(np.ascontiguousarray(queries, dtype=np.float32), min(count, MAX_GPU_ROWS))
        return np.asarray(rows, dtype=np.int64)

    def _add(self, vectors: NDArray[np.float32]) -> None:
        rows = np.arange(self._rows, self._rows + len(vectors), dtype=np.int64)
        smallest = min(self._shards, key=lambda shard: int(shard.ntotal))
        smallest.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), rows)
        self._all.syncWithSubIndexes()
        self._rows += len(vectors)


@contextmanager
def _gpu_errors(faces: int) -> Iterator[None]:
    """Raises StorageUnavailable for CUDA errors of FAISS."""
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
