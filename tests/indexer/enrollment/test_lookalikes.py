"""New faces that look like another identity: they are held or reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.enrollment import reading
from indexer.enrollment.enroller import Enroller, Result
from indexer.enrollment.face_checks import FaceChecks
from indexer.enrollment.lookalikes import Lookalike, Lookalikes, lookalike_bound
from indexer.enrollment.own_faces import OwnFaces
from indexer.enrollment.rows import Row
from indexer.gallery.store import Store
from indexer.models.packs import SFACE
from indexer.types import Gallery, Outcome, Person, Reason, ScoreTail, Tier
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.enrollment.similar_faces import BOUND, MAX_BYTES, PACK, DescribedPhotos, index_of, near, new, row
from tests.indexer.gallery.faces import DIM, vector
from tests.postgres import opened


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


def alike(found: Sequence[Lookalike | None]) -> list[tuple[str, bool] | None]:
    """Returns the identity that each face looks like, and whether that face is enrolled."""
    return [None if one is None else (one.external_id, one.face_id is not None) for one in found]


@pytest.mark.parametrize("tier", [Tier.EXACT, Tier.COMPRESSED])
def test_new_identity_is_compared_with_enrolled_ones(
    store: Store, gallery: Gallery, tmp_path: Path, tier: Tier
) -> None:
    [enrolled] = store.faces.enroll(gallery, [new("ana", near(1, 1), 1)])
    lookalikes = Lookalikes(store, gallery, index_of(store, gallery, tmp_path, tier), BOUND, hold=True)
    [found] = lookalikes.find([new("ana-2", near(1, 2), 2)])
    assert found is not None
    score = float(near(1, 1) @ near(1, 2))
    assert (found.external_id, found.face_id, found.bound) == ("ana", enrolled.face_id, BOUND)
    assert found.score == pytest.approx(score, abs=1e-3)
    assert found.details == {
        "external_id": "ana",
        "face_id": enrolled.face_id,
        "score": round(found.score, 4),
        "bound": BOUND,
    }
    assert "'ana'" in found.message
    assert lookalikes.find([new("ana", near(1, 2), 2), new("ben", vector(2), 3)]) == [None, None]
    assert lookalikes.find([]) == []


def test_changes_of_the_gallery_are_taken_into_account(
    store: Store, gallery: Gallery, index: SynchronizedIndex
) -> None:
    lookalikes = Lookalikes(store, gallery, index, BOUND, hold=True)
    assert alike(lookalikes.find([new("ana-2", near(1, 2), 2)])) == [None]
    store.faces.enroll(gallery, [new("ana", near(1, 1), 1)])
    assert alike(lookalikes.find([new("ana-2", near(1, 2), 2)])) == [("ana", True)]
    store.identities.delete(gallery.id, "ana")
    assert alike(lookalikes.find([new("ana-2", near(1, 2), 2)])) == [None]


def test_score_equal_to_the_bound_is_a_lookalike(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    store.faces.enroll(gallery, [new("ana", vector(1), 1)])
    for cosine, expected in ((BOUND + 1e-3, [("ana", True)]), (BOUND - 1e-3, [None])):
        probe = new("ben", near(1, 5, cosine), 2)
        assert alike(Lookalikes(store, gallery, index, BOUND, hold=True).find([probe])) == expected
    exactly = Lookalikes(store, gallery, index, float(vector(1) @ vector(1)), hold=True)
    assert alike(exactly.find([new("ben", vector(1), 2)])) == [("ana", True)]


def test_photo_more_similar_to_its_own_identity_is_no_lookalike(
    store: Store, gallery: Gallery, index: SynchronizedIndex
) -> None:
    """Further photos of enrolled twins are accepted; a photo of the other twin is held."""
    own, twin = vector(1), near(1, 7, 0.8)
    store.faces.enroll(gallery, [new("ana", own, 1), new("twin", twin, 2)])
    towards_ana, towards_twin = (v / np.linalg.norm(v) for v in (2 * own + twin, own + 2 * twin))
    lookalikes = Lookalikes(store, gallery, index, BOUND, hold=True)
    assert alike(lookalikes.find([new("ana", towards_ana, 3), new("twin", towards_twin, 4)])) == [None, None]
    assert alike(lookalikes.find([new("ana", towards_twin, 3)])) == [("twin", True)]
    assert alike(lookalikes.find([new("twin", towards_ana, 4)])) == [("ana", True)]


def test_own_faces_of_the_same_batch_are_compared_too(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    """The first photo is accepted although its identity is new; the second is compared with the first as well."""
    own, twin = vector(1), near(1, 7, 0.7)
    store.faces.enroll(gallery, [new("twin", twin, 1)])
    between = np.asarray((3 * own + twin) / np.linalg.norm(3 * own + twin), dtype=np.float32)
    lookalikes = Lookalikes(store, gallery, index, 0.75, hold=True)
    assert alike(lookalikes.find([new("ana", between, 3)])) == [("twin", True)]
    assert alike(lookalikes.find([new("ana", own, 2), new("ana", between, 3)])) == [None, None]


@pytest.mark.parametrize("hold", [True, False])
def test_lookalikes_within_a_batch_are_found(
    store: Store, gallery: Gallery, index: SynchronizedIndex, hold: bool
) -> None:
    """Ana's second id is found; her third one looks like the second only if that was accepted."""
    faces = [
        new("ana", near(1, 1), 1),
        new("ana-2", near(1, 2), 2),
        new("ana-3", near(1, 2, 0.91), 3),
        new("ben", near(2, 3), 4),
    ]
    found = alike(Lookalikes(store, gallery, index, BOUND, hold).find(faces))
    third = "ana" if hold else "ana-2"
    assert found == [None, ("ana", False), (third, False), None]


