"""A synchronized index contains what SQL does, after every kind of change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from sqlalchemy import Engine, event

from indexer.errors import NotFound, StorageUnavailable
from indexer.gallery.change_log import Change
from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.types import Gallery, Hit, Outcome, Person, Tier
from indexer.vectors.comparison import DatabaseComparison
from indexer.vectors.compressed import CompressedIndex
from indexer.vectors.engines import FaissEngine
from indexer.vectors.synchronizer import IndexState, SynchronizedIndex
from tests.indexer.gallery.faces import DIM, enroll_one, make_gallery, new_face, vector
from tests.indexer.gallery.together import in_threads
from tests.indexer.vectors.indexed_gallery import (
    CHANGES,
    EACH_TIER,
    FACES,
    PEOPLE,
    IndexedGallery,
    best_match,
    contents_of,
)


def test_index_is_built_from_sql_at_first_use(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    assert synchronized.applied_seq is None
    index = synchronized.catch_up()
    indexed.check(index)
    for image in range(FACES):
        identity_id, face_id = best_match(index, image)
        assert identity_id == indexed.identity_id(f"p{image // 2}")
        assert face_id in indexed.face_ids(f"p{image // 2}")
    assert synchronized.state() == IndexState("exact", FACES, CHANGES, None)


@EACH_TIER
def test_every_kind_of_change_is_applied(indexed: IndexedGallery, tier: Tier) -> None:
    synchronized = indexed.open(tier)
    index = synchronized.catch_up()
    assert (index.kind, index.erases_on_disk) == (("exact", False) if tier is Tier.AUTO else ("compressed", True))
    assert isinstance(index, CompressedIndex) == (tier is Tier.COMPRESSED)

    new = indexed.enroll_one("new", 50)
    assert best_match(index, 50) == (0, 0)
    assert synchronized.catch_up() is index
    assert best_match(index, 50) == (indexed.identity_id("new"), new)

    indexed.delete_face(new)
    assert best_match(synchronized.catch_up(), 50) == (0, 0)

    indexed.delete_person("p0")
    assert [best_match(synchronized.catch_up(), image) for image in range(2)] == [(0, 0)] * 2
    assert len(index) == FACES - 2

    indexed.store.identities.put(indexed.gallery.id, Person("p1", "Renamed"))
    indexed.enroll(range(100, 104))
    indexed.delete_person("p51")
    indexed.check(synchronized.catch_up())
    assert synchronized.catch_up() is index
    assert synchronized.state().seq == indexed.last_change()
    assert synchronized.compare_with_database() == DatabaseComparison(FACES, FACES, 0, None)


def test_faces_that_came_and_went_between_two_updates_are_skipped(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    synchronized.catch_up()
    gone = indexed.enroll_one("p0", 60)
    indexed.delete_face(gone)
    again = indexed.enroll_one("p1", 60)
    brief = indexed.enroll_one("brief", 61)
    indexed.delete_person("brief")
    index = synchronized.catch_up()
    assert best_match(index, 60) == (indexed.identity_id("p1"), again)
    assert best_match(index, 61) == (0, 0)
    assert not {gone, brief} & set(contents_of(index))
    indexed.check(index)


def test_many_changes_are_applied_in_several_steps(indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    read_changes = indexed.store.changes.since
    starts: list[int] = []

    def few(gallery_id: int, seq: int, limit: int = 0) -> list[Change]:
        starts.append(seq)
        return read_changes(gallery_id, seq, 5)

    synchronized = indexed.open(Tier.EXACT)
    synchronized.catch_up()
    indexed.store.faces.enroll(indexed.gallery, [new_face("many", 100 + i) for i in range(21)])
    monkeypatch.setattr(indexed.store.changes, "since", few)
    indexed.check(synchronized.catch_up())
    assert starts == [CHANGES + step for step in (0, 5, 10, 15, 20)]


def test_rebuilt_index_is_identical(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    synchronized.catch_up()
    indexed.delete_person("p1")
    indexed.store.faces.enroll(indexed.gallery, [new_face(f"q{i}", 200 + i) for i in range(5)])
    replayed = synchronized.catch_up()
    before = contents_of(replayed)
    queries = np.stack([vector(i) for i in (0, 3, 200, 500)])
    answers = replayed.nearest_identities(queries, 5)
    assert synchronized.rebuild() == FACES - 2 + 5
    rebuilt = synchronized.catch_up()
    assert rebuilt is not replayed
    assert contents_of(rebuilt) == before
    assert rebuilt.nearest_identities(queries, 5) == answers
    assert synchronized.state().snapshot_seq == indexed.last_change()


def test_catching_up_without_changes_costs_one_query(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    synchronized.catch_up()
    queries: list[str] = []
    event.listen(indexed.store.engine, "before_cursor_execute", lambda _c, _u, sql, *_: queries.append(sql))
    synchronized.catch_up()
    assert [sql.split()[0] for sql in queries if sql != "BEGIN"] == ["SELECT"]


def test_dimension_is_that_of_the_gallery(indexed: IndexedGallery) -> None:
    gallery = make_gallery(indexed.store, "narrow", dim=4)
    enroll_one(indexed.store, gallery, new_face("ana", 1, embedding=vector(1, 4)))
    index = SynchronizedIndex(indexed.store, gallery, indexed.folder, FaissEngine()).catch_up()
    assert index.nearest_faces(vector(1, 4)[None], 1)[0][0].score == pytest.approx(1)
    assert gallery.dim != DIM


# Deleted galleries and a lost database


def test_index_of_a_deleted_gallery_raises_not_found(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    synchronized.catch_up()
    synchronized.save()
    indexed.store.galleries.delete("staff")
    for call in (synchronized.catch_up, synchronized.state, synchronized.rebuild, indexed.open().catch_up):
        with pytest.raises(NotFound, match="'staff'") as caught:
            call()
        assert caught.value.code == "gallery_not_found"
    for action in (synchronized.delete, synchronized.save):
        action()
        assert indexed.files == []


class StoreThatDeletesItsGallery(Store):
    """Deletes the gallery between two queries of the same update of an index."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        read_changes = self.changes.since

        def since(gallery_id: int, seq: int, limit: int = 10_000) -> list[Change]:
            with suppress(NotFound):
                self.galleries.delete("staff")
            return read_changes(gallery_id, seq, limit)

        self.changes.since = since  # type: ignore[method-assign]


