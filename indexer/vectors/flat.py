"""FAISS, exact inner product: every face is scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.gallery.embeddings import FaceVectors
from indexer.types import Hit, Vectors
from indexer.vectors.base import best_of_each, rank
from indexer.vectors.locks import SharedLock

FIRST_FACES = 8
"""Faces fetched for each identity asked for; doubled until there are enough identities among them."""


class FaissIndex:
    """An `IndexFlatIP` whose rows lie beside the ids of their faces and identities."""

    kind = "exact"
    checked = None
    damaged = False
    replaced = False
    erases = False

    def __init__(self, dim: int, most: int | None = None) -> None:
        """It is outgrown with more than `most` faces."""
        self._most = most
        self._flat = faiss.IndexFlatIP(dim)
        self._faces = np.empty(0, dtype=np.int64)
        self._identities = np.empty(0, dtype=np.int64)
        self._rows: set[int] = set()
        self._lock = SharedLock()

    def __len__(self) -> int:
        return len(self._faces)

    @property
    def outgrown(self) -> bool:
        return self._most is not None and len(self) > self._most

    def put(self, face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> None:
        with self._lock.writing():
            self._remove([f for f in face_ids.tolist() if f in self._rows])
            self._flat.add(np.ascontiguousarray(vectors, dtype=np.float32))
            self._faces = np.concatenate([self._faces, face_ids])
            self._identities = np.concatenate([self._identities, identity_ids])
            self._rows.update(face_ids.tolist())

    def remove(self, face_ids: Sequence[int]) -> None:
        with self._lock.writing():
            self._remove([f for f in face_ids if f in self._rows])

    def nearest_faces(self, queries: Vectors, k: int) -> list[list[Hit]]:
        with self._lock.reading():
            return self._nearest_faces(queries, k)

    def nearest_identities(self, queries: Vectors, k: int) -> list[list[Hit]]:
        with self._lock.reading():
            answers: list[list[Hit]] = [[] for _ in queries]
            left = list(range(len(queries)))
            faces = k * FIRST_FACES
            while left:
                found = self._nearest_faces(queries[left], faces)
                for i, hits in zip(left, found, strict=True):
                    answers[i] = best_of_each(hits)[:k]
                left = [i for i in left if len(answers[i]) < k] if faces < len(self._faces) else []
                faces *= 2
            return answers

    def face_ids(self) -> NDArray[np.int64]:
        with self._lock.reading():
            return np.sort(self._faces)

    def contents(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Vectors]:
        with self._lock.reading():
            vectors: Vectors = self._flat.reconstruct_n(0, self._flat.ntotal)
            return self._faces.copy(), self._identities.copy(), vectors

    def _remove(self, face_ids: list[int]) -> None:
        if not face_ids:
            return
        gone = np.isin(self._faces, face_ids)
        self._flat.remove_ids(faiss.IDSelectorBatch(np.flatnonzero(gone)))  # keeps the order of the rest, as below
        self._faces, self._identities = self._faces[~gone], self._identities[~gone]
        self._rows.difference_update(face_ids)

    def _nearest_faces(self, queries: Vectors, k: int) -> list[list[Hit]]:
        k = min(k, len(self._faces))
        if k == 0:
            return [[] for _ in queries]
        wanted = np.ascontiguousarray(queries, dtype=np.float32)
        fetched = min(k + 1, len(self._faces))
        scores, rows = self._flat.search(wanted, fetched)
        while fetched < len(self._faces) and (scores[:, k - 1] == scores[:, -1]).any():  # equals beyond the last
            fetched = min(2 * fetched, len(self._faces))
            scores, rows = self._flat.search(wanted, fetched)
        return [
            sorted(
                (Hit(int(self._identities[r]), int(self._faces[r]), float(s)) for s, r in zip(score, row, strict=True)),
                key=rank,
            )[:k]
            for score, row in zip(scores, rows, strict=True)
        ]


def in_memory(dim: int, faces: Iterable[FaceVectors], most: int | None) -> FaissIndex:
    """An index of these faces; it is outgrown with more than `most`."""
    index = FaissIndex(dim, most)
    for part in faces:
        index.put(part.face_ids, part.identity_ids, part.vectors)
    return index
