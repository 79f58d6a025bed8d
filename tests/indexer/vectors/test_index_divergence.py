"""An index is rebuilt when its change log no longer continues: after re-embedding, or after restoring a backup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine

from indexer.errors import Conflict
from indexer.gallery.change_log import Change
from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.types import Gallery, Tier
from indexer.vectors.engines import FaissEngine
from indexer.vectors.index_registry import IndexRegistry
from tests.indexer.gallery.faces import enroll_one, new_face, vector
from tests.indexer.vectors.indexed_gallery import EACH_TIER, FACES, Backup, HookedEngine, IndexedGallery, best_match

OTHER_PACK = "feedfeedfeedfeed"
OTHER_DIM = 24


def other_vector(image: int) -> NDArray[np.float32]:
    """Returns the embedding of an image by the other pack."""
    return vector(10_000 + image, OTHER_DIM)


def compute_embeddings(store: Store, gallery: Gallery, fingerprint: str, dim: int) -> None:
    """Stores embeddings by another pack for each face that has none."""
    store.reembeddings.start(gallery, "other", fingerprint, dim)
    for face in store.reembeddings.missing(gallery.id, fingerprint, 0, 1000):
        embedding = other_vector(face.face_id) if dim == OTHER_DIM else vector(20_000 + face.face_id)
        store.reembeddings.put(gallery, fingerprint, [face.face_id], embedding[None])


def switch(store: Store, gallery: Gallery) -> Gallery:
    """Binds the gallery to the other pack."""
    compute_embeddings(store, gallery, OTHER_PACK, OTHER_DIM)
    ended = store.reembeddings.switch(gallery, OTHER_PACK)
    assert ended.switched
    return ended.gallery


def test_index_of_the_former_pack_raises_conflict_and_is_replaced(indexed: IndexedGallery) -> None:
    store, gallery = indexed.store, indexed.gallery
    registry = IndexRegistry(store, indexed.folder, FaissEngine())
    former = registry.get(gallery)
    former.catch_up()
    former.save()
    compute_embeddings(store, gallery, OTHER_PACK, OTHER_DIM)
    indexed.check(registry.get(store.galleries.get("staff")).catch_up())
    now = IndexedGallery(store, indexed.folder, switch(store, gallery))
    for stale in (former.catch_up, former.state, former.rebuild, former.compare_with_database):
        with pytest.raises(Conflict, match="'staff' was re-embedded meanwhile") as caught:
            stale()
        assert caught.value.code == "model_mismatch"
    current = registry.get(now.gallery)
    assert current is not former
    now.check(current.catch_up())
    assert list(registry._indexes.values()) == [current]
    [hits] = current.catch_up().nearest_faces(other_vector(1)[None], 1)
    assert hits[0].score == pytest.approx(1)
    enroll_one(store, now.gallery, new_face("new", 50, embedding=other_vector(50)))
    now.check(current.catch_up())


def test_snapshot_of_the_former_pack_is_deleted(indexed: IndexedGallery, caplog: pytest.LogCaptureFixture) -> None:
    indexed.open().rebuild()
    now = IndexedGallery(indexed.store, indexed.folder, switch(indexed.store, indexed.gallery))
    again = now.open()
    now.check(again.catch_up())
    assert "is rebuilt" in caplog.text
    assert now.files == []
    again.save()
    caplog.clear()
    now.check_reopened()
    assert caplog.text == ""


def test_index_of_the_former_pack_leaves_the_new_file_alone(indexed: IndexedGallery) -> None:
    registry = IndexRegistry(indexed.store, indexed.folder, FaissEngine())
    registry.get(indexed.gallery).catch_up()
    indexed.enroll_one("new", 50)
    now = IndexedGallery(indexed.store, indexed.folder, switch(indexed.store, indexed.gallery))
    now.open().rebuild()  # by another process
    written = now.path.read_bytes()
    registry.get(indexed.gallery).save()
    registry.save()
    with pytest.raises(Conflict):
        registry.get(indexed.gallery).catch_up()
    registry.get(now.gallery)
    assert now.path.read_bytes() == written
    assert registry.get(now.gallery).state().snapshot_seq == now.last_change()


@EACH_TIER
@pytest.mark.parametrize("saved", [True, False])
def test_index_is_rebuilt_after_re_embedding_away_and_back(indexed: IndexedGallery, tier: Tier, saved: bool) -> None:
    """The embeddings may have been computed again meanwhile, with other results."""
    store, gallery = indexed.store, indexed.gallery
    sleeping = indexed.open(tier)
    sleeping.catch_up()
    if saved:
        sleeping.save()
        sleeping = indexed.open(tier)
    now = switch(store, gallery)
    store.reembeddings.delete(gallery.id, gallery.fingerprint)
    enroll_one(store, now, new_face("new", 50, embedding=other_vector(50)))
    compute_embeddings(store, now, gallery.fingerprint, gallery.dim)
    assert store.reembeddings.switch(now, gallery.fingerprint).switched
    indexed.enroll_one("newer", 51)
    index = sleeping.catch_up()
    assert len(index) == FACES + 2
    indexed.check(index)
    assert sleeping.catch_up() is index


class StoreThatSwitchesPacks(Store):
    """Re-embeds the gallery before one of the queries of an update of an index."""

    before = "vectors"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        read_changes, read_vectors, read_pages = self.changes.since, self.embeddings.of_faces, self.embeddings.pages

        def since(gallery_id: int, seq: int, limit: int = 10_000) -> list[Change]:
            self._switch(self.galleries.get("staff"), "changes")
            return read_changes(gallery_id, seq, limit)

        def of_faces(gallery: Gallery, face_ids: Sequence[int]) -> FaceVectors:
            self._switch(gallery, "vectors")
            return read_vectors(gallery, face_ids)

        def pages(gallery: Gallery) -> Iterator[FaceVectors]:
            read = read_pages(gallery, 5)
            yield next(read)
            self._switch(gallery, "second page")
            yield from read

        self.changes.since = since  # type: ignore[method-assign]
        self.embeddings.of_faces = of_faces  # type: ignore[method-assign]
        self.embeddings.pages = pages  # type: ignore[method-assign, assignment]

    def _switch(self, gallery: Gallery, query: str) -> None:
        if query == self.before and self.galleries.get("staff").fingerprint == gallery.fingerprint:
            switch(self, gallery)


@pytest.mark.parametrize("before", ["vectors", "changes", "second page"])
def test_re_embedding_while_catching_up_raises_conflict(indexed: IndexedGallery, before: str) -> None:
    """No index lacks faces or mixes embeddings of two packs."""
    switching = StoreThatSwitchesPacks(indexed.store.engine)
    synchronized = indexed.open(store=switching)
    if before != "second page":
        synchronized.catch_up()
    indexed.enroll_one("new", 50)
    switching.before = before
    with pytest.raises(Conflict, match="re-embedded"):
        synchronized.catch_up()
    now = IndexedGallery(indexed.store, indexed.folder, indexed.store.galleries.get("staff"))
    assert now.gallery.fingerprint == OTHER_PACK
    now.check_reopened()


# Restored backups

FACES_AFTER = pytest.mark.parametrize("faces", [0, 1, 5], ids=["behind", "at the same number", "beyond"])
"""Faces enrolled after a restore, so that the change log ends before, at or after the number that an index reached."""


@FACES_AFTER
@pytest.mark.parametrize("is_running", [True, False])
def test_exact_index_is_rebuilt_after_a_restored_backup(
    backup: Backup, faces: int, is_running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    indexed = backup.indexed
    indexed.enroll_one("lost", 100)
    synchronized = indexed.open()
    assert best_match(synchronized.catch_up(), 100) != (0, 0)
    synchronized.save()
    backup.restore(faces)
    if not is_running:
        synchronized = indexed.open()
    index = synchronized.catch_up()
    assert best_match(index, 100) == (0, 0)
    indexed.check(index)
    assert ("was restored" if is_running else "another gallery, model or database") in caplog.text
    assert not indexed.path.exists()
    caplog.clear()
    assert synchronized.catch_up() is index
    assert caplog.text == ""


@pytest.mark.parametrize("faces", [0, 1, 30], ids=["behind", "at the same number", "beyond"])
@pytest.mark.parametrize("is_running", [True, False])
def test_compressed_index_is_rebuilt_after_a_restored_backup(
    backup: Backup, faces: int, is_running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is older than the backup, and a face erased from it later is in the backup."""
    indexed = backup.indexed
    synchronized = indexed.open(Tier.COMPRESSED)
    synchronized.catch_up()
    indexed.delete_face(indexed.face_ids("p3")[0])
    indexed.check(synchronized.catch_up())
    assert indexed.present_rows() == FACES - 1
    backup.restore(faces)
    if not is_running:
        synchronized = indexed.open(Tier.COMPRESSED)
    indexed.check(synchronized.catch_up())
    assert "is rebuilt" in caplog.text


def test_index_built_while_a_backup_is_restored_is_not_used(backup: Backup, caplog: pytest.LogCaptureFixture) -> None:
    indexed = backup.indexed
    synchronized = indexed.open(engine=HookedEngine(backup.restore))
    synchronized.catch_up()
    indexed.enroll(range(FACES, FACES + 12))
    synchronized.update()
    assert "was restored meanwhile" in caplog.text
    indexed.check(synchronized.catch_up())
    indexed.check_reopened()
