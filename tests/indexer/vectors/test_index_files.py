"""Index files are used when they are intact and of this gallery, and never keep removed faces."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from indexer.errors import InvalidSetting
from indexer.types import Tier
from indexer.vectors import compressed, gpu, mapped_file, snapshot, synchronizer
from indexer.vectors.base import Header
from indexer.vectors.engines import FaissEngine
from indexer.vectors.flat import FlatIndex
from indexer.vectors.index_registry import IndexRegistry
from indexer.vectors.synchronizer import IndexState
from tests.indexer.gallery.faces import enroll_one, make_gallery, new_face, vector
from tests.indexer.vectors.indexed_gallery import (
    CHANGES,
    FACES,
    MAX_EXACT,
    ON_SQLITE,
    IndexedGallery,
    best_match,
    contents_of,
    half,
    is_compressed,
)

# Snapshots


def test_snapshot_is_loaded_and_later_changes_replayed(
    indexed: IndexedGallery, caplog: pytest.LogCaptureFixture
) -> None:
    first = indexed.open()
    first.catch_up()
    first.save()
    assert first.state().snapshot_seq == CHANGES
    new = indexed.enroll_one("new", 70)
    indexed.delete_person("p0")
    second = indexed.open()
    index = second.catch_up()
    indexed.check(index)
    assert best_match(index, 70)[1] == new
    assert second.state() == IndexState("exact", FACES - 1, CHANGES + 5, None)
    assert contents_of(first.catch_up()) == contents_of(index)
    assert caplog.records == []


def test_compressed_file_is_mapped_and_later_changes_replayed(
    indexed: IndexedGallery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed.open(Tier.COMPRESSED).rebuild()
    indexed.enroll(range(100, 104))
    indexed.delete_person("p1")
    monkeypatch.setattr(compressed, "build", None)  # nothing is built
    for _ in range(2):
        again = indexed.open(Tier.COMPRESSED)
        indexed.check(again.catch_up())
        assert again.state().checked is not None
        again.save()
    assert caplog.text == ""


def write_snapshot_with_another_face(indexed: IndexedGallery, **changes: int | str) -> None:
    indexed.open().rebuild()
    header, index = FaissEngine().load(indexed.path)
    index.put(np.array([777]), np.array([888]), vector(999)[None])
    snapshot.write(indexed.path, replace(header, faces=len(index), **changes), index)  # type: ignore[arg-type]


def test_snapshot_is_used_without_reading_the_faces_from_sql(indexed: IndexedGallery) -> None:
    write_snapshot_with_another_face(indexed)
    assert best_match(indexed.open().catch_up(), 999) == (888, 777)


@pytest.mark.parametrize(
    "change",
    [
        {"gallery_id": 4711},
        {"gallery_created": "2020-01-01T00:00:00+00:00"},
        {"fingerprint": "ffffffffffffffff"},
        {"seq": CHANGES + 1},
        {"mark": "2020-01-01T00:00:00+00:00 face_added 1 1"},
    ],
)
def test_snapshot_of_another_gallery_model_or_history_is_not_used(
    indexed: IndexedGallery, change: dict[str, int | str], caplog: pytest.LogCaptureFixture
) -> None:
    write_snapshot_with_another_face(indexed, **change)
    index = indexed.open().catch_up()
    assert best_match(index, 999) == (0, 0)
    indexed.check(index)
    assert "is rebuilt" in caplog.text


def test_snapshot_of_another_dimension_is_not_used(indexed: IndexedGallery) -> None:
    gallery = indexed.gallery
    header = Header(gallery.id, gallery.created_at.isoformat(), gallery.fingerprint, 4, CHANGES, "", 0)
    snapshot.write(indexed.path, header, FlatIndex(4))
    indexed.check_reopened()


@ON_SQLITE
def test_compressed_file_of_another_gallery_is_not_used(
    indexed: IndexedGallery, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_gallery(indexed.store, "other")
    enroll_one(indexed.store, other, new_face("eve", 900))
    registry = IndexRegistry(indexed.store, indexed.folder, FaissEngine(Tier.COMPRESSED))
    registry.get(indexed.gallery).rebuild()
    shutil.copy(indexed.path, indexed.folder / f"{other.id}.index")
    IndexedGallery(indexed.store, indexed.folder, other).check(registry.get(other).catch_up())
    assert "is of another gallery, model or database" in caplog.text


def test_empty_gallery_has_a_snapshot(indexed: IndexedGallery, caplog: pytest.LogCaptureFixture) -> None:
    empty = IndexedGallery(indexed.store, indexed.folder, make_gallery(indexed.store, "empty"))
    synchronized = empty.open()
    assert len(synchronized.catch_up()) == 0
    synchronized.save()
    assert FaissEngine().load(empty.path)[0].faces == 0
    again = empty.open()
    assert len(again.catch_up()) == 0
    empty.enroll_one("ana", 1)
    empty.check(again.catch_up())
    assert caplog.records == []


def test_snapshot_is_saved_after_many_changes(indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", CHANGES + 4)
    synchronized = indexed.open(Tier.EXACT)
    synchronized.catch_up()
    assert not indexed.folder.exists()
    for images, expected in ((range(300, 302), None), (range(302, 304), CHANGES + 6), (range(304, 306), CHANGES + 6)):
        indexed.enroll(images)
        synchronized.update()
        assert synchronized.state().snapshot_seq == expected
    assert FaissEngine().load(indexed.path)[0].seq == CHANGES + 6


def test_saving_again_without_a_change_writes_nothing(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    synchronized.save()
    assert not indexed.folder.exists()
    synchronized.catch_up()
    synchronized.save()
    written = indexed.path.stat().st_ino
    synchronized.save()
    assert indexed.path.stat().st_ino == written


@ON_SQLITE
def test_compressed_file_is_not_written_again_after_many_changes(
    indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 4)
    synchronized = indexed.open(Tier.COMPRESSED)
    index = synchronized.catch_up()
    written, seq = indexed.path.stat().st_ino, synchronized.state().snapshot_seq
    indexed.enroll(range(100, 108))
    assert synchronized.catch_up() is index
    synchronized.save()
    assert indexed.path.stat().st_ino == written
    assert synchronized.state().snapshot_seq == seq


@ON_SQLITE
def test_configured_tier_replaces_the_file_of_another(indexed: IndexedGallery) -> None:
    for tier, kind in ((Tier.COMPRESSED, "compressed"), (Tier.EXACT, "exact"), (Tier.COMPRESSED, "compressed")):
        synchronized = indexed.open(tier)
        assert synchronized.catch_up().kind == kind
        indexed.check(synchronized.catch_up())
        synchronized.save()
    indexed.enroll(range(100, 100 + MAX_EXACT))
    exact = indexed.open(Tier.EXACT)
    exact.catch_up()
    exact.save()
    assert exact.catch_up().kind == "exact"
    auto = indexed.open()
    assert auto.catch_up().kind == "exact"  # at once, from the file
    indexed.check(indexed.search_until(auto, is_compressed))


@pytest.mark.skipif(gpu.unavailable_reason() is None, reason="there is a GPU")
def test_unavailable_gpu_is_an_invalid_setting() -> None:
    with pytest.raises(InvalidSetting, match="WHOSTHERE_VECTORS is gpu, which is not available: "):
        FaissEngine(Tier.GPU)


# Removed faces


def test_removed_face_leaves_an_exact_snapshot(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    synchronized.catch_up()
    synchronized.save()
    assert vector(0).tobytes() in indexed.path.read_bytes()
    indexed.delete_face(indexed.face_ids("p0")[0])
    synchronized.catch_up()
    assert not indexed.path.exists()
    assert synchronized.state().snapshot_seq is None
    synchronized.save()
    assert vector(0).tobytes() not in indexed.path.read_bytes()
    assert vector(1).tobytes() in indexed.path.read_bytes()


def test_save_writes_no_face_that_was_removed_meanwhile(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    synchronized.catch_up()
    indexed.delete_person("p0")
    synchronized.save()
    assert vector(0).tobytes() not in indexed.path.read_bytes()


def test_removed_face_is_erased_from_a_compressed_file_for_good(indexed: IndexedGallery) -> None:
    synchronized = indexed.open(Tier.COMPRESSED)
    synchronized.catch_up()
    base = mapped_file.read(indexed.path)
    rows = np.flatnonzero(np.isin(base.face_ids, indexed.face_ids("p3")))
    secrets = [array[row].tobytes() for array in (base.vectors, base.codes) for row in rows]
    assert all(secret in indexed.path.read_bytes() for secret in secrets)
    indexed.delete_person("p3")
    indexed.check(synchronized.catch_up())
    assert not any(secret in indexed.path.read_bytes() for secret in secrets)
    for rebuilds in (False, True, False):
        again = indexed.open(Tier.COMPRESSED)
        if rebuilds:
            again.rebuild()
        indexed.check(again.catch_up())
        assert not any(secret in indexed.path.read_bytes() for secret in secrets)


def test_removed_face_is_erased_from_the_file_of_another_process(indexed: IndexedGallery) -> None:
    synchronized = indexed.open(Tier.COMPRESSED)
    synchronized.catch_up()
    indexed.enroll(range(100, 104))
    synchronized.catch_up()
    indexed.open(Tier.COMPRESSED).rebuild()  # by a process that has ended
    for image, person in ((0, "p0"), (100, "p50")):
        assert half(image) in indexed.path.read_bytes()
        indexed.delete_person(person)
        indexed.check(synchronized.catch_up())
        assert half(image) not in indexed.path.read_bytes()
    indexed.check_reopened(Tier.COMPRESSED)
