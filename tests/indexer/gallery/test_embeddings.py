"""Tests of embeddings, and of re-embedding a gallery by another pack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from indexer.errors import Conflict, InvalidVector, NotFound
from indexer.gallery import reembeddings
from indexer.gallery.change_log import ChangeKind, Entry
from indexer.gallery.reembeddings import OtherPack, SwitchResult
from indexer.gallery.store import Store
from indexer.types import Box, Gallery, Outcome, Person
from tests.indexer.gallery.faces import DIM, enroll_one, image_hash, make_gallery, new_face, vector
from tests.indexer.gallery.together import in_threads
from tests.postgres import Database, connected

OTHER = "feedfeedfeedfeed"
OTHER_DIM = 8
FACES = 7


@pytest.fixture
def gallery(store: Store) -> Gallery:
    """Image i is person i // 2."""
    gallery = make_gallery(store)
    store.faces.enroll(gallery, [new_face(f"p{image // 2}", image) for image in range(FACES)])
    return store.galleries.get("staff")


def face_ids(store: Store, gallery: Gallery) -> list[int]:
    return [face_id for part in store.embeddings.pages(gallery) for face_id in part.face_ids.tolist()]


def put(store: Store, gallery: Gallery, ids: list[int]) -> None:
    """Stores a different vector for each face."""
    store.reembeddings.put(gallery, OTHER, ids, np.stack([vector(face_id, OTHER_DIM) for face_id in ids]))


def embed_with_other_pack(store: Store, gallery: Gallery) -> list[int]:
    """Stores embeddings of every face by the other pack and returns the faces' ids."""
    store.reembeddings.start(gallery, "other", OTHER, OTHER_DIM)
    ids = face_ids(store, gallery)
    put(store, gallery, ids)
    return ids


def query(database: Database, sql: str) -> list[tuple[Any, ...]]:
    with connected(database.url) as engine, engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(sql))]


def rows(database: Database, table: str) -> int:
    [(count,)] = query(database, f"SELECT count(*) FROM {table}")
    return int(count)


def test_gallery_is_switched_to_another_pack_and_back(store: Store, gallery: Gallery) -> None:
    ids, before = embed_with_other_pack(store, gallery), store.embeddings.of_faces(gallery, face_ids(store, gallery))
    assert store.galleries.get("staff") == gallery
    last = store.changes.last(gallery.id) or 0
    result = store.reembeddings.switch(gallery, OTHER)
    now = store.galleries.get("staff")
    assert (result.switched, result.missing, result.newer, result.gallery) == (True, 0, False, now)
    assert (now.id, now.model, now.fingerprint, now.dim) == (gallery.id, "other", OTHER, OTHER_DIM)
    [change] = store.changes.since(gallery.id, last)
    assert change.entry == Entry(ChangeKind.REEMBEDDED, 0)
    found = store.embeddings.of_faces(now, ids)
    assert np.array_equal(found.vectors, np.stack([vector(face_id, OTHER_DIM) for face_id in ids]))
    [former] = store.reembeddings.packs(gallery.id)
    assert (former.model, former.fingerprint, former.was_bound) == (gallery.model, gallery.fingerprint, True)
    assert store.reembeddings.count(gallery.id, former.fingerprint) == FACES

    assert store.reembeddings.switch(now, gallery.fingerprint).switched
    bound = store.galleries.get("staff")
    assert (bound.model, bound.fingerprint, bound.dim) == (gallery.model, gallery.fingerprint, DIM)
    again = store.embeddings.of_faces(gallery, ids)
    assert again.vectors.tobytes() == before.vectors.tobytes()
    assert [pack.fingerprint for pack in store.reembeddings.packs(gallery.id)] == [OTHER]


def test_gallery_read_before_switch_is_rejected(store: Store, gallery: Gallery) -> None:
    """A gallery object from before the switch can neither read nor write embeddings."""
    ids = embed_with_other_pack(store, gallery)
    now = store.reembeddings.switch(gallery, OTHER).gallery
    last = store.changes.last(gallery.id)
    for stale in (
        lambda: store.faces.enroll(gallery, [new_face("late", 50)]),
        lambda: store.embeddings.of_faces(gallery, ids),
        lambda: next(store.embeddings.pages(gallery)),
        lambda: store.reembeddings.start(gallery, "third", "cafe", 4),
        lambda: put(store, gallery, ids),
        lambda: store.reembeddings.switch(gallery, OTHER),
    ):
        with pytest.raises(Conflict, match=r"'staff' was re-embedded meanwhile.* run it again") as caught:
            stale()
        assert caught.value.code == "model_mismatch"
    assert store.changes.last(gallery.id) == last
    [enrolled] = store.faces.enroll(now, [new_face("late", 50, embedding=vector(50, OTHER_DIM))])
    assert enrolled.outcome is Outcome.ENROLLED


