"""Tiers over real databases: from exact to compressed beside the searches, and every fault on the way."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import InvalidSetting, StorageUnavailable
from indexer.files import try_lock, unlock
from indexer.gallery.store import Store
from indexer.types import Gallery, Tier
from indexer.vectors import compressed, engines, gpu, mapped_file, self_check, synchronizer
from indexer.vectors.base import FacePages, Header, VectorIndex
from indexer.vectors.compressed import CompressedIndex
from indexer.vectors.engines import FaissEngine
from indexer.vectors.index_registry import IndexRegistry
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.gallery.faces import DIM, enroll_one, make_gallery, new_face, vector
from tests.indexer.gallery.together import in_processes
from tests.indexer.vectors.disks import limited_file_size
from tests.postgres import Database, opened
from tests.waiting import DEADLINE, wait_for

FACES = 40

ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""For what happens to files, whatever the database."""

MOST = 50
"""FacePages up to which they are searched exactly."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    _small(monkeypatch.setattr)


def _small(setattr_: Callable[[object, str, object], object]) -> None:
    setattr_(engines, "MAX_EXACT_NUMBERS", MOST * DIM)
    setattr_(compressed, "MIN_CHANGED_ROWS", 10)
    setattr_(synchronizer, "BUILD_RECHECK_S", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "indexes"


@pytest.fixture
def gallery(store: Store) -> Gallery:
    """Two photos a person: image i is of person i // 2."""
    gallery = make_gallery(store)
    enroll(store, gallery, range(FACES))
    return gallery


def enroll(store: Store, gallery: Gallery, images: range) -> None:
    store.faces.enroll(gallery, [new_face(f"p{image // 2}", image) for image in images])


def path_of(folder: Path, gallery: Gallery) -> Path:
    return folder / f"{gallery.id}.index"


def check_right(index: VectorIndex, store: Store, gallery: Gallery) -> None:
    """It holds what is in SQL, in its precision, and finds each of it."""
    face_ids, owners, vectors = index.contents()
    held = {f: (i, v.tobytes()) for f, i, v in zip(face_ids.tolist(), owners.tolist(), vectors, strict=True)}
    assert len(held) == len(face_ids)
    truth = {
        f: (i, v)
        for part in store.embeddings.pages(gallery)
        for f, i, v in zip(part.face_ids.tolist(), part.identity_ids.tolist(), part.vectors, strict=True)
    }
    assert held == {f: (i, v.astype(vectors.dtype).tobytes()) for f, (i, v) in truth.items()}
    assert index.face_ids().tolist() == sorted(truth)
    if truth:
        hits = index.nearest_faces(np.stack([v for _, v in truth.values()]), 1)
        assert [(hit.face_id, hit.identity_id) for [hit] in hits] == [(f, i) for f, (i, _) in truth.items()]


def wait(followed: SynchronizedIndex, until: Callable[[VectorIndex], bool]) -> VectorIndex:
    """Searches go on, and each is right, until an index is such."""

    def found() -> bool:
        check_right(followed.catch_up(), followed._store, followed._gallery)
        return until(followed.catch_up())

    wait_for(found, "such an index")
    return followed.catch_up()


def is_compressed(index: VectorIndex) -> bool:
    return index.kind == "compressed"


def at_rest(folder: Path, gallery: Gallery) -> int:
    """FacePages that were not erased from the file."""
    return int(mapped_file.read(path_of(folder, gallery)).is_present().sum())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Growing, following, starting again


