"""Indexes follow their galleries: from a snapshot, from SQL, from the change log, whatever happens to the files."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, event

from indexer.errors import Conflict, NotFound, StorageUnavailable
from indexer.gallery.change_log import Change
from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.types import Gallery, Hit, Outcome, Person
from indexer.vectors import index_registry, snapshot, synchronizer
from indexer.vectors.base import Header, VectorIndex
from indexer.vectors.engines import FaissEngine
from indexer.vectors.flat import FlatIndex
from indexer.vectors.index_registry import IndexRegistry
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.gallery.faces import DIM, enroll_one, make_gallery, new_face, vector
from tests.indexer.gallery.together import in_processes, in_threads
from tests.indexer.vectors.disks import limited_file_size
from tests.postgres import Database, opened

FACES = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "indexes"


@pytest.fixture
def gallery(store: Store) -> Gallery:
    """Four people with three faces each: image i is person i // 3."""
    gallery = make_gallery(store)
    store.faces.enroll(gallery, [new_face(f"p{image // 3}", image) for image in range(FACES)])
    return gallery


def top(index: VectorIndex, image: int) -> tuple[int, int]:
    """Identity and face found for the embedding of that image, when it is found."""
    [hits] = index.nearest_identities(vector(image)[None], 1)
    return (hits[0].identity_id, hits[0].face_id) if hits and hits[0].score > 0.999 else (0, 0)


def held(index: VectorIndex) -> dict[int, tuple[int, bytes]]:
    face_ids, owners, vectors = index.contents()
    assert len(set(face_ids.tolist())) == len(face_ids)
    return {f: (i, v.tobytes()) for f, i, v in zip(face_ids.tolist(), owners.tolist(), vectors, strict=True)}


def truth(store: Store, gallery: Gallery) -> dict[int, tuple[int, bytes]]:
    return {
        f: (i, v.tobytes())
        for part in store.embeddings.pages(gallery)
        for f, i, v in zip(part.face_ids.tolist(), part.identity_ids.tolist(), part.vectors, strict=True)
    }


def check_right(index: VectorIndex, store: Store, gallery: Gallery) -> None:
    assert held(index) == truth(store, gallery)


