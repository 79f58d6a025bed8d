"""Measures the quality of a face, and the limits below which a face is not enrolled.

All limits were measured by `benchmarks/quality.py`, which degraded 860 photos of LFW step by step and compared them
with another photo of the same person (`benchmarks/results/quality.csv`). Of the unchanged photos, 1.4 % miss their mate
at a false match rate of 1e-4. A limit is set where one in three does. A stricter rule (one in ten) rejected six of
LFW's 860 gallery photos although all other photos of these people were found with them (`docs/decisions.md`).
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.errors import RejectedImage
from indexer.rounding import decimals
from indexer.types import Detection, Pixels, Quality, Reason

MIN_SIZE = 20.0
"""Width of the face in pixels of the original image. 18 to 20: 40 % missed; 20 to 22: 25 %; 24 to 26: 12 %; 32 to 36:
3 %."""

MIN_SHARPNESS = 4.0
"""See `_sharpness`. 3 to 4: 45 % missed; 4 to 5: 31 %; 7 to 8: 12 %."""

MAX_YAW = 0.7
"""Quarter turns; 63 degrees. This is the range of LFW, not a rise in misses: one of its 25 probes turned by more than
45 degrees is missed, and none is turned further than this."""

MIN_BRIGHTNESS = 10.0
"""Mean luma, 0..255. 8 to 10: 35 % missed; 10 to 12: 27 %; 15 to 20: 10 %; from 60 on as usual."""

MAX_BRIGHTNESS = 240.0
"""Mean luma. 240 to 245: 46 % missed; 235 to 240: 33 %; 200 to 210: 8 %."""

MIN_CONTRAST = 5.0
"""Standard deviation of the luma. 4 to 5: 44 % missed; 5 to 6: 26 %; 8 to 10: 10 %; from 30 on as usual."""

FACE_REGION = slice(24, 104), slice(24, 88)
"""Rows and columns of the aligned crop that show the face in every pose: eyes to chin, between the temples."""

SMOOTHING = 2.0
"""Sigma in pixels of the Gaussian blur applied before sharpness is measured. With 2 it separates missed and found faces
best: area under the ROC curve 0.88 over defocus, shake and noise (1.5 and 2.5: 0.87; 1: 0.81; a plain Laplacian:
0.56)."""

NOSE_DEPTH = 1.14
"""Distance of the nose tip from the plane of eyes and mouth corners, relative to half the distance of the eyes: 3.6 to
3.15 cm in MediaPipe's `canonical_face_model.obj`."""


def measure(detection: Detection, crop: Pixels, min_score: float) -> Quality:
    """Measures a face and lists the reasons not to enroll it.

    Args:
        detection: The face, in pixels of the original image.
        crop: Its aligned (112, 112, 3) RGB crop.
        min_score: Lowest detection score at which a face may be enrolled.
    """
    luma = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    smooth = np.asarray(cv2.GaussianBlur(luma.astype(np.float32), (0, 0), SMOOTHING), dtype=np.float32)
    face = luma[FACE_REGION]
    quality = Quality(
        size=round(detection.box.size, 1),
        sharpness=round(_sharpness(smooth), 2),
        yaw=round(_yaw(detection), 3),
        brightness=round(float(face.mean()), 1),
        contrast=round(float(face.std()), 1),
    )
    return replace(quality, reasons=_reasons(detection, quality, min_score))


def rejection(detection: Detection, quality: Quality, min_score: float) -> RejectedImage | None:
    """Returns the rejection of a face that is not to be enrolled."""
    reasons = quality.reasons
    if not reasons:
        return None
    message = rejection_message(reasons[0], detection, quality, min_score)
    return RejectedImage(message, code=reasons[0], details={"reasons": [str(reason) for reason in reasons]})


