"""The next index is built in the background, while the current one is searched."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from indexer.errors import NotFound
from indexer.files import try_lock, unlock
from indexer.types import Tier
from indexer.vectors import compressed, mapped_file, self_check, synchronizer
from tests.indexer.gallery.faces import new_face
from tests.indexer.gallery.together import in_processes
from tests.indexer.vectors.disks import limited_file_size
from tests.indexer.vectors.indexed_gallery import (
    FACES,
    MAX_EXACT,
    ON_SQLITE,
    Contents,
    HookedEngine,
    IndexedGallery,
    contents_of,
    half,
    is_compressed,
    use_small_limits,
)
from tests.postgres import Database, opened
from tests.waiting import DEADLINE, wait_for

OUTGROWN = range(FACES, MAX_EXACT + 2)
"""Images that make the gallery too large for an exact index."""


def test_growing_gallery_becomes_compressed_while_it_is_searched(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    assert synchronized.catch_up().kind == "exact"
    assert synchronized.state().checked is None
    indexed.enroll(range(FACES, MAX_EXACT))
    assert not synchronized.catch_up().is_outgrown
    indexed.enroll(range(MAX_EXACT, MAX_EXACT + 10))
    indexed.check(indexed.search_until(synchronized, is_compressed))
    state = synchronized.state()
    assert (state.kind, state.faces) == ("compressed", MAX_EXACT + 10)
    assert state.checked is not None
    assert state.checked["mates_found"] >= self_check.TARGET_RECALL
    assert state.snapshot_seq is not None
    assert indexed.files == [indexed.path.name]


def test_compressed_index_is_rebuilt_after_many_additions_and_removals(indexed: IndexedGallery) -> None:
    synchronized = indexed.open(Tier.COMPRESSED)
    index = synchronized.catch_up()
    indexed.enroll(range(100, 110))
    assert synchronized.catch_up() is index
    indexed.enroll(range(110, 112))
    grown = indexed.search_until(synchronized, lambda now: now is not index)
    indexed.check(grown)
    assert indexed.present_rows() == FACES + 12
    for person in range(6):
        indexed.delete_person(f"p{person}")
    shrunk = indexed.search_until(synchronized, lambda now: now is not grown)
    indexed.check(shrunk)
    base = mapped_file.read(indexed.path)
    assert len(base) == FACES  # the removed rows are reclaimed
    assert base.is_present().all()


def test_update_waits_for_a_background_build(indexed: IndexedGallery) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        begun.set()
        assert go_on.wait(DEADLINE)

    synchronized = indexed.open(engine=HookedEngine(pause, before=True))
    synchronized.catch_up()
    indexed.enroll(OUTGROWN)
    indexed.check(synchronized.catch_up())
    assert begun.wait(DEADLINE)
    indexed.enroll(range(200, 204))  # meanwhile
    indexed.delete_person("p0")
    assert synchronized.catch_up().kind == "exact"
    indexed.check(synchronized.catch_up())
    updating = threading.Thread(target=synchronized.update)
    updating.start()
    updating.join(0.2)  # time for it to end too early
    assert updating.is_alive()
    go_on.set()
    updating.join(DEADLINE)
    assert synchronized.catch_up().kind == "compressed"
    indexed.check(synchronized.catch_up())
    assert half(0) not in indexed.path.read_bytes()


def test_update_builds_an_index_that_is_due(indexed: IndexedGallery) -> None:
    """After an enrollment, for example, when no search starts the build."""
    synchronized = indexed.open()
    synchronized.catch_up()
    indexed.enroll(OUTGROWN)
    synchronized.update()
    assert indexed.present_rows() == MAX_EXACT + 2
    indexed.check(synchronized.catch_up())
    lock_file = indexed.path.with_name(f"{indexed.path.name}.lock")
    lock = try_lock(lock_file)
    assert lock is not None, "the lock of the build is still held"
    unlock(lock_file, lock)


@pytest.mark.parametrize("removed", ["p0", None])
def test_shrunk_gallery_becomes_exact_and_its_file_is_deleted(indexed: IndexedGallery, removed: str | None) -> None:
    """Also if a face is removed during the build, which the file of the compressed index still contains."""

    def remove() -> None:
        if removed and synchronized.applied_seq is not None:
            indexed.delete_person(removed)

    indexed.enroll(range(FACES, MAX_EXACT + 10))
    synchronized = indexed.open(engine=HookedEngine(remove, over=0))
    assert synchronized.catch_up().kind == "compressed"
    assert half(0) in indexed.path.read_bytes()
    for person in range(20, 27):
        indexed.delete_person(f"p{person}")
    synchronized.catch_up()
    synchronized.update()
    assert not indexed.path.exists()
    indexed.check(synchronized.catch_up())
    state = synchronized.state()
    assert (state.kind, state.faces, state.snapshot_seq) == ("exact", MAX_EXACT - 4 - 2 * bool(removed), None)
    synchronized.save()
    assert synchronized.state().snapshot_seq == indexed.last_change()


def test_gallery_deleted_during_the_build_leaves_no_file(
    indexed: IndexedGallery, caplog: pytest.LogCaptureFixture
) -> None:
    synchronized = indexed.open(engine=HookedEngine(lambda: indexed.store.galleries.delete("staff")))
    synchronized.catch_up()
    indexed.enroll(OUTGROWN)
    with pytest.raises(NotFound):
        synchronized.update()
    synchronized.save()
    assert "there is no gallery 'staff'" in caplog.text
    assert indexed.files == []


# Failed builds


@ON_SQLITE
def test_failed_build_is_not_retried_at_every_search(
    indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 30)
    synchronized = indexed.open()
    synchronized.catch_up()
    indexed.enroll(OUTGROWN)
    with monkeypatch.context() as broken:
        broken.setattr(compressed, "build", fail)
        for _ in range(10):
            indexed.check(synchronized.catch_up())
            synchronized.update()
    assert caplog.text.count("could not be built") == 1
    indexed.enroll(range(100, 130))
    indexed.check(indexed.search_until(synchronized, is_compressed))


@ON_SQLITE
def test_full_disk_leaves_the_current_index(
    indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 50)
    synchronized = indexed.open(Tier.COMPRESSED)
    index = synchronized.catch_up()
    before = indexed.path.read_bytes()
    indexed.enroll(range(100, 120))
    with limited_file_size(4096):
        for _ in range(10):
            assert synchronized.catch_up() is index
            synchronized.update()
        indexed.check(index)
    assert caplog.text.count("could not be built") == 1
    assert indexed.path.read_bytes() == before
    assert indexed.files == [indexed.path.name]
    indexed.enroll(range(200, 250))
    indexed.check(indexed.search_until(synchronized, lambda now: now is not index))


@ON_SQLITE
def test_full_disk_at_the_first_build_makes_search_exact_for_now(
    indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 20)
    synchronized = indexed.open(Tier.COMPRESSED)
    with limited_file_size(4096):
        for _ in range(3):
            index = synchronized.catch_up()
            assert index.kind == "exact"
            indexed.check(index)
        synchronized.save()
        assert caplog.text.count("cannot be written; the gallery is searched exactly, in memory") == 1
    assert indexed.files == []
    indexed.enroll(range(100, 130))  # later there is room
    indexed.check(indexed.search_until(synchronized, is_compressed))
    assert indexed.present_rows() == FACES + 30


@ON_SQLITE
def test_files_of_a_killed_build_are_deleted_at_the_next_start(indexed: IndexedGallery) -> None:
    indexed.open(Tier.COMPRESSED).rebuild()
    indexed.path.with_name(f"{indexed.path.name}.0123.tmp").write_bytes(b"faces of a process that was killed")
    indexed.open(Tier.COMPRESSED).catch_up()
    assert indexed.files == [indexed.path.name]


# Several processes


def _search_and_save(url: str, folder: str, until: int) -> Contents:
    """Searches and saves until the index has that many faces; returns its contents."""
    with opened(url) as store:
        synchronized = IndexedGallery(store, Path(folder), store.galleries.get("staff")).open()
        searches = 0
        while len(index := synchronized.catch_up()) < until:
            searches += 1
            if searches % 5 == 0:
                synchronized.save()
        synchronized.save()
        return contents_of(index)


def _enroll(url: str, folder: str, until: int) -> Contents:
    with opened(url) as store:
        indexed = IndexedGallery(store, Path(folder), store.galleries.get("staff"))
        for image in range(2000, 2000 + until - FACES):
            store.faces.enroll(indexed.gallery, [new_face(f"new{image}", image)])
        return indexed.contents()


def _enroll_or_search(enrolls: bool, url: str, folder: str, until: int) -> Contents:
    return (_enroll if enrolls else _search_and_save)(url, folder, until)


def test_two_processes_search_while_a_third_enrolls(
    indexed: IndexedGallery, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    rest = (database.url, str(indexed.folder), FACES + 25)
    one, two, enrolled = in_processes(_enroll_or_search, [(False, *rest), (False, *rest), (True, *rest)])
    assert one == two == enrolled == indexed.contents()
    assert len(one) == FACES + 25
    with caplog.at_level(logging.WARNING):
        indexed.check_reopened(Tier.EXACT)
    assert caplog.text == ""
    assert indexed.files == [indexed.path.name]


def _search_until_compressed(url: str, folder: str) -> tuple[int, int]:
    """Returns the builds of this process, and the faces of the compressed index."""
    use_small_limits()
    builds = []
    build = compressed.build
    marker = Path(folder, f"{os.getpid()}.searched")

    def counted(*args: object) -> object:
        builds.append(1)
        wait_for(lambda: len(list(Path(folder).glob("*.searched"))) == 2, "the other process to search meanwhile")
        return build(*args)  # type: ignore[arg-type]

    setattr(compressed, "build", counted)  # noqa: B010
    with opened(url) as store:
        indexed = IndexedGallery(store, Path(folder), store.galleries.get("staff"))
        synchronized = indexed.open()
        synchronized.catch_up()
        marker.touch()
        index = indexed.search_until(synchronized, is_compressed)
        indexed.check(index)
        marker.unlink()
        return len(builds), len(index)


def test_one_process_builds_and_the_other_loads_the_result(indexed: IndexedGallery, database: Database) -> None:
    first = indexed.open()
    first.catch_up()
    indexed.enroll(range(FACES, MAX_EXACT))
    first.catch_up()
    first.save()  # both processes start from this
    indexed.enroll(range(MAX_EXACT, MAX_EXACT + 4))
    answers = in_processes(_search_until_compressed, [(database.url, str(indexed.folder))] * 2)
    assert sorted(answers) == [(0, MAX_EXACT + 4), (1, MAX_EXACT + 4)]
    assert indexed.files == [indexed.path.name]


def _build_endlessly(url: str, folder: str) -> None:
    def encode(vectors: object) -> None:
        Path(folder, "begun").touch()
        threading.Event().wait()  # until the process is killed

    use_small_limits()
    setattr(compressed, "encode", encode)  # noqa: B010
    with opened(url) as store:
        synchronized = IndexedGallery(store, Path(folder), store.galleries.get("staff")).open()
        wait_for(lambda: synchronized.catch_up().kind == "never", "the end of this process", float("inf"))


def test_killed_builder_delays_no_other_process(
    indexed: IndexedGallery, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchronizer, "BUILD_RECHECK_S", 0.0)
    synchronized = indexed.open()
    synchronized.catch_up()
    synchronized.save()
    arguments = (database.url, str(indexed.folder))
    process = multiprocessing.get_context("spawn").Process(target=_build_endlessly, args=arguments)
    process.start()
    indexed.enroll(range(FACES, MAX_EXACT + 4))
    wait_for((indexed.folder / "begun").exists, "the other process to build")
    indexed.delete_person("p0")
    for _ in range(5):
        assert synchronized.catch_up().kind == "exact"
        indexed.check(synchronized.catch_up())
        wait_for(lambda: "index builder" not in {one.name for one in threading.enumerate()}, "its own attempt to end")
    assert len(list(indexed.folder.glob("*.tmp"))) == 1
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(DEADLINE)
    indexed.check(indexed.search_until(synchronized, is_compressed))
    (indexed.folder / "begun").unlink()
    assert indexed.files == [indexed.path.name]
    with caplog.at_level(logging.WARNING):
        indexed.check_reopened()
    assert caplog.text == ""
