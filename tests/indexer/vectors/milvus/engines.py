"""Engines and faces for the tests of the index in Milvus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.gallery.embeddings import FaceVectors
from indexer.types import Hit, Vectors
from indexer.vectors.base import FacePages, Header
from indexer.vectors.flat import FlatIndex
from indexer.vectors.milvus.index import MilvusEngine, MilvusIndex
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.gallery.faces import vector
from tests.waiting import DEADLINE

PATH = Path("7.index")

TIMEOUT_S = 60.0
"""Timeout of requests to `milvus-lite` on a busy machine, in seconds."""

NO_TIMEOUT_S = 100 * DEADLINE
"""A timeout that is never reached, for tests of errors that come without waiting for it."""


@contextmanager
def engine_at(address: str, timeout: float = TIMEOUT_S, heartbeat_timeout: float = 30.0) -> Iterator[MilvusEngine]:
    with closing(MilvusEngine(address, timeout, heartbeat_timeout)) as engine:
        yield engine


def header(dim: int, seq: int = 0, fingerprint: str = "f00d") -> Header:
    return Header(7, "2026-11-24T10:00:00+00:00", fingerprint, dim, seq, f"mark {seq}", 0)


def ids(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def one_page(face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> FacePages:
    return lambda: iter([FaceVectors(face_ids, identity_ids, vectors)])


def no_pages() -> Iterator[FaceVectors]:
    return iter([])


def build_empty(engine: MilvusEngine, dim: int) -> MilvusIndex:
    index, kept = engine.build(PATH, header(dim), no_pages)
    assert kept
    return index


def random_vectors(rng: np.random.Generator, count: int, dim: int) -> Vectors:
    """Returns (count, dim) unit vectors."""
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def all_operations(index: MilvusIndex) -> list[Callable[[], object]]:
    query = np.ones((1, 4), np.float32)
    return [
        lambda: index.nearest_faces(query, 1),
        lambda: index.nearest_identities(query, 1),
        lambda: index.put(ids(1), ids(1), query),
        lambda: index.remove([1]),
        lambda: len(index),
        index.face_ids,
        index.contents,
    ]


def matched_face(index: SynchronizedIndex, image: int) -> int | None:
    """Returns the face of that image's embedding; None if it is not in the index."""
    (hits,) = index.catch_up().nearest_identities(vector(image)[None], 1)
    return hits[0].face_id if hits and hits[0].score > 0.999 else None


def faces_of(hits: list[Hit]) -> list[tuple[int, int]]:
    return [(hit.identity_id, hit.face_id) for hit in hits]


def rows_of(index: MilvusIndex | FlatIndex) -> dict[int, tuple[int, list[float]]]:
    return {f: (i, v) for f, i, v in zip(*(array.tolist() for array in index.contents()), strict=True)}


def unit_faces(*face_ids: int) -> FacePages:
    """Returns faces of identities with the same ids, whose embeddings are the first unit vectors of 4 dimensions."""
    return one_page(ids(*face_ids), ids(*face_ids), np.eye(4, dtype=np.float32)[: len(face_ids)])
