"""Faces of any size in photos of any size."""

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
from indexer.vision.detection import SearchScope
from indexer.vision.detectors.base import iou
from indexer.vision.detectors.yunet import YuNet
from indexer.vision.runtime import Threads
from tests import photos


@pytest.fixture(scope="module")
def detector(models_folder: Path) -> YuNet:
    detector, _ = networks.load(SFACE, ModelFiles(models_folder), Device.CPU, Precision.FLOAT32, Threads())
    assert isinstance(detector, YuNet)
    return detector


def whole(pixels: Pixels) -> Photo:
    return Photo(pixels, pixels.shape[1], pixels.shape[0])


def one(detector: YuNet, photo: Photo, seek: SearchScope = SearchScope.ALL) -> list[Detection]:
    (faces,) = detection.detect_faces(detector, [photo], seek)
    return faces


def main_face(faces: Sequence[Detection]) -> Detection:
    return max(faces, key=lambda face: face.box.area)


def shift(face: Detection, expected: Detection) -> float:
    """The mean distance of the landmarks in shares of the face's size."""
    return float(np.hypot(*(face.landmarks - expected.landmarks).T).mean() / expected.box.size)


def astronaut() -> Pixels:
    return photos.pixels(photos.astronaut())


@pytest.mark.parametrize("side", [200, 512, 1280, 3000])
def test_the_same_face_at_every_size(detector: YuNet, side: int) -> None:
    (expected,) = one(detector, whole(astronaut()))
    (face,) = one(detector, whole(photos.enlarged(astronaut(), side, side)))
    back = face.scaled(512 / side, 512 / side)
    assert iou(back.box, expected.box) > 0.75
    assert shift(back, expected) < 0.05


@pytest.mark.parametrize("side", [160, 400, 1500])
def test_a_face_that_fills_the_frame(detector: YuNet, side: int) -> None:
    """A passport photo: the face leaves a margin of a tenth."""
    (face,) = one(detector, whole(astronaut()))
    box = face.box
    left, top = int(box.x - box.w * 0.1), int(box.y - box.h * 0.1)
    width, height = int(box.w * 1.2), int(box.h * 1.2)
    tall = round(side * height / width)
    passport = whole(photos.enlarged(astronaut()[top : top + height, left : left + width], side, tall))
    found = one(detector, passport)
    assert len(found) == 1
    (again,) = detection.refine_detections(detector, [(passport, found[0])])
    for seen in (found[0], again):
        assert shift(seen.scaled(width / side, height / tall, left, top), face) < 0.06


def test_a_group_photo_of_12_megapixels(detector: YuNet) -> None:
    six = photos.pixels(photos.six_people())
    known = one(detector, whole(six))
    assert len(known) == 6
    canvas = np.full((3000, 4000, 3), 128, np.uint8)
    small = photos.enlarged(six, 640, 443)  # faces of about 60 pixels in 4000
    places = [(left, top) for left in (0, 1200, 3360) for top in (0, 1000, 2557)]
    for left, top in places:
        canvas[top : top + 443, left : left + 640] = small
    found = one(detector, whole(canvas))
    expected = [face.scaled(0.5, 0.5, left, top) for left, top in places for face in known]
    assert {round(f.box.size / 10) for f in expected} <= {5, 6, 7}
    refined = detection.refine_detections(detector, [(whole(canvas), face) for face in found])
    sure = detection.refine_detections(detector, [(whole(six), face) for face in known])
    surely = [face.scaled(0.5, 0.5, left, top) for left, top in places for face in sure]
    for faces, there, limit in ((found, expected, 0.25), (refined, surely, 0.08)):
        misses = [min(shift(face, wanted) for face in faces) for wanted in there]
        assert max(misses) < limit
        assert len(faces) <= len(expected) + 3  # folded hands look like a face to the detector, if unsurely


