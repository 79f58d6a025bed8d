"""Enrolling, storing, listing and deleting faces."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import text

from indexer.errors import NotFound
from indexer.gallery.change_log import ChangeKind, Entry
from indexer.gallery.faces import Enrolled, KnownImage
from indexer.gallery.store import Store
from indexer.types import Box, Gallery, Outcome, Person, Quality, Reason
from tests.indexer.gallery.faces import DIM, enroll_one, face, image_hash, make_gallery, new_face, vector

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def test_new_face_creates_its_identity(store: Store, gallery: Gallery) -> None:
    answers = store.faces.enroll(
        gallery,
        [new_face("ana", 1, name="Ana", metadata={"team": "red"}), new_face("bob", 2), new_face("ana", 3)],
    )
    ana, bob = store.identities.get(gallery.id, "ana"), store.identities.get(gallery.id, "bob")
    assert [(a.outcome, a.identity_id, a.owner) for a in answers] == [
        (Outcome.ENROLLED, ana.id, None),
        (Outcome.ENROLLED, bob.id, None),
        (Outcome.ENROLLED, ana.id, None),
    ]
    assert (ana.name, ana.metadata, ana.faces, bob.name, bob.faces) == ("Ana", {"team": "red"}, 2, None, 1)
    assert store.galleries.counts(gallery.id) == (2, 3)
    ids = [a.face_id for a in answers]
    assert [f.id for f in store.faces.list(gallery.id, "ana")] == [ids[0], ids[2]]
    assert [(c.seq, c.entry) for c in store.changes.since(gallery.id, 0)] == [
        (1, Entry(ChangeKind.IDENTITY_CHANGED, ana.id)),
        (2, Entry(ChangeKind.IDENTITY_CHANGED, bob.id)),
        (3, Entry(ChangeKind.FACE_ADDED, ana.id, ids[0])),
        (4, Entry(ChangeKind.FACE_ADDED, bob.id, ids[1])),
        (5, Entry(ChangeKind.FACE_ADDED, ana.id, ids[2])),
    ]


def test_enrolling_the_same_image_again_is_unchanged(store: Store, gallery: Gallery) -> None:
    faces = [new_face("ana", 1, name="Ana"), new_face("bob", 2)]
    first = store.faces.enroll(gallery, faces)
    before = store.identities.list(gallery.id)
    again = store.faces.enroll(gallery, faces)
    assert again == [Enrolled(Outcome.UNCHANGED, f.face_id, f.identity_id) for f in first]
    assert store.identities.list(gallery.id) == before
    assert store.changes.last(gallery.id) == 4


def test_same_image_twice_in_one_call_is_enrolled_once(store: Store, gallery: Gallery) -> None:
    first, again, other = store.faces.enroll(
        gallery, [new_face("ana", 1), new_face("ana", 1), new_face("eve", 1, name="Eve")]
    )
    assert first.outcome is Outcome.ENROLLED
    assert again == Enrolled(Outcome.UNCHANGED, first.face_id, first.identity_id)
    assert other == Enrolled(Outcome.REJECTED, None, None, "ana")
    assert [person.external_id for person in store.identities.list(gallery.id)] == ["ana"]


def test_image_of_another_identity_is_rejected(store: Store, gallery: Gallery) -> None:
    enroll_one(store, gallery, new_face("ana", 1))
    answers = store.faces.enroll(gallery, [new_face("eve", 1), new_face("eve", 2)])
    assert answers[0] == Enrolled(Outcome.REJECTED, None, None, "ana")
    assert answers[1].outcome is Outcome.ENROLLED
    assert store.identities.get(gallery.id, "eve").faces == 1
    assert store.identities.get(gallery.id, "ana").faces == 1


def test_rejected_face_does_not_update_its_person(store: Store, gallery: Gallery) -> None:
    enroll_one(store, gallery, new_face("ana", 1))
    enroll_one(store, gallery, new_face("eve", 2, name="Eve"))
    before = store.changes.last(gallery.id)
    [answer] = store.faces.enroll(gallery, [new_face("eve", 1, name="Mallory")])
    assert answer.outcome is Outcome.REJECTED
    assert store.identities.get(gallery.id, "eve").name == "Eve"
    assert store.changes.last(gallery.id) == before


def test_given_values_replace_and_missing_values_stay(store: Store, gallery: Gallery) -> None:
    later = NOON + timedelta(days=9)
    enroll_one(
        store, gallery, new_face("ana", 1, name="Ana", valid_from=NOON, valid_until=later, metadata={"a": 1, "b": 2})
    )
    enroll_one(store, gallery, new_face("ana", 2))
    ana = store.identities.get(gallery.id, "ana")
    assert (ana.name, ana.valid_from, ana.valid_until, ana.metadata) == ("Ana", NOON, later, {"a": 1, "b": 2})
    assert [c.entry.kind for c in store.changes.since(gallery.id, 2)] == [ChangeKind.FACE_ADDED]

    enroll_one(store, gallery, new_face("ana", 3, name="Anna", metadata={"b": 3, "c": None}))
    changed = store.identities.get(gallery.id, "ana")
    assert (changed.name, changed.valid_from, changed.valid_until) == ("Anna", NOON, later)
    assert changed.metadata == {"a": 1, "b": 3, "c": None}
    assert changed.updated_at > ana.updated_at
    assert [c.entry.kind for c in store.changes.since(gallery.id, 3)] == [
        ChangeKind.IDENTITY_CHANGED,
        ChangeKind.FACE_ADDED,
    ]

    [answer] = store.faces.enroll(gallery, [new_face("ana", 3, name="Ann")])
    assert answer.outcome is Outcome.UNCHANGED
    assert store.identities.get(gallery.id, "ana").name == "Ann"


def test_new_person_has_values_of_all_items(store: Store, gallery: Gallery) -> None:
    store.faces.enroll(
        gallery,
        [
            new_face("ana", 1, name="Ana", valid_from=NOON, metadata={"a": 1, "b": 1}),
            new_face("ana", 2, metadata={"b": 2}),
            new_face("ana", 3, valid_until=NOON + timedelta(1)),
            Person("ana", metadata={"z": 26}),
        ],
    )
    ana = store.identities.get(gallery.id, "ana")
    assert (ana.name, ana.valid_from, ana.valid_until) == ("Ana", NOON, NOON + timedelta(1))
    assert ana.metadata == {"a": 1, "b": 2, "z": 26}


def test_later_item_about_a_person_counts(store: Store, gallery: Gallery) -> None:
    enroll_one(store, gallery, new_face("ana", 1))
    store.faces.enroll(gallery, [new_face("ana", 2, name="First"), Person("ana", "Last")])
    assert store.identities.get(gallery.id, "ana").name == "Last"
    store.faces.enroll(gallery, [Person("ana", "First"), new_face("ana", 3, name="Last but one")])
    assert store.identities.get(gallery.id, "ana").name == "Last but one"


def test_people_without_new_face_are_updated_but_not_created(store: Store, gallery: Gallery) -> None:
    enroll_one(store, gallery, new_face("ana", 1, name="Ana"))
    answers = store.faces.enroll(gallery, [Person("ana", metadata={"x": 1}), Person("nobody", "Nobody")])
    ana = store.identities.get(gallery.id, "ana").id
    updated = Enrolled(Outcome.UNCHANGED, None, ana, updated=("metadata",))
    assert answers == [updated, Enrolled(Outcome.UNCHANGED, None, None)]
    assert [(p.external_id, p.name, p.metadata) for p in store.identities.list(gallery.id)] == [
        ("ana", "Ana", {"x": 1})
    ]


def test_cleared_values_are_removed_and_the_others_kept(store: Store, gallery: Gallery) -> None:
    enroll_one(store, gallery, new_face("ana", 1, name="Ana", valid_until=NOON, metadata={"x": 1, "y": 2}))
    clear = Person("ana", metadata={"z": 3}, cleared=frozenset({"name", "valid_until", "x"}))
    [answer] = store.faces.enroll(gallery, [clear])
    assert answer.updated == ("name", "valid_until", "metadata")
    ana = store.identities.get(gallery.id, "ana")
    assert (ana.name, ana.valid_until, ana.metadata) == (None, None, {"y": 2, "z": 3})
    last = store.changes.last(gallery.id)
    assert [one.updated for one in store.faces.enroll(gallery, [clear])] == [()]
    assert store.changes.last(gallery.id) == last


def test_invalid_dates_reject_one_item_and_enroll_the_others(store: Store, gallery: Gallery) -> None:
    enroll_one(store, gallery, new_face("ana", 1, valid_until=NOON))
    before = store.identities.get(gallery.id, "ana")
    late = NOON + timedelta(days=1)
    answers = store.faces.enroll(
        gallery,
        [
            new_face("ana", 2, name="Late", valid_from=late),
            new_face("ana", 1, valid_from=NOON),  # an unchanged image, but a new date
            new_face("bob", 3),
            new_face("new", 4, valid_from=late),
            new_face("new", 5, valid_until=NOON),
            new_face("eve", 5),
            new_face("ana", 6),
            Person("ana", valid_from=late),
            Person("ana", valid_from=NOON - timedelta(days=1)),
        ],
    )
    assert [a.outcome for a in answers] == [
        *(Outcome.REJECTED, Outcome.REJECTED, Outcome.ENROLLED, Outcome.ENROLLED),
        *(Outcome.REJECTED, Outcome.ENROLLED, Outcome.ENROLLED, Outcome.REJECTED, Outcome.UNCHANGED),
    ]
    assert [i for i, a in enumerate(answers) if a.problem] == [0, 1, 4, 7]
    for i, who in ((0, "ana"), (4, "new")):
        problem = answers[i].problem or ""
        assert all(word in problem for word in (repr(who), NOON.isoformat(), late.isoformat()))
        assert (answers[i].face_id, answers[i].owner) == (None, None)
    ana, new = store.identities.get(gallery.id, "ana"), store.identities.get(gallery.id, "new")
    assert (ana.name, ana.valid_from, ana.valid_until) == (before.name, NOON - timedelta(days=1), NOON)
    assert (ana.faces, new.faces, new.valid_from, new.valid_until) == (2, 1, late, None)
    assert store.identities.get(gallery.id, "eve").faces == 1


def test_person_with_only_rejected_faces_is_not_created(store: Store, gallery: Gallery) -> None:
    [_, answer] = store.faces.enroll(gallery, [Person("ana", valid_from=NOON), new_face("ana", 1, valid_until=NOON)])
    assert answer.problem is not None
    assert store.identities.list(gallery.id) == []
    assert store.changes.last(gallery.id) == 0


def test_enrolling_nothing_changes_nothing(store: Store, gallery: Gallery) -> None:
    assert store.faces.enroll(gallery, []) == []
    assert store.changes.last(gallery.id) == 0


def test_embeddings_are_stored_exactly(store: Store, gallery: Gallery) -> None:
    odd = np.array([-0.0, np.float32(1e-45), np.nextafter(np.float32(1), np.float32(0)), 1e-5], dtype=np.float32)
    embedding = np.concatenate([odd, np.zeros(DIM - 4, dtype=np.float32)])
    face_id = enroll_one(store, gallery, new_face("ana", 1, embedding=embedding))
    found = store.embeddings.of_faces(gallery, [face_id])
    assert found.vectors.dtype == np.float32
    assert found.vectors.tobytes() == embedding.tobytes()
    with store.engine.connect() as connection:
        stored = connection.execute(text("SELECT embedding FROM embeddings")).scalar_one()
    assert bytes(stored) == embedding.astype("<f4").tobytes()


def test_detection_and_quality_are_stored(store: Store, gallery: Gallery) -> None:
    before = datetime.now(UTC)
    face_id = enroll_one(store, gallery, new_face("ana", 7))
    found = store.faces.get(gallery.id, face_id)
    was = face(vector(7))
    assert (found.id, found.image_sha256) == (face_id, image_hash(7))
    assert found.identity_id == store.identities.get(gallery.id, "ana").id
    assert found.detection.box == Box(10.25, 20.5, 80.0, 100.75)
    assert found.detection.score == 0.9375
    assert found.detection.landmarks.dtype == np.float32
    assert np.array_equal(found.detection.landmarks, was.detection.landmarks)
    reasons = (Reason.FACE_BADLY_LIT, Reason.DETECTION_UNSURE)
    assert found.quality == was.quality == Quality(90.0, 12.5, -0.25, 130.0, 44.0, reasons)
    assert before <= found.created_at <= datetime.now(UTC)


def test_faces_are_listed_in_order_of_enrollment(store: Store, gallery: Gallery) -> None:
    store.faces.enroll(gallery, [new_face(who, image) for image, who in enumerate(["ana", "bob"] * 5)])
    pages = []
    after = 0
    while page := store.faces.list(gallery.id, "ana", after, 2):
        pages.append([f.image_sha256 for f in page])
        after = page[-1].id
    assert pages == [
        [image_hash(0), image_hash(2)],
        [image_hash(4), image_hash(6)],
        [image_hash(8)],
    ]
    assert [f.image_sha256 for f in store.faces.list(gallery.id, "ana")] == [image_hash(i) for i in (0, 2, 4, 6, 8)]


def test_deleting_a_face_keeps_its_identity(store: Store, gallery: Gallery) -> None:
    face_id = enroll_one(store, gallery, new_face("ana", 1))
    ana = store.identities.get(gallery.id, "ana")
    store.faces.delete(gallery.id, face_id)
    assert [c.entry for c in store.changes.since(gallery.id, 2)] == [Entry(ChangeKind.FACE_REMOVED, ana.id, face_id)]
    assert store.identities.get(gallery.id, "ana").faces == 0
    assert store.faces.list(gallery.id, "ana") == []
    for call in (store.faces.get, store.faces.delete):
        with pytest.raises(NotFound, match=str(face_id)) as caught:
            call(gallery.id, face_id)
        assert caught.value.code == "face_not_found"
    assert store.faces.known_images(gallery.id, [image_hash(1)]) == {}
    [back] = store.faces.enroll(gallery, [new_face("bob", 1)])
    assert back.outcome is Outcome.ENROLLED


def test_known_images_accepts_more_hashes_than_one_query(store: Store, gallery: Gallery) -> None:
    answers = store.faces.enroll(gallery, [new_face(f"p{image % 7}", image) for image in range(0, 1600, 2)])
    hashes = [image_hash(image) for image in range(1600)]
    known = store.faces.known_images(gallery.id, [*hashes, *hashes[:10]])
    assert len(known) == 800
    for answer, image in zip(answers, range(0, 1600, 2), strict=True):
        assert answer.face_id is not None
        assert answer.identity_id is not None
        assert known[image_hash(image)] == KnownImage(answer.face_id, answer.identity_id, f"p{image % 7}")
    assert store.faces.known_images(gallery.id, []) == {}

    found = store.embeddings.of_faces(gallery, [a.face_id for a in answers if a.face_id is not None])
    assert len(found.face_ids) == 800
    ids = dict(zip(found.face_ids.tolist(), found.vectors, strict=True))
    for answer, image in zip(answers, range(0, 1600, 2), strict=True):
        assert np.array_equal(ids[answer.face_id or 0], vector(image))


def test_embedding_pages_are_in_order_of_face_ids(store: Store) -> None:
    gallery, other = make_gallery(store), make_gallery(store, "other")
    store.faces.enroll(gallery, [new_face(f"p{i}", i) for i in range(25)])
    store.faces.enroll(other, [new_face(f"p{i}", i) for i in range(5)])
    found = list(store.embeddings.pages(gallery, size=10))
    assert store.changes.last(gallery.id) == 50
    assert [len(part.face_ids) for part in found] == [10, 10, 5]
    ids = np.concatenate([part.face_ids for part in found]).tolist()
    assert ids == sorted(ids)
    assert np.array_equal(np.concatenate([part.vectors for part in found]), np.stack([vector(i) for i in range(25)]))
    owners = np.concatenate([part.identity_ids for part in found]).tolist()
    assert owners == [store.faces.get(gallery.id, face_id).identity_id for face_id in ids]


def test_enrollment_into_deleted_gallery_raises_not_found(store: Store, gallery: Gallery) -> None:
    face_id = enroll_one(store, gallery, new_face("ana", 1))
    store.galleries.delete("staff")
    with pytest.raises(NotFound) as caught:
        store.faces.enroll(gallery, [new_face("ana", 2)])
    assert caught.value.code == "gallery_not_found"
    with pytest.raises(NotFound):
        store.faces.delete(gallery.id, face_id)
    with pytest.raises(NotFound):
        store.identities.delete(gallery.id, "ana")
    assert store.galleries.counts(gallery.id) == (0, 0)
