"""Tests of creating, listing and deleting galleries."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from indexer.errors import Conflict, InvalidRequest, NotFound
from indexer.gallery.schema import GalleryRow
from indexer.gallery.store import Store
from indexer.types import Person
from tests.indexer.gallery.faces import enroll_one, image_hash, make_gallery, new_face


def test_created_gallery_can_be_read(store: Store) -> None:
    before = datetime.now(UTC)
    gallery = store.galleries.create("Köln-Süd 東京", "sface", "49f000ec501fef24", 128)
    assert (gallery.name, gallery.model, gallery.fingerprint) == ("Köln-Süd 東京", "sface", "49f000ec501fef24")
    assert (gallery.dim, gallery.seq) == (128, 0)
    assert before <= gallery.created_at <= datetime.now(UTC)
    assert gallery.created_at.utcoffset() == UTC.utcoffset(None)
    assert store.galleries.get("Köln-Süd 東京") == gallery
    assert store.galleries.counts(gallery.id) == (0, 0)
    assert store.changes.last(gallery.id) == 0


def test_second_gallery_of_a_name_is_a_conflict(store: Store) -> None:
    first = make_gallery(store)
    with pytest.raises(Conflict, match="'staff'") as caught:
        store.galleries.create("staff", "other", "ffff", 64)
    assert caught.value.code == "gallery_exists"
    assert store.galleries.list() == [first]
    assert make_gallery(store, "Staff").name == "Staff"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " staff",
        "a ",
        "a\nb",
        "a\tb",
        "a\0b",
        "x" * 201,
        "a/b",
        "/",
        ".",
        "..",
        "\ud800",
        "a\u200bb",
        "\u00a0a",
    ],
)
def test_invalid_gallery_names_are_rejected(store: Store, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_gallery(store, name)
    assert caught.value.code == "invalid_request"
    assert repr(name)[:100] in caught.value.message  # a long name is shortened
    assert store.galleries.list() == []


def test_gallery_with_a_formerly_valid_name_can_be_deleted(store: Store) -> None:
    gallery = make_gallery(store)
    with Session(store.engine) as session, session.begin():
        session.execute(update(GalleryRow).values(name=".."))
    assert store.galleries.delete("..").id == gallery.id
    assert store.galleries.list() == []


def test_longest_gallery_name_is_accepted(store: Store) -> None:
    assert store.galleries.get(make_gallery(store, "é" * 200).name).name == "é" * 200


def test_missing_gallery_is_not_found(store: Store) -> None:
    for call in (store.galleries.get, store.galleries.delete):
        with pytest.raises(NotFound, match="'nobody'") as caught:
            call("nobody")
        assert caught.value.code == "gallery_not_found"
    assert store.changes.last(4711) is None


def test_galleries_are_listed_in_pages(store: Store) -> None:
    created = [make_gallery(store, f"g{i}") for i in (3, 1, 4, 2, 5)]
    assert store.galleries.list() == created
    pages = []
    after = 0
    while page := store.galleries.list(after, 2):
        pages.append([gallery.name for gallery in page])
        after = page[-1].id
    assert pages == [["g3", "g1"], ["g4", "g2"], ["g5"]]


def test_deleting_a_gallery_deletes_its_rows_only(store: Store) -> None:
    doomed, kept = make_gallery(store, "doomed"), make_gallery(store, "kept")
    for gallery in (doomed, kept):
        enroll_one(store, gallery, new_face("ana", 1))
        enroll_one(store, gallery, new_face("bob", 2))
    changes = store.changes.since(kept.id, 0)
    assert store.galleries.delete("doomed").id == doomed.id
    assert [gallery.name for gallery in store.galleries.list()] == ["kept"]
    assert store.galleries.counts(doomed.id) == (0, 0)
    assert store.galleries.counts(kept.id) == (2, 2)
    assert store.changes.since(kept.id, 0) == changes
    with store.engine.connect() as connection:
        for table in ("identities", "faces", "changes"):
            left = connection.execute(text(f"SELECT DISTINCT gallery_id FROM {table}")).scalars().all()
            assert left == [kept.id], table


def test_ids_are_not_reused(store: Store) -> None:
    """Index files are named by the ids of galleries and contain the ids of faces."""
    galleries, identities, faces = set(), set(), set()
    for _ in range(3):
        gallery = make_gallery(store)
        for image in (1, 2):
            faces.add(enroll_one(store, gallery, new_face(f"p{image}", image)))
        identities |= {person.id for person in store.identities.list(gallery.id)}
        galleries.add(gallery.id)
        store.galleries.delete("staff")
    assert (len(galleries), len(identities), len(faces)) == (3, 6, 6)

    gallery = make_gallery(store)
    before = enroll_one(store, gallery, new_face("ana", 1))
    store.faces.delete(gallery.id, before)
    assert enroll_one(store, gallery, new_face("ana", 1)) > before
    ana = store.identities.get(gallery.id, "ana").id
    store.identities.delete(gallery.id, "ana")
    assert store.identities.put(gallery.id, Person("ana"))[0].id > ana


def test_galleries_are_separate(store: Store) -> None:
    one, two = make_gallery(store, "one"), make_gallery(store, "two")
    face_id = enroll_one(store, one, new_face("ana", 1, name="Ana of one"))
    assert store.identities.list(two.id) == []
    assert store.faces.known_images(two.id, [image_hash(1)]) == {}
    assert len(store.embeddings.of_faces(two, [face_id]).face_ids) == 0
    for by_face in (store.faces.get, store.faces.delete):
        with pytest.raises(NotFound):
            by_face(two.id, face_id)
    for by_person in (store.identities.get, store.faces.list, store.identities.delete):
        with pytest.raises(NotFound):
            by_person(two.id, "ana")
    enroll_one(store, two, new_face("ana", 1, name="Ana of two"))
    assert store.identities.get(one.id, "ana").name == "Ana of one"
    assert store.identities.get(one.id, "ana").id != store.identities.get(two.id, "ana").id
    assert (store.changes.last(one.id), store.changes.last(two.id)) == (2, 2)
