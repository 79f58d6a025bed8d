"""Scores of identities with several enrolled faces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.types import Hit
from search_service.matching.fusion import (
    MOST_AVERAGED,
    MOST_FACES,
    SPREAD,
    Templates,
    bound,
    consistent_faces,
    fused_scores,
    rescore,
)

SAME = 0.3
DIM = 128

Rows = NDArray[np.float32]


def unit(rows: NDArray[np.floating]) -> Rows:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def photos_of(person: int, count: int, spread: float = 0.8) -> Rows:
    """(count, DIM) photos whose cosines to each other are about 1 / (1 + spread^2)."""
    rng = np.random.default_rng(person)
    middle = unit(rng.normal(size=DIM))
    return unit(middle + spread * unit(rng.normal(size=(count, DIM))))


def photo_of(person: int) -> Rows:
    return np.asarray(photos_of(person, 1)[0])


def kept_places(photos: Rows) -> list[int]:
    similarities = (photos @ photos.T).astype(np.float64)[None]
    return np.flatnonzero(consistent_faces(similarities, np.ones((1, len(photos)), bool), SAME)).tolist()


def score(photos: Rows, probe: Rows) -> float:
    templates = Templates(np.zeros(len(photos), np.int64), photos)
    return float(templates.scores(probe[None], np.zeros(1, np.int64), SAME)[0])


def score_by_definition(photos: Rows, probe: Rows) -> float:
    scores = (photos @ probe).astype(np.float64)
    mean = np.exp(scores / SPREAD) @ photos
    return float(mean @ probe / np.linalg.norm(mean))


@pytest.mark.parametrize("count", [2, 3, 5, MOST_AVERAGED])
def test_score_is_cosine_to_weighted_mean(count: int) -> None:
    photos = photos_of(1, count + 1)
    for probe in (photos[-1], photo_of(2), photos[0]):
        assert score(photos[:-1], probe) == pytest.approx(score_by_definition(photos[:-1], probe), abs=1e-6)


def test_single_face_keeps_its_score() -> None:
    assert fused_scores(np.array([[0.4321]]), np.ones((1, 1, 1)), np.ones((1, 1), bool), SAME) == 0.4321


def test_several_photos_raise_scores_of_mates_and_hardly_those_of_strangers() -> None:
    mates, strangers = [], []
    for person in range(40):
        photos = photos_of(person, 4, spread=1.0)
        mates.append(score(photos[:3], photos[3]) - float((photos[:3] @ photos[3]).max()))
        others = [photo_of(1000 + other) for other in range(20)]
        strangers += [score(photos[:3], one) - float((photos[:3] @ one).max()) for one in others]
    assert np.mean(mates) > 0.02
    assert np.mean(strangers) < 0.02


def test_order_of_faces_does_not_matter() -> None:
    photos, probe = photos_of(3, 6), photos_of(3, 7)[6]
    shuffled = np.random.default_rng(5).permutation(6)
    assert score(photos[shuffled], probe) == pytest.approx(score(photos, probe), abs=1e-6)


@pytest.mark.parametrize("count", [3, 5, 9])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_photo_of_another_person_is_left_out(count: int, place: int) -> None:
    photos, other = photos_of(4, count), photos_of(5, 2)
    spoilt = photos.copy()
    spoilt[place] = other[0]
    assert kept_places(spoilt) == [i for i in range(count) if i != place]
    right = np.delete(photos, place, axis=0)
    assert score(spoilt, photos[place]) == pytest.approx(score(right, photos[place]), abs=1e-6)
    assert score(spoilt, other[1]) < SAME  # the wrong photo does not admit the person it shows


@pytest.mark.parametrize(
    ("people", "kept"),
    [
        ({6: 5, 7: 1, 8: 1}, [0, 1, 2, 3, 4]),
        ({6: 2, 7: 2}, [0, 1, 2, 3]),
        ({11: 1, 12: 1, 13: 1}, [0, 1, 2]),
    ],
    ids=["two wrong photos of different people", "two people with two photos each", "no faces that agree"],
)
def test_photos_are_left_out_only_if_the_others_agree(people: dict[int, int], kept: list[int]) -> None:
    assert kept_places(np.concatenate([photos_of(person, count) for person, count in people.items()])) == kept


def test_each_of_two_photos_that_disagree_counts_alone() -> None:
    one, other = photos_of(9, 2), photos_of(10, 2)
    pair = np.stack([one[0], other[0]])
    assert score(pair, one[1]) == pytest.approx(float(one[0] @ one[1]))
    assert score(pair, other[1]) == pytest.approx(float(other[0] @ other[1]))


def test_poor_photo_has_little_weight() -> None:
    photos = photos_of(14, 4)
    poor = photos.copy()
    poor[0] = unit(0.5 * photos[0] + 0.9 * photo_of(15))
    assert score(poor[:3], photos[3]) > score(photos[1:3], photos[3]) - 0.05


def test_only_best_faces_are_averaged() -> None:
    photos, probe = photos_of(16, 30), photos_of(16, 31)[30]
    best = np.argsort(-(photos @ probe))[:MOST_AVERAGED]
    assert score(photos, probe) == pytest.approx(score_by_definition(photos[best], probe), abs=1e-6)


def test_of_very_many_faces_those_similar_to_the_probe_count() -> None:
    old, new = photos_of(20, MOST_FACES), photos_of(21, MOST_FACES + 1)
    probe, many = new[-1], np.concatenate([old, new[:-1], photos_of(22, 1)])
    nearest = many[np.argsort(-(many @ probe))[:MOST_FACES]]
    assert score(many, probe) == pytest.approx(score(nearest, probe), abs=1e-6)
    assert score(many, probe) > score(old, probe)


@pytest.mark.parametrize(
    ("similarity", "scores", "expected"),
    [(1, (0.5, 0.5), 0.5), (-1, (0.5, -0.5), 0.5), (1, (1.0, 1.0), 1.0), (1, (1.0000001, 1.0000001), 1.0)],
    ids=["same photo twice", "opposite photos", "probe is the photo", "rounded above 1"],
)
def test_extreme_cosines_give_finite_scores(similarity: float, scores: tuple[float, float], expected: float) -> None:
    similarities = np.array([[[1.0, similarity], [similarity, 1.0]]])
    (answer,) = fused_scores(np.array([scores]), similarities, np.ones((1, 2), bool), SAME)
    assert math.isclose(answer, expected, abs_tol=1e-6)
    assert answer <= 1


def test_opposite_faces_with_rounded_cosines_keep_best_score() -> None:
    similarities = np.array([[[1.0, -1.0000001], [-1.0000001, 1.0]]])
    assert fused_scores(np.zeros((1, 2)), similarities, np.ones((1, 2), bool), -2.0) == 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 8, 20, 40])
def test_no_score_exceeds_the_bound(count: int) -> None:
    """Of photos around the probe, which have little or nothing in common, the mean is far more similar than each."""
    random = np.random.default_rng(count)
    probe = photo_of(3)
    for spread in (0.5, 2.0, 8.0):
        for similar in (-0.1, 0.1, 0.3, 0.6):
            around = unit(similar * probe + spread * random.standard_normal((count, len(probe))) / len(probe) ** 0.5)
            opposite = unit(np.concatenate([around, 2 * similar * probe - around]))
            for photos in (around, opposite):
                limit = bound(float((photos @ probe).max()), len(photos), SAME)
                assert score(photos, probe) <= limit + 1e-6


def test_batch_scores_equal_single_scores() -> None:
    """Over identities with different numbers of faces, more than are computed together."""
    counts = [1, 2, 3, 7, 40]
    photos = [photos_of(30 + i, count) for i, count in enumerate(counts)]
    templates = Templates(np.repeat(np.arange(len(counts)), counts), np.concatenate(photos))
    probes = np.concatenate([photos_of(30 + i % 6, 1, spread=1.5) for i in range(400)])
    rows = np.arange(len(probes)) % len(counts)
    expected = [score(photos[row], probe) for row, probe in zip(rows, probes, strict=True)]
    np.testing.assert_allclose(templates.scores(probes, rows, SAME), expected, atol=1e-6)


def test_hits_are_rescored_by_all_faces_and_sorted() -> None:
    photos, probe = photos_of(40, 5)[:4], photos_of(40, 5)[4]
    lucky = unit(probe + 1.2 * photo_of(41))[None]
    cosines = [float((photos @ probe).max()), float(lucky[0] @ probe)]
    assert cosines[0] < cosines[1] < score(photos, probe)
    templates = Templates(np.array([2, 1, 1, 1, 1]), np.concatenate([lucky, photos]))
    (hits,) = rescore([[Hit(2, 5, cosines[1]), Hit(1, 3, cosines[0])]], probe[None], templates, SAME)
    assert [(hit.identity_id, hit.face_id) for hit in hits] == [(1, 3), (2, 5)]
    assert [hit.score for hit in hits] == pytest.approx([score(photos, probe), cosines[1]], abs=1e-6)


@pytest.mark.parametrize("known", [[], [7, 7]], ids=["no faces", "faces of others"])
def test_identities_without_faces_keep_their_scores(known: list[int]) -> None:
    templates = Templates(np.array(known, np.int64), photos_of(50, len(known)))
    hits = [Hit(9, 1, 0.5), Hit(2, 2, 0.4)]
    assert rescore([hits, []], photos_of(51, 2), templates, SAME) == [hits, []]
