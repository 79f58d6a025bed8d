"""Each reason is found where it is due, and a good photo has none."""

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

SURE = YuNet.enrollment_score


def astronaut() -> Pixels:
    return photos.pixels(photos.astronaut())


def only_face(pipeline: FacePipeline, picture: Pixels) -> Face:
    (seen,) = pipeline.describe([photos.encode(picture, "PNG", compress_level=1)], Pick.LARGEST)
    assert seen.rejection is None
    (face,) = seen.faces
    return face


def straight(landmarks: NDArray[np.float64] = REFERENCE_LANDMARKS, score: float = 0.95, size: float = 200) -> Detection:
    return Detection(Box(0, 0, size, size), landmarks.astype(np.float32), score)


def good_crop(spoil: Callable[[Pixels], Pixels] = lambda picture: picture) -> Pixels:
    return align(spoil(astronaut()), np.array([[202, 112], [246, 109], [226, 133], [208, 150], [246, 148]], np.float32))


def shaded(factor: float, offset: float) -> Callable[[Pixels], Pixels]:
    return lambda picture: np.clip(picture * factor + offset, 0, 255).astype(np.uint8)


def blurred(sigma: float) -> Callable[[Pixels], Pixels]:
    return lambda picture: np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), dtype=np.uint8)


def shrunk(side: int) -> Callable[[Pixels], Pixels]:
    """A small face in a picture of the same size."""

    def shrink(picture: Pixels) -> Pixels:
        canvas = np.full_like(picture, 110)
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        canvas[200 : 200 + side, 200 : 200 + side] = small
        return canvas

    return shrink


@pytest.mark.parametrize("side", [512, 1024])
def test_a_good_photo_has_no_reason(pipeline: FacePipeline, side: int) -> None:
    face = only_face(pipeline, photos.enlarged(astronaut(), side, side))
    assert face.quality.reasons == ()
    assert face.quality.size == pytest.approx(face.detection.box.size, abs=0.06)
    assert 0.16 < face.quality.size / side < 0.24
    assert abs(face.quality.yaw) < 0.2
    assert 100 < face.quality.brightness < 200
    assert 20 < face.quality.contrast < 80


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (blurred(7), Reason.FACE_TOO_BLURRY),
        (shaded(0.1, 0), Reason.FACE_BADLY_LIT),
        (shaded(0.1, 115), Reason.FACE_BADLY_LIT),
        (shaded(0.1, 228), Reason.FACE_BADLY_LIT),
        (shrunk(75), Reason.FACE_TOO_SMALL),
    ],
    ids=["blurred", "dark", "flat", "washed-out", "tiny"],
)
def test_a_spoilt_photo_is_rejected_for_its_reason(
    pipeline: FacePipeline, spoil: Callable[[Pixels], Pixels], reason: Reason
) -> None:
    data = photos.encode(spoil(astronaut()), "PNG", compress_level=1)
    (ungated,) = pipeline.describe([data], Pick.ONLY)
    assert ungated.rejection is None
    assert reason in ungated.faces[0].quality.reasons
    (gated,) = pipeline.describe([data], Pick.ONLY, gate=True)
    assert gated.faces == ()
    assert gated.rejection is not None
    assert gated.rejection.code == ungated.faces[0].quality.reasons[0]
    assert reason in gated.rejection.details["reasons"]  # type: ignore[operator]
    assert "expected" in gated.rejection.message


def test_every_reason_alone() -> None:
    crop = good_crop()
    assert quality.measure(straight(), crop, SURE).reasons == ()

    def reasons(detection: Detection, picture: Pixels = crop) -> tuple[Reason, ...]:
        return quality.measure(detection, picture, SURE).reasons

    unsure = straight(score=SURE - 0.01)
    assert reasons(unsure) == (Reason.DETECTION_UNSURE,)
    assert reasons(straight(size=quality.MIN_SIZE - 0.1)) == (Reason.FACE_TOO_SMALL,)
    assert reasons(straight(size=quality.MIN_SIZE)) == ()
    assert reasons(straight(head(80))) == (Reason.FACE_TURNED_AWAY,)
    # Light is not sharpness: a dark or flat crop is as sharp as it was.
    assert reasons(straight(), (crop * 0.1).astype(np.uint8))[0] == Reason.FACE_BADLY_LIT
    assert reasons(straight(), good_crop(blurred(7))) == (Reason.FACE_TOO_BLURRY,)
    both = replace(unsure, box=Box(0, 0, 5, 5))
    assert reasons(both) == (Reason.FACE_TOO_SMALL, Reason.DETECTION_UNSURE)
    # Too dark and too flat is one reason, told once.
    assert reasons(straight(), np.zeros_like(crop)).count(Reason.FACE_BADLY_LIT) == 1


