"""Quality measurements, and the reasons for which faces are rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.types import Box, Detection, Face, Pick, Pixels, Quality, Reason
from indexer.vision import quality
from indexer.vision.align import REFERENCE_LANDMARKS, align
from indexer.vision.detectors.yunet import YuNet
from indexer.vision.pipeline import FacePipeline
from tests import photos
from tests.indexer.vision.common import astronaut, mirrored_landmarks

MIN_SCORE = YuNet.enrollment_score

Degrade = Callable[[Pixels], Pixels]


def only_face(pipeline: FacePipeline, picture: Pixels) -> Face:
    (result,) = pipeline.describe([photos.encode(picture, "PNG", compress_level=1)], Pick.LARGEST)
    assert result.rejection is None
    (face,) = result.faces
    return face


def frontal(landmarks: NDArray[np.float64] = REFERENCE_LANDMARKS, score: float = 0.95, size: float = 200) -> Detection:
    return Detection(Box(0, 0, size, size), landmarks.astype(np.float32), score)


def measure(crop: Pixels, detection: Detection | None = None) -> Quality:
    return quality.measure(detection or frontal(), crop, MIN_SCORE)


def good_crop(degrade: Degrade = lambda picture: picture) -> Pixels:
    landmarks = np.array([[202, 112], [246, 109], [226, 133], [208, 150], [246, 148]], np.float32)
    return align(degrade(astronaut()), landmarks)


def shaded(factor: float, offset: float) -> Degrade:
    return lambda picture: np.clip(picture * factor + offset, 0, 255).astype(np.uint8)


def blurred(sigma: float) -> Degrade:
    return lambda picture: np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), dtype=np.uint8)


def downscaled(side: int) -> Degrade:
    """Makes the face small in a picture of the same size."""

    def degrade(picture: Pixels) -> Pixels:
        canvas = np.full_like(picture, 110)
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        canvas[200 : 200 + side, 200 : 200 + side] = small
        return canvas

    return degrade


@pytest.mark.parametrize("side", [512, 1024])
def test_good_photo_has_no_reason(pipeline: FacePipeline, side: int) -> None:
    face = only_face(pipeline, photos.enlarged(astronaut(), side, side))
    assert face.quality.reasons == ()
    assert face.quality.size == pytest.approx(face.detection.box.size, abs=0.06)
    assert 0.16 < face.quality.size / side < 0.24
    assert abs(face.quality.yaw) < 0.2
    assert 100 < face.quality.brightness < 200
    assert 20 < face.quality.contrast < 80


@pytest.mark.parametrize(
    ("degrade", "reason"),
    [
        (blurred(7), Reason.FACE_TOO_BLURRY),
        (shaded(0.1, 0), Reason.FACE_BADLY_LIT),
        (shaded(0.1, 115), Reason.FACE_BADLY_LIT),
        (shaded(0.1, 228), Reason.FACE_BADLY_LIT),
        (downscaled(75), Reason.FACE_TOO_SMALL),
    ],
    ids=["blurred", "dark", "low-contrast", "overexposed", "small"],
)
def test_degraded_photo_is_rejected_for_its_reason(pipeline: FacePipeline, degrade: Degrade, reason: Reason) -> None:
    data = photos.encode(degrade(astronaut()), "PNG", compress_level=1)
    (ungated,) = pipeline.describe([data], Pick.ONLY)
    assert ungated.rejection is None
    assert reason in ungated.faces[0].quality.reasons
    (gated,) = pipeline.describe([data], Pick.ONLY, gate=True)
    assert gated.faces == ()
    assert gated.rejection is not None
    assert gated.rejection.code == ungated.faces[0].quality.reasons[0]
    assert reason in gated.rejection.details["reasons"]  # type: ignore[operator]
    assert "expected" in gated.rejection.message


def head(degrees: float) -> NDArray[np.float64]:
    """Returns the landmarks of a head turned to the image's right, seen from far away: four points in a plane and the
    nose in front of it."""
    angle = np.deg2rad(degrees)
    plane = np.array([[-25, -22], [25, -22], [0, 0], [-17, 22], [17, 22]], np.float64)
    depth = np.array([0, 0, 25 * quality.NOSE_DEPTH, 0, 0])
    return np.stack([plane[:, 0] * np.cos(angle) + depth * np.sin(angle), plane[:, 1]], 1) + 56


def test_each_reason_is_found_alone() -> None:
    crop = good_crop()
    low_score = frontal(score=MIN_SCORE - 0.01)
    assert measure(crop).reasons == ()
    assert measure(crop, low_score).reasons == (Reason.DETECTION_UNSURE,)
    assert measure(crop, frontal(size=quality.MIN_SIZE - 0.1)).reasons == (Reason.FACE_TOO_SMALL,)
    assert measure(crop, frontal(size=quality.MIN_SIZE)).reasons == ()
    assert measure(crop, frontal(head(80))).reasons == (Reason.FACE_TURNED_AWAY,)
    # Sharpness does not depend on light: a dark crop is as sharp as before.
    assert measure((crop * 0.1).astype(np.uint8)).reasons[0] == Reason.FACE_BADLY_LIT
    assert measure(good_crop(blurred(7))).reasons == (Reason.FACE_TOO_BLURRY,)
    small = replace(low_score, box=Box(0, 0, 5, 5))
    assert measure(crop, small).reasons == (Reason.FACE_TOO_SMALL, Reason.DETECTION_UNSURE)
    # Too dark and too little contrast are one reason, listed once.
    assert measure(np.zeros_like(crop)).reasons.count(Reason.FACE_BADLY_LIT) == 1


def test_sharpness_depends_on_blur_and_not_on_light() -> None:
    crop = good_crop()
    sharpness = [measure(blurred(sigma)(crop)).sharpness for sigma in (0.5, 1, 2, 4, 8)]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[0] > 4 * sharpness[-1]
    dim = measure((crop * 0.5).round().astype(np.uint8))
    assert dim.sharpness == pytest.approx(measure(crop).sharpness, rel=0.1)
    assert measure(np.full_like(crop, 77)).sharpness == 0


def test_light_is_measured_on_the_face() -> None:
    crop = np.full((112, 112, 3), 250, np.uint8)
    crop[quality.FACE_REGION] = 60
    assert (measure(crop).brightness, measure(crop).contrast) == (60, 0)
    crop[quality.FACE_REGION][::2] = 100
    assert (measure(crop).brightness, measure(crop).contrast) == (80, 20)


def yaw(landmarks: NDArray[np.float64]) -> float:
    return measure(np.zeros((112, 112, 3), np.uint8), frontal(landmarks)).yaw


@pytest.mark.parametrize("degrees", [-80, -45, -10, 0, 20, 45, 60])
def test_yaw_is_the_rotation_of_the_head(degrees: int) -> None:
    assert yaw(head(degrees)) == pytest.approx(degrees / 90, abs=2e-3)
    assert yaw(mirrored_landmarks(head(degrees), 113)) == pytest.approx(-degrees / 90, abs=2e-3)


def test_yaw_does_not_depend_on_size_position_tilt_or_height_of_the_nose() -> None:
    turn = 3.3 * np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    assert yaw(head(30) @ turn.T + (900, 30)) == pytest.approx(1 / 3, abs=2e-3)
    raised = head(0)
    raised[2, 1] -= 9
    assert yaw(raised) == 0


def test_yaw_of_extreme_landmarks_is_at_most_1() -> None:
    far = head(0)
    far[2, 0] += 5000
    assert 0.95 < yaw(far) <= 1
    assert yaw(np.full((5, 2), 40.0)) == 1


def test_yaw_of_a_mirrored_photo_is_negated(pipeline: FacePipeline) -> None:
    canvas = np.full((300, 300, 3), 90, np.uint8)
    canvas[90:202, 90:202] = photos.pixels(photos.aligned_face())
    original, mirrored = (only_face(pipeline, np.ascontiguousarray(p)).quality.yaw for p in (canvas, canvas[:, ::-1]))
    assert original > 0.05
    assert mirrored == pytest.approx(-original, abs=0.1)


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        (Reason.DETECTION_UNSURE, "0.61"),
        (Reason.FACE_TOO_SMALL, "12 pixels"),
        (Reason.FACE_TURNED_AWAY, "turned"),
        (Reason.FACE_BADLY_LIT, "17"),
        (Reason.FACE_TOO_BLURRY, "sharpness is 3"),
    ],
)
def test_rejection_message_contains_measured_and_expected_value(reason: Reason, value: str) -> None:
    measured = Quality(size=12, sharpness=3, yaw=-0.91, brightness=17, contrast=5)
    message = quality.rejection_message(reason, frontal(score=0.61), measured, MIN_SCORE)
    assert value in message
    assert "expected" in message