def test_it_grows_from_exact_to_compressed_beside_the_searches(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    assert followed.catch_up().kind == "exact"
    assert followed.state().checked is None
    enroll(store, gallery, range(FACES, MOST))
    assert not followed.catch_up().is_outgrown
    enroll(store, gallery, range(MOST, MOST + 10))
    index = wait(followed, is_compressed)
    check_right(index, store, gallery)
    state = followed.state()
    assert (state.kind, state.faces) == ("compressed", MOST + 10)
    assert state.checked is not None
    assert state.checked["mates_found"] >= self_check.TARGET_RECALL
    assert state.snapshot_seq is not None
    assert names(folder) == [f"{gallery.id}.index"]


def test_it_follows_every_kind_of_change(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    index = followed.catch_up()
    assert index.kind == "compressed"
    enroll(store, gallery, range(100, 104))
    check_right(followed.catch_up(), store, gallery)
    store.faces.delete(gallery.id, store.faces.list(gallery.id, "p0")[0].id)
    store.faces.delete(gallery.id, store.faces.list(gallery.id, "p50")[0].id)
    store.identities.delete(gallery.id, "p1")
    store.identities.delete(gallery.id, "p51")
    check_right(followed.catch_up(), store, gallery)
    assert followed.catch_up() is index
    assert followed.compare_with_database() == synchronizer.DatabaseComparison(FACES - 2, FACES - 2, 0, None)


def test_it_is_built_again_when_many_came_and_when_many_went(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    index = followed.catch_up()
    enroll(store, gallery, range(100, 110))
    assert followed.catch_up() is index
    enroll(store, gallery, range(110, 112))
    grown = wait(followed, lambda now: now is not index)
    check_right(grown, store, gallery)
    assert at_rest(folder, gallery) == FACES + 12
    for person in range(6):
        store.identities.delete(gallery.id, f"p{person}")
    shrunk = wait(followed, lambda now: now is not grown)
    check_right(shrunk, store, gallery)
    base = mapped_file.read(path_of(folder, gallery))
    assert len(base) == FACES  # the removed rows are reclaimed
    assert base.is_present().all()


def test_a_restart_maps_the_file_and_replays_what_came_after(
    store: Store, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED)).rebuild()
    enroll(store, gallery, range(100, 104))
    store.identities.delete(gallery.id, "p1")
    monkeypatch.setattr(compressed, "build", None)  # nothing is built
    for _ in range(2):
        again = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
        check_right(again.catch_up(), store, gallery)
        assert again.state().checked is not None
        again.save()
    assert caplog.text == ""


@ON_SQLITE
def test_the_file_is_not_written_again_after_many_changes(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 4)
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    index = followed.catch_up()
    written, seq = path_of(folder, gallery).stat().st_ino, followed.state().snapshot_seq
    enroll(store, gallery, range(100, 108))
    assert followed.catch_up() is index
    followed.save()
    assert path_of(folder, gallery).stat().st_ino == written
    assert followed.state().snapshot_seq == seq


def test_saving_waits_for_what_is_being_built(store: Store, gallery: Gallery, folder: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(FaissEngine):
        def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
            if header.faces > MOST:
                begun.set()
                assert go_on.wait(DEADLINE)
            return super().build(path, header, faces)

    followed = SynchronizedIndex(store, gallery, folder, Slow())
    followed.catch_up()
    enroll(store, gallery, range(FACES, MOST + 2))
    check_right(followed.catch_up(), store, gallery)
    assert begun.wait(DEADLINE)
    enroll(store, gallery, range(200, 204))  # meanwhile
    store.identities.delete(gallery.id, "p0")
    assert followed.catch_up().kind == "exact"
    check_right(followed.catch_up(), store, gallery)
    saving = threading.Thread(target=followed.save)
    saving.start()
    saving.join(0.2)  # time for it to end too early
    assert saving.is_alive()
    go_on.set()
    saving.join(DEADLINE)
    assert followed.catch_up().kind == "compressed"
    check_right(followed.catch_up(), store, gallery)
    assert vector(0).astype(np.float16).tobytes() not in path_of(folder, gallery).read_bytes()


def test_saving_builds_what_is_due(store: Store, gallery: Gallery, folder: Path) -> None:
    """As after an import: no search comes that would begin it."""
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    enroll(store, gallery, range(FACES, MOST + 2))
    followed.save()
    assert at_rest(folder, gallery) == MOST + 2
    check_right(followed.catch_up(), store, gallery)


@pytest.mark.parametrize("saved", [True, False])
def test_a_gallery_that_was_re_embedded_away_and_back(
    store: Store, gallery: Gallery, folder: Path, saved: bool
) -> None:
    sleeping = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    sleeping.catch_up()
    if saved:
        sleeping = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    for now, fingerprint, first in ((gallery, "feed" * 4, 10_000), (None, gallery.fingerprint, 20_000)):
        at = now or store.galleries.get("staff")
        store.reembeddings.start(at, "other", fingerprint, DIM)
        for face in store.reembeddings.missing(gallery.id, fingerprint, 0, 1000):
            store.reembeddings.put(at, fingerprint, [face.face_id], vector(first + face.face_id)[None])
        assert store.reembeddings.switch(at, fingerprint).switched
        if now is not None:
            store.reembeddings.delete(gallery.id, gallery.fingerprint)
    check_right(sleeping.catch_up(), store, gallery)


@ON_SQLITE
def test_tiers_that_are_asked_for_are_had(store: Store, gallery: Gallery, folder: Path) -> None:
    """Whatever the file is that another setting left."""
    for tier, kind in ((Tier.COMPRESSED, "compressed"), (Tier.EXACT, "exact"), (Tier.COMPRESSED, "compressed")):
        followed = SynchronizedIndex(store, gallery, folder, FaissEngine(tier))
        assert followed.catch_up().kind == kind
        check_right(followed.catch_up(), store, gallery)
        followed.save()
    enroll(store, gallery, range(100, 100 + MOST))
    exact = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.EXACT))
    exact.catch_up()
    exact.save()
    assert exact.catch_up().kind == "exact"
    auto = SynchronizedIndex(store, gallery, folder, FaissEngine())
    assert auto.catch_up().kind == "exact"  # at once, from the file
    check_right(wait(auto, is_compressed), store, gallery)


@pytest.mark.skipif(gpu.unavailable_reason() is None, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(InvalidSetting, match="WHOSTHERE_VECTORS is gpu, which is not available: "):
        FaissEngine(Tier.GPU)


# What was removed


def test_a_removed_face_is_off_the_disk_at_once_and_never_comes_back(
    store: Store, gallery: Gallery, folder: Path
) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    followed.catch_up()
    path = path_of(folder, gallery)
    base = mapped_file.read(path)
    gone = {face.id for face in store.faces.list(gallery.id, "p3")}
    rows = np.flatnonzero(np.isin(base.face_ids, list(gone)))
    secrets = [base.vectors[row].tobytes() for row in rows] + [base.codes[row].tobytes() for row in rows]
    assert all(secret in path.read_bytes() for secret in secrets)
    store.identities.delete(gallery.id, "p3")
    check_right(followed.catch_up(), store, gallery)
    assert not any(secret in path.read_bytes() for secret in secrets)
    for rebuilds in (False, True, False):
        again = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
        if rebuilds:
            again.rebuild()
        check_right(again.catch_up(), store, gallery)
        assert not any(secret in path.read_bytes() for secret in secrets)


def test_a_face_that_another_process_put_into_the_file_is_erased_there(
    store: Store, gallery: Gallery, folder: Path
) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    followed.catch_up()
    enroll(store, gallery, range(100, 104))
    followed.catch_up()
    SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED)).rebuild()  # and it has ended
    path = path_of(folder, gallery)
    for image, person in ((0, "p0"), (100, "p50")):
        secret = vector(image).astype(np.float16).tobytes()
        assert secret in path.read_bytes()
        store.identities.delete(gallery.id, person)
        check_right(followed.catch_up(), store, gallery)
        assert secret not in path.read_bytes()
    check_right(SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED)).catch_up(), store, gallery)