def test_switch_while_pages_are_read_raises_conflict(store: Store, gallery: Gallery) -> None:
    """Embeddings of two packs are never mixed."""
    embed_with_other_pack(store, gallery)
    parts: Iterator[object] = store.embeddings.pages(gallery, size=3)
    next(parts)
    store.reembeddings.switch(gallery, OTHER)
    with pytest.raises(Conflict, match="re-embedded"):
        next(parts)


def test_empty_gallery_can_be_switched(store: Store) -> None:
    gallery = make_gallery(store)
    assert list(store.embeddings.pages(gallery)) == []
    store.reembeddings.start(gallery, "other", OTHER, OTHER_DIM)
    assert store.reembeddings.switch(gallery, OTHER).switched
    with pytest.raises(Conflict):
        list(store.embeddings.pages(gallery))
    with pytest.raises(Conflict):
        store.embeddings.of_faces(gallery, [4711])


def test_faces_without_embedding_prevent_switch(store: Store, gallery: Gallery) -> None:
    store.reembeddings.start(gallery, "other", OTHER, OTHER_DIM)
    ids = face_ids(store, gallery)
    put(store, gallery, ids[2:])
    assert [face.face_id for face in store.reembeddings.missing(gallery.id, OTHER, 0, 10)] == ids[:2]
    assert store.reembeddings.switch(gallery, OTHER, {ids[0]}, drop_missing=True) == SwitchResult(
        gallery, False, 0, True
    )
    assert store.reembeddings.switch(gallery, OTHER, {*ids[:2]}) == SwitchResult(gallery, False, 2)
    assert store.galleries.get("staff") == gallery
    assert face_ids(store, gallery) == ids


