"""New faces that are unlike the other faces of their identity: they are held or reported."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from indexer.enrollment import reading
from indexer.enrollment.enroller import Enroller, Result
from indexer.enrollment.face_checks import FaceChecks
from indexer.enrollment.lookalikes import Lookalikes
from indexer.enrollment.own_faces import OwnFaces
from indexer.enrollment.rows import Row
from indexer.gallery.store import Store
from indexer.types import Gallery, Outcome, Reason
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.enrollment.similar_faces import BOUND, MAX_BYTES, DescribedPhotos, row
from tests.indexer.gallery.faces import vector


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


class Runs:
    """Runs of enrollment over one gallery."""

    def __init__(self, store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
        self.store, self.gallery, self._index = store, gallery, index

    def __call__(self, rows: Sequence[Row], mode: str = "hold") -> list[Result]:
        own = OwnFaces(self.store, self.gallery, BOUND, only_guesses=mode == "off")
        hold = mode == "hold"
        lookalikes = None if mode == "off" else Lookalikes(self.store, self.gallery, self._index, BOUND, hold)
        checks = FaceChecks(lookalikes, own, hold)
        return list(Enroller(self.store, DescribedPhotos(), self.gallery, MAX_BYTES, 3, checks=checks).enroll(rows))

    def photos_of(self, external_id: str) -> int:
        return len(self.store.faces.list(self.gallery.id, external_id))


@pytest.fixture
def run(store: Store, gallery: Gallery, index: SynchronizedIndex) -> Runs:
    return Runs(store, gallery, index)


def guess(external_id: str, person: int, photo: int) -> Row:
    """Returns the row of a file such as `ana_1.jpg`."""
    return row(external_id, person, photo, stem=f"{external_id}_{photo}")


def enrolled(results: Sequence[Result]) -> list[bool]:
    for result in results:
        if result.outcome is Outcome.REJECTED:
            assert result.reason is Reason.UNLIKE_OWN_IDENTITY
    return [result.outcome is not Outcome.REJECTED for result in results]


def test_photo_of_another_person_is_held(run: Runs) -> None:
    """The photo of ben is not of an enrolled person, so it looks like nobody."""
    run([row("ana", 1, 1), row("ana", 1, 2)])
    same, [other] = run([row("ana", 1, 3)]), run([row("ana", 2, 4)])
    assert enrolled(same) == [True]
    assert (other.outcome, other.reason, other.face_id) == (Outcome.REJECTED, Reason.UNLIKE_OWN_IDENTITY, None)
    assert other.details["external_id"] == "ana"
    assert other.details["face_id"] in {face.id for face in run.store.faces.list(run.gallery.id, "ana")}
    assert other.details["bound"] == BOUND
    assert other.message is not None
    assert other.message.startswith("the face is unlike the others of identity 'ana': cosine ")
    assert "WHOSTHERE_LOOKALIKES=report" in other.message
    assert run.photos_of("ana") == 3


def test_photo_of_another_person_is_enrolled_and_reported_without_hold(run: Runs) -> None:
    run([row("ana", 1, 1)])
    [other] = run([row("ana", 2, 2)], mode="report")
    assert (other.outcome, other.reason, other.details["external_id"]) == (Outcome.ENROLLED, None, "ana")
    assert "unlike the others of identity 'ana'" in str(other.message)
    [other] = run([row("ana", 3, 3)], mode="off")
    assert (other.outcome, other.message) == (Outcome.ENROLLED, None)


@pytest.mark.parametrize("rows", [[2, 1, 1], [1, 2, 1, 1, 3], [1, 2, 1]])
def test_majority_of_a_new_identity_decides(run: Runs, rows: list[int]) -> None:
    results = run([row("ana", person, i) for i, person in enumerate(rows)])
    assert enrolled(results) == [person == 1 for person in rows]


def test_first_photo_of_a_new_identity_is_kept_where_none_agree(run: Runs) -> None:
    assert enrolled(run([row("ana", 1, 1), row("ana", 2, 2)])) == [True, False]


@pytest.mark.parametrize("mode", ["hold", "report", "off"])
def test_numbered_files_of_different_people_are_refused(run: Runs, mode: str) -> None:
    rows = [guess("emp", person, 1040 + person) for person in range(1, 6)]
    for results in (run(rows, mode), run(rows, mode)):
        assert enrolled(results) == [False] * 5
        assert "emp/1042.jpg, emp/1043.jpg" in str(results[0].message)
        assert "give each person a folder" in str(results[0].message)
    assert run.store.galleries.counts(run.gallery.id) == (0, 0)


@pytest.mark.parametrize("mode", ["hold", "report", "off"])
def test_numbered_files_of_one_person_are_one_identity(run: Runs, mode: str) -> None:
    assert enrolled(run([guess("ana", 1, 1), guess("ana", 1, 2), guess("ben", 2, 3)], mode)) == [True] * 3
    assert enrolled(run([guess("ana", 1, 4), guess("ana", 3, 5)], mode)) == [True, False]
    assert (run.photos_of("ana"), run.photos_of("ben")) == (3, 1)


def test_numbered_file_is_compared_with_the_file_without_a_number(run: Runs) -> None:
    assert enrolled(run([guess("ana", 2, 1), row("ana", 1, 2), guess("ana", 1, 3)])) == [False, True, True]
    assert enrolled(run([guess("ben", 4, 4), row("ben", 5, 5)])) == [False, True]


def test_refused_numbers_stay_refused_in_later_chunks(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 3)
    assert enrolled(run([guess("emp", person, person) for person in range(1, 8)])) == [False] * 7


def test_numbered_files_of_an_identity_are_compared_together(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of three, the second and third of ana are in the chunk of the first."""
    monkeypatch.setattr(reading, "CHUNK", 3)
    people = [("ana", 2, 2), ("ana", 1, 3), ("ana", 1, 4)]
    rows = [row("x", 8, 0), row("y", 9, 1), *(guess(*one) for one in people)]
    assert enrolled(run(rows)) == [True, True, False, True, True]


def test_photo_enrolled_under_its_whole_stem_is_unchanged(run: Runs) -> None:
    """As earlier versions did: they did not group `ana-1`."""
    run([row("ana-1", 1, 1)])
    [again] = run([row("ana", 1, 1, stem="ana-1")])
    assert (again.outcome, again.external_id) == (Outcome.UNCHANGED, "ana-1")


def test_lookalike_of_another_identity_does_not_speak_for_its_own(run: Runs) -> None:
    run([row("ben", 2, 1)])
    ana, ben = run([row("ana", 2, 2), row("ana", 1, 3)])
    assert (ana.reason, ben.outcome) == (Reason.LOOKS_LIKE_ANOTHER_IDENTITY, Outcome.ENROLLED)


def test_held_photo_is_not_compared_with_others(run: Runs) -> None:
    emp, other, ana = run([guess("emp", 1, 1), guess("emp", 2, 2), row("ana", 1, 3)])
    assert enrolled([emp, other, ana]) == [False, False, True]
    assert float(vector(1) @ vector(2)) < BOUND, "the test needs people who do not look alike"
