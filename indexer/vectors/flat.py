"""Exact search with FAISS: every face is scored by inner product."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.gallery.embeddings import FaceVectors
from indexer.types import Hit, Vectors
from indexer.vectors.base import VectorIndex
from indexer.vectors.faiss_threads import single_thread
from indexer.vectors.locks import ReadWriteLock

FACES_PER_IDENTITY = 8
"""Faces fetched per requested identity; doubled until they belong to enough identities."""


class FlatIndex(VectorIndex):
    """An `IndexFlatIP` with the face and identity ids of its rows."""

    kind = "exact"

    def __init__(self, dim: int, max_faces: int | None = None) -> None:
        """It is outgrown with more than `max_faces` faces."""
        self._max_faces = max_faces
        self._flat = faiss.IndexFlatIP(dim)
        self._faces = np.empty(0, dtype=np.int64)
        self._identities = np.empty(0, dtype=np.int64)
        self._known: set[int] = set()
        """The same face ids, for fast look-up."""
        self._counted: tuple[NDArray[np.int64], int] | None = None
        """The identities of which the faces were counted, and how many the one with most has."""
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        return len(self._faces)

    @property
    def is_outgrown(self) -> bool:
        return self._max_faces is not None and len(self) > self._max_faces

    def put(self, face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> None:
        with self._lock.writing():
            self._remove(face_ids.tolist())
            self._flat.add(np.ascontiguousarray(vectors, dtype=np.float32))
            self._faces = np.concatenate([self._faces, face_ids])
            self._identities = np.concatenate([self._identities, identity_ids])
            self._known.update(face_ids.tolist())

    def remove(self, face_ids: Sequence[int]) -> None:
        with self._lock.writing():
            self._remove(face_ids)

    def nearest_faces(self, queries: Vectors, k: int) -> list[list[Hit]]:
        with self._lock.reading():
            return [self._hits(rows, scores) for rows, scores in self._best_rows(queries, k)]

    def nearest_identities(self, queries: Vectors, k: int) -> list[list[Hit]]:
        with self._lock.reading():
            answers: list[list[Hit]] = [[] for _ in queries]
            pending = list(range(len(queries)))
            fetched = k * FACES_PER_IDENTITY
            while pending:
                found = self._best_rows(queries[pending], fetched)
                for i, (rows, scores) in zip(pending, found, strict=True):
                    _, firsts = np.unique(self._identities[rows], return_index=True)
                    best = np.sort(firsts)[:k]
                    answers[i] = self._hits(rows[best], scores[best])
                pending = [i for i in pending if len(answers[i]) < k] if fetched < len(self._faces) else []
                fetched *= 2
            return answers

    def most_faces(self) -> int:
        with self._lock.reading():
            identities = self._identities
            if self._counted is None or self._counted[0] is not identities:
                counts = np.unique(identities, return_counts=True)[1]
                self._counted = identities, int(counts.max(initial=0))
            return self._counted[1]

    def face_ids(self) -> NDArray[np.int64]:
        with self._lock.reading():
            return np.sort(self._faces)

    def contents(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Vectors]:
        with self._lock.reading():
            vectors: Vectors = self._flat.reconstruct_n(0, self._flat.ntotal)
            return self._faces.copy(), self._identities.copy(), vectors

    def _remove(self, face_ids: Sequence[int]) -> None:
        known = [face_id for face_id in face_ids if face_id in self._known]
        if not known:
            return
        is_removed = np.isin(self._faces, known)
        self._flat.remove_ids(faiss.IDSelectorBatch(np.flatnonzero(is_removed)))  # keeps the order of other rows
        self._faces, self._identities = self._faces[~is_removed], self._identities[~is_removed]
        self._known.difference_update(known)

    def _best_rows(self, queries: Vectors, k: int) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Returns for each query the best `k` rows, best first, and their scores; none for a query that is not finite.

        Rows with equal scores are ordered by face id.
        """
        k = min(k, len(self._faces))
        if k == 0:
            return [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        contiguous = np.ascontiguousarray(queries, dtype=np.float32)
        fetched = min(k + 1, len(self._faces))
        with single_thread():
            scores, rows = self._flat.search(contiguous, fetched)
            while fetched < len(self._faces) and (scores[:, k - 1] == scores[:, -1]).any():  # more may tie with it
                fetched = min(2 * fetched, len(self._faces))
                scores, rows = self._flat.search(contiguous, fetched)
        best = []
        for row, score in zip(rows, scores, strict=True):
            row, score = row[row >= 0], score[row >= 0]
            order = np.lexsort((self._faces[row], -score))[:k]
            best.append((row[order], score[order]))
        return best

    def _hits(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> list[Hit]:
        found = zip(self._identities[rows].tolist(), self._faces[rows].tolist(), scores.tolist(), strict=True)
        return [Hit(*hit) for hit in found]


def build_flat_index(dim: int, pages: Iterable[FaceVectors], max_faces: int | None) -> FlatIndex:
    """Builds an index of these faces that is outgrown with more than `max_faces`."""
    index = FlatIndex(dim, max_faces)
    for page in pages:
        index.put(page.face_ids, page.identity_ids, page.vectors)
    return index
