"""Several faces of one identity, one score."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from search_service.matching.fusion import MOST, SPREAD, Faces, fused_score, sort_out

SAME = 0.3
DIM = 128

Rows = NDArray[np.float64]


def unit(rows: Rows) -> Rows:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def photos_of(person: int, count: int, spread: float = 0.8) -> Rows:
    """(count, DIM) photos whose cosines to each other are about 1 / (1 + spread^2)."""
    rng = np.random.default_rng(person)
    middle = unit(rng.normal(size=DIM))
    return unit(middle + spread * unit(rng.normal(size=(count, DIM))))


def sorted_out(photos: Rows) -> Faces:
    return sort_out((photos @ photos.T).tolist(), SAME)


def score(photos: Rows, probe: Rows) -> float:
    return fused_score(sorted_out(photos), (photos @ probe).tolist())


def by_vectors(photos: Rows, probe: Rows) -> float:
    """The definition, with the vectors at hand."""
    scores = photos @ probe
    weights = np.exp(scores / SPREAD)
    return float(unit(weights @ photos) @ probe)


@pytest.mark.parametrize("count", [2, 3, 5, MOST])
def test_the_score_is_the_cosine_to_the_weighted_mean(count: int) -> None:
    photos = photos_of(1, count + 1)
    for probe in (photos[-1], photos_of(2, 1)[0], photos[0]):
        assert score(photos[:-1], probe) == pytest.approx(by_vectors(photos[:-1], probe), abs=1e-12)


def test_one_face_scores_as_it_is() -> None:
    assert fused_score(sort_out([[1.0]], SAME), [0.4321]) == 0.4321


def test_several_photos_bring_a_mate_nearer_and_strangers_hardly() -> None:
    mates, strangers = [], []
    for person in range(40):
        photos = photos_of(person, 4, spread=1.0)
        mates.append(score(photos[:3], photos[3]) - float((photos[:3] @ photos[3]).max()))
        others = [photos_of(1000 + other, 1)[0] for other in range(20)]
        strangers += [score(photos[:3], one) - float((photos[:3] @ one).max()) for one in others]
    assert np.mean(mates) > 0.02
    assert np.mean(strangers) < 0.02


def test_the_order_of_the_faces_does_not_matter() -> None:
    photos, probe = photos_of(3, 6), photos_of(3, 7)[6]
    shuffled = list(range(6))
    random.Random(5).shuffle(shuffled)
    assert score(photos[shuffled], probe) == pytest.approx(score(photos, probe), abs=1e-12)


@pytest.mark.parametrize("count", [3, 5, 9])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_wrong_photo_is_left_out(count: int, place: int) -> None:
    photos, other = photos_of(4, count), photos_of(5, 2)
    spoilt = photos.copy()
    spoilt[place] = other[0]
    assert sorted_out(spoilt).kept == tuple(i for i in range(count) if i != place)
    right = np.delete(photos, place, axis=0)
    assert score(spoilt, photos[place]) == pytest.approx(score(right, photos[place]), abs=1e-12)
    assert score(spoilt, other[1]) < SAME  # the person of the wrong photo is not let in by it


def test_two_wrong_photos_of_different_people_are_left_out() -> None:
    photos = np.concatenate([photos_of(6, 5), photos_of(7, 1), photos_of(8, 1)])
    assert sorted_out(photos).kept == (0, 1, 2, 3, 4)


def test_two_people_of_two_photos_each_are_both_kept() -> None:
    photos = np.concatenate([photos_of(6, 2), photos_of(7, 2)])
    assert sorted_out(photos).kept == (0, 1, 2, 3)


def test_of_two_that_disagree_each_stands_for_itself() -> None:
    one, other = photos_of(9, 2), photos_of(10, 2)
    pair = np.stack([one[0], other[0]])
    assert sorted_out(pair).split
    assert score(pair, one[1]) == pytest.approx(float(one[0] @ one[1]))
    assert score(pair, other[1]) == pytest.approx(float(other[0] @ other[1]))
    assert not sorted_out(one).split


def test_nothing_is_left_out_where_no_faces_agree() -> None:
    photos = np.concatenate([photos_of(person, 1) for person in (11, 12, 13)])
    faces = sorted_out(photos)
    assert faces.kept == (0, 1, 2)
    assert not faces.single


def test_a_poor_photo_counts_little() -> None:
    photos = photos_of(14, 4)
    poor = photos.copy()
    poor[0] = unit(0.5 * photos[0] + 0.9 * photos_of(15, 1)[0])
    clean = score(photos[1:3], photos[3])
    assert score(poor[:3], photos[3]) > clean - 0.05


def test_only_the_best_few_of_many_faces_count() -> None:
    photos, probe = photos_of(16, 30), photos_of(16, 31)[30]
    best = np.argsort(-(photos @ probe))[:MOST]
    assert score(photos, probe) == pytest.approx(by_vectors(photos[best], probe), abs=1e-12)


@pytest.mark.parametrize(
    ("alike", "scores", "expected"),
    [
        ([[1, 1], [1, 1]], [0.5, 0.5], 0.5),  # the same photo twice
        ([[1, -1], [-1, 1]], [0.5, -0.5], 0.5),  # opposites
        ([[1, 1], [1, 1]], [1.0, 1.0], 1.0),
        ([[1, 1], [1, 1]], [1.0000001, 1.0000001], 1.0),
    ],
)
def test_odd_numbers(alike: Sequence[Sequence[float]], scores: Sequence[float], expected: float) -> None:
    answer = fused_score(sort_out(alike, SAME), scores)
    assert math.isclose(answer, expected, abs_tol=1e-6)
    assert answer <= 1


def test_rounded_cosines_of_opposites_have_no_root() -> None:
    faces = Faces((0, 1), ((1.0, -1.0000001), (-1.0000001, 1.0)), split=False)
    assert fused_score(faces, [0.0, 0.0]) == 0.0