def test_identical_images_are_left_to_the_store(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    store.faces.enroll(gallery, [new("ana", near(1, 1), 1)])
    lookalikes = Lookalikes(store, gallery, index, BOUND, hold=True)
    assert lookalikes.find([new("ben", near(1, 1), 1)]) == [None]
    assert lookalikes.find([new("cem", near(2, 2), 2), new("dan", near(2, 2), 2)]) == [None, None]


def test_bound_grows_with_the_gallery_up_to_one() -> None:
    tail = SFACE.tail
    assert lookalike_bound(SFACE, 0) == lookalike_bound(SFACE, 1000)
    fmr = tail.rate * math.exp(-(lookalike_bound(SFACE, 10) - tail.start) / tail.scale)
    assert fmr == pytest.approx(1e-6, rel=1e-2)
    growing = [lookalike_bound(SFACE, 10**n) for n in range(3, 9)]
    assert growing == sorted(set(growing))
    assert lookalike_bound(replace(SFACE, tail=ScoreTail(0.5, 1e-3, 0.2)), 10**9) == 1
    assert lookalike_bound(replace(SFACE, tail=ScoreTail(0.5, 1e-8, 0.2)), 10) == 0.5


def enroll(
    store: Store, gallery: Gallery, index: SynchronizedIndex, rows: Sequence[Row], hold: bool | None
) -> list[Result]:
    checks = None if hold is None else FaceChecks(Lookalikes(store, gallery, index, BOUND, hold), None, hold)
    return list(Enroller(store, DescribedPhotos(), gallery, MAX_BYTES, 3, checks=checks).enroll(rows))


@pytest.mark.parametrize("apart", [1, 40], ids=["in one chunk", "in different chunks"])
def test_one_person_under_two_ids_is_rejected(
    store: Store, gallery: Gallery, index: SynchronizedIndex, apart: int
) -> None:
    others = [row(f"p{i}", 10 + i, 10 + i) for i in range(apart)]
    results = enroll(store, gallery, index, [row("ana", 1, 1), *others, row("ana-2", 1, 2)], hold=True)
    assert {result.outcome for result in results[:-1]} == {Outcome.ENROLLED}
    held = results[-1]
    assert (held.outcome, held.reason, held.face_id) == (Outcome.REJECTED, Reason.LOOKS_LIKE_ANOTHER_IDENTITY, None)
    assert held.message is not None
    assert f"looks like identity 'ana': cosine {held.details['score']:.3f}, bound 0.600" in held.message
    assert held.details["external_id"] == "ana"
    assert held.details["face_id"] == (results[0].face_id if apart == 40 else None)
    assert store.galleries.counts(gallery.id) == (apart + 1, apart + 1), "no identity is created without a face"
    again = enroll(store, gallery, index, [row("ana", 1, 1), *others, row("ana-2", 1, 2)], hold=True)
    assert {result.outcome for result in again[:-1]} == {Outcome.UNCHANGED}
    assert (again[-1].outcome, again[-1].reason) == (held.outcome, held.reason)


def test_lookalike_is_enrolled_and_reported_without_hold(
    store: Store, gallery: Gallery, index: SynchronizedIndex
) -> None:
    first, second, further = enroll(
        store, gallery, index, [row("ana", 1, 1), row("ana-2", 1, 2), row("ana-2", 1, 3)], hold=False
    )
    assert (first.outcome, first.message, first.details) == (Outcome.ENROLLED, None, {})
    assert (second.outcome, second.reason) == (Outcome.ENROLLED, None)
    assert second.face_id is not None
    assert second.message is not None
    assert "'ana'" in second.message
    assert second.details["external_id"] == "ana"
    assert further.outcome is Outcome.ENROLLED
    again = enroll(store, gallery, index, [row("ana-2", 1, 2)], hold=False)
    assert [(result.outcome, result.message) for result in again] == [(Outcome.UNCHANGED, None)]


def test_lookalikes_are_not_reported_when_the_check_is_off(
    store: Store, gallery: Gallery, index: SynchronizedIndex
) -> None:
    results = enroll(store, gallery, index, [row("ana", 1, 1), row("ana-2", 1, 2)], hold=None)
    assert [(result.outcome, result.message) for result in results] == [(Outcome.ENROLLED, None)] * 2


def test_rejected_lookalike_does_not_change_its_identity(
    store: Store, gallery: Gallery, index: SynchronizedIndex
) -> None:
    store.identities.put(gallery.id, Person("ben", "Ben"))
    renamed = replace(row("ben", 1, 2), person=Person("ben", "Somebody"))
    enroll(store, gallery, index, [row("ana", 1, 1), renamed], hold=True)
    assert store.identities.get(gallery.id, "ben").name == "Ben"


def test_identical_image_keeps_its_own_message(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    results = enroll(store, gallery, index, [row("ana", 1, 1), row("ben", 1, 1)], hold=True)
    again = enroll(store, gallery, index, [row("cem", 1, 1)], hold=True)
    for result in (results[1], *again):
        assert result.reason is Reason.LOOKS_LIKE_ANOTHER_IDENTITY
        assert "the same image is enrolled for identity 'ana'" in str(result.message)


def test_results_do_not_depend_on_the_number_of_workers(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK", 3)
    random = np.random.default_rng(3)
    rows = [row(f"p{random.integers(30)}", int(random.integers(12)), i) for i in range(60)]
    outcomes = []
    for workers in (1, 5):
        path = tmp_path / f"{workers}.db"
        path.write_bytes(sqlite_template.read_bytes())
        with opened(f"sqlite:///{path}") as store:
            gallery = store.galleries.create("staff", PACK.name, PACK.fingerprint, DIM)
            lookalikes = Lookalikes(store, gallery, index_of(store, gallery, tmp_path / f"{workers}"), BOUND, hold=True)
            checks = FaceChecks(lookalikes, OwnFaces(store, gallery, BOUND), hold=True)
            enroller = Enroller(store, DescribedPhotos(), gallery, MAX_BYTES, workers, checks=checks)
            outcomes.append(list(enroller.enroll(rows)))
    assert outcomes[0] == outcomes[1]
    assert len({result.outcome for result in outcomes[0]}) == 2