def test_boxes_of_a_reduced_jpeg_are_in_pixels_of_the_original(detector: YuNet) -> None:
    six = photos.pixels(photos.six_people())
    known = one(detector, whole(six))
    data = photos.encode(photos.enlarged(six, 3840, 2657), "JPEG", quality=90)
    photo = decode(data, longest_side=900)
    assert photo.pixels.shape[:2] == (665, 960)
    found = one(detector, photo)
    assert len(found) == 6
    for face in found:
        back = face.scaled(1280 / 3840, 886 / 2657)
        nearest = min(known, key=lambda k: shift(back, k))
        assert shift(back, nearest) < 0.09
        assert iou(back.box, nearest.box) > 0.8
    refined = detection.refine_detections(detector, [(photo, face) for face in found])
    sure = detection.refine_detections(detector, [(whole(six), face) for face in known])
    for face in refined:
        back = face.scaled(1280 / 3840, 886 / 2657)
        assert min(shift(back, wanted) for wanted in sure) < 0.05


def test_many_photos_of_different_shapes_keep_their_places(detector: YuNet) -> None:
    face = astronaut()
    pictures = [
        face,
        np.zeros((300, 500, 3), np.uint8),
        photos.pixels(photos.six_people()),
        face[:, ::-1],
        face[:300, 60:],
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((2, 3000, 3), np.uint8),
        face,
    ]
    together = detection.detect_faces(detector, [whole(np.ascontiguousarray(picture)) for picture in pictures])
    assert [len(faces) for faces in together] == [1, 0, 6, 1, 1, 0, 0, 1]
    for picture, faces in zip(pictures, together, strict=True):
        for a, b in zip(one(detector, whole(np.ascontiguousarray(picture))), faces, strict=True):
            assert np.allclose(a.landmarks, b.landmarks, atol=0.05)
    assert detection.detect_faces(detector, []) == []


def test_a_found_face_is_told_once_and_surest_first(detector: YuNet) -> None:
    faces = one(detector, whole(photos.enlarged(photos.pixels(photos.six_people()), 2560, 1772)))
    scores = [face.score for face in faces]
    assert len(faces) == 6
    assert scores == sorted(scores, reverse=True)
    overlaps = [iou(a.box, b.box) for i, a in enumerate(faces) for b in faces[:i]]
    assert max(overlaps) < 0.1


def test_not_being_thorough_finds_the_same_main_face(detector: YuNet) -> None:
    face = astronaut()
    beside = np.full((1500, 2000, 3), 100, np.uint8)
    beside[200:1400, 200:1400] = photos.enlarged(face, 1200, 1200)
    beside[1000:1200, 1700:1900] = photos.enlarged(face, 200, 200)  # a bystander, a sixth as large
    for picture in (face, beside, photos.enlarged(face, 1600, 1600), photos.pixels(photos.six_people())):
        thorough, quick = (one(detector, whole(picture), way) for way in (SearchScope.ALL, SearchScope.LARGEST))
        assert iou(main_face(thorough).box, main_face(quick).box) > 0.8
        assert len(quick) <= len(thorough)
    assert len(one(detector, whole(beside), SearchScope.ALL)) == 2


def test_not_being_thorough_still_searches_where_nothing_is_plain(detector: YuNet) -> None:
    small = np.full((1280, 1280, 3), 100, np.uint8)
    small[800:900, 900:1000] = photos.enlarged(astronaut(), 100, 100)  # a face of 20 pixels
    (face,) = one(detector, whole(small), SearchScope.LARGEST)
    assert 800 < face.box.center[1] < 900 < face.box.center[0] < 1000


@pytest.mark.parametrize(("dx", "dy", "grow"), [(0, 0, 1), (12, -9, 1), (-10, 12, 1.15), (8, 8, 0.85)])
@pytest.mark.parametrize("scale", [0.25, 1, 4])
def test_looking_again_mends_a_rough_box(detector: YuNet, dx: float, dy: float, grow: float, scale: float) -> None:
    side = round(512 * scale)
    photo = whole(photos.enlarged(astronaut(), side, side))
    (known,) = one(detector, whole(astronaut()))
    b = known.box
    rough = Detection(
        Box(b.x + dx - b.w * (grow - 1) / 2, b.y + dy - b.h * (grow - 1) / 2, b.w * grow, b.h * grow),
        known.landmarks + np.float32(9),
        0.65,
    ).scaled(scale, scale)
    (again,) = detection.refine_detections(detector, [(photo, rough)])
    assert shift(again, known.scaled(scale, scale)) < 0.05
    assert iou(again.box, known.scaled(scale, scale).box) > 0.8
    assert again.score > 0.8


