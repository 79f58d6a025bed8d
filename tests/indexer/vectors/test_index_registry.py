"""The registry holds one index per gallery, and deletes what belongs to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from indexer.errors import StorageUnavailable
from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors import index_registry, snapshot
from indexer.vectors.base import Header, VectorIndex
from indexer.vectors.engines import FaissEngine
from indexer.vectors.index_registry import IndexRegistry
from tests.indexer.gallery.faces import enroll_one, make_gallery, new_face
from tests.indexer.vectors.indexed_gallery import FACES, IndexedGallery, best_match


@pytest.fixture
def registry(indexed: IndexedGallery) -> IndexRegistry:
    return IndexRegistry(indexed.store, indexed.folder, FaissEngine())


def test_each_gallery_has_one_index(indexed: IndexedGallery, registry: IndexRegistry) -> None:
    other = make_gallery(indexed.store, "other")
    enroll_one(indexed.store, other, new_face("ana", 1))
    assert registry.get(indexed.gallery) is registry.get(indexed.store.galleries.get("staff"))
    assert registry.get(indexed.gallery) is not registry.get(other)
    registry.get(indexed.gallery).catch_up()
    registry.get(other).catch_up()
    registry.save()
    assert set(indexed.files) == {indexed.path.name, f"{other.id}.index"}
    for _ in range(2):
        registry.delete(other)
        assert indexed.files == [indexed.path.name]


def test_gallery_of_the_same_number_in_a_restored_database_has_another_index(
    indexed: IndexedGallery, registry: IndexRegistry
) -> None:
    other = replace(indexed.gallery, created_at=indexed.gallery.created_at + timedelta(1))
    assert registry.get(other) is not registry.get(indexed.gallery)


def test_gallery_recreated_under_the_same_name_has_no_old_faces(
    indexed: IndexedGallery, registry: IndexRegistry
) -> None:
    store = indexed.store
    assert len(registry.get(indexed.gallery).catch_up()) == FACES
    registry.save()
    store.galleries.delete("staff")
    again = make_gallery(store)
    assert len(registry.get(again).catch_up()) == 0
    face_id = enroll_one(store, again, new_face("eve", 900))
    for synchronized in (registry.get(again), IndexRegistry(store, indexed.folder, FaissEngine()).get(again)):
        index = synchronized.catch_up()
        assert len(index) == 1
        assert [best_match(index, image) for image in range(FACES)] == [(0, 0)] * FACES
        assert best_match(index, 900) == (store.identities.get(again.id, "eve").id, face_id)


def test_save_deletes_files_of_deleted_galleries_only(indexed: IndexedGallery, registry: IndexRegistry) -> None:
    synchronized = registry.get(indexed.gallery)
    synchronized.catch_up()
    synchronized.save()
    indexed.enroll_one("new", 50)
    synchronized.catch_up()
    indexed.store.galleries.delete("staff")
    synchronized.save()
    assert indexed.files == []
    indexed.path.write_bytes(b"an old one")
    indexed.path.with_name(f"{indexed.path.name}1x2y.tmp").write_bytes(b"left by a crash")
    (indexed.folder / "notes.txt").write_text("of somebody else")
    registry.save()
    assert indexed.files == ["notes.txt"]
    assert registry._indexes == {}


def test_gallery_deleted_while_its_snapshot_is_written_leaves_no_file(
    indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = snapshot.write

    def delete_and_write(path: Path, header: Header, index: VectorIndex) -> None:
        indexed.store.galleries.delete("staff")
        write(path, header, index)

    synchronized = indexed.open()
    synchronized.catch_up()
    monkeypatch.setattr(snapshot, "write", delete_and_write)
    synchronized.save()
    assert indexed.files == []


def test_indexes_of_deleted_galleries_do_not_accumulate(indexed: IndexedGallery, registry: IndexRegistry) -> None:
    for i in range(index_registry.SWEEP_FROM):
        gallery = make_gallery(indexed.store, f"brief{i}")
        registry.get(gallery).catch_up()
        registry.get(gallery).rebuild()
        indexed.store.galleries.delete(gallery.name)
    registry.get(indexed.gallery).catch_up()
    assert len(registry._indexes) == 1
    assert indexed.files == []


def test_galleries_are_not_listed_for_every_new_index(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[int] = []
    list_galleries = store.galleries.list
    registry = IndexRegistry(store, tmp_path, FaissEngine())

    def recorded() -> Sequence[Gallery]:
        listed.append(len(registry._indexes))
        return list_galleries()

    monkeypatch.setattr(store.galleries, "list", recorded)
    for i in range(70):
        registry.get(make_gallery(store, f"g{i}"))
    assert listed == [0, 16, 32, 64]


def test_save_deletes_what_the_engine_stores_of_deleted_galleries(
    indexed: IndexedGallery, caplog: pytest.LogCaptureFixture
) -> None:
    class RemoteEngine(FaissEngine):
        is_away = True

        def __init__(self) -> None:
            super().__init__()
            self.stored = {indexed.gallery.id, 4711, 4712}

        def stored_galleries(self) -> set[int]:
            if self.is_away:
                raise StorageUnavailable("it is not there")
            return set(self.stored)

        def delete(self, path: Path) -> None:
            if path.name == "4711.index":
                raise StorageUnavailable("it cannot be reached")
            self.stored.remove(int(path.stem))

    engine = RemoteEngine()
    registry = IndexRegistry(indexed.store, indexed.folder, engine)
    registry.get(indexed.gallery).catch_up()
    registry.save()
    assert "cannot be looked for: it is not there" in caplog.text
    assert indexed.path.exists()
    engine.is_away = False
    registry.save()
    assert engine.stored == {indexed.gallery.id, 4711}
    assert "deleted gallery 4711 could not be deleted: it cannot be reached" in caplog.text


def test_nothing_is_saved_without_the_database(
    indexed: IndexedGallery,
    registry: IndexRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> list[Gallery]:
        raise StorageUnavailable("the database does not answer")

    registry.get(indexed.gallery).catch_up()
    monkeypatch.setattr(indexed.store.galleries, "list", fail)
    registry.save()
    assert not indexed.folder.exists()
    assert "not saved: the database does not answer" in caplog.text
