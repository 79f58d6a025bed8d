"""Embeddings and compressed indexes for the tests of those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.gallery.embeddings import FaceVectors
from indexer.types import Hit, Vectors
from indexer.vectors import compressed
from indexer.vectors.compressed import CompressedIndex
from indexer.vectors.mapped_file import MappedFile

PEOPLE, PHOTOS, DIM = 10_000, 3, 128


def unit(vectors: NDArray[np.float32]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def random_units(count: int, dim: int, seed: int) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32))


def at_cosine(vectors: Vectors, cosine: float, seed: int) -> Vectors:
    """Returns unit vectors that have this cosine with the given ones, in random directions."""
    aside = random_units(len(vectors), vectors.shape[1], seed)
    aside = unit(aside - np.einsum("nd,nd->n", aside, vectors)[:, None] * vectors)
    return np.asarray(cosine * vectors + np.sqrt(1 - cosine**2) * aside, dtype=np.float32)


def faces_of(vectors: Vectors, identity_ids: NDArray[np.int64] | None = None, first: int = 1) -> FaceVectors:
    face_ids = np.arange(first, first + len(vectors))
    return FaceVectors(face_ids, face_ids if identity_ids is None else identity_ids, vectors)


def build_index(
    folder: Path, faces: FaceVectors, scan: Callable[[MappedFile], compressed.CandidateScan] | None = None
) -> CompressedIndex:
    base = compressed.build(folder / "1.index", faces.vectors.shape[1], [faces], {})
    return compressed.open_index(base, scan=scan)


def ids(hits: list[Hit]) -> list[int]:
    return [hit.identity_id for hit in hits]


@pytest.fixture(scope="module")
def people() -> FaceVectors:
    """Returns three photos per person, which score 0.55 to 0.7 with each other, as with the embedded pack."""
    middles = np.repeat(random_units(PEOPLE, DIM, 1), PHOTOS, axis=0)
    return faces_of(at_cosine(middles, 0.8, 2), np.repeat(np.arange(1, PEOPLE + 1), PHOTOS))


@pytest.fixture(scope="module")
def file(people: FaceVectors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("build_index") / "1.index"
    compressed.build(path, DIM, [people], {})
    return path
