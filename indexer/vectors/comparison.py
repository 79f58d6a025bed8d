"""Compares an index with SQL, face by face."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.gallery.embeddings import FaceVectors

Contents: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]
"""What `VectorIndex.contents` returns: face ids (N,), identity ids (N,) and vectors (N, D)."""


@dataclass(frozen=True)
class DatabaseComparison:
    """How an index differs from SQL."""

    in_database: int
    in_index: int
    different: int
    """Number of faces that only one of them has, or whose identity or vector differs."""
    snapshot_problem: str | None
    """Why the stored snapshot could not be used."""


def differences(
    pages: Iterable[FaceVectors],
    face_ids: NDArray[np.int64],
    identity_ids: NDArray[np.int64],
    vectors: NDArray[Any],
) -> tuple[int, set[int | None]]:
    """Returns the number of faces in SQL, and the ids of those that differ from the contents of the index."""
    order = np.argsort(face_ids)
    ordered = face_ids[order]
    is_equal = np.zeros(len(face_ids), dtype=np.bool_)
    different: set[int | None] = set()
    in_database = 0
    for page in pages:
        in_database += len(page.face_ids)
        is_known = np.isin(page.face_ids, ordered)
        different.update(page.face_ids[~is_known].tolist())
        rows = order[np.searchsorted(ordered, page.face_ids[is_known])]
        same_vector = (vectors[rows] == page.vectors[is_known].astype(vectors.dtype)).all(axis=1)
        is_equal[rows] = same_vector & (identity_ids[rows] == page.identity_ids[is_known])
    different.update(face_ids[~is_equal].tolist())
    return in_database, different
