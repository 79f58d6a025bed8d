"""Defines what every vector index and index engine offers. An index is derived data; SQL is the source of truth."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import WhosthereError
from indexer.gallery.embeddings import FaceVectors
from indexer.types import Gallery, Hit, Vectors


class VectorIndex(ABC):
    """The embeddings of one gallery, searchable by inner product. Thread-safe.

    N is a number of faces, Q a number of queries, D the dimension of the embeddings.
    """

    kind: str
    """How it searches: `exact`, `compressed`, `gpu` or `milvus`. Shown to users."""
    checked: object | None = None
    """The self-check report (a dataclass) of the build; None for exact indexes. Shown to users as JSON."""
    is_damaged: bool = False
    """Whether its stored data is corrupt, so that it must be rebuilt."""
    is_replaced: bool = False
    """Whether another process has rebuilt and deleted it, so that the stored index must be loaded again."""
    erases_on_disk: bool = False
    """Whether `remove` also erases the embeddings from storage."""

    @property
    def is_outgrown(self) -> bool:
        """Whether its contents have changed so much that a new index should be built."""
        return False

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of faces."""

    @abstractmethod
    def put(self, face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> None:
        """Adds faces or replaces those with the same id: (N,) int64, (N,) int64 and (N, D) float32."""

    @abstractmethod
    def remove(self, face_ids: Sequence[int]) -> None:
        """Removes faces and ignores unknown ids."""

    @abstractmethod
    def nearest_faces(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """Returns for each of (Q, D) queries the `k` faces with the highest inner product, best first.

        Faces with equal scores are ordered by face id.
        """

    @abstractmethod
    def nearest_identities(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """Returns for each of (Q, D) queries the `k` identities whose best face scores highest, with that face."""

    def most_faces(self) -> int:
        """Returns a number of faces that no identity exceeds; as low as can be known without a search."""
        return sys.maxsize

    @abstractmethod
    def face_ids(self) -> NDArray[np.int64]:
        """Returns the ids of all faces in ascending order, (N,) int64."""

    @abstractmethod
    def contents(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        """Returns copies of all face ids (N,), identity ids (N,) and vectors (N, D), in any order.

        Vectors have the stored precision: float32 or float16.
        """

    def erased_face_ids(self) -> NDArray[np.int64]:
        """Returns the faces that were erased from storage before this index was loaded, (N,) int64.

        The change log has an entry for each of them, unless the database was restored from a backup since.
        """
        return np.empty(0, np.int64)


@dataclass(frozen=True)
class Header:
    """Identifies what an index was built from. Stored with the index."""

    gallery_id: int
    gallery_created: str
    fingerprint: str
    dim: int
    seq: int
    """Sequence number of the last change that the index contains."""
    mark: str
    """`Change.mark` of that change: restoring a backup can reuse sequence numbers."""
    faces: int


def header_of(gallery: Gallery, seq: int, mark: str, faces: int) -> Header:
    """Returns the header of an index of the gallery with the pack that it names."""
    return Header(gallery.id, gallery.created_at.isoformat(), gallery.fingerprint, gallery.dim, seq, mark, faces)


FacePages = Callable[[], Iterator[FaceVectors]]
"""Reads all faces of a gallery by ascending id; can be called repeatedly."""


class VectorEngine(ABC):
    """Builds indexes of one kind and stores them.

    `path` identifies the index of one gallery. Engines that store nothing in files use only its name.
    """

    @abstractmethod
    def load(self, path: Path) -> tuple[Header, VectorIndex]:
        """Loads the stored index.

        Raises:
            FileNotFoundError: Nothing is stored.
            DamagedIndex: The stored data cannot be used.
        """

    @abstractmethod
    def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
        """Builds an index of these faces and returns whether it is already stored.

        Raises OSError if it has to be stored and cannot be.
        """

    @abstractmethod
    def save(self, path: Path, header: Header, index: VectorIndex) -> bool:
        """Stores the index if its kind supports that after the build; returns whether it did. Raises OSError."""

    @abstractmethod
    def delete(self, path: Path) -> None:
        """Deletes the stored index, if any. Raises OSError."""

    can_prepare: bool = False
    """Whether an index can be built and stored at another path while the gallery's present one is used."""

    def adopt(self, prepared: Path, path: Path) -> None:  # noqa: B027  (most engines cannot prepare)
        """Replaces the stored index of `path` by the one of `prepared`, if there is one. Raises OSError."""

    def stored_galleries(self) -> set[int]:
        """Returns the ids of the galleries with an index stored elsewhere than in files. Raises OSError."""
        return set()

    def close(self) -> None:  # noqa: B027  (most engines have nothing to close)
        """Closes connections."""


def ranking_key(hit: Hit) -> tuple[float, int]:
    """Returns the sort key that puts the best hit first and orders equal scores by face id."""
    return -hit.score, hit.face_id


def best_hit_per_identity(hits: Iterable[Hit]) -> list[Hit]:
    """Returns the first hit of each identity, in the given order."""
    best: dict[int, Hit] = {}
    for hit in hits:
        best.setdefault(hit.identity_id, hit)
    return list(best.values())


def inner_products(vectors: NDArray[Any], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the inner products (N,) of (N, D) vectors with a query (D,).

    Those of equal vectors are equal. With `@` they are not: BLAS adds up the last rows of a matrix in another order.
    """
    return np.asarray(np.einsum("nd,d->n", vectors.astype(np.float32, copy=False), query))


class DamagedIndex(WhosthereError):
    """Stored index data is corrupt or belongs to something else. The index is rebuilt from SQL."""

    code = "damaged_index"
