"""Searches and thresholds take all faces of a person together."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from indexer.gallery.store import FaceVectors
from indexer.models.packs import SFACE
from indexer.types import Gallery, Hit, Person, Vectors
from search_service.calibration.survey import Thresholds
from search_service.matching.calibration import threshold_for
from search_service.matching.decision import Decision, DecisionReason
from search_service.matching.fusion import fused_score, sort_out
from search_service.search import Query, SearchService
from search_service.service_context import ServiceContext
from search_service.template_scores import MOST_FACES, by_person, fused, score
from tests.indexer.gallery.faces import new_face
from tests.search_service.calibration.test_calibration import again, people

SAME = SFACE.same_threshold


def photos(person: Vectors, count: int, cosine: float = 0.75, first: int = 0) -> Vectors:
    """(count, D) of one person."""
    return np.stack([again(person[None], cosine, seed=first + i)[0] for i in range(count)])


def faces_of(*of_each: Vectors) -> FaceVectors:
    """Of people 1, 2, ..., their faces numbered through."""
    owners = np.concatenate([np.full(len(some), i, np.int64) for i, some in enumerate(of_each, 1)])
    return FaceVectors(np.arange(1, len(owners) + 1), owners, np.concatenate(of_each))


def enrol(home: ServiceContext, *of_each: Vectors, name: str = "staff") -> Gallery:
    """People e-1, e-2, ..."""
    store, pack = home.store, SFACE
    gallery = store.create_gallery(name, pack.name, pack.fingerprint, pack.dim)
    for person, vectors in enumerate(of_each, 1):
        faces = [new_face(f"e-{person}", 1000 * person + i) for i in range(len(vectors))]
        described = [replace(f, face=replace(f.face, embedding=v)) for f, v in zip(faces, vectors, strict=True)]
        store.enroll(gallery, described)
    return store.gallery(name)


def test_each_identity_is_scored_by_all_its_faces_and_the_best_comes_first() -> None:
    ana = people(1, 0.0)[0]
    probe = again(ana[None], 0.6, seed=40)[0]
    mine, lucky = photos(ana, 4), again(probe[None], 0.55, seed=41)
    best = [Hit(2, 5, float(lucky[0] @ probe)), Hit(1, int(np.argmax(mine @ probe)) + 1, float((mine @ probe).max()))]
    best.sort(key=lambda hit: -hit.score)
    (hits,) = fused([best], probe[None], faces_of(mine, lucky), SAME)
    expected = fused_score(sort_out((mine @ mine.T).tolist(), SAME), (mine @ probe).tolist())
    assert expected > best[0].score  # together they are nearer than the lucky one
    assert [hit.identity_id for hit in hits] == [1, 2]
    assert hits[0].score == pytest.approx(expected, abs=1e-6)
    assert hits[0].face_id == int(np.argmax(mine @ probe)) + 1
    assert hits[1].score == pytest.approx(float(lucky[0] @ probe), abs=1e-6)


def test_who_is_not_among_the_faces_keeps_the_score() -> None:
    none = FaceVectors(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, SFACE.dim), np.float32))
    hits = [Hit(1, 1, 0.5), Hit(2, 2, 0.4)]
    assert by_person(none) == {}
    assert fused([hits], people(1, 0.0), none, SAME) == [hits]


def test_of_very_many_faces_those_like_the_probe_count() -> None:
    ana, ben = people(2, 0.0)
    old, now = photos(ana, MOST_FACES), photos(again(ana[None], 0.6, seed=7)[0], MOST_FACES, first=500)
    probe = again(now[:1], 0.8, seed=8)[0]
    many = np.concatenate([old, now, photos(ben, 1)])
    kept = many[np.argsort(-(many @ probe))[:MOST_FACES]]
    assert score(probe, many, SAME) == pytest.approx(score(probe, kept, SAME), abs=1e-6)
    assert score(probe, many, SAME) > score(probe, old, SAME)


def test_a_search_scores_people_by_all_their_photos(home: ServiceContext) -> None:
    crowd = people(30, 0.0)
    of_each = [photos(person, 3, first=10 * i) for i, person in enumerate(crowd)]
    gallery = enrol(home, *of_each)
    service = SearchService(home, Thresholds(home))
    probe = again(crowd[:1], 0.6, seed=77)[0]
    (face,) = service.search_embedding(probe.tolist(), gallery, Query(threshold=0.5)).faces
    assert face.candidates[0].identity.external_id == "e-1"
    assert face.candidates[0].score == pytest.approx(score(probe, of_each[0], SAME), abs=1e-5)
    assert face.candidates[0].score > float((of_each[0] @ probe).max())
    ranked = [score(probe, of_each[int(c.identity.external_id[2:]) - 1], SAME) for c in face.candidates]
    assert [c.score for c in face.candidates] == pytest.approx(ranked, abs=1e-5)
    assert ranked == sorted(ranked, reverse=True)


def test_a_photo_of_somebody_else_lets_nobody_in(home: ServiceContext) -> None:
    crowd = people(30, 0.0)
    of_each = [photos(person, 4, first=10 * i) for i, person in enumerate(crowd[:-1])]
    of_each[0][3] = again(crowd[-1:], 0.75, seed=3)[0]  # enrolled by mistake as e-1's
    gallery = enrol(home, *of_each)
    stranger = again(crowd[-1:], 0.75, seed=4)[0]
    assert float((of_each[0] @ stranger).max()) > 0.5
    (face,) = (
        SearchService(home, Thresholds(home)).search_embedding(stranger.tolist(), gallery, Query(threshold=0.45)).faces
    )
    assert face.decision is Decision.NO_MATCH


def test_somebody_who_has_left_stands_before_the_others_by_all_their_photos(home: ServiceContext) -> None:
    crowd = people(5, 0.0)
    gallery = enrol(home, *[photos(person, 3, first=10 * i) for i, person in enumerate(crowd)])
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    home.store.put_identity(gallery.id, Person("e-1", valid_until=long_ago))
    probe = again(crowd[:1], 0.6, seed=77)[0]
    best = float(max(probe @ f for f in home.store.vectors_of_identity(gallery, 1).vectors))
    query = Query(threshold=best + 0.02)  # which only all photos together reach
    (face,) = SearchService(home, Thresholds(home)).search_embedding(probe.tolist(), gallery, query).faces
    assert DecisionReason.IDENTITY_EXPIRED in face.reasons


def test_photos_that_change_meanwhile_are_the_ones_in_the_database(home: ServiceContext) -> None:
    crowd = people(3, 0.0)
    gallery = enrol(home, *[photos(person, 3, first=10 * i) for i, person in enumerate(crowd)])
    service, probe = SearchService(home, Thresholds(home)), again(crowd[:1], 0.6, seed=77)[0]
    before = service.search_embedding(probe.tolist(), gallery, Query(threshold=0.5)).faces[0].candidates[0]
    for face in home.store.faces(gallery.id, "e-1")[:2]:
        home.store.delete_face(gallery.id, face.id)
    after = service.search_embedding(probe.tolist(), gallery, Query(threshold=0.5)).faces[0].candidates[0]
    left = home.store.vectors_of_identity(gallery, before.identity.id).vectors
    assert len(left) == 1
    assert after.score == pytest.approx(float(left[0] @ probe), abs=1e-5)


@pytest.mark.parametrize("count", [3, 5])
def test_thresholds_are_those_of_people_with_several_photos(home: ServiceContext, count: int) -> None:
    crowd = people(400, 0.1)
    gallery = enrol(home, *[photos(person, count, first=10 * i) for i, person in enumerate(crowd)])
    thresholds = Thresholds(home)
    made = thresholds.calibrate(gallery)
    assert made.curve is not None
    assert made.survey.people == 400
    everybody = by_person(home.store.vectors_of_people(gallery, range(1, 401)))
    strangers = again(people(300, 0.1, seed=1), 0.75)
    best = [max(score(probe, faces, SAME) for faces in everybody.values()) for probe in strangers]
    for fpir in (0.1, 0.03):
        share = float(np.mean([one >= threshold_for(fpir, 1, made.curve) for one in best]))
        assert fpir / 2 <= share <= 2 * fpir, (fpir, share)