def test_the_first_time_it_is_built_from_sql(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    index = followed.catch_up()
    assert len(index) == FACES
    check_right(index, store, gallery)
    for image in range(FACES):
        identity_id, face_id = top(index, image)
        assert identity_id == store.identities.get(gallery.id, f"p{image // 3}").id
        assert face_id in {face.id for face in store.faces.list(gallery.id, f"p{image // 3}")}
    assert followed.state() == synchronizer.IndexState("exact", FACES, 16, None)


def test_it_follows_every_kind_of_change(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    index = followed.catch_up()

    new = enroll_one(store, gallery, new_face("new", 50))
    assert top(index, 50) == (0, 0)
    assert followed.catch_up() is index
    assert top(index, 50) == (store.identities.get(gallery.id, "new").id, new)

    store.faces.delete(gallery.id, new)
    assert top(followed.catch_up(), 50) == (0, 0)

    store.identities.delete(gallery.id, "p0")
    assert [top(followed.catch_up(), image) for image in range(3)] == [(0, 0)] * 3
    assert len(index) == FACES - 3

    store.identities.put(gallery.id, Person("p1", "Renamed"))
    check_right(followed.catch_up(), store, gallery)
    assert followed.state().seq == store.changes.last(gallery.id)


def test_what_came_and_went_between_two_looks(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    gone = enroll_one(store, gallery, new_face("p0", 60))
    store.faces.delete(gallery.id, gone)
    again = enroll_one(store, gallery, new_face("p1", 60))
    brief = enroll_one(store, gallery, new_face("brief", 61))
    store.identities.delete(gallery.id, "brief")
    index = followed.catch_up()
    assert top(index, 60) == (store.identities.get(gallery.id, "p1").id, again)
    assert top(index, 61) == (0, 0)
    assert not {gone, brief} & set(held(index))
    check_right(index, store, gallery)


def test_it_catches_up_in_several_steps(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store.changes.since
    limits: list[int] = []

    def few(gallery_id: int, seq: int, limit: int = 0) -> list[Change]:
        limits.append(seq)
        return whole(gallery_id, seq, 5)

    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    store.faces.enroll(gallery, [new_face("many", 100 + i) for i in range(21)])
    monkeypatch.setattr(store.changes, "since", few)
    check_right(followed.catch_up(), store, gallery)
    assert limits == [16, 21, 26, 31, 36]


def test_snapshot_and_replay(store: Store, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = SynchronizedIndex(store, gallery, folder, FaissEngine())
    first.catch_up()
    first.save()
    assert first.state().snapshot_seq == 16
    new = enroll_one(store, gallery, new_face("p9", 70))
    store.identities.delete(gallery.id, "p0")

    second = SynchronizedIndex(store, gallery, folder, FaissEngine())
    index = second.catch_up()
    check_right(index, store, gallery)
    assert top(index, 70)[1] == new
    assert second.state() == synchronizer.IndexState("exact", FACES - 2, 22, None)
    assert held(first.catch_up()) == held(index)
    assert caplog.records == []


def test_a_snapshot_is_really_used(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    followed.save()
    header, index = FaissEngine().load(folder / f"{gallery.id}.index")
    index.put(np.array([777]), np.array([888]), vector(999)[None])
    snapshot.write(folder / f"{gallery.id}.index", replace(header, faces=len(index)), index)
    assert top(SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up(), 999) == (888, 777)


def test_a_snapshot_of_an_empty_gallery(store: Store, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    gallery = make_gallery(store, "empty")
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    assert len(followed.catch_up()) == 0
    followed.save()
    assert FaissEngine().load(folder / f"{gallery.id}.index")[0].faces == 0
    again = SynchronizedIndex(store, gallery, folder, FaissEngine())
    assert len(again.catch_up()) == 0
    enroll_one(store, gallery, new_face("ana", 1))
    check_right(again.catch_up(), store, gallery)
    assert caplog.records == []


def test_rebuilding_makes_the_same(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    store.identities.delete(gallery.id, "p1")
    store.faces.enroll(gallery, [new_face(f"q{i}", 200 + i) for i in range(5)])
    replayed = followed.catch_up()
    before = held(replayed)
    queries = np.stack([vector(i) for i in (0, 3, 200, 500)])
    answers = replayed.nearest_identities(queries, 5)
    assert followed.rebuild() == FACES - 3 + 5
    rebuilt = followed.catch_up()
    assert rebuilt is not replayed
    assert held(rebuilt) == before
    assert rebuilt.nearest_identities(queries, 5) == answers
    assert followed.state().snapshot_seq == store.changes.last(gallery.id)


def test_saving_happens_by_itself_after_many_changes(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 20)
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    assert not folder.exists()
    store.faces.enroll(gallery, [new_face("p0", 300 + i) for i in range(4)])
    followed.catch_up()
    assert FaissEngine().load(folder / f"{gallery.id}.index")[0].seq == 20
    store.faces.enroll(gallery, [new_face("p0", 400 + i) for i in range(19)])
    followed.catch_up()
    assert followed.state().snapshot_seq == 20
    enroll_one(store, gallery, new_face("p0", 500))
    followed.catch_up()
    assert followed.state().snapshot_seq == 40


def test_saving_again_without_a_change_writes_nothing(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.save()
    assert not folder.exists()
    followed.catch_up()
    followed.save()
    path = folder / f"{gallery.id}.index"
    written = path.stat().st_ino
    followed.save()
    assert path.stat().st_ino == written


def _truncate(data: bytes) -> Iterator[bytes]:
    for share in range(20):
        yield data[: len(data) * share // 20]
    yield data[:-1]


def _flip(data: bytes) -> Iterator[bytes]:
    for position in range(0, len(data), len(data) // 40):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        yield bytes(damaged)


def _other(data: bytes) -> Iterator[bytes]:
    yield b""
    yield b"whosthere-index-1\n"
    yield b"\0" * len(data)
    yield b"whosthere-index-9\n" + data[18:]
    yield data + data
    yield np.random.default_rng(3).bytes(len(data))


@pytest.mark.parametrize("damage", [_truncate, _flip, _other])
def test_every_damage_is_made_good(
    store: Store,
    gallery: Gallery,
    folder: Path,
    damage: Callable[[bytes], Iterator[bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = SynchronizedIndex(store, gallery, folder, FaissEngine())
    first.catch_up()
    first.save()
    path = folder / f"{gallery.id}.index"
    for damaged in damage(path.read_bytes()):
        caplog.clear()
        path.write_bytes(damaged)
        followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
        check_right(followed.catch_up(), store, gallery)
        assert "is rebuilt" in caplog.text
        assert followed.state().snapshot_seq is None
    followed.save()
    caplog.clear()
    check_right(SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up(), store, gallery)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "change",
    [
        {"gallery_id": 4711},
        {"gallery_created": "2020-01-01T00:00:00+00:00"},
        {"fingerprint": "ffffffffffffffff"},
        {"seq": 17},
        {"mark": "2020-01-01T00:00:00+00:00 face_added 1 1"},
    ],
)
def test_a_snapshot_of_something_else_is_not_used(
    store: Store, gallery: Gallery, folder: Path, change: dict[str, int | str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whole, but of another gallery, another model, or of changes that this database does not have."""
    first = SynchronizedIndex(store, gallery, folder, FaissEngine())
    first.catch_up()
    first.save()
    path = folder / f"{gallery.id}.index"
    header, index = FaissEngine().load(path)
    index.put(np.array([777]), np.array([888]), vector(999)[None])
    snapshot.write(path, replace(header, faces=len(index), **change), index)  # type: ignore[arg-type]
    found = SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up()
    assert top(found, 999) == (0, 0)
    check_right(found, store, gallery)
    assert "is rebuilt" in caplog.text


def test_a_snapshot_of_another_width_is_not_used(store: Store, gallery: Gallery, folder: Path) -> None:
    other = FlatIndex(4)
    header = Header(gallery.id, gallery.created_at.isoformat(), gallery.fingerprint, 4, 16, "", 0)
    snapshot.write(folder / f"{gallery.id}.index", header, other)
    check_right(SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up(), store, gallery)


def test_a_folder_in_the_place_of_the_snapshot(
    store: Store, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / f"{gallery.id}.index").mkdir(parents=True)
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    check_right(followed.catch_up(), store, gallery)
    followed.save()
    assert "could not be written" in caplog.text
    assert [path.name for path in folder.iterdir()] == [f"{gallery.id}.index"]


def test_a_full_disk_costs_nothing_but_the_snapshot(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 20)
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    followed.save()
    path = folder / f"{gallery.id}.index"
    before = path.read_bytes()
    store.faces.enroll(gallery, [new_face(f"r{i}", 1000 + i) for i in range(40)])
    with limited_file_size(2048):
        check_right(followed.catch_up(), store, gallery)
        followed.save()
    assert caplog.text.count("could not be written") == 2
    assert path.read_bytes() == before
    assert [p.name for p in folder.iterdir()] == [path.name]
    assert followed.state().snapshot_seq == 16

    caplog.clear()
    check_right(SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up(), store, gallery)
    followed.save()
    assert FaissEngine().load(path)[0].seq == store.changes.last(gallery.id)
    assert caplog.text == ""


def test_a_full_disk_is_not_asked_at_every_search(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 10)
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("not a folder")
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    for _ in range(5):
        check_right(followed.catch_up(), store, gallery)
    assert caplog.text.count("could not be written") == 1
    store.faces.enroll(gallery, [new_face("p0", 300 + i) for i in range(10)])
    followed.catch_up()
    assert caplog.text.count("could not be written") == 2


def test_a_deleted_gallery(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    followed.save()
    store.galleries.delete("staff")
    for call in (
        followed.catch_up,
        followed.state,
        followed.rebuild,
        SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up,
    ):
        with pytest.raises(NotFound, match="'staff'") as caught:
            call()
        assert caught.value.code == "gallery_not_found"
    followed.delete()
    assert list(folder.iterdir()) == []
    followed.save()
    assert list(folder.iterdir()) == []


class DeletesItsGallery(Store):
    """Deletes the gallery between two queries of the same update of an index."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        read = self.changes.since

        def since(gallery_id: int, seq: int, limit: int = 10_000) -> list[Change]:
            with suppress(NotFound):
                self.galleries.delete("staff")
            return read(gallery_id, seq, limit)

        self.changes.since = since  # type: ignore[method-assign]


def test_a_gallery_deleted_while_catching_up(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(DeletesItsGallery(store.engine), gallery, folder, FaissEngine())
    followed.catch_up()
    enroll_one(store, gallery, new_face("ana", 1000))
    with pytest.raises(NotFound):
        followed.catch_up()


class LosesItsConnection(Store):
    """The database goes away in the middle of a rebuild."""

    lost = False

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        read = self.embeddings.pages

        def pages(gallery: Gallery) -> Iterator[FaceVectors]:
            yield from read(gallery)
            if self.lost:
                raise StorageUnavailable("the connection to the database was lost")

        self.embeddings.pages = pages  # type: ignore[method-assign, assignment]


def test_a_rebuild_that_fails_leaves_the_index_as_it_was(store: Store, gallery: Gallery, folder: Path) -> None:
    losing = LosesItsConnection(store.engine)
    followed = SynchronizedIndex(losing, gallery, folder, FaissEngine())
    followed.catch_up()
    new = enroll_one(store, gallery, new_face("new", 1000))
    store.identities.delete(gallery.id, "p0")
    losing.lost = True
    with pytest.raises(StorageUnavailable):
        followed.rebuild()
    losing.lost = False
    index = followed.catch_up()
    assert top(index, 1000)[1] == new
    check_right(index, store, gallery)


def test_a_gallery_made_again_under_the_same_name_does_not_see_old_faces(
    store: Store, gallery: Gallery, folder: Path
) -> None:
    indexes = IndexRegistry(store, folder, FaissEngine())
    assert len(indexes.get(gallery).catch_up()) == FACES
    indexes.save()
    store.galleries.delete("staff")
    again = make_gallery(store)
    assert len(indexes.get(again).catch_up()) == 0
    enroll_one(store, again, new_face("eve", 900))
    for followed in (indexes.get(again), IndexRegistry(store, folder, FaissEngine()).get(again)):
        index = followed.catch_up()
        assert len(index) == 1
        assert [top(index, image) for image in range(FACES)] == [(0, 0)] * FACES
        assert top(index, 900) == (store.identities.get(again.id, "eve").id, store.faces.list(again.id, "eve")[0].id)


def test_indexes_are_kept_one_a_gallery(store: Store, gallery: Gallery, folder: Path) -> None:
    other = make_gallery(store, "other")
    enroll_one(store, other, new_face("ana", 1))
    indexes = IndexRegistry(store, folder, FaissEngine())
    assert indexes.get(gallery) is indexes.get(store.galleries.get("staff"))
    assert indexes.get(gallery) is not indexes.get(other)
    indexes.get(gallery).catch_up()
    indexes.get(other).catch_up()
    indexes.save()
    assert {path.name for path in folder.iterdir()} == {f"{gallery.id}.index", f"{other.id}.index"}
    indexes.delete(other)
    assert {path.name for path in folder.iterdir()} == {f"{gallery.id}.index"}
    indexes.delete(other)


def follow_by_url(url: str, folder: str, name: str, until: int) -> tuple[dict[int, tuple[int, bytes]], int]:
    """Searches, now and then saves, until that many faces are there; what the index holds then."""
    with opened(url) as store:
        gallery = store.galleries.get(name)
        followed = SynchronizedIndex(store, gallery, Path(folder), FaissEngine())
        looks = 0
        while len(index := followed.catch_up()) < until:
            looks += 1
            if looks % 5 == 0:
                followed.save()
        followed.save()
        return held(index), looks


def enroll_by_url(url: str, folder: str, name: str, until: int) -> tuple[dict[int, tuple[int, bytes]], int]:
    with opened(url) as store:
        gallery = store.galleries.get(name)
        for image in range(2000, 2000 + until - FACES):
            enroll_one(store, gallery, new_face(f"new{image}", image))
        return truth(store, gallery), 0


def _follow_or_enroll(enrolls: bool, *rest: object) -> tuple[dict[int, tuple[int, bytes]], int]:
    return (enroll_by_url if enrolls else follow_by_url)(*rest)  # type: ignore[arg-type]


def test_two_processes_follow_while_a_third_enrols(
    store: Store, database: Database, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rest = (database.url, str(folder), gallery.name, FACES + 25)
    one, two, enrolled = in_processes(_follow_or_enroll, [(False, *rest), (False, *rest), (True, *rest)])
    assert one[0] == two[0] == enrolled[0] == truth(store, gallery)
    assert len(one[0]) == FACES + 25
    with caplog.at_level(logging.WARNING):
        check_right(SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up(), store, gallery)
    assert caplog.text == ""
    assert [path.name for path in folder.iterdir()] == [f"{gallery.id}.index"]


def test_searching_while_others_enrol_and_delete(store: Store, gallery: Gallery, folder: Path) -> None:
    """Every hit ever answered is a face that was enrolled, for the identity it was enrolled for, at its score; and
    who was there all the time is always found."""
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    done = threading.Event()
    owners: dict[int, tuple[int, int]] = {f: (i, -1) for f, (i, _) in truth(store, gallery).items()}
    for person in range(4):
        for image, stored in zip(
            range(3 * person, 3 * person + 3), store.faces.list(gallery.id, f"p{person}"), strict=True
        ):
            owners[stored.id] = (stored.identity_id, image)
    p3 = store.identities.get(gallery.id, "p3").id
    recorded = threading.Lock()

    def change(writer: int) -> list[tuple[int, list[Hit]]]:
        for i in range(12):
            image = 5000 + 100 * writer + i
            [answer] = store.faces.enroll(gallery, [new_face(f"w{writer}-{i % 3}", image)])
            assert answer.outcome is Outcome.ENROLLED
            with recorded:
                owners[answer.face_id or 0] = (answer.identity_id or 0, image)
            if i % 4 == 3:
                store.identities.delete(gallery.id, f"w{writer}-{i % 3}")
            elif i % 4 == 1:
                store.faces.delete(gallery.id, answer.face_id or 0)
        return []

    def search(seed: int) -> list[tuple[int, list[Hit]]]:
        rng = np.random.default_rng(seed)
        seen: list[tuple[int, list[Hit]]] = []
        while not done.is_set() or len(seen) < 50:
            image = int(rng.choice([*range(9, 12), *range(5000, 5012), *range(5100, 5112)]))
            index = followed.catch_up()
            [hits] = index.nearest_identities(vector(image)[None], 3)
            seen.append((image, hits))
        return seen

    def changes() -> list[tuple[int, list[Hit]]]:
        try:
            in_threads([lambda: change(0), lambda: change(1)])
        finally:
            done.set()
        return []

    _, *answers = in_threads([changes, *(lambda s=s: search(s) for s in range(3))])
    searched = [one for some in answers for one in some]
    assert len(searched) >= 150
    for image, hits in searched:
        assert len(hits) == 3
        assert len({hit.identity_id for hit in hits}) == 3
        for hit in hits:
            identity_id, of_image = owners[hit.face_id]
            assert hit.identity_id == identity_id
            assert hit.score == pytest.approx(float(vector(image) @ vector(of_image)), abs=1e-5)
        if image < 12:
            assert (hits[0].identity_id, owners[hits[0].face_id][1]) == (p3, image)
    check_right(followed.catch_up(), store, gallery)


def test_the_folder_of_the_index_may_vanish(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    followed.save()
    (folder / f"{gallery.id}.index").unlink()
    folder.rmdir()
    check_right(SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up(), store, gallery)
    assert followed.rebuild() == FACES
    assert (folder / f"{gallery.id}.index").is_file()


def test_dimensions_are_the_gallerys(store: Store, folder: Path) -> None:
    gallery = make_gallery(store, "narrow", dim=4)
    enroll_one(store, gallery, new_face("ana", 1, embedding=vector(1, 4)))
    index = SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up()
    assert index.nearest_faces(vector(1, 4)[None], 1)[0][0].score == pytest.approx(1)
    assert gallery.dim != DIM


# A restored backup


@pytest.fixture
def restored(tmp_path: Path, sqlite_template: Path) -> Iterator[tuple[Store, Gallery, Callable[[int], None]]]:
    """A gallery on SQLite, and what puts back its backup of one face and goes another way for some faces."""
    live, backup = tmp_path / "live.db", tmp_path / "backup.db"
    shutil.copy(sqlite_template, live)
    with opened(f"sqlite:///{live}") as store:
        gallery = make_gallery(store)
        enroll_one(store, gallery, new_face("first", 1))

        def copy(source: Path, target: Path) -> None:
            with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
                one.backup(other)

        copy(live, backup)

        def restore(faces: int) -> None:
            copy(backup, live)
            for i in range(faces):
                enroll_one(store, gallery, new_face(f"after{i}", 200 + i))

        enroll_one(store, gallery, new_face("lost", 100))
        yield store, gallery, restore


@pytest.mark.parametrize("faces", [0, 1, 5], ids=["behind", "at the same number", "beyond"])
def test_a_snapshot_of_before_a_restored_backup_is_not_used(
    restored: tuple[Store, Gallery, Callable[[int], None]], folder: Path, faces: int, caplog: pytest.LogCaptureFixture
) -> None:
    store, gallery, restore = restored
    before = SynchronizedIndex(store, gallery, folder, FaissEngine())
    assert len(before.catch_up()) == 2
    before.save()
    restore(faces)
    check_right(SynchronizedIndex(store, gallery, folder, FaissEngine()).catch_up(), store, gallery)
    assert "another gallery, model or database" in caplog.text


@pytest.mark.parametrize("faces", [0, 1, 5], ids=["behind", "at the same number", "beyond"])
def test_a_running_index_sees_that_a_backup_was_restored(
    restored: tuple[Store, Gallery, Callable[[int], None]], folder: Path, faces: int, caplog: pytest.LogCaptureFixture
) -> None:
    store, gallery, restore = restored
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    assert top(followed.catch_up(), 100) != (0, 0)
    followed.save()
    restore(faces)
    index = followed.catch_up()
    assert top(index, 100) == (0, 0)
    check_right(index, store, gallery)
    assert "was restored" in caplog.text
    assert not (folder / f"{gallery.id}.index").exists()
    caplog.clear()
    assert followed.catch_up() is index
    assert caplog.text == ""


def test_following_costs_one_query(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    queries: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda _c, _u, sql, *_: queries.append(sql))
    followed.catch_up()
    assert [sql.split()[0] for sql in queries if sql != "BEGIN"] == ["SELECT"]


def test_a_number_given_to_another_gallery(store: Store, gallery: Gallery, folder: Path) -> None:
    """As after a restored backup: the same number, made at another time."""
    indexes = IndexRegistry(store, folder, FaissEngine())
    followed = indexes.get(gallery)
    assert indexes.get(replace(gallery, created_at=gallery.created_at + timedelta(1))) is not followed


# A gallery that is re-embedded

OTHER = "feedfeedfeedfeed"
OTHER_DIM = 24


def other_vector(image: int, again: bool = False) -> NDArray[np.float32]:
    """The embedding of an image by another pack; `again` as another machine computes it."""
    return vector(10_000 + image + 1000 * again, OTHER_DIM)


def lay_beside(store: Store, gallery: Gallery, fingerprint: str, dim: int, again: bool = False) -> None:
    """Embeddings by another pack, for each face that has none."""
    store.reembeddings.start(gallery, "other", fingerprint, dim)
    for face in store.reembeddings.missing(gallery.id, fingerprint, 0, 1000):
        image = face.face_id
        embedding = other_vector(image) if dim == OTHER_DIM else vector(20_000 + image + again)
        store.reembeddings.put(gallery, fingerprint, [face.face_id], embedding[None])


def switch(store: Store, gallery: Gallery) -> Gallery:
    """The gallery bound to the other pack."""
    lay_beside(store, gallery, OTHER, OTHER_DIM)
    ended = store.reembeddings.switch(gallery, OTHER)
    assert ended.switched
    return ended.gallery


def test_the_index_of_a_former_pack_is_refused_and_another_takes_its_place(
    store: Store, gallery: Gallery, folder: Path
) -> None:
    indexes = IndexRegistry(store, folder, FaissEngine())
    followed = indexes.get(gallery)
    followed.catch_up()
    followed.save()
    lay_beside(store, gallery, OTHER, OTHER_DIM)
    check_right(indexes.get(store.galleries.get("staff")).catch_up(), store, gallery)
    now = switch(store, gallery)
    for stale in (followed.catch_up, followed.state, followed.rebuild, followed.compare_with_database):
        with pytest.raises(Conflict, match="'staff' was re-embedded meanwhile") as caught:
            stale()
        assert caught.value.code == "model_mismatch"
    taken = indexes.get(now)
    assert taken is not followed
    check_right(taken.catch_up(), store, now)
    assert list(indexes._indexes.values()) == [taken]
    [hits] = taken.catch_up().nearest_faces(other_vector(1)[None], 1)
    assert hits[0].score == pytest.approx(1)
    enroll_one(store, now, new_face("new", 50, embedding=other_vector(50)))
    check_right(taken.catch_up(), store, now)


def test_a_snapshot_of_a_former_pack_is_not_used(
    store: Store, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it stay on the disk, where it may hold faces that are deleted."""
    SynchronizedIndex(store, gallery, folder, FaissEngine()).rebuild()
    now = switch(store, gallery)
    again = SynchronizedIndex(store, now, folder, FaissEngine())
    check_right(again.catch_up(), store, now)
    assert "is rebuilt" in caplog.text
    assert list(folder.iterdir()) == []
    again.save()
    caplog.clear()
    check_right(SynchronizedIndex(store, now, folder, FaissEngine()).catch_up(), store, now)
    assert caplog.text == ""


def test_the_index_of_a_former_pack_leaves_the_file_of_the_one_of_now_alone(
    store: Store, gallery: Gallery, folder: Path
) -> None:
    indexes = IndexRegistry(store, folder, FaissEngine())
    indexes.get(gallery).catch_up()
    enroll_one(store, gallery, new_face("new", 50))
    now = switch(store, gallery)
    SynchronizedIndex(store, now, folder, FaissEngine()).rebuild()  # by another process
    written = (folder / f"{gallery.id}.index").read_bytes()
    indexes.get(gallery).save()
    indexes.save()
    with pytest.raises(Conflict):
        indexes.get(gallery).catch_up()
    indexes.get(now)
    assert (folder / f"{gallery.id}.index").read_bytes() == written
    assert indexes.get(now).state().snapshot_seq == store.changes.last(gallery.id)


@pytest.mark.parametrize("saved", [True, False])
def test_away_and_back_again(store: Store, gallery: Gallery, folder: Path, saved: bool) -> None:
    """The embeddings may have been computed anew meanwhile, and an index that slept through it all must not keep its
    own."""
    sleeping = SynchronizedIndex(store, gallery, folder, FaissEngine())
    sleeping.catch_up()
    if saved:
        sleeping.save()
        sleeping = SynchronizedIndex(store, gallery, folder, FaissEngine())
    now = switch(store, gallery)
    store.reembeddings.delete(gallery.id, gallery.fingerprint)
    enroll_one(store, now, new_face("new", 50, embedding=other_vector(50)))
    lay_beside(store, now, gallery.fingerprint, gallery.dim, again=True)
    assert store.reembeddings.switch(now, gallery.fingerprint).switched
    enroll_one(store, gallery, new_face("newer", 51))
    index = sleeping.catch_up()
    assert len(index) == FACES + 2
    check_right(index, store, gallery)
    assert sleeping.catch_up() is index


class SwitchesItsGallery(Store):
    """Somebody re-embeds the gallery between two queries of the same catching up."""

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
            parts = read_pages(gallery, 5)
            yield next(parts)
            self._switch(gallery, "the second part")
            yield from parts

        self.changes.since = since  # type: ignore[method-assign]
        self.embeddings.of_faces = of_faces  # type: ignore[method-assign]
        self.embeddings.pages = pages  # type: ignore[method-assign, assignment]

    def _switch(self, gallery: Gallery, now: str) -> None:
        if now == self.before and self.galleries.get("staff").fingerprint == gallery.fingerprint:
            switch(self, gallery)


@pytest.mark.parametrize("before", ["vectors", "changes", "the second part"])
def test_a_switch_in_the_middle_of_catching_up(store: Store, gallery: Gallery, folder: Path, before: str) -> None:
    """An index is never answered with that lacks faces, or holds some by the other pack."""
    switching = SwitchesItsGallery(store.engine)
    followed = SynchronizedIndex(switching, gallery, folder, FaissEngine())
    if before != "the second part":
        followed.catch_up()
    enroll_one(store, gallery, new_face("new", 50))
    switching.before = before
    with pytest.raises(Conflict, match="re-embedded"):
        followed.catch_up()
    now = store.galleries.get("staff")
    assert now.fingerprint == OTHER
    check_right(SynchronizedIndex(store, now, folder, FaissEngine()).catch_up(), store, now)


# What must not stay on the disk


def test_a_removed_face_leaves_the_disk_at_the_next_look(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    followed.save()
    path = folder / f"{gallery.id}.index"
    face_id = store.faces.list(gallery.id, "p0")[0].id
    assert vector(0).tobytes() in path.read_bytes()
    store.faces.delete(gallery.id, face_id)
    followed.catch_up()
    assert not path.exists()
    assert followed.state().snapshot_seq is None
    followed.save()
    assert vector(0).tobytes() not in path.read_bytes()
    assert vector(1).tobytes() in path.read_bytes()


def test_saving_writes_nothing_that_was_removed_meanwhile(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    store.identities.delete(gallery.id, "p0")
    followed.save()
    assert vector(0).tobytes() not in (folder / f"{gallery.id}.index").read_bytes()


def test_saving_does_not_bring_back_a_gallery_deleted_elsewhere(store: Store, gallery: Gallery, folder: Path) -> None:
    indexes = IndexRegistry(store, folder, FaissEngine())
    followed = indexes.get(gallery)
    followed.catch_up()
    followed.save()
    enroll_one(store, gallery, new_face("new", 50))
    followed.catch_up()
    store.galleries.delete("staff")
    followed.save()
    assert list(folder.iterdir()) == []
    (folder / f"{gallery.id}.index").write_bytes(b"an old one")
    (folder / f"{gallery.id}.index1x2y.tmp").write_bytes(b"what a crash left")
    (folder / "notes.txt").write_text("not ours")
    indexes.save()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert indexes._indexes == {}


def test_a_gallery_deleted_while_its_snapshot_is_written(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = snapshot.write

    def slowly(path: Path, header: Header, index: VectorIndex) -> None:
        store.galleries.delete("staff")
        write(path, header, index)

    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    followed.catch_up()
    monkeypatch.setattr(snapshot, "write", slowly)
    followed.save()
    assert list(folder.iterdir()) == []


def test_indexes_of_deleted_galleries_are_not_kept(store: Store, gallery: Gallery, folder: Path) -> None:
    indexes = IndexRegistry(store, folder, FaissEngine())
    for i in range(index_registry.SWEEP_FROM):
        made = make_gallery(store, f"brief{i}")
        indexes.get(made).catch_up()
        indexes.get(made).rebuild()
        store.galleries.delete(made.name)
    indexes.get(gallery).catch_up()
    assert len(indexes._indexes) == 1
    assert list(folder.iterdir()) == []


def test_galleries_are_not_listed_for_every_index(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []
    galleries = store.galleries.list

    def noted() -> Sequence[Gallery]:
        listed.append(len(indexes._indexes))
        return galleries()

    indexes = IndexRegistry(store, folder, FaissEngine())
    monkeypatch.setattr(store.galleries, "list", noted)
    for i in range(70):
        indexes.get(make_gallery(store, f"g{i}"))
    assert listed == [0, 16, 32, 64]


def test_what_is_kept_of_deleted_galleries_elsewhere_than_in_files_goes(
    store: Store, gallery: Gallery, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Elsewhere(FaissEngine):
        def __init__(self) -> None:
            super().__init__()
            self.kept = {gallery.id, 4711, 4712}
            self.away = True

        def stored_galleries(self) -> set[int]:
            if self.away:
                raise StorageUnavailable("it is not there")
            return set(self.kept)

        def delete(self, path: Path) -> None:
            if path == folder / "4711.index":
                raise StorageUnavailable("it does not go")
            self.kept.remove(int(path.stem))

    engine = Elsewhere()
    indexes = IndexRegistry(store, folder, engine)
    indexes.get(gallery).catch_up()
    indexes.save()
    assert "cannot be looked for: it is not there" in caplog.text
    assert (folder / f"{gallery.id}.index").exists()
    engine.away = False
    indexes.save()
    assert engine.kept == {gallery.id, 4711}
    assert "deleted gallery 4711 could not be deleted: it does not go" in caplog.text


def test_without_the_database_nothing_is_written(
    store: Store, gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost() -> list[Gallery]:
        raise StorageUnavailable("the database does not answer")

    indexes = IndexRegistry(store, folder, FaissEngine())
    indexes.get(gallery).catch_up()
    monkeypatch.setattr(store.galleries, "list", lost)
    indexes.save()
    assert not folder.exists()
    assert "not saved: the database does not answer" in caplog.text


# Comparing with SQL


def test_comparing_finds_every_difference(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    index = followed.catch_up()
    assert followed.compare_with_database() == synchronizer.DatabaseComparison(FACES, FACES, 0, None)
    faces = [store.faces.list(gallery.id, f"p{person}")[0] for person in range(3)]
    index.put(np.array([faces[0].id]), np.array([faces[0].identity_id]), vector(999)[None])  # another vector
    index.put(np.array([faces[1].id]), np.array([4711]), vector(3)[None])  # another person
    index.put(np.array([4712]), np.array([4711]), vector(998)[None])  # nobody's
    index.remove([faces[2].id])
    assert followed.compare_with_database() == synchronizer.DatabaseComparison(FACES, FACES, 4, None)


def test_comparing_while_others_enrol_and_delete(store: Store, gallery: Gallery, folder: Path) -> None:
    def pages(gallery: Gallery) -> Iterator[FaceVectors]:
        for i, part in enumerate(read(gallery, 3)):
            if i < 3:
                enroll_one(store, gallery, new_face("p9", 300 + i))
                store.identities.delete(gallery.id, f"p{3 - i}")
            yield part

    SynchronizedIndex(store, gallery, folder, FaissEngine()).rebuild()
    moving = Store(store.engine)
    read = moving.embeddings.pages
    moving.embeddings.pages = pages  # type: ignore[method-assign, assignment]
    followed = SynchronizedIndex(moving, gallery, folder, FaissEngine())
    assert followed.compare_with_database().different == 0


def test_a_gallery_deleted_while_comparing(store: Store, gallery: Gallery, folder: Path) -> None:
    followed = SynchronizedIndex(DeletesItsGallery(store.engine), gallery, folder, FaissEngine())
    index = followed.catch_up()
    index.remove(index.face_ids().tolist()[:1])  # so that the log is asked
    with pytest.raises(NotFound):
        followed.compare_with_database()


def test_comparing_tells_of_a_snapshot_of_no_use(store: Store, gallery: Gallery, folder: Path) -> None:
    SynchronizedIndex(store, gallery, folder, FaissEngine()).rebuild()
    path = folder / f"{gallery.id}.index"
    path.write_bytes(path.read_bytes()[:-1])
    followed = SynchronizedIndex(store, gallery, folder, FaissEngine())
    assert followed.compare_with_database() == synchronizer.DatabaseComparison(FACES, FACES, 0, f"{path} is damaged")
    followed.save()
    assert followed.compare_with_database().snapshot_problem is None