@pytest.mark.parametrize("goes", ["p0", None])
def test_a_face_removed_while_a_shrunk_gallery_becomes_exact_leaves_the_disk(
    store: Store, gallery: Gallery, folder: Path, goes: str | None
) -> None:
    """The next index is not in a file, and the file of the one before is of no more use."""

    class Removing(FaissEngine):
        def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
            built = super().build(path, header, faces)
            if header.faces < MOST and goes:
                store.identities.delete(gallery.id, goes)
            return built

    enroll(store, gallery, range(FACES, MOST + 10))
    followed = SynchronizedIndex(store, gallery, folder, Removing())
    assert followed.catch_up().kind == "compressed"
    secret = vector(0).astype(np.float16).tobytes()
    assert secret in path_of(folder, gallery).read_bytes()
    for person in range(20, 27):
        store.identities.delete(gallery.id, f"p{person}")
    followed.catch_up()
    assert followed._builder is not None
    followed._builder.join(DEADLINE)
    assert not path_of(folder, gallery).exists()
    check_right(followed.catch_up(), store, gallery)
    state = followed.state()
    assert (state.kind, state.faces, state.snapshot_seq) == ("exact", MOST - 4 - 2 * bool(goes), None)
    followed.save()
    assert followed.state().snapshot_seq == store.changes.last(gallery.id)


