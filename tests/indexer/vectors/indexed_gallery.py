"""A gallery with its index files, as the tests of synchronized indexes use it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from indexer.gallery.store import Store
from indexer.types import Gallery, Tier
from indexer.vectors import compressed, engines, mapped_file, synchronizer
from indexer.vectors.base import FacePages, Header, VectorEngine, VectorIndex
from indexer.vectors.engines import FaissEngine
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.gallery.faces import DIM, enroll_one, make_gallery, new_face, vector
from tests.postgres import opened
from tests.waiting import wait_for

FACES, PEOPLE = 40, 20

MAX_EXACT = 50
"""Faces up to which search is exact, in these tests."""

CHANGES = FACES + PEOPLE
"""Entries in the change log after the first faces were enrolled."""

ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""For tests of files, which do not depend on the database."""

EACH_TIER = pytest.mark.parametrize("tier", [Tier.AUTO, Tier.COMPRESSED])
"""For tests of exact and of compressed indexes."""


def use_small_limits(setattr_: Callable[[object, str, object], object] = setattr) -> None:
    setattr_(engines, "MAX_EXACT_NUMBERS", MAX_EXACT * DIM)
    setattr_(compressed, "MIN_CHANGED_ROWS", 10)
    setattr_(synchronizer, "BUILD_RECHECK_S", 0.05)


Contents = dict[int, tuple[int, bytes]]
"""Identity and vector of each face."""


def contents_of(index: VectorIndex) -> Contents:
    face_ids, owners, vectors = index.contents()
    assert len(set(face_ids.tolist())) == len(face_ids)
    return {f: (i, v.tobytes()) for f, i, v in zip(face_ids.tolist(), owners.tolist(), vectors, strict=True)}


def best_match(index: VectorIndex, image: int) -> tuple[int, int]:
    """Returns identity and face found for the embedding of that image; zeros if it is not in the index."""
    [hits] = index.nearest_identities(vector(image)[None], 1)
    return (hits[0].identity_id, hits[0].face_id) if hits and hits[0].score > 0.999 else (0, 0)


def half(image: int) -> bytes:
    """Returns the embedding of that image as it is in the file of a compressed index."""
    return vector(image).astype(np.float16).tobytes()


class IndexedGallery:
    """A gallery of PEOPLE with two faces each: image i shows person p{i // 2}."""

    def __init__(self, store: Store, folder: Path, gallery: Gallery | None = None) -> None:
        self.store = store
        self.folder = folder
        self.gallery = gallery or make_gallery(store)
        if gallery is None:
            self.enroll(range(FACES))

    @property
    def path(self) -> Path:
        return self.folder / f"{self.gallery.id}.index"

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def open(
        self, tier: Tier = Tier.AUTO, engine: VectorEngine | None = None, store: Store | None = None
    ) -> SynchronizedIndex:
        return SynchronizedIndex(store or self.store, self.gallery, self.folder, engine or FaissEngine(tier))

    def enroll(self, images: range) -> None:
        self.store.faces.enroll(self.gallery, [new_face(f"p{image // 2}", image) for image in images])

    def enroll_one(self, person: str, image: int) -> int:
        """Returns the id of the new face."""
        return enroll_one(self.store, self.gallery, new_face(person, image))

    def identity_id(self, person: str) -> int:
        return self.store.identities.get(self.gallery.id, person).id

    def face_ids(self, person: str) -> list[int]:
        return [face.id for face in self.store.faces.list(self.gallery.id, person)]

    def delete_person(self, person: str) -> None:
        self.store.identities.delete(self.gallery.id, person)

    def delete_face(self, face_id: int) -> None:
        self.store.faces.delete(self.gallery.id, face_id)

    def last_change(self) -> int | None:
        return self.store.changes.last(self.gallery.id)

    def present_rows(self) -> int:
        """Returns the number of faces in the file of a compressed index that are not erased."""
        return int(mapped_file.read(self.path).is_present().sum())

    def contents(self, dtype: type[np.float16] | type[np.float32] = np.float32) -> Contents:
        """Returns what SQL contains, with vectors in that precision."""
        return {
            f: (i, v.astype(dtype).tobytes())
            for page in self.store.embeddings.pages(self.gallery)
            for f, i, v in zip(page.face_ids.tolist(), page.identity_ids.tolist(), page.vectors, strict=True)
        }

    def check(self, index: VectorIndex) -> None:
        """Asserts that the index contains what SQL does, and finds each face."""
        expected = self.contents(index.contents()[2].dtype.type)
        assert contents_of(index) == expected
        assert index.face_ids().tolist() == sorted(expected)
        if expected:
            vectors = np.stack([np.frombuffer(v, np.float32) for _, v in self.contents().values()])
            hits = index.nearest_faces(vectors, 1)
            assert [(hit.face_id, hit.identity_id) for [hit] in hits] == [(f, i) for f, (i, _) in expected.items()]

    def check_reopened(self, tier: Tier = Tier.AUTO) -> None:
        """Asserts the same of an index that is opened from the files."""
        self.check(self.open(tier).catch_up())

    def search_until(self, index: SynchronizedIndex, condition: Callable[[VectorIndex], bool]) -> VectorIndex:
        """Searches, with correct answers, until the current index fulfils the condition."""

        def is_found() -> bool:
            self.check(index.catch_up())
            return condition(index.catch_up())

        wait_for(is_found, "such an index")
        return index.catch_up()


def is_compressed(index: VectorIndex) -> bool:
    return index.kind == "compressed"


class HookedEngine(FaissEngine):
    """Calls `hook` with the header before or after each build of more than `over` faces."""

    def __init__(
        self, hook: Callable[[], object], tier: Tier = Tier.AUTO, before: bool = False, over: int = MAX_EXACT
    ) -> None:
        super().__init__(tier)
        self._hook, self._before, self._over = hook, before, over

    def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
        is_hooked = header.faces > self._over
        if is_hooked and self._before:
            self._hook()
        built = super().build(path, header, faces)
        if is_hooked and not self._before:
            self._hook()
        return built


class Backup:
    """A gallery on SQLite whose database can be backed up and restored while it is open."""

    def __init__(self, indexed: IndexedGallery, live: Path) -> None:
        self.indexed = indexed
        self._live, self._copy = live, live.with_name("backup.db")
        self._transfer(self._live, self._copy)

    def restore(self, faces: int = 0) -> None:
        """Restores the backup, then enrolls other faces."""
        self._transfer(self._copy, self._live)
        for i in range(faces):
            self.indexed.enroll_one(f"after{i}", 200 + i)

    @staticmethod
    def _transfer(source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
            one.backup(other)


@contextmanager
def backed_up(template: Path, folder: Path) -> Iterator[Backup]:
    """Opens a copy of an empty SQLite database with a gallery, and backs it up."""
    live = folder / "live.db"
    shutil.copy(template, live)
    with opened(f"sqlite:///{live}") as store:
        yield Backup(IndexedGallery(store, folder / "indexes"), live)
