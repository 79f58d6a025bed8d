"""Alignment against an independent solution, InsightFace, and pictures with known results."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.types import CROP_SIZE
from indexer.vision.align import REFERENCE_LANDMARKS, align, estimate_similarity
from tests import photos
from tests.indexer.vision import upstream
from tests.indexer.vision.common import astronaut

ASTRONAUT_LANDMARKS = np.array([[202, 112], [246, 109], [226, 133], [208, 150], [246, 148]], np.float32)


def least_squares(points: NDArray[np.floating], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solves the similarity u = ax - by + tx, v = bx + ay + ty as a linear least-squares problem in a, b, tx, ty."""
    rows, targets = [], []
    for (x, y), (u, v) in zip(points.astype(np.float64), reference, strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        targets += [u, v]
    (a, b, tx, ty), *_ = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)
    return np.array([[a, -b, tx], [b, a, ty]])


def transform(points: NDArray[np.float64], degrees: float, scale: float, x: float, y: float) -> NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T + (x, y)


@pytest.mark.parametrize("seed", range(20))
def test_similarity_is_the_least_squares_solution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = transform(REFERENCE_LANDMARKS, rng.uniform(-180, 180), rng.uniform(0.1, 20), *rng.uniform(-500, 5000, 2))
    points += rng.normal(0, rng.uniform(0, 30), (5, 2))
    assert np.allclose(estimate_similarity(points), least_squares(points, REFERENCE_LANDMARKS), rtol=1e-6, atol=1e-6)


def test_similarity_never_mirrors() -> None:
    mirrored = REFERENCE_LANDMARKS * (-1, 1) + (CROP_SIZE, 0)
    matrix = estimate_similarity(mirrored)
    assert np.linalg.det(matrix[:, :2]) > 0
    assert np.allclose(matrix, least_squares(mirrored, REFERENCE_LANDMARKS), atol=1e-9)


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1), (30, 0.5), (-100, 3.7), (180, 12)])
def test_similarity_inverts_a_similarity(degrees: float, scale: float) -> None:
    matrix = estimate_similarity(transform(REFERENCE_LANDMARKS, degrees, scale, 300, -40))
    moved = transform(REFERENCE_LANDMARKS, degrees, scale, 300, -40) @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(moved, REFERENCE_LANDMARKS, atol=1e-9)


@pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")  # from scikit-image, in InsightFace
@pytest.mark.parametrize("exact", [False, True])
def test_crops_equal_those_of_insightface(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops are identical if InsightFace gets the reference and the landmarks in float64. By default it computes in
    float32, which changes the last digits of the matrix and single pixels by one level."""
    theirs = upstream.face_align()
    assert np.array_equal(theirs.arcface_dst, REFERENCE_LANDMARKS.astype(np.float32))
    if exact:
        monkeypatch.setattr(theirs, "arcface_dst", REFERENCE_LANDMARKS)
    photo = astronaut()
    rng = np.random.default_rng(0)
    for _ in range(50):
        scale = rng.uniform(0.4, 1.9)  # InsightFace does not average larger faces down
        angle, place = rng.uniform(-180, 180), rng.uniform(100, 400, 2)
        points = transform(REFERENCE_LANDMARKS - CROP_SIZE / 2, angle, scale, *place)
        points = (points + rng.normal(0, 3 * scale, (5, 2))).astype(np.float64 if exact else np.float32)
        matrix = estimate_similarity(points)
        assert np.hypot(*matrix[:, 0]) > 0.5
        assert np.abs(matrix - theirs.estimate_norm(points)).max() < (1e-9 if exact else 1e-3)
        difference = np.abs(align(photo, points).astype(int) - theirs.norm_crop(photo, points))
        assert difference.max() <= (0 if exact else 1)
        assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("value", [0.0, 17.5, np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_coinciding_or_infinite_landmarks_are_rejected(value: float) -> None:
    with pytest.raises(ValueError, match="coincide"):
        estimate_similarity(np.full((5, 2), value))


@pytest.mark.parametrize("scale", [0.5, 1, 1.5, 2, 2.5, 3, 4, 5.3])
@pytest.mark.parametrize("degrees", [0, 25, -90, 180])
def test_each_crop_pixel_shows_its_place_in_the_photo(scale: float, degrees: float) -> None:
    """The photo has horizontal waves in red and vertical waves in green, whose values at each place are known."""
    side, length = 900, 40 * scale
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)))  # (2, y, x)
    red, green = np.round(127.5 + 100 * np.sin(2 * np.pi / length * places))
    photo = np.stack([red, green, np.full_like(red, 80)], 2).astype(np.uint8)
    points = transform(REFERENCE_LANDMARKS - CROP_SIZE / 2, degrees, scale, 450, 440)
    crop = align(photo, points).astype(np.float64)

    v, u = np.mgrid[:CROP_SIZE, :CROP_SIZE]
    inverse = np.vstack([estimate_similarity(points), [0, 0, 1]])
    place = np.linalg.solve(inverse, np.stack([u.ravel(), v.ravel(), np.ones(CROP_SIZE * CROP_SIZE)]))[:2]
    place = place.reshape(2, CROP_SIZE, CROP_SIZE)
    inside = ((place > 16) & (place < side - 16)).all(0)
    assert inside.mean() > 0.75
    for channel in (0, 1):
        phase = 2 * np.pi / length * place[channel]
        error = (crop[..., channel] - 127.5 - 100 * np.sin(phase))[inside]
        assert np.abs(error).max() < 8
        slope = (100 * 2 * np.pi / 40 * np.cos(phase))[inside]  # per crop pixel
        assert abs((error * slope).sum() / (slope**2).sum()) < 0.02
    assert (crop[..., 2][inside] == 80).all()


def test_areas_outside_the_photo_are_black() -> None:
    white = np.full((100, 100, 3), 255, np.uint8)
    crop = align(white, REFERENCE_LANDMARKS - (56, 0))  # the crop begins 56 pixels left of the photo
    assert (crop[:, :55] == 0).all()
    assert (crop[:99, 57:] == 255).all()
    assert (align(white, REFERENCE_LANDMARKS + 5000) == 0).all()
    assert (align(white, (REFERENCE_LANDMARKS + 5000) * 5) == 0).all()


@pytest.mark.parametrize("scale", [2, 3, 4.5, 10])
def test_fine_detail_of_large_faces_is_averaged(scale: float) -> None:
    side = int(CROP_SIZE * scale) + 20
    board = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    crop = align(board, REFERENCE_LANDMARKS * scale + 10)
    # Squares of odd size have one more pixel of one color: 5 of 9 in the worst case.
    assert np.abs(crop.astype(int) - 127.5).max() <= 15
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    # The standard deviation of the mean of n x n pixels is 1 / n of that of a pixel.
    assert align(noise, REFERENCE_LANDMARKS * scale + 10).std() < 1.1 * noise.std() / int(scale)


@pytest.mark.parametrize("times", [2, 3, 4, 6])
def test_enlarged_photo_gives_the_same_crop(times: int) -> None:
    photo = astronaut()[40:220, 140:320]
    points = ASTRONAUT_LANDMARKS - (140, 40)
    large = photos.enlarged(photo, 180 * times, 180 * times)
    # The center of pixel x is at times * x + (times - 1) / 2 in the enlarged photo.
    crops = align(photo, points), align(large, points * times + (times - 1) / 2)
    assert crops[0].std() > 40
    assert np.abs(crops[0].astype(int) - crops[1]).mean() < 3


def test_face_at_the_edge_of_a_large_photo_is_aligned() -> None:
    photo = astronaut()
    for scale in (1, 3):
        part = photos.enlarged(photo, 512 * scale, 512 * scale)
        panorama = np.zeros((512 * scale + 8, 40_000, 3), np.uint8)  # OpenCV 4 warps images up to 32,766 wide
        left = 40_000 - 512 * scale
        panorama[8:, left:] = part
        points = ASTRONAUT_LANDMARKS * scale
        difference = align(part, points).astype(int) - align(panorama, points + np.array([left, 8]))
        assert np.abs(difference).mean() < 1.5