def test_looking_again_keeps_what_it_does_not_find(detector: YuNet) -> None:
    photo = whole(astronaut())
    nowhere = Detection(Box(20, 380, 60, 60), np.full((5, 2), 400, np.float32), 0.61)
    outside = Detection(Box(5000, 5000, 60, 60), np.full((5, 2), 5030, np.float32), 0.61)
    (face,) = one(detector, photo)
    answers = detection.refine_detections(detector, [(photo, nowhere), (photo, face), (photo, outside)])
    assert answers[0] is nowhere
    assert answers[2] is outside
    assert answers[1] is not face
    assert shift(answers[1], face) < 0.05
    assert detection.refine_detections(detector, []) == []


def test_looking_again_takes_the_face_that_was_meant(detector: YuNet) -> None:
    """Two faces side by side: each second look shows both."""
    face = astronaut()[40:200, 150:300]
    photo = whole(np.ascontiguousarray(np.concatenate([face, face[:, ::-1]], axis=1)))
    faces = one(detector, photo)
    assert len(faces) == 2
    for before, after in zip(faces, detection.refine_detections(detector, [(photo, f) for f in faces]), strict=True):
        assert iou(before.box, after.box) > 0.7


@pytest.mark.parametrize("degrees", [-150, -90, -40, 20, 45, 90, 180])
def test_looking_again_turns_the_face_upright(detector: YuNet, degrees: int) -> None:
    """The detector itself finds a face that lies on its side badly or not at all."""
    picture = astronaut()
    (known,) = one(detector, whole(picture))
    (straight,) = detection.refine_detections(detector, [(whole(picture), known)])
    turn = cv2.getRotationMatrix2D(known.box.center, degrees, 1.0)
    turned = np.asarray(cv2.warpAffine(picture, turn, (512, 512), borderMode=cv2.BORDER_REFLECT), np.uint8)
    there = known.landmarks @ turn[:, :2].T + turn[:, 2]
    rough = Detection(known.box, (there + np.array([3, -2])).astype(np.float32), 0.7)
    (again,) = detection.refine_detections(detector, [(whole(turned), rough)])
    expected = straight.landmarks @ turn[:, :2].T + turn[:, 2]
    assert float(np.hypot(*(again.landmarks - expected).T).mean()) < 0.03 * known.box.size
    assert again.score == pytest.approx(straight.score, abs=0.03)
    across, tall = straight.box.w, straight.box.h
    if degrees % 90 == 0:
        across, tall = (tall, across) if degrees % 180 else (across, tall)
        assert (again.box.w, again.box.h) == pytest.approx((across, tall), rel=0.08)
    assert again.box.center == pytest.approx(straight.box.center, abs=0.15 * known.box.size)


def test_looking_again_sees_a_mirrored_face_as_it_is(detector: YuNet) -> None:
    picture = astronaut()
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    (face,) = one(detector, whole(picture))
    flipped = Detection(
        Box(511 - face.box.x - face.box.w, face.box.y, face.box.w, face.box.h),
        (face.landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (511, 0)).astype(np.float32),
        face.score,
    )
    (a,) = detection.refine_detections(detector, [(whole(picture), face)])
    (b,) = detection.refine_detections(detector, [(whole(mirrored), flipped)])
    back = b.landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (511, 0)
    assert np.abs(a.landmarks - back).max() < 1
    assert a.box.x == pytest.approx(511 - b.box.x - b.box.w, abs=0.5)
    assert a.score == pytest.approx(b.score, abs=0.005)


def test_looking_again_with_landmarks_in_one_point(detector: YuNet) -> None:
    photo = whole(astronaut())
    (face,) = one(detector, photo)
    shapeless = Detection(face.box, np.full((5, 2), 200, np.float32), face.score)
    (again,) = detection.refine_detections(detector, [(photo, shapeless)])
    assert shift(again, face) < 0.05