def test_gallery_deleted_while_catching_up_raises_not_found(indexed: IndexedGallery) -> None:
    synchronized = indexed.open(store=StoreThatDeletesItsGallery(indexed.store.engine))
    synchronized.catch_up()
    indexed.enroll_one("ana", 1000)
    with pytest.raises(NotFound):
        synchronized.catch_up()


def test_gallery_deleted_while_comparing_raises_not_found(indexed: IndexedGallery) -> None:
    synchronized = indexed.open(store=StoreThatDeletesItsGallery(indexed.store.engine))
    index = synchronized.catch_up()
    index.remove(index.face_ids().tolist()[:1])  # so that the change log is read
    with pytest.raises(NotFound):
        synchronized.compare_with_database()


def test_failed_rebuild_leaves_the_index_as_it_was(indexed: IndexedGallery) -> None:
    is_lost = False

    def pages(gallery: Gallery) -> Iterator[FaceVectors]:
        yield from read_pages(gallery)
        if is_lost:
            raise StorageUnavailable("the connection to the database was lost")

    losing = Store(indexed.store.engine)
    read_pages = losing.embeddings.pages
    losing.embeddings.pages = pages  # type: ignore[method-assign, assignment]
    synchronized = indexed.open(store=losing)
    synchronized.catch_up()
    new = indexed.enroll_one("new", 1000)
    indexed.delete_person("p0")
    is_lost = True
    with pytest.raises(StorageUnavailable):
        synchronized.rebuild()
    is_lost = False
    index = synchronized.catch_up()
    assert best_match(index, 1000)[1] == new
    indexed.check(index)


# Concurrent searches and changes


