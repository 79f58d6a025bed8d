"""Tests of merging two identities: faces, names, metadata and indexes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from indexer.errors import InvalidRequest, NotFound
from indexer.gallery.change_log import ChangeKind, Entry
from indexer.gallery.export_reader import snapshot_of
from indexer.gallery.store import Store
from indexer.types import Gallery, Outcome, Person, Tier
from indexer.vectors.base import VectorIndex
from indexer.vectors.engines import FaissEngine
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.gallery.faces import enroll_one, image_hash, make_gallery, new_face, vector
from tests.postgres import Database, opened

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def owner(index: VectorIndex, image: int) -> int:
    """Returns the identity that the index finds for the embedding of that image."""
    [[hit]] = index.nearest_identities(vector(image)[None], 1)
    assert hit.score > 0.999
    return hit.identity_id


def test_merge_moves_faces_and_deletes_the_other_identity(store: Store, gallery: Gallery) -> None:
    first = enroll_one(store, gallery, new_face("ana", 1))
    moved = [enroll_one(store, gallery, new_face("ana-2", image)) for image in (2, 3)]
    separate = enroll_one(store, gallery, new_face("ben", 4))
    kept, removed = (store.identities.get(gallery.id, name) for name in ("ana", "ana-2"))
    before = store.changes.last(gallery.id) or 0
    merged, faces = store.identities.merge(gallery.id, "ana", "ana-2")
    assert (merged.id, merged.external_id, merged.faces, faces) == (kept.id, "ana", 3, 2)
    assert merged == store.identities.get(gallery.id, "ana")
    assert [face.id for face in store.faces.list(gallery.id, "ana")] == [first, *moved]
    assert [face.id for face in store.faces.list(gallery.id, "ben")] == [separate]
    with pytest.raises(NotFound, match="'ana-2'"):
        store.identities.get(gallery.id, "ana-2")
    assert store.galleries.counts(gallery.id) == (2, 4)
    assert {face.external_id for face in store.faces.known_images(gallery.id, map(image_hash, (1, 2, 3))).values()} == {
        "ana"
    }
    assert [change.entry for change in store.changes.since(gallery.id, before)] == [
        *(Entry(ChangeKind.FACE_ADDED, kept.id, face_id) for face_id in moved),
        Entry(ChangeKind.IDENTITY_REMOVED, removed.id),
    ]
    vectors = store.embeddings.of_faces(gallery, moved)
    assert vectors.identity_ids.tolist() == [kept.id] * 2
    assert np.array_equal(vectors.vectors, np.stack([vector(2), vector(3)]))


@pytest.mark.parametrize(
    ("into", "other", "expected"),
    [
        (Person("a"), Person("b"), Person("a")),
        (Person("a", "Ana"), Person("b", "Anna"), Person("a", "Ana")),
        (Person("a"), Person("b", "Anna"), Person("a", "Anna")),
        (
            Person("a", metadata={"team": "red", "floor": None}),
            Person("b", metadata={"team": "blue", "floor": 2, "desk": [1]}),
            Person("a", metadata={"team": "red", "floor": None, "desk": [1]}),
        ),
        (Person("a"), Person("b", None, NOON, NOON + DAY), Person("a")),
        (Person("a", None, NOON), Person("b", None, None, NOON - DAY), Person("a", None, NOON)),
    ],
)
def test_merge_joins_name_and_metadata(
    store: Store, gallery: Gallery, into: Person, other: Person, expected: Person
) -> None:
    before, _ = store.identities.put(gallery.id, into)
    store.identities.put(gallery.id, other)
    last = store.changes.last(gallery.id) or 0
    merged, faces = store.identities.merge(gallery.id, "a", "b")
    assert faces == 0
    assert merged == store.identities.get(gallery.id, "a")
    joined = Person(merged.external_id, merged.name, merged.valid_from, merged.valid_until, merged.metadata)
    assert joined == expected
    changed = [c.entry.kind for c in store.changes.since(gallery.id, last)]
    if expected == into:
        assert changed == [ChangeKind.IDENTITY_REMOVED]
        assert merged.updated_at == before.updated_at
    else:
        assert changed == [ChangeKind.IDENTITY_CHANGED, ChangeKind.IDENTITY_REMOVED]
        assert merged.updated_at > before.updated_at


def test_invalid_merge_changes_nothing(store: Store) -> None:
    gallery, elsewhere = make_gallery(store), make_gallery(store, "visitors")
    enroll_one(store, gallery, new_face("ana", 1))
    enroll_one(store, elsewhere, new_face("ben", 2))
    last = store.changes.last(gallery.id)
    with pytest.raises(InvalidRequest, match="'ana' cannot be merged with itself"):
        store.identities.merge(gallery.id, "ana", "ana")
    for into, other in (("ana", "ben"), ("ben", "ana")):
        with pytest.raises(NotFound, match="'ben'"):
            store.identities.merge(gallery.id, into, other)
    assert store.changes.last(gallery.id) == last
    assert store.galleries.counts(gallery.id) == store.galleries.counts(elsewhere.id) == (1, 1)


def test_failed_merge_is_rolled_back(database: Database) -> None:
    with opened(database.url) as store:
        gallery = make_gallery(store)
        enroll_one(store, gallery, new_face("ana", 1))
        enroll_one(store, gallery, new_face("ana-2", 2))
        last = store.changes.last(gallery.id)

        def fail(connection: object, cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("DELETE FROM identities"):
                raise KeyboardInterrupt

        event.listen(store.engine, "before_cursor_execute", fail)
        with pytest.raises(KeyboardInterrupt):
            store.identities.merge(gallery.id, "ana", "ana-2")
        event.remove(store.engine, "before_cursor_execute", fail)
        assert store.changes.last(gallery.id) == last
        assert [store.identities.get(gallery.id, name).faces for name in ("ana", "ana-2")] == [1, 1]


def test_merged_photos_are_known_images_of_the_remaining_identity(store: Store, gallery: Gallery) -> None:
    """Enrolling the folder of the removed id again does not create that identity again."""
    enroll_one(store, gallery, new_face("ana", 1))
    enroll_one(store, gallery, new_face("ana-2", 2))
    store.identities.merge(gallery.id, "ana", "ana-2")
    [again] = store.faces.enroll(gallery, [new_face("ana-2", 2)])
    assert (again.outcome, again.owner) == (Outcome.REJECTED, "ana")
    assert store.galleries.counts(gallery.id) == (1, 2)


def test_merge_keeps_other_embeddings_and_exports(database: Database) -> None:
    with opened(database.url) as store:
        gallery = make_gallery(store)
        enroll_one(store, gallery, new_face("ana", 1))
        moved = enroll_one(store, gallery, new_face("ana-2", 2, crop=b"crop"))
        store.reembeddings.start(gallery, "other", "fedcba9876543210", 4)
        store.reembeddings.put(gallery, "fedcba9876543210", [moved], np.eye(4, dtype=np.float32)[:1])
        store.identities.merge(gallery.id, "ana", "ana-2")
        missing = store.reembeddings.missing(gallery.id, "fedcba9876543210", 0, 10)
        assert [(face.external_id, face.image_sha256) for face in missing] == [("ana", image_hash(1))]
        with snapshot_of(store.engine, "staff") as snapshot:
            exported = [(one.person.external_id, one.face and one.face.image_sha256) for one in snapshot.records]
        assert exported == [("ana", image_hash(1)), ("ana", image_hash(2))]


def synchronized(store: Store, gallery: Gallery, folder: Path, tier: Tier) -> SynchronizedIndex:
    return SynchronizedIndex(store, gallery, folder, FaissEngine(tier))


@pytest.mark.parametrize("tier", [Tier.EXACT, Tier.COMPRESSED])
def test_indexes_follow_a_merge(store: Store, gallery: Gallery, tmp_path: Path, tier: Tier) -> None:
    """Covers two processes with the same index files, one with its own files, and one that loads stored files."""
    store.faces.enroll(gallery, [new_face(f"p{image // 2}", image) for image in range(40)])
    mine, theirs = (synchronized(store, gallery, tmp_path / "shared", tier) for _ in range(2))
    separate = synchronized(store, gallery, tmp_path / "separate", tier)
    mine.catch_up()
    mine.save()
    theirs.catch_up()
    separate.catch_up()
    separate.save()
    kept, removed = (store.identities.get(gallery.id, name).id for name in ("p3", "p7"))
    assert owner(mine.catch_up(), 14) == owner(theirs.catch_up(), 14) == removed
    store.identities.merge(gallery.id, "p3", "p7")
    for index in (mine, theirs, separate, synchronized(store, gallery, tmp_path / "shared", tier)):
        assert [owner(index.catch_up(), image) for image in (6, 7, 14, 15)] == [kept] * 4
        assert owner(index.catch_up(), 16) == store.identities.get(gallery.id, "p8").id
        compared = index.compare_with_database()
        assert (compared.in_database, compared.in_index, compared.different) == (40, 40, 0)
        assert removed not in index.catch_up().contents()[1].tolist()
    store.identities.delete(gallery.id, "p3")
    for index in (mine, theirs, separate):
        assert len(index.catch_up()) == 36
    separate.save()
    again = synchronized(store, gallery, tmp_path / "separate", tier)
    assert len(again.catch_up()) == 36
    assert again.compare_with_database().different == 0
