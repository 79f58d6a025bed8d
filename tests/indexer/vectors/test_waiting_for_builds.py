"""Callers of a service never wait for a build, and closing waits for nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from indexer.errors import IndexBuilding, StorageUnavailable
from indexer.gallery.change_log import Change
from indexer.gallery.store import Store
from indexer.types import Tier
from indexer.vectors import builds, synchronizer
from indexer.vectors.base import FacePages, Header, VectorIndex
from indexer.vectors.engines import FaissEngine
from indexer.vectors.index_registry import IndexRegistry
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.gallery.faces import enroll_one, make_gallery, new_face, vector
from tests.indexer.vectors.held_builds import HeldEngine
from tests.indexer.vectors.indexed_gallery import CHANGES, FACES, MAX_EXACT, ON_SQLITE, IndexedGallery
from tests.waiting import DEADLINE, wait_for

pytestmark = ON_SQLITE


@pytest.fixture
def engine() -> HeldEngine:
    return HeldEngine()


@pytest.fixture
def registry(indexed: IndexedGallery, engine: HeldEngine) -> IndexRegistry:
    """The indexes of a service."""
    return served(indexed, engine)


def served(indexed: IndexedGallery, engine: FaissEngine, store: Store | None = None) -> IndexRegistry:
    registry = IndexRegistry(store or indexed.store, indexed.folder, engine)
    registry.serve()
    return registry


def catch_up_soon(index: SynchronizedIndex) -> VectorIndex:
    """Returns the index when its build has ended."""

    def is_ready() -> bool:
        try:
            index.catch_up()
        except IndexBuilding:
            return False
        return True

    wait_for(is_ready, "the build to end")
    return index.catch_up()


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_caller_is_refused_during_a_build_and_answered_after_it(
    indexed: IndexedGallery, engine: HeldEngine, registry: IndexRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "PATIENCE_S", 0.0)
    index = registry.get(indexed.gallery)
    with engine.holding(indexed.gallery):
        for call in (index.catch_up, index.state, lambda: registry.check_ready(indexed.gallery)):
            with pytest.raises(IndexBuilding, match="the index of gallery 'staff' is being built") as caught:
                call()
            assert caught.value.code == "index_building"
            assert caught.value.details == {"retry_after_seconds": 1}
        assert engine.begun.wait(DEADLINE)
    indexed.check(catch_up_soon(index))
    registry.check_ready(indexed.gallery)
    assert engine.builds == 1


def test_caller_waits_for_a_short_build(indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "PATIENCE_S", DEADLINE)
    indexed.check(served(indexed, FaissEngine()).get(indexed.gallery).catch_up())


def test_few_callers_wait_for_a_build_at_the_same_time(
    indexed: IndexedGallery, engine: HeldEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "PATIENCE_S", DEADLINE)
    monkeypatch.setattr(builds, "MAX_WAITING", 2)
    registry = served(indexed, engine)
    index = registry.get(indexed.gallery)
    refused: list[IndexBuilding] = []

    def search() -> None:
        try:
            indexed.check(index.catch_up())
        except IndexBuilding as error:
            refused.append(error)

    with engine.holding(indexed.gallery):
        callers = [in_thread(search) for _ in range(5)]
        wait_for(lambda: len(refused) == 3, "three of five callers to be refused")
        other = make_gallery(indexed.store, "other")
        enroll_one(indexed.store, other, new_face("eve", 900))
        assert len(catch_up_soon(registry.get(other))) == 1
    for caller in callers:
        caller.join(DEADLINE)
    assert len(refused) == 3


def test_damaged_index_is_built_in_the_background(
    indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(builds, "PATIENCE_S", 0.0)
    indexed.open(Tier.COMPRESSED).rebuild()
    data = bytearray(indexed.path.read_bytes())
    data[100] ^= 1
    indexed.path.write_bytes(data)
    engine = HeldEngine(Tier.COMPRESSED)
    index = served(indexed, engine).get(indexed.gallery)
    found = catch_up_soon(index)
    with engine.holding(indexed.gallery):
        with pytest.raises(StorageUnavailable, match="is damaged"):
            found.nearest_identities(vector(0)[None], FACES)
        for _ in range(3):
            with pytest.raises(IndexBuilding):
                index.catch_up()
    indexed.check(catch_up_soon(index))
    assert caplog.text.count("is rebuilt") == engine.builds == 1


class FailingEngine(FaissEngine):
    """Fails to build until `is_fixed`."""

    is_fixed = False
    builds = 0

    def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
        self.builds += 1
        if self.is_fixed:
            return super().build(path, header, faces)
        raise StorageUnavailable("the GPUs cannot hold 40 faces")


def test_failed_build_is_reported_and_not_repeated_by_every_caller(
    indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "FAILURE_S", DEADLINE)
    engine = FailingEngine()
    index = served(indexed, engine).get(indexed.gallery)
    for _ in range(3):
        with pytest.raises(StorageUnavailable, match="cannot hold 40 faces"):
            index.catch_up(DEADLINE)
    assert engine.builds == 1
    engine.is_fixed = True
    monkeypatch.setattr(builds, "FAILURE_S", 0.0)
    indexed.check(catch_up_soon(index))


class StoreWithSlowLog(Store):
    """Reads the change log when `go_on` is set."""

    def __init__(self, indexed: IndexedGallery) -> None:
        super().__init__(indexed.store.engine)
        self.go_on = threading.Event()
        read_changes = self.changes.since

        def since(gallery_id: int, seq: int, limit: int = 10_000) -> list[Change]:
            assert self.go_on.wait(DEADLINE)
            return read_changes(gallery_id, seq, limit)

        self.changes.since = since  # type: ignore[method-assign]


def test_many_changes_are_applied_in_the_background(indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "PATIENCE_S", 0.0)
    monkeypatch.setattr(synchronizer, "MAX_REPLAYED", 4)
    store = StoreWithSlowLog(indexed)
    index = served(indexed, FaissEngine(), store).get(indexed.gallery)
    found = catch_up_soon(index)
    indexed.enroll(range(100, 106))
    for _ in range(2):
        with pytest.raises(IndexBuilding):
            index.catch_up()
    store.go_on.set()
    assert catch_up_soon(index) is found
    indexed.check(found)


# Closing


def test_closing_neither_waits_for_a_build_nor_starts_one(
    indexed: IndexedGallery, engine: HeldEngine, registry: IndexRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "PATIENCE_S", 0.0)
    other = IndexedGallery(indexed.store, indexed.folder, make_gallery(indexed.store, "other"))
    other.enroll(range(300, 300 + MAX_EXACT))
    catch_up_soon(registry.get(other.gallery))
    other.enroll(range(400, 402))  # an index is due
    index = registry.get(indexed.gallery)
    with engine.holding(indexed.gallery):
        with pytest.raises(IndexBuilding):
            index.catch_up()
        assert engine.begun.wait(DEADLINE)
        before = engine.builds
        registry.close()
        assert engine.builds == before
    wait_for(lambda: "index builder" not in {one.name for one in threading.enumerate()}, "the build to end")
    assert index.applied_seq is None  # it ended at the first page


def test_closing_does_not_wait_for_the_next_index(
    indexed: IndexedGallery, engine: HeldEngine, caplog: pytest.LogCaptureFixture
) -> None:
    registry = IndexRegistry(indexed.store, indexed.folder, engine)  # of a command
    index = registry.get(indexed.gallery)
    index.catch_up()
    with engine.holding(indexed.gallery):
        indexed.enroll(range(FACES, MAX_EXACT + 2))
        assert index.catch_up().is_outgrown
        assert engine.begun.wait(DEADLINE)
        registry.close()
    wait_for(lambda: "index builder" not in {one.name for one in threading.enumerate()}, "the build to end")
    assert caplog.text == ""


class DeletingEngine(FaissEngine):
    """Calls `hook` when a snapshot is about to be completed."""

    def __init__(self, hook: Callable[[], object]) -> None:
        super().__init__()
        self._hook = hook

    def save(self, path: Path, header: Header, index: VectorIndex) -> bool:
        is_stored = super().save(path, header, index)
        self._hook()
        return is_stored


def test_face_removed_while_the_index_is_stored_leaves_the_file(indexed: IndexedGallery) -> None:
    def remove() -> None:
        indexed.delete_person("p0")
        index.catch_up()

    index = indexed.open(engine=DeletingEngine(remove))
    index.catch_up()
    index.save()
    assert not indexed.path.exists()
    assert index.state().snapshot_seq is None


def test_faces_added_while_the_index_is_stored_are_in_the_next_start(indexed: IndexedGallery) -> None:
    """The file may hold later changes than its header says."""

    index = indexed.open()
    found = index.catch_up()
    contents = found.contents

    def growing() -> object:
        if index.applied_seq == CHANGES:
            indexed.enroll_one("new", 50)
            index.catch_up()
        return contents()

    found.contents = growing  # type: ignore[method-assign, assignment]
    index.save()
    indexed.check_reopened()
    assert index.state().snapshot_seq == CHANGES