def test_every_answer_is_correct_while_others_enroll_and_delete(indexed: IndexedGallery) -> None:
    """Every hit is a face that was enrolled, of its identity and with its score; people who stay are always found."""
    synchronized = indexed.open(Tier.EXACT)
    done, recorded = threading.Event(), threading.Lock()
    owners: dict[int, tuple[int, int]] = {}
    for person in range(PEOPLE):
        for image, stored in enumerate(indexed.store.faces.list(indexed.gallery.id, f"p{person}"), 2 * person):
            owners[stored.id] = (stored.identity_id, image)
    p3 = indexed.identity_id("p3")

    def change(writer: int) -> list[tuple[int, list[Hit]]]:
        for i in range(12):
            image = 5000 + 100 * writer + i
            [answer] = indexed.store.faces.enroll(indexed.gallery, [new_face(f"w{writer}-{i % 3}", image)])
            assert answer.outcome is Outcome.ENROLLED
            with recorded:
                owners[answer.face_id or 0] = (answer.identity_id or 0, image)
            if i % 4 == 3:
                indexed.delete_person(f"w{writer}-{i % 3}")
            elif i % 4 == 1:
                indexed.delete_face(answer.face_id or 0)
        return []

    def search(seed: int) -> list[tuple[int, list[Hit]]]:
        rng = np.random.default_rng(seed)
        seen: list[tuple[int, list[Hit]]] = []
        while not done.is_set() or len(seen) < 50:
            image = int(rng.choice([6, 7, *range(5000, 5012), *range(5100, 5112)]))
            [hits] = synchronized.catch_up().nearest_identities(vector(image)[None], 3)
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
        assert len(hits) == len({hit.identity_id for hit in hits}) == 3
        for hit in hits:
            identity_id, image_of_hit = owners[hit.face_id]
            assert hit.identity_id == identity_id
            assert hit.score == pytest.approx(float(vector(image) @ vector(image_of_hit)), abs=1e-5)
        if image < FACES:
            assert (hits[0].identity_id, owners[hits[0].face_id][1]) == (p3, image)
    indexed.check(synchronized.catch_up())


# Comparison with SQL


@EACH_TIER
def test_comparison_counts_every_difference(indexed: IndexedGallery, tier: Tier) -> None:
    synchronized = indexed.open(tier)
    index = synchronized.catch_up()
    assert synchronized.compare_with_database() == DatabaseComparison(FACES, FACES, 0, None)
    faces = [indexed.store.faces.list(indexed.gallery.id, f"p{person}")[0] for person in range(3)]
    index.put(np.array([faces[0].id]), np.array([faces[0].identity_id]), vector(999)[None])  # another vector
    index.put(np.array([faces[1].id]), np.array([4711]), vector(2)[None])  # another person
    index.put(np.array([4712]), np.array([4711]), vector(998)[None])  # not in SQL
    index.remove([faces[2].id])
    assert synchronized.compare_with_database() == DatabaseComparison(FACES, FACES, 4, None)


def test_comparison_ignores_faces_changed_meanwhile(indexed: IndexedGallery) -> None:
    def pages(gallery: Gallery) -> Iterator[FaceVectors]:
        for i, page in enumerate(read_pages(gallery, 10)):
            if i < 3:
                indexed.enroll_one("new", 300 + i)
                indexed.delete_person(f"p{3 - i}")
            yield page

    indexed.open().rebuild()
    changing = Store(indexed.store.engine)
    read_pages = changing.embeddings.pages
    changing.embeddings.pages = pages  # type: ignore[method-assign, assignment]
    assert indexed.open(store=changing).compare_with_database().different == 0


def test_comparison_reports_an_unusable_snapshot(indexed: IndexedGallery) -> None:
    indexed.open().rebuild()
    indexed.path.write_bytes(indexed.path.read_bytes()[:-1])
    synchronized = indexed.open()
    assert synchronized.compare_with_database() == DatabaseComparison(FACES, FACES, 0, f"{indexed.path} is damaged")
    synchronized.save()
    assert synchronized.compare_with_database().snapshot_problem is None


def test_comparison_rebuilds_a_damaged_compressed_index(indexed: IndexedGallery) -> None:
    indexed.open(Tier.COMPRESSED).rebuild()
    data = bytearray(indexed.path.read_bytes())
    data[100] ^= 1
    indexed.path.write_bytes(data)
    found = indexed.open(Tier.COMPRESSED).compare_with_database()
    assert found == DatabaseComparison(FACES, FACES, 0, f"{indexed.path} is damaged")