@pytest.mark.parametrize("at_once", [1, 2, 500])
def test_dropped_faces_are_recorded_in_change_log(
    store: Store, gallery: Gallery, at_once: int, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    monkeypatch.setattr(reembeddings, "MAX_QUERY_VALUES", at_once)
    store.reembeddings.start(gallery, "other", OTHER, OTHER_DIM)
    ids = face_ids(store, gallery)
    put(store, gallery, ids[3:])
    owners = [store.faces.get(gallery.id, face_id).identity_id for face_id in ids[:3]]
    last = store.changes.last(gallery.id) or 0
    ended = store.reembeddings.switch(gallery, OTHER, set(ids), drop_missing=True)
    assert (ended.switched, ended.missing) == (True, 3)
    assert ended.gallery == store.galleries.get("staff")
    changes = store.changes.since(gallery.id, last)
    assert [change.seq for change in changes] == list(range(last + 1, last + 5))
    removed = [Entry(ChangeKind.FACE_REMOVED, owner, face_id) for owner, face_id in zip(owners, ids[:3], strict=True)]
    assert [change.entry for change in changes] == [*removed, Entry(ChangeKind.REEMBEDDED, 0)]
    assert store.galleries.counts(gallery.id) == (4, FACES - 3)
    assert store.identities.get(gallery.id, "p0").faces == 0
    assert rows(database, "embeddings") == 2 * (FACES - 3)


def test_missing_returns_faces_with_box_and_crop(store: Store) -> None:
    gallery = make_gallery(store)
    kept = new_face("ana", 1, crop=b"a file")
    answers = store.faces.enroll(gallery, [kept, new_face("bob", 2)])
    ana, bob = store.reembeddings.missing(gallery.id, OTHER, 0, 10)
    assert [ana.face_id, bob.face_id] == [answer.face_id for answer in answers]
    assert (ana.external_id, ana.image_sha256, ana.box, ana.crop) == (
        "ana",
        image_hash(1),
        Box(10.25, 20.5, 80.0, 100.75),
        b"a file",
    )
    assert (bob.external_id, bob.crop) == ("bob", None)
    assert [face.face_id for face in store.reembeddings.missing(gallery.id, OTHER, ana.face_id, 10)] == [bob.face_id]
    assert [face.face_id for face in store.reembeddings.missing(gallery.id, OTHER, 0, 1)] == [ana.face_id]


def test_deleting_a_face_deletes_its_embeddings_and_crop(store: Store, database: Database) -> None:
    gallery = make_gallery(store)
    ids = [enroll_one(store, gallery, new_face(f"p{i // 2}", i, crop=bytes(100))) for i in range(5)]
    embed_with_other_pack(store, gallery)
    assert (rows(database, "crops"), rows(database, "embeddings")) == (5, 10)
    store.faces.delete(gallery.id, ids[0])
    assert (rows(database, "crops"), rows(database, "embeddings")) == (4, 8)
    store.identities.delete(gallery.id, "p1")
    assert (rows(database, "crops"), rows(database, "embeddings")) == (2, 4)
    store.galleries.delete("staff")
    assert [rows(database, table) for table in ("crops", "embeddings", "reembeddings")] == [0, 0, 0]


def test_put_skips_deleted_and_embedded_faces(store: Store, gallery: Gallery) -> None:
    store.reembeddings.start(gallery, "other", OTHER, OTHER_DIM)
    ids = face_ids(store, gallery)
    put(store, gallery, ids[:3])
    store.faces.delete(gallery.id, ids[4])
    store.reembeddings.put(gallery, OTHER, [*ids, 4711], np.stack([vector(99, OTHER_DIM)] * (FACES + 1)))
    now = store.reembeddings.switch(gallery, OTHER).gallery
    found = store.embeddings.of_faces(now, ids)
    assert found.face_ids.tolist() == [*ids[:4], *ids[5:]]
    expected = [*(vector(face_id, OTHER_DIM) for face_id in ids[:3]), *[vector(99, OTHER_DIM)] * 3]
    assert np.array_equal(found.vectors, np.stack(expected))


def test_starting_reembedding_again_keeps_embeddings(store: Store, gallery: Gallery, database: Database) -> None:
    ids = embed_with_other_pack(store, gallery)
    [before] = query(database, "SELECT * FROM reembeddings")
    store.reembeddings.start(gallery, "other", OTHER, OTHER_DIM)
    assert query(database, "SELECT * FROM reembeddings") == [before]
    assert store.reembeddings.packs(gallery.id) == [OtherPack("other", OTHER, was_bound=False)]
    assert store.reembeddings.count(gallery.id, OTHER) == len(ids) == FACES
    with pytest.raises(Conflict, match="bound to sface 0123456789abcdef already"):
        store.reembeddings.start(gallery, gallery.model, gallery.fingerprint, gallery.dim)


def test_put_rejects_invalid_embeddings(store: Store, gallery: Gallery) -> None:
    store.reembeddings.start(gallery, "other", OTHER, OTHER_DIM)
    [first, *_] = face_ids(store, gallery)
    for bad in (vector(1, DIM)[None], 2 * vector(1, OTHER_DIM)[None], np.full((1, OTHER_DIM), np.nan, np.float32)):
        with pytest.raises(InvalidVector):
            store.reembeddings.put(gallery, OTHER, [first], bad)
    assert store.reembeddings.count(gallery.id, OTHER) == 0


def test_delete_removes_embeddings_of_another_pack(
    store: Store, gallery: Gallery, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembeddings, "MAX_QUERY_VALUES", 2)
    other = make_gallery(store, "another")
    enroll_one(store, other, new_face("ana", 1))
    embed_with_other_pack(store, other)
    ids = embed_with_other_pack(store, gallery)
    assert store.reembeddings.delete(gallery.id, OTHER) == FACES
    assert store.reembeddings.packs(gallery.id) == []
    assert store.reembeddings.delete(gallery.id, OTHER) == 0
    assert [pack.fingerprint for pack in store.reembeddings.packs(other.id)] == [OTHER]
    assert (store.reembeddings.count(gallery.id, OTHER), store.reembeddings.count(other.id, OTHER)) == (0, 1)
    assert rows(database, "embeddings") == FACES + 2
    assert len(store.embeddings.of_faces(gallery, ids).face_ids) == FACES
    for late in (lambda: put(store, gallery, ids), lambda: store.reembeddings.switch(gallery, OTHER)):
        with pytest.raises(Conflict, match="deleted meanwhile"):
            late()


def test_embeddings_of_own_pack_cannot_be_deleted(store: Store, gallery: Gallery) -> None:
    embed_with_other_pack(store, gallery)
    now = store.reembeddings.switch(gallery, OTHER).gallery
    with pytest.raises(Conflict, match="bound to other feedfeedfeedfeed: its embeddings cannot be deleted"):
        store.reembeddings.delete(gallery.id, OTHER)
    assert store.reembeddings.delete(gallery.id, gallery.fingerprint) == FACES
    assert len(face_ids(store, now)) == FACES
    with pytest.raises(NotFound):
        store.reembeddings.delete(4711, OTHER)


def test_one_of_two_concurrent_switches_succeeds(store: Store, gallery: Gallery) -> None:
    embed_with_other_pack(store, gallery)

    def attempt() -> bool:
        try:
            return store.reembeddings.switch(gallery, OTHER).switched
        except Conflict:
            return False

    assert sorted(in_threads([attempt] * 3)) == [False, False, True]


def test_enrollment_continues_during_reembedding(store: Store, gallery: Gallery) -> None:
    embed_with_other_pack(store, gallery)
    new = enroll_one(store, gallery, new_face("new", 60))
    store.identities.put(gallery.id, Person("new", "New"))
    assert np.array_equal(store.embeddings.of_faces(gallery, [new]).vectors, vector(60)[None])
    assert [face.face_id for face in store.reembeddings.missing(gallery.id, OTHER, 0, 10)] == [new]
    assert store.reembeddings.switch(gallery, OTHER).newer
