"""Searches and thresholds consider all faces of a person together."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from indexer.models.packs import SFACE
from indexer.settings import read_settings
from indexer.types import Gallery, Person, Vectors
from search_service.calibration.thresholds import Thresholds
from search_service.matching.calibration import threshold_for
from search_service.matching.decision import Decision, DecisionReason
from search_service.matching.fusion import Templates
from search_service.search import FaceAnswer, Query, SearchService
from search_service.service_context import ServiceContext
from tests.search_service.calibration.people import another_photo, enroll_photos, people, photos_of

SAME = SFACE.same_threshold


def score(probe: Vectors, photos: Vectors) -> float:
    templates = Templates(np.zeros(len(photos), np.int64), photos)
    return float(templates.scores(probe[None], np.zeros(1, np.int64), SAME)[0])


def crowd_photos(crowd: Vectors, count: int) -> list[Vectors]:
    return [photos_of(person, count, first_seed=10 * i) for i, person in enumerate(crowd)]


def search(context: ServiceContext, gallery: Gallery, probe: Vectors, threshold: float = 0.5) -> FaceAnswer:
    service = SearchService(context, Thresholds(context))
    (face,) = service.search_embedding(probe.tolist(), gallery, Query(threshold=threshold)).faces
    return face


def test_search_scores_people_by_all_their_photos(context: ServiceContext) -> None:
    crowd = people(30, 0.0)
    of_each = crowd_photos(crowd, 3)
    gallery = enroll_photos(context, of_each)
    probe = another_photo(crowd[0], 0.6, seed=77)
    face = search(context, gallery, probe)
    assert face.candidates[0].identity.external_id == "p0000"
    assert face.candidates[0].score > float((of_each[0] @ probe).max())
    expected = [score(probe, of_each[int(c.identity.external_id[1:])]) for c in face.candidates]
    assert [c.score for c in face.candidates] == pytest.approx(expected, abs=1e-5)
    assert expected == sorted(expected, reverse=True)


@pytest.mark.parametrize("vectors", ["exact", "compressed"])
def test_enrolled_face_does_not_score_above_1(tmp_path: Path, vectors: str) -> None:
    context = ServiceContext(read_settings({"WHOSTHERE_VECTORS": vectors}, home=tmp_path))
    crowd = people(40, 0.0)
    gallery = enroll_photos(context, [person[None] for person in crowd])
    scores = [search(context, gallery, person).candidates[0].score for person in crowd]
    context.close()
    assert max(scores) <= 1.0
    assert min(scores) > 0.999


def test_photo_enrolled_under_the_wrong_identity_admits_nobody(context: ServiceContext) -> None:
    crowd = people(30, 0.0)
    of_each = crowd_photos(crowd[:-1], 4)
    of_each[0][3] = another_photo(crowd[-1], 0.75, seed=3)
    gallery = enroll_photos(context, of_each)
    stranger = another_photo(crowd[-1], 0.75, seed=4)
    assert float((of_each[0] @ stranger).max()) > 0.5
    assert search(context, gallery, stranger, 0.45).decision is Decision.NO_MATCH


def test_expired_identity_is_scored_by_all_its_photos_too(context: ServiceContext) -> None:
    crowd = people(5, 0.0)
    gallery = enroll_photos(context, crowd_photos(crowd, 3))
    context.store.identities.put(gallery.id, Person("p0000", valid_until=datetime(2020, 1, 1, tzinfo=UTC)))
    probe = another_photo(crowd[0], 0.6, seed=77)
    best = float(max(probe @ f for f in context.store.embeddings.of_identities(gallery, [1]).vectors))
    face = search(context, gallery, probe, threshold=best + 0.02)  # which only all photos together reach
    assert DecisionReason.IDENTITY_EXPIRED in face.reasons


def test_deleted_photos_no_longer_count(context: ServiceContext) -> None:
    crowd = people(3, 0.0)
    gallery = enroll_photos(context, crowd_photos(crowd, 3))
    probe = another_photo(crowd[0], 0.6, seed=77)
    before = search(context, gallery, probe).candidates[0]
    for face in context.store.faces.list(gallery.id, "p0000")[:2]:
        context.store.faces.delete(gallery.id, face.id)
    after = search(context, gallery, probe).candidates[0]
    left = context.store.embeddings.of_identities(gallery, [before.identity.id]).vectors
    assert len(left) == 1
    assert after.score == pytest.approx(float(left[0] @ probe), abs=1e-5)


@pytest.mark.parametrize("count", [3, 5])
def test_thresholds_hold_for_people_with_several_photos(context: ServiceContext, count: int) -> None:
    gallery = enroll_photos(context, crowd_photos(people(400, 0.1), count))
    calibrated = Thresholds(context).calibrate(gallery)
    assert calibrated.curve is not None
    assert calibrated.survey.people == 400
    everybody = context.store.embeddings.of_identities(gallery, range(1, 401))
    templates = Templates(everybody.identity_ids, everybody.vectors)
    strangers = another_photo(people(300, 0.1, seed=1), 0.75)
    pairs = np.repeat(strangers, 400, axis=0), np.tile(np.arange(400), 300)
    best = templates.scores(*pairs, SAME).reshape(300, 400).max(axis=1)
    for fpir in (0.1, 0.03):
        share = float((best >= threshold_for(fpir, 1, calibrated.curve)).mean())
        assert fpir / 2 <= share <= 2 * fpir, (fpir, share)


def spread_around(probe: Vectors, count: int, cosine: float, seed: int = 0) -> Vectors:
    """Returns (count, DIM) photos that all have that cosine to the probe and nothing else in common."""
    random = np.random.default_rng(seed).standard_normal((len(probe), count + 1))
    random[:, 0] = probe
    basis = np.linalg.qr(random)[0].T * np.sign(probe @ np.linalg.qr(random)[0][:, 0])
    return np.asarray(cosine * probe + math.sqrt(1 - cosine**2) * basis[1:], np.float32)


def crowded(context: ServiceContext, decoys: int, faces: int = 4) -> tuple[Gallery, Vectors]:
    """Enrolls people whose only photo is more similar to the probe than each of the last person's photos, but below the
    threshold, which all photos of the last person together exceed."""
    (probe,) = people(1, 0.0, seed=8)
    others = [spread_around(probe, 1, 0.44 - 0.00001 * n, seed=n + 1) for n in range(decoys)]
    return enroll_photos(context, [*others, spread_around(probe, faces, 0.40, seed=0)]), probe


@pytest.mark.parametrize("decoys", [9, 60, 700])
def test_decision_does_not_depend_on_top_k(context: ServiceContext, decoys: int) -> None:
    gallery, probe = crowded(context, decoys)
    service = SearchService(context, Thresholds(context))
    for top_k in (1, 2, 5, 10, 100):
        query = Query(top_k=top_k, threshold=0.5)
        (face,) = service.search_embedding(probe.tolist(), gallery, query).faces
        assert (face.decision, face.candidates[0].identity.external_id) == (Decision.MATCH, f"p{decoys:04}")
        assert len(face.candidates) == min(top_k, decoys + 1)


def test_runner_up_far_down_the_index_leads_to_a_review(context: ServiceContext) -> None:
    gallery, probe = crowded(context, 60)
    best = search(context, gallery, probe).candidates[0].score
    gallery = enroll_photos(context, [spread_around(probe, 1, best + 0.02, seed=500)], first=100)
    face = search(context, gallery, probe)
    assert [c.identity.external_id for c in face.candidates[:2]] == ["p0100", "p0060"]
    assert (face.decision, face.reasons) == (Decision.REVIEW, (DecisionReason.CLOSE_RUNNER_UP,))


def test_many_expired_identities_do_not_hide_valid_ones(context: ServiceContext) -> None:
    gallery, probe = crowded(context, 120)
    for number in range(110):
        context.store.identities.put(gallery.id, Person(f"p{number:04}", valid_until=datetime(2020, 1, 1, tzinfo=UTC)))
    service = SearchService(context, Thresholds(context))
    for top_k in (1, 100):
        (face,) = service.search_embedding(probe.tolist(), gallery, Query(top_k=top_k, threshold=0.5)).faces
        assert len(face.candidates) == min(top_k, 11)
        assert face.candidates[0].identity.external_id == "p0120"


def test_expired_identity_far_down_the_index_is_still_considered(context: ServiceContext) -> None:
    gallery, probe = crowded(context, 60)
    context.store.identities.put(gallery.id, Person("p0060", valid_until=datetime(2020, 1, 1, tzinfo=UTC)))
    face = search(context, gallery, probe)
    assert (face.decision, face.reasons) == (Decision.NO_MATCH, (DecisionReason.IDENTITY_EXPIRED,))


@pytest.mark.parametrize("seed", range(4))
def test_decision_is_that_of_scoring_everybody(context: ServiceContext, seed: int) -> None:
    """Over people of whom some have photos that resemble each other hardly or not at all."""
    random = np.random.default_rng(seed)
    (probe,) = people(1, 0.0, seed=8)
    counts = random.integers(1, 9, 150)
    of_each = [spread_around(probe, int(n), random.uniform(0.1, 0.4), seed=i) for i, n in enumerate(counts)]
    gallery = enroll_photos(context, of_each)
    expected = sorted((score(probe, photos) for photos in of_each), reverse=True)
    for threshold in (0.3, expected[0] - 0.01, expected[0] + 0.01):
        face = search(context, gallery, probe, threshold)
        found = [c.score for c in face.candidates[:2]]
        if threshold <= expected[0]:
            assert found == pytest.approx(expected[:2], abs=1e-5) or expected[0] - expected[1] > 0.05
            assert found[0] == pytest.approx(expected[0], abs=1e-5)
        assert (face.decision is Decision.NO_MATCH) == (threshold > expected[0])