def test_sharpness_falls_with_blur_and_not_with_light() -> None:
    crop = good_crop()
    sharpness = [
        quality.measure(straight(), np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma), np.uint8), SURE).sharpness
        for sigma in (0.5, 1, 2, 4, 8)
    ]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[0] > 4 * sharpness[-1]
    plain = quality.measure(straight(), crop, SURE).sharpness
    dim = quality.measure(straight(), (crop * 0.5).round().astype(np.uint8), SURE).sharpness
    assert dim == pytest.approx(plain, rel=0.1)
    assert quality.measure(straight(), np.full_like(crop, 77), SURE).sharpness == 0


def test_light_is_measured_on_the_face() -> None:
    crop = np.full((112, 112, 3), 250, np.uint8)
    crop[quality.FACE_REGION] = 60
    measured = quality.measure(straight(), crop, SURE)
    assert (measured.brightness, measured.contrast) == (60, 0)
    crop[quality.FACE_REGION][::2] = 100
    measured = quality.measure(straight(), crop, SURE)
    assert (measured.brightness, measured.contrast) == (80, 20)


def head(degrees: float) -> NDArray[np.float64]:
    """Landmarks of a head turned to the image's right, seen from far away: four points in a plane and the nose
    before it."""
    angle = np.deg2rad(degrees)
    plane = np.array([[-25, -22], [25, -22], [0, 0], [-17, 22], [17, 22]], np.float64)
    depth = np.array([0, 0, 25 * quality.NOSE_DEPTH, 0, 0])
    return np.stack([plane[:, 0] * np.cos(angle) + depth * np.sin(angle), plane[:, 1]], 1) + 56


def test_yaw() -> None:
    def yaw(landmarks: NDArray[np.float64]) -> float:
        return quality.measure(straight(landmarks), good_crop(), SURE).yaw

    for degrees in (-80, -45, -10, 0, 20, 45, 60):
        assert yaw(head(degrees)) == pytest.approx(degrees / 90, abs=2e-3)
        mirrored = head(degrees)[[1, 0, 2, 4, 3]] * (-1, 1) + (112, 0)
        assert yaw(mirrored) == pytest.approx(-degrees / 90, abs=2e-3)
    # Neither size, nor place, nor a tilted head changes it.
    turn = 3.3 * np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    assert yaw(head(30) @ turn.T + (900, 30)) == pytest.approx(1 / 3, abs=2e-3)
    # The nose may lie higher or lower: that is no turn.
    raised = head(0)
    raised[2, 1] -= 9
    assert yaw(raised) == 0
    far = head(0)
    far[2, 0] += 5000
    assert 0.95 < yaw(far) <= 1
    assert yaw(np.full((5, 2), 40.0)) == 1


def test_yaw_of_a_photo_and_its_mirror_image(pipeline: FacePipeline) -> None:
    turned_face = photos.pixels(photos.aligned_face())
    canvas = np.full((300, 300, 3), 90, np.uint8)
    canvas[90:202, 90:202] = turned_face
    yaws = [only_face(pipeline, np.ascontiguousarray(p)).quality.yaw for p in (canvas, canvas[:, ::-1])]
    assert yaws[0] > 0.05
    assert yaws[1] == pytest.approx(-yaws[0], abs=0.1)


@pytest.mark.parametrize(
    "reason",
    [
        Reason.DETECTION_UNSURE,
        Reason.FACE_TOO_SMALL,
        Reason.FACE_TURNED_AWAY,
        Reason.FACE_BADLY_LIT,
        Reason.FACE_TOO_BLURRY,
    ],
)
def test_explain_says_what_was_measured_and_expected(reason: Reason) -> None:
    measured = Quality(size=12, sharpness=3, yaw=-0.91, brightness=17, contrast=5)
    message = quality.rejection_message(reason, straight(score=0.61), measured, SURE)
    value = {
        Reason.DETECTION_UNSURE: "0.61",
        Reason.FACE_TOO_SMALL: "12 pixels",
        Reason.FACE_TURNED_AWAY: "turned",
        Reason.FACE_BADLY_LIT: "17",
        Reason.FACE_TOO_BLURRY: "sharpness is 3",
    }
    assert value[reason] in message
    assert "expected" in message