def rejection_message(reason: Reason, detection: Detection, quality: Quality, min_score: float) -> str:
    """Returns a message with the measured and the expected value for `reason`."""
    size, sharpness = quality.size, quality.sharpness
    brightness, contrast = quality.brightness, quality.contrast
    degrees, most_degrees = abs(quality.yaw) * 90, MAX_YAW * 90
    lit = max(decimals(brightness, MIN_BRIGHTNESS, 0), decimals(brightness, MAX_BRIGHTNESS, 0))
    return {
        Reason.DETECTION_UNSURE: f"the face's detection score is only "
        f"{detection.score:.{decimals(detection.score, min_score, 2)}f}; expected {min_score} or more",
        Reason.FACE_TOO_SMALL: f"the face is {size:.{decimals(size, MIN_SIZE, 0)}f} pixels wide; "
        f"expected {MIN_SIZE:.0f} or more",
        Reason.FACE_TURNED_AWAY: f"the face is turned by about {degrees:.{decimals(degrees, most_degrees, 0)}f} "
        f"degrees; expected {most_degrees:.0f} or less",
        Reason.FACE_BADLY_LIT: f"the face's mean brightness is {brightness:.{lit}f} and its contrast "
        f"{contrast:.{decimals(contrast, MIN_CONTRAST, 0)}f}; expected {MIN_BRIGHTNESS:.0f} to {MAX_BRIGHTNESS:.0f} "
        f"and {MIN_CONTRAST:.0f} or more",
        Reason.FACE_TOO_BLURRY: f"the face's sharpness is {sharpness:.{decimals(sharpness, MIN_SHARPNESS, 1)}f}; "
        f"expected {MIN_SHARPNESS:g} or more",
    }[reason]


def _reasons(detection: Detection, quality: Quality, min_score: float) -> tuple[Reason, ...]:
    """Returns the reasons not to enroll the face. The detection score is last because it often follows from the
    others, which the photographer can correct."""
    checks = (
        (quality.size < MIN_SIZE, Reason.FACE_TOO_SMALL),
        (abs(quality.yaw) > MAX_YAW, Reason.FACE_TURNED_AWAY),
        (not MIN_BRIGHTNESS <= quality.brightness <= MAX_BRIGHTNESS, Reason.FACE_BADLY_LIT),
        (quality.contrast < MIN_CONTRAST, Reason.FACE_BADLY_LIT),
        (quality.sharpness < MIN_SHARPNESS, Reason.FACE_TOO_BLURRY),
        (detection.score < min_score, Reason.DETECTION_UNSURE),
    )
    return tuple(dict.fromkeys(reason for failed, reason in checks if failed))


def _sharpness(smooth: NDArray[np.float32]) -> float:
    """Returns the sharpness of the smoothed luma (112, 112), in ten-thousandths per pixel^4.

    This is the mean square of the second derivative in the direction where it is lowest, divided by the variance of the
    luma. The mean square of the Laplacian (Pech-Pacheco 2000) is high for noise, hence the smoothing, and for motion
    blur in one direction, hence the lowest of eight directions. The division makes it independent of dark or flat
    light, which lowers both.
    """
    xx, xy, yy = (cv2.Sobel(smooth, cv2.CV_32F, dx, dy)[FACE_REGION].ravel() / 4 for dx, dy in ((2, 0), (1, 1), (0, 2)))
    derivatives = np.stack([xx, xy, yy]).astype(np.float64)
    products = derivatives @ derivatives.T / xx.size
    lowest = min(float(d @ products @ d) for d in _DIRECTIONS)
    return 1e4 * lowest / max(float(smooth[FACE_REGION].var()), 1e-6)


def _directions(count: int) -> NDArray[np.float64]:
    """Returns the weights of the derivatives xx, xy and yy in each of `count` directions, (count, 3)."""
    angle = np.arange(count) * np.pi / count
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * c, 2 * c * s, s * s], axis=1)


_DIRECTIONS = _directions(8)


def _yaw(detection: Detection) -> float:
    """Returns the rotation of the head in quarter turns: 0 is frontal, 0.5 is 45 degrees, 1 is a profile; positive
    towards the right of the image.

    The nose tip is displaced from the middle between eyes and mouth corners, parallel to the line of the eyes, by
    NOSE_DEPTH * tan(angle) times half the distance of the eyes.
    """
    right_eye, left_eye, nose, right_mouth, left_mouth = detection.landmarks.astype(np.float64)
    axis = left_eye - right_eye
    length = float(np.hypot(*axis))
    if length == 0:
        return 1.0
    middle = (right_eye + left_eye + right_mouth + left_mouth) / 4
    offset = 2 * float(np.dot(nose - middle, axis)) / length**2
    return float(np.arctan(offset / NOSE_DEPTH) * 2 / np.pi)