@pytest.mark.parametrize("faces", [0, 1, 30], ids=["behind", "at the same number", "beyond"])
@pytest.mark.parametrize("running", [True, False])
def test_a_restored_backup(
    tmp_path: Path,
    sqlite_template: Path,
    folder: Path,
    faces: int,
    running: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The file was made before the backup, and a face erased in it after: the backup has it again."""
    live, backup = tmp_path / "live.db", tmp_path / "backup.db"
    shutil.copy(sqlite_template, live)

    def copy(source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
            one.backup(other)

    with opened(f"sqlite:///{live}") as store:
        gallery = make_gallery(store)
        enroll(store, gallery, range(FACES))
        followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
        followed.catch_up()
        copy(live, backup)
        store.faces.delete(gallery.id, store.faces.list(gallery.id, "p3")[0].id)
        check_right(followed.catch_up(), store, gallery)
        assert at_rest(folder, gallery) == FACES - 1
        copy(backup, live)
        for i in range(faces):
            enroll_one(store, gallery, new_face(f"after{i}", 200 + i))
        if not running:
            followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
        check_right(followed.catch_up(), store, gallery)
        assert "is rebuilt" in caplog.text


# Damage


def _every(data: bytes, seen_at_once: int) -> Iterator[tuple[bool, bytes]]:
    """Whether it is seen at once, and the damaged file."""
    for share in range(12):
        yield True, data[: len(data) * share // 12]
    for position in [*range(0, seen_at_once, seen_at_once // 4), *range(seen_at_once, len(data), len(data) // 30)]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        yield position >= seen_at_once, bytes(damaged)


@ON_SQLITE
def test_every_damage_is_made_good(
    store: Store, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "MATED_PROBES", 10)
    monkeypatch.setattr(self_check, "NON_MATED_PROBES", 10)
    SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED)).rebuild()
    path = path_of(folder, gallery)
    for at_once, damaged in _every(path.read_bytes(), FACES * DIM * 2):
        caplog.clear()
        path.write_bytes(damaged)
        followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
        index = followed.catch_up()
        if not at_once:
            with pytest.raises(StorageUnavailable, match="the index is being rebuilt, try again"):
                index.nearest_identities(vector(0)[None], FACES)
            index = followed.catch_up()
        check_right(index, store, gallery)
        assert "is rebuilt" in caplog.text
        assert followed.state().kind == "compressed"
        assert at_rest(folder, gallery) == FACES


@ON_SQLITE
def test_comparing_makes_a_damaged_file_good(store: Store, gallery: Gallery, folder: Path) -> None:
    SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED)).rebuild()
    path = path_of(folder, gallery)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    assert followed.compare_with_database() == synchronizer.DatabaseComparison(FACES, FACES, 0, f"{path} is damaged")


def test_comparing_finds_every_difference(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    index = followed.catch_up()
    faces = [store.faces.list(gallery.id, f"p{person}")[0] for person in range(3)]
    index.put(np.array([faces[0].id]), np.array([faces[0].identity_id]), vector(999)[None])  # another vector
    index.put(np.array([faces[1].id]), np.array([4711]), vector(2)[None])  # another person
    index.put(np.array([4712]), np.array([4711]), vector(998)[None])  # nobody's
    index.remove([faces[2].id])
    assert followed.compare_with_database().different == 4


@ON_SQLITE
def test_the_file_of_another_gallery(
    store: Store, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_gallery(store, "other")
    enroll_one(store, other, new_face("eve", 900))
    indexes = IndexRegistry(store, folder, FaissEngine(Tier.COMPRESSED))
    indexes.get(gallery).rebuild()
    shutil.copy(path_of(folder, gallery), path_of(folder, other))
    check_right(indexes.get(other).catch_up(), store, other)
    assert "is of another gallery, model or database" in caplog.text


# Disks


@ON_SQLITE
def test_a_full_disk_is_told_and_every_face_scored(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 20)
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    with limited_file_size(4096):
        for _ in range(3):
            index = followed.catch_up()
            assert index.kind == "exact"
            check_right(index, store, gallery)
        followed.save()
        assert caplog.text.count("cannot be written; the gallery is searched exactly, in memory") == 1
    assert names(folder) == []
    enroll(store, gallery, range(100, 130))  # later there is room
    check_right(wait(followed, is_compressed), store, gallery)
    assert at_rest(folder, gallery) == FACES + 30


@ON_SQLITE
def test_a_full_disk_leaves_the_index_that_there_is(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 50)
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    index = followed.catch_up()
    before = path_of(folder, gallery).read_bytes()
    enroll(store, gallery, range(100, 120))
    with limited_file_size(4096):
        for _ in range(10):
            assert followed.catch_up() is index
            followed.save()  # waits
        check_right(index, store, gallery)
    assert caplog.text.count("could not be built") == 1  # not at every search
    assert path_of(folder, gallery).read_bytes() == before
    assert names(folder) == [f"{gallery.id}.index"]
    enroll(store, gallery, range(200, 250))
    check_right(wait(followed, lambda now: now is not index), store, gallery)


@ON_SQLITE
def test_a_folder_that_cannot_be_made(
    store: Store, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("not a folder")
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED))
    for _ in range(3):
        check_right(followed.catch_up(), store, gallery)
        followed.save()
    assert caplog.text.count("is searched exactly, in memory") == 1
    assert folder.read_text() == "not a folder"


def _as_nobody(url: str, folder: str) -> tuple[str, int]:
    os.seteuid(65534)  # whom root's rights do not help
    with opened(url) as store:
        gallery = store.galleries.get("staff")
        followed = SynchronizedIndex(store, gallery, Path(folder), FaissEngine(Tier.COMPRESSED))
        check_right(followed.catch_up(), store, gallery)
        followed.save()
        return followed.catch_up().kind, len(followed.catch_up())


@ON_SQLITE
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_a_folder_that_is_read_only(store: Store, database: Database, gallery: Gallery, tmp_path: Path) -> None:
    folder = tmp_path / "indexes"
    SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED)).rebuild()
    before = path_of(folder, gallery).read_bytes()
    changed = [path for path in (tmp_path, *tmp_path.parents) if path.stat().st_mode & 0o005 != 0o005]
    modes = [(path, path.stat().st_mode) for path in changed]
    try:
        for path in changed:
            path.chmod(0o755)
        for path in [*tmp_path.glob("*.db*"), tmp_path]:
            path.chmod(0o777)
        folder.chmod(0o555)
        [answer] = in_processes(_as_nobody, [(database.url, str(folder))])
    finally:
        for path, mode in modes:
            path.chmod(mode)
    assert answer == ("exact", FACES)
    assert path_of(folder, gallery).read_bytes() == before


# Several processes


def _outgrow(url: str, folder: str) -> tuple[int, int]:
    """Builds done, and faces held, once the compressed index is in use."""
    _small(setattr)
    builds = []
    build = compressed.build
    mark = f"{os.getpid()}.searched"

    def counted(*args: object) -> object:
        builds.append(1)
        wait_for(lambda: len(list(Path(folder).glob("*.searched"))) == 2, "the other process to search meanwhile")
        return build(*args)  # type: ignore[arg-type]

    setattr(compressed, "build", counted)  # noqa: B010
    with opened(url) as store:
        gallery = store.galleries.get("staff")
        followed = SynchronizedIndex(store, gallery, Path(folder), FaissEngine())
        followed.catch_up()
        (Path(folder) / mark).touch()
        index = wait(followed, is_compressed)
        check_right(index, store, gallery)
        (Path(folder) / mark).unlink()
        return len(builds), len(index)


def test_of_two_processes_one_builds_and_the_other_takes_it(
    store: Store, database: Database, gallery: Gallery, folder: Path
) -> None:
    first = SynchronizedIndex(store, gallery, folder, FaissEngine())
    first.catch_up()
    enroll(store, gallery, range(FACES, MOST))
    first.catch_up()
    first.save()  # what both start from
    enroll(store, gallery, range(MOST, MOST + 4))
    answers = in_processes(_outgrow, [(database.url, str(folder))] * 2)
    assert sorted(answers) == [(0, MOST + 4), (1, MOST + 4)]
    assert names(folder) == [f"{gallery.id}.index"]


def _build_for_ever(url: str, folder: str) -> None:
    def slowly(vectors: object) -> None:
        Path(folder, "begun").touch()
        threading.Event().wait()  # until the process is killed

    _small(setattr)
    setattr(compressed, "encode", slowly)  # noqa: B010
    with opened(url) as store:
        followed = SynchronizedIndex(store, store.galleries.get("staff"), Path(folder), FaissEngine())
        wait_for(lambda: followed.catch_up().kind == "never", "the end of this process", float("inf"))


def test_a_worker_killed_while_building_holds_up_nobody(
    store: Store,
    database: Database,
    gallery: Gallery,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synchronizer, "BUILD_RECHECK_S", 0.0)
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    followed.save()
    process = multiprocessing.get_context("spawn").Process(target=_build_for_ever, args=(database.url, str(folder)))
    process.start()
    enroll(store, gallery, range(FACES, MOST + 4))
    wait_for((folder / "begun").exists, "the other process to build")
    store.identities.delete(gallery.id, "p0")
    for _ in range(5):  # the other builds: this one goes on
        assert followed.catch_up().kind == "exact"
        check_right(followed.catch_up(), store, gallery)
        wait_for(lambda: "index builder" not in {one.name for one in threading.enumerate()}, "its own attempt to end")
    assert len(list(folder.glob("*.tmp"))) == 1
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(DEADLINE)
    check_right(wait(followed, is_compressed), store, gallery)
    (folder / "begun").unlink()
    assert names(folder) == [f"{gallery.id}.index"]
    with caplog.at_level(logging.WARNING):
        check_right(SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up(), store, gallery)
    assert caplog.text == ""


@ON_SQLITE
def test_what_a_killed_build_left_goes_at_the_next_start(store: Store, gallery: Gallery, folder: Path) -> None:
    SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED)).rebuild()
    (folder / f"{gallery.id}.index.0123.tmp").write_bytes(b"faces of a process that is no more")
    SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED)).catch_up()
    assert names(folder) == [f"{gallery.id}.index"]


def test_a_gallery_deleted_while_its_next_index_is_built(
    store: Store, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Deleting(FaissEngine):
        def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
            built = super().build(path, header, faces)
            if header.faces > MOST:
                store.galleries.delete("staff")
            return built

    followed = SynchronizedIndex(store, gallery, folder, Deleting())
    followed.catch_up()
    enroll(store, gallery, range(FACES, MOST + 2))
    followed.catch_up()
    followed.save()
    assert "there is no gallery 'staff'" in caplog.text
    assert names(folder) == []


@ON_SQLITE
def test_a_build_that_fails_is_not_tried_at_every_search(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 30)
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    enroll(store, gallery, range(FACES, MOST + 2))
    with monkeypatch.context() as broken:
        broken.setattr(compressed, "build", fail)
        for _ in range(10):
            check_right(followed.catch_up(), store, gallery)
            followed.save()
    assert caplog.text.count("could not be built") == 1
    enroll(store, gallery, range(100, 130))
    check_right(wait(followed, is_compressed), store, gallery)


@ON_SQLITE
def test_the_lock_of_a_build_is_let_go(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    enroll(store, gallery, range(FACES, MOST + 2))
    followed.save()
    lock_file = folder / f"{gallery.id}.index.lock"
    lock = try_lock(lock_file)
    assert lock is not None
    unlock(lock_file, lock)


def test_a_backup_restored_while_the_next_index_is_built(
    tmp_path: Path, sqlite_template: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was built of the database before is not taken."""
    live, backup = tmp_path / "live.db", tmp_path / "backup.db"
    shutil.copy(sqlite_template, live)
    with opened(f"sqlite:///{live}") as store:
        gallery = make_gallery(store)
        enroll(store, gallery, range(FACES))
        with closing(sqlite3.connect(live)) as one, closing(sqlite3.connect(backup)) as other:
            one.backup(other)

        class Restoring(FaissEngine):
            def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
                built = super().build(path, header, faces)
                if header.faces > MOST:
                    with closing(sqlite3.connect(backup)) as one, closing(sqlite3.connect(live)) as other:
                        one.backup(other)
                return built

        followed = SynchronizedIndex(store, gallery, folder, Restoring())
        followed.catch_up()
        enroll(store, gallery, range(FACES, MOST + 2))
        followed.save()
        assert "was restored meanwhile" in caplog.text
        check_right(followed.catch_up(), store, gallery)
        check_right(SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up(), store, gallery)


@ON_SQLITE
def test_a_compressed_index_is_what_the_engine_makes(store: Store, gallery: Gallery, folder: Path) -> None:
    index = SynchronizedIndex(store, gallery, folder, FaissEngine(Tier.COMPRESSED)).catch_up()
    assert isinstance(index, CompressedIndex)
    assert index.erases_on_disk
