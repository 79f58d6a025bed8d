"""The port: what every vector index offers. An index is derived; the truth is in SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.types import Hit, Vectors


class VectorIndex(Protocol):
    """The embeddings of one gallery, searchable by inner product. Thread-safe."""

    @property
    def kind(self) -> str:
        """What people are told of how it searches: `exact`, ..."""
        ...

    def __len__(self) -> int:
        """How many faces it holds."""
        ...

    def put(self, face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> None:
        """Adds faces; one that is there already is replaced. (N,), (N,), (N, D)."""
        ...

    def remove(self, face_ids: Sequence[int]) -> None:
        """Takes faces out; one that is not there is passed over."""
        ...

    def nearest_faces(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """For each of (Q, D) queries the `k` faces of the highest inner product, best first; equals by face id."""
        ...

    def nearest_identities(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """For each of (Q, D) queries the `k` identities whose best face scores highest, with that face."""
        ...

    def face_ids(self) -> NDArray[np.int64]:
        """All faces in it, ascending."""
        ...

    def contents(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Vectors]:
        """Copies of everything in it, exactly as `put` took it, in any order."""
        ...


MakeIndex = Callable[[int], VectorIndex]
"""Makes an empty index for embeddings of that many numbers."""
