"""The change log is complete and in order with concurrent writers, in threads and in processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from indexer.errors import NotFound
from indexer.gallery.change_log import ChangeKind
from indexer.gallery.faces import Enrolled
from indexer.gallery.store import Store
from indexer.types import Gallery, Outcome, Person
from tests.indexer.gallery.faces import enroll_one, new_face, vector
from tests.indexer.gallery.together import in_processes, in_threads
from tests.postgres import Database, opened

WRITERS = 8
ROUNDS = 5


def write(store: Store, gallery: Gallery, writer: int) -> list[int]:
    """Enrolls faces for the writer's own person and for a shared one, deletes some, and returns those that stay."""
    kept = []
    for i in range(ROUNDS):
        image = 1000 * writer + 10 * i
        answers = store.faces.enroll(gallery, [new_face(f"own{writer}", image), new_face("shared", image + 1)])
        assert [a.outcome for a in answers] == [Outcome.ENROLLED] * 2
        own, shared = (a.face_id or 0 for a in answers)
        kept.append(own)
        if i % 2:
            store.faces.delete(gallery.id, shared)
        else:
            kept.append(shared)
    store.identities.put(gallery.id, Person(f"brief{writer}"))
    store.identities.delete(gallery.id, f"brief{writer}")
    return kept


def write_by_url(url: str, writer: int) -> list[int]:
    with opened(url) as store:
        return write(store, store.galleries.get("staff"), writer)


def check(store: Store, gallery: Gallery, kept: list[list[int]], writers: int) -> None:
    """Checks that numbers, faces and the log agree: nothing is missing and nothing is duplicated."""
    changes = store.changes.since(gallery.id, 0)
    assert [change.seq for change in changes] == list(range(1, len(changes) + 1))
    assert store.changes.last(gallery.id) == len(changes)
    assert Counter(change.entry.kind for change in changes) == {
        ChangeKind.FACE_ADDED: writers * ROUNDS * 2,
        ChangeKind.FACE_REMOVED: writers * (ROUNDS // 2),
        ChangeKind.IDENTITY_CHANGED: writers + 1 + writers,
        ChangeKind.IDENTITY_REMOVED: writers,
    }
    alive: set[int] = set()
    for change in changes:
        face_id = change.entry.face_id
        if change.entry.kind is ChangeKind.FACE_ADDED:
            assert face_id not in alive
            alive.add(face_id or 0)
        elif change.entry.kind is ChangeKind.FACE_REMOVED:
            alive.remove(face_id or 0)
    assert alive == {face_id for some in kept for face_id in some}
    assert {face_id for part in store.embeddings.pages(gallery) for face_id in part.face_ids.tolist()} == alive
    assert store.galleries.counts(gallery.id) == (writers + 1, len(alive))
    for writer in range(writers):
        vectors = store.embeddings.of_faces(gallery, kept[writer][:1]).vectors
        assert np.array_equal(vectors, vector(1000 * writer)[None])


def test_eight_threads_write_to_one_gallery_without_gaps(store: Store, gallery: Gallery) -> None:
    kept = in_threads([lambda w=w: write(store, gallery, w) for w in range(WRITERS)])  # type: ignore[misc]
    check(store, gallery, kept, WRITERS)


def test_several_processes_write_to_one_gallery_without_gaps(
    store: Store, gallery: Gallery, database: Database
) -> None:
    kept = in_processes(write_by_url, [(database.url, writer) for writer in range(3)])
    check(store, gallery, kept, 3)


def test_reader_of_change_log_never_sees_a_gap(store: Store, gallery: Gallery) -> None:
    """A reader of change N has also seen N - 1, and can read the face of N."""

    def read() -> list[int]:
        seen: list[int] = []
        while len(seen) < 4 * 12:
            changes = store.changes.since(gallery.id, len(seen), limit=3)
            added = [c.entry.face_id for c in changes if c.entry.face_id is not None]
            assert len(store.embeddings.of_faces(gallery, added).face_ids) == len(added)
            seen += [change.seq for change in changes]
        return seen

    def enroll(writer: int) -> list[int]:
        for i in range(6):
            enroll_one(store, gallery, new_face(f"w{writer}-{i}", 100 * writer + i))
        return []

    seen, *_ = in_threads([read, *(lambda w=w: enroll(w) for w in range(4))])
    assert seen == list(range(1, 49))


def test_since_returns_changes_in_order(store: Store, gallery: Gallery) -> None:
    store.faces.enroll(gallery, [new_face("ana", image) for image in range(9)])
    assert [c.seq for c in store.changes.since(gallery.id, 0, 4)] == [1, 2, 3, 4]
    assert [c.seq for c in store.changes.since(gallery.id, 4, 4)] == [5, 6, 7, 8]
    assert [c.seq for c in store.changes.since(gallery.id, 8, 4)] == [9, 10]
    assert store.changes.since(gallery.id, 10) == []


def enroll_images(store: Store, gallery: Gallery, who: str) -> list[Enrolled]:
    return [store.faces.enroll(gallery, [new_face(who, image)])[0] for image in range(12)]


def enroll_images_by_url(url: str, who: str) -> list[Enrolled]:
    with opened(url) as store:
        return enroll_images(store, store.galleries.get("staff"), who)


def check_same_images(store: Store, gallery: Gallery, answers: list[list[Enrolled]]) -> None:
    for some in zip(*answers, strict=True):
        assert sorted(a.outcome for a in some) == [Outcome.ENROLLED] + [Outcome.UNCHANGED] * (len(answers) - 1)
        assert len({a.face_id for a in some}) == 1
    assert store.galleries.counts(gallery.id) == (1, 12)
    assert store.changes.last(gallery.id) == 13


def test_two_threads_enroll_the_same_images_once(store: Store, gallery: Gallery) -> None:
    answers = in_threads([lambda: enroll_images(store, gallery, "ana")] * 4)
    check_same_images(store, gallery, answers)


def test_two_processes_enroll_the_same_images_once(store: Store, gallery: Gallery, database: Database) -> None:
    answers = in_processes(enroll_images_by_url, [(database.url, "ana")] * 2)
    check_same_images(store, gallery, answers)


def test_image_enrolled_for_two_people_at_once_belongs_to_one(store: Store, gallery: Gallery) -> None:
    ana, eve = in_threads([lambda w=w: enroll_images(store, gallery, w) for w in ("ana", "eve")])  # type: ignore[misc]
    for image, (one, other) in enumerate(zip(ana, eve, strict=True)):
        assert {one.outcome, other.outcome} == {Outcome.ENROLLED, Outcome.REJECTED}, image
        assert (one.owner, other.owner) in {(None, "ana"), ("eve", None)}
    assert store.galleries.counts(gallery.id)[1] == 12


def test_gallery_can_be_deleted_during_enrollment(store: Store, gallery: Gallery) -> None:

    def enroll() -> int:
        for image in range(10_000):
            try:
                enroll_one(store, gallery, new_face(f"p{image}", image))
            except NotFound:
                return image
        pytest.fail("the gallery was never deleted")

    def delete() -> int:
        while (store.changes.last(gallery.id) or 0) < 10:
            pass
        return store.galleries.delete("staff").id

    enrolled, _ = in_threads([enroll, delete])
    assert enrolled >= 5
    assert store.galleries.counts(gallery.id) == (0, 0)
    assert store.changes.since(gallery.id, 0) == []
