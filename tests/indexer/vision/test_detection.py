"""Detection of faces of any size in photos of any size, and the second detection pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Box, Detection, Device, Pixels, Precision
from indexer.vision import detection, networks
from indexer.vision.decode import Photo, decode
from indexer.vision.detection import SearchScope, refine_detections
from indexer.vision.detectors.base import iou
from indexer.vision.detectors.yunet import YuNet
from indexer.vision.runtime import Threads
from tests import photos
from tests.indexer.vision.common import astronaut, box_values, mirrored_landmarks, six_people


@pytest.fixture(scope="module")
def detector(models_folder: Path) -> YuNet:
    detector, _ = networks.load(SFACE, ModelFiles(models_folder), Device.CPU, Precision.FLOAT32, Threads())
    assert isinstance(detector, YuNet)
    return detector


def as_photo(pixels: Pixels) -> Photo:
    return Photo(np.ascontiguousarray(pixels), pixels.shape[1], pixels.shape[0])


def detect(detector: YuNet, photo: Photo | Pixels, scope: SearchScope = SearchScope.ALL) -> list[Detection]:
    (faces,) = detection.detect_faces(detector, [photo if isinstance(photo, Photo) else as_photo(photo)], scope)
    return faces


def largest(faces: Sequence[Detection]) -> Detection:
    return max(faces, key=lambda face: face.box.area)


def shift(face: Detection, expected: Detection) -> float:
    """Returns the mean distance of the landmarks relative to the size of the face."""
    return float(np.hypot(*(face.landmarks - expected.landmarks).T).mean() / expected.box.size)


@pytest.mark.parametrize("side", [200, 512, 1280, 3000])
def test_face_is_found_at_every_size(detector: YuNet, side: int) -> None:
    (expected,) = detect(detector, astronaut())
    (face,) = detect(detector, photos.enlarged(astronaut(), side, side))
    rescaled = face.scaled(512 / side, 512 / side)
    assert iou(rescaled.box, expected.box) > 0.75
    assert shift(rescaled, expected) < 0.05


@pytest.mark.parametrize("side", [160, 400, 1500])
def test_face_that_fills_the_photo_is_found(detector: YuNet, side: int) -> None:
    """The margin around the face is a tenth of its size, as in a passport photo."""
    (face,) = detect(detector, astronaut())
    box = face.box
    left, top = int(box.x - box.w * 0.1), int(box.y - box.h * 0.1)
    width, height = int(box.w * 1.2), int(box.h * 1.2)
    tall = round(side * height / width)
    passport = as_photo(photos.enlarged(astronaut()[top : top + height, left : left + width], side, tall))
    (found,) = detect(detector, passport)
    (refined,) = refine_detections(detector, [(passport, found)])
    for seen in (found, refined):
        assert shift(seen.scaled(width / side, height / tall, left, top), face) < 0.06


def test_all_faces_of_a_12_megapixel_group_photo_are_found(detector: YuNet) -> None:
    six = six_people()
    known = detect(detector, six)
    assert len(known) == 6
    canvas = np.full((3000, 4000, 3), 128, np.uint8)
    small = photos.enlarged(six, 640, 443)  # faces of about 60 pixels in 4000
    places = [(left, top) for left in (0, 1200, 3360) for top in (0, 1000, 2557)]
    for left, top in places:
        canvas[top : top + 443, left : left + 640] = small
    found = detect(detector, canvas)
    expected = [face.scaled(0.5, 0.5, left, top) for left, top in places for face in known]
    assert {round(f.box.size / 10) for f in expected} <= {5, 6, 7}
    refined = refine_detections(detector, [(as_photo(canvas), face) for face in found])
    known = refine_detections(detector, [(as_photo(six), face) for face in known])
    expected_refined = [face.scaled(0.5, 0.5, left, top) for left, top in places for face in known]
    for faces, wanted, limit in ((found, expected, 0.25), (refined, expected_refined, 0.08)):
        assert max(min(shift(face, other) for face in faces) for other in wanted) < limit
        assert len(faces) <= len(wanted) + 3  # folded hands are detected as faces with a low score


def test_boxes_of_a_reduced_jpeg_are_in_pixels_of_the_original(detector: YuNet) -> None:
    six = six_people()
    known = detect(detector, six)
    photo = decode(photos.encode(photos.enlarged(six, 3840, 2657), "JPEG", quality=90), longest_side=900)
    assert photo.pixels.shape[:2] == (665, 960)
    found = detect(detector, photo)
    assert len(found) == 6
    for face in found:
        rescaled = face.scaled(1280 / 3840, 886 / 2657)
        nearest = min(known, key=lambda k: shift(rescaled, k))
        assert shift(rescaled, nearest) < 0.09
        assert iou(rescaled.box, nearest.box) > 0.8
    known = refine_detections(detector, [(as_photo(six), face) for face in known])
    for face in refine_detections(detector, [(photo, face) for face in found]):
        rescaled = face.scaled(1280 / 3840, 886 / 2657)
        assert min(shift(rescaled, wanted) for wanted in known) < 0.05


def test_photos_of_different_shapes_share_a_call(detector: YuNet) -> None:
    face = astronaut()
    pictures = [
        face,
        np.zeros((300, 500, 3), np.uint8),
        six_people(),
        face[:, ::-1],
        face[:300, 60:],
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((2, 3000, 3), np.uint8),
        face,
    ]
    together = detection.detect_faces(detector, [as_photo(picture) for picture in pictures])
    assert [len(faces) for faces in together] == [1, 0, 6, 1, 1, 0, 0, 1]
    for picture, faces in zip(pictures, together, strict=True):
        for a, b in zip(detect(detector, picture), faces, strict=True):
            assert np.allclose(a.landmarks, b.landmarks, atol=0.05)
    assert detection.detect_faces(detector, []) == []


def test_each_face_is_returned_once_in_order_of_score(detector: YuNet) -> None:
    faces = detect(detector, photos.enlarged(six_people(), 2560, 1772))
    scores = [face.score for face in faces]
    assert len(faces) == 6
    assert scores == sorted(scores, reverse=True)
    assert max(iou(a.box, b.box) for i, a in enumerate(faces) for b in faces[:i]) < 0.1


def test_search_for_the_largest_face_finds_the_same_one(detector: YuNet) -> None:
    face = astronaut()
    with_bystander = np.full((1500, 2000, 3), 100, np.uint8)
    with_bystander[200:1400, 200:1400] = photos.enlarged(face, 1200, 1200)
    with_bystander[1000:1200, 1700:1900] = photos.enlarged(face, 200, 200)  # a sixth as large
    for picture in (face, with_bystander, photos.enlarged(face, 1600, 1600), six_people()):
        every, main = (detect(detector, picture, scope) for scope in (SearchScope.ALL, SearchScope.LARGEST))
        assert iou(largest(every).box, largest(main).box) > 0.8
        assert len(main) <= len(every)
    assert len(detect(detector, with_bystander, SearchScope.ALL)) == 2


def test_search_for_the_largest_face_continues_until_one_is_found(detector: YuNet) -> None:
    small = np.full((1280, 1280, 3), 100, np.uint8)
    small[800:900, 900:1000] = photos.enlarged(astronaut(), 100, 100)  # a face of 20 pixels
    (face,) = detect(detector, small, SearchScope.LARGEST)
    assert 800 < face.box.center[1] < 900 < face.box.center[0] < 1000


@pytest.mark.parametrize(("dx", "dy", "grow"), [(0, 0, 1), (12, -9, 1), (-10, 12, 1.15), (8, 8, 0.85)])
@pytest.mark.parametrize("scale", [0.25, 1, 4])
def test_refining_corrects_an_inaccurate_box(detector: YuNet, dx: float, dy: float, grow: float, scale: float) -> None:
    side = round(512 * scale)
    photo = as_photo(photos.enlarged(astronaut(), side, side))
    (known,) = detect(detector, astronaut())
    b = known.box
    rough = Detection(
        Box(b.x + dx - b.w * (grow - 1) / 2, b.y + dy - b.h * (grow - 1) / 2, b.w * grow, b.h * grow),
        known.landmarks + np.float32(9),
        0.65,
    ).scaled(scale, scale)
    (refined,) = refine_detections(detector, [(photo, rough)])
    assert shift(refined, known.scaled(scale, scale)) < 0.05
    assert iou(refined.box, known.scaled(scale, scale).box) > 0.8
    assert refined.score > 0.8


def test_refining_keeps_faces_that_are_not_found_again(detector: YuNet) -> None:
    photo = as_photo(astronaut())
    nowhere = Detection(Box(20, 380, 60, 60), np.full((5, 2), 400, np.float32), 0.61)
    outside = Detection(Box(5000, 5000, 60, 60), np.full((5, 2), 5030, np.float32), 0.61)
    (face,) = detect(detector, photo)
    refined = refine_detections(detector, [(photo, nowhere), (photo, face), (photo, outside)])
    assert refined[0] is nowhere
    assert refined[2] is outside
    assert refined[1] is not face
    assert shift(refined[1], face) < 0.05
    assert refine_detections(detector, []) == []


def test_refining_selects_the_right_one_of_adjacent_faces(detector: YuNet) -> None:
    face = astronaut()[40:200, 150:300]
    photo = as_photo(np.concatenate([face, face[:, ::-1]], axis=1))
    faces = detect(detector, photo)
    assert len(faces) == 2
    for before, after in zip(faces, refine_detections(detector, [(photo, f) for f in faces]), strict=True):
        assert iou(before.box, after.box) > 0.7


@pytest.mark.parametrize("degrees", [-150, -90, -40, 20, 45, 90, 180])
def test_refining_rotates_the_face_upright(detector: YuNet, degrees: int) -> None:
    """The detector itself finds a face that lies on its side badly or not at all."""
    picture = astronaut()
    (known,) = detect(detector, picture)
    (upright,) = refine_detections(detector, [(as_photo(picture), known)])
    turn = cv2.getRotationMatrix2D(known.box.center, degrees, 1.0)
    rotated = np.asarray(cv2.warpAffine(picture, turn, (512, 512), borderMode=cv2.BORDER_REFLECT), np.uint8)
    landmarks = known.landmarks @ turn[:, :2].T + turn[:, 2]
    rough = Detection(known.box, (landmarks + np.array([3, -2])).astype(np.float32), 0.7)
    (refined,) = refine_detections(detector, [(as_photo(rotated), rough)])
    expected = upright.landmarks @ turn[:, :2].T + turn[:, 2]
    assert float(np.hypot(*(refined.landmarks - expected).T).mean()) < 0.03 * known.box.size
    assert refined.score == pytest.approx(upright.score, abs=0.03)
    if degrees % 90 == 0:
        w, h = upright.box.w, upright.box.h
        assert (refined.box.w, refined.box.h) == pytest.approx((h, w) if degrees % 180 else (w, h), rel=0.08)
    assert refined.box.center == pytest.approx(upright.box.center, abs=0.15 * known.box.size)


def test_refining_a_mirrored_photo_gives_the_mirrored_face(detector: YuNet) -> None:
    picture = astronaut()
    (face,) = detect(detector, picture)
    x, y, w, h = box_values(face.box)
    landmarks = mirrored_landmarks(face.landmarks, 512).astype(np.float32)
    flipped = Detection(Box(511 - x - w, y, w, h), landmarks, face.score)
    (a,) = refine_detections(detector, [(as_photo(picture), face)])
    (b,) = refine_detections(detector, [(as_photo(picture[:, ::-1]), flipped)])
    assert np.abs(a.landmarks - mirrored_landmarks(b.landmarks, 512)).max() < 1
    assert a.box.x == pytest.approx(511 - b.box.x - b.box.w, abs=0.5)
    assert a.score == pytest.approx(b.score, abs=0.005)


def test_refining_works_with_coinciding_landmarks(detector: YuNet) -> None:
    photo = as_photo(astronaut())
    (face,) = detect(detector, photo)
    without_shape = Detection(face.box, np.full((5, 2), 200, np.float32), face.score)
    (refined,) = refine_detections(detector, [(photo, without_shape)])
    assert shift(refined, face) < 0.05
