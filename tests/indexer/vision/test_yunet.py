"""YuNet against OpenCV's own implementation, which reads the original file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from indexer.models import onnx_prepare
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Box, Pixels, Precision
from indexer.vision import runtime
from indexer.vision.detectors.base import iou, suppress_overlaps
from indexer.vision.detectors.yunet import MAX_OVERLAP, MIN_SCORE, YuNet
from indexer.vision.runtime import Threads
from tests import photos
from tests.indexer.vision.common import (
    assert_batch_equals_single_images,
    assert_same_faces,
    astronaut,
    box_values,
    six_people,
)


@pytest.fixture(scope="module", params=runtime.engines())
def yunet(request: pytest.FixtureRequest, models_folder: Path) -> YuNet:
    model = ModelFiles(models_folder).prepared_model(SFACE.detector)
    models = (model, onnx_prepare.extract_outputs(model, YuNet.output_slices[1]))
    return YuNet(*(runtime.load(m, YuNet.preprocessing, Precision.FLOAT32, Threads(), request.param) for m in models))


@pytest.fixture(scope="module")
def opencv_file(models_folder: Path) -> str:
    return ModelFiles(models_folder).location(SFACE.detector)


PICTURES: dict[str, Callable[[], Pixels]] = {
    "astronaut": astronaut,
    "six": six_people,
    "six-small": lambda: photos.enlarged(six_people(), 320, 222),
    "astronaut-odd": lambda: astronaut()[11:400, 60:391],
}


@pytest.mark.skipif(
    int(cv2.__version__.split(".")[0]) < 5, reason=f"OpenCV {cv2.__version__} cannot read the original file; 5 can"
)
@pytest.mark.parametrize("name", PICTURES)
def test_detections_equal_those_of_opencv(yunet: YuNet, opencv_file: str, name: str) -> None:
    picture = PICTURES[name]()
    height, width = picture.shape[:2]
    theirs = cv2.FaceDetectorYN.create(opencv_file, "", (width, height), MIN_SCORE, MAX_OVERLAP)
    _, rows = theirs.detect(np.ascontiguousarray(picture[..., ::-1]))
    padded = np.pad(picture, ((0, -height % 32), (0, -width % 32), (0, 0)))
    (found,) = yunet.detect(padded[None])
    assert len(found) == len(rows) >= (6 if "six" in name else 1)
    assert [face.score for face in found] == sorted((face.score for face in found), reverse=True)
    for row in rows:
        box = Box(*(float(v) for v in row[:4]))
        ours = max(found, key=lambda face: iou(face.box, box))
        assert np.abs(np.array(box_values(ours.box)) - row[:4]).max() < 1
        assert np.abs(ours.landmarks - row[4:14].reshape(5, 2)).max() < 1
        assert abs(ours.score - row[14]) < 0.01


def test_landmarks_are_in_the_documented_order(yunet: YuNet) -> None:
    (faces,) = yunet.detect(astronaut()[None])
    right_eye, left_eye, nose, right_mouth, left_mouth = faces[0].landmarks
    assert faces[0].landmarks.dtype == np.float32
    assert right_eye[0] < nose[0] < left_eye[0]
    assert right_mouth[0] < nose[0] < left_mouth[0]
    assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])


def test_batch_equals_single_images(yunet: YuNet) -> None:
    picture = astronaut()
    batch = np.stack([picture, np.zeros_like(picture), picture[:, ::-1], np.full_like(picture, 255)])
    assert assert_batch_equals_single_images(yunet, batch) == [1, 0, 1, 0]
    (original,), _, (mirrored,), _ = yunet.detect(batch)
    assert abs(original.box.center[0] + mirrored.box.center[0] - 512) < 3


def test_large_faces_do_not_need_the_finer_strides(yunet: YuNet) -> None:
    """Faces of 200 pixels in 320, as in the second detection pass, and one that only the finer strides find."""
    picture = astronaut()[:320, 64:384]
    large = photos.enlarged(picture[0:240, 20:260], 320, 320)
    small = np.zeros_like(large)
    small[:80, :80] = photos.enlarged(picture, 80, 80)
    canvases = np.stack([large, small, np.zeros_like(large), large[:, ::-1]])
    found = yunet.detect_large(canvases)
    assert [len(faces) for faces in found] == [1, 1, 0, 1]
    for faces, expected in zip(found, yunet.detect(canvases), strict=True):
        assert_same_faces(faces, expected)


def test_best_of_overlapping_boxes_is_kept() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [0, 6, 10, 10], [50, 50, 10, 10]], np.float32)
    points = np.arange(40, dtype=np.float32).reshape(4, 5, 2)
    scores = np.array([0.7, 0.9, 0.8, 0.75], np.float32)
    levels = [(boxes[:1], points[:1], scores[:1]), (boxes[1:], points[1:], scores[1:])]
    kept = suppress_overlaps(levels, 0.3)
    # The second suppresses the first (overlap 0.82); its overlap with the third is only 0.22.
    assert [round(face.score, 2) for face in kept] == [0.9, 0.8, 0.75]
    assert kept[0].box == Box(1, 0, 10, 10)
    assert np.array_equal(kept[0].landmarks, points[1])
    assert [round(f.score, 2) for f in suppress_overlaps(levels, 0.2)] == [0.9, 0.75]
    assert suppress_overlaps([(boxes[:0], points[:0], scores[:0])], 0.3) == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Box(0, 0, 10, 10), 1),
        (Box(5, 0, 10, 10), 50 / 150),
        (Box(2, 2, 5, 5), 0.25),
        (Box(10, 0, 5, 5), 0),
        (Box(20, 20, 5, 5), 0),
        (Box(20, 2, 5, 5), 0),
    ],
)
def test_intersection_over_union(other: Box, expected: float) -> None:
    assert iou(Box(0, 0, 10, 10), other) == pytest.approx(expected)
    assert iou(other, Box(0, 0, 10, 10)) == pytest.approx(expected)
