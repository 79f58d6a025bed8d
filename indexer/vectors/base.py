"""The port: what every vector index offers. An index is derived; the truth is in SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from indexer.errors import WhosthereError
from indexer.gallery.embeddings import FaceVectors
from indexer.types import Hit, Vectors


class VectorIndex(Protocol):
    """The embeddings of one gallery, searchable by inner product. Thread-safe."""

    @property
    def kind(self) -> str:
        """What people are told of how it searches: `exact`, `compressed`, `gpu`, `milvus`."""
        ...

    @property
    def checked(self) -> object | None:
        """A dataclass of what it found out about itself when it was built; None where it is exact."""
        ...

    @property
    def outgrown(self) -> bool:
        """Whether it is time to build another one of what is in it now."""
        ...

    @property
    def damaged(self) -> bool:
        """Whether what it reads turned out not to be what was written: it is to be built anew."""
        ...

    @property
    def replaced(self) -> bool:
        """Whether another process has built it anew and taken this one away: what that one keeps is to be loaded."""
        ...

    @property
    def erases(self) -> bool:
        """Whether `remove` takes the embeddings off the disk as well."""
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
        """Copies of everything in it, in any order; vectors in the precision that it keeps."""
        ...


@runtime_checkable
class Erased(Protocol):
    """An index that faces are taken out of where it is kept, before its header tells of it."""

    @property
    def erased(self) -> NDArray[np.int64]:
        """Faces that were gone when it was loaded. The change log tells of each, or is not the one it followed."""
        ...


@dataclass(frozen=True)
class Header:
    """What an index is of. `seq` is the last change in it, and `mark` tells that change from others of its number."""

    gallery_id: int
    gallery_created: str
    fingerprint: str
    dim: int
    seq: int
    mark: str
    faces: int


Faces = Callable[[], Iterator[FaceVectors]]
"""All faces of a gallery, their ids ascending, as often as they are asked for."""


class Engine(Protocol):
    """Makes the indexes of one kind, and keeps them where they are found again. `path` names one gallery's index; an
    engine that keeps nothing in files takes its name alone."""

    def load(self, path: Path) -> tuple[Header, VectorIndex]:
        """What `build` or `save` kept. Raises FileNotFoundError where there is nothing, DamagedIndex."""
        ...

    def build(self, path: Path, header: Header, faces: Faces) -> tuple[VectorIndex, bool]:
        """An index of these faces, and whether it is kept already. Raises OSError where it must be and cannot."""
        ...

    def save(self, path: Path, header: Header, index: VectorIndex) -> bool:
        """Keeps the index as it is now; whether it does, or what `build` kept and the change log must do. Raises
        OSError."""
        ...

    def close(self) -> None:
        """Lets go of connections."""
        ...

    def delete(self, path: Path) -> None:
        """Lets go of what was kept. Raises OSError."""
        ...

    def galleries(self) -> set[int]:
        """The numbers of those of which it keeps something elsewhere than in files. Raises OSError."""
        ...


def rank(hit: Hit) -> tuple[float, int]:
    """Hits in its order are best first, equals by face id."""
    return -hit.score, hit.face_id


def best_of_each(hits: Iterable[Hit]) -> list[Hit]:
    """Of hits that are best first, the best of each identity."""
    best: dict[int, Hit] = {}
    for hit in hits:
        best.setdefault(hit.identity_id, hit)
    return list(best.values())


class DamagedIndex(WhosthereError):
    """What was kept is not what was written. Its reader makes a new one from SQL."""

    code = "damaged_index"
