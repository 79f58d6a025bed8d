"""Measurements of a face, and from where on it is too poor to be enrolled.

Every bound was measured by `benchmarks/quality.py`, which made 860 photos of LFW worse step by step and compared
them with another photo of the same person; the table is `benchmarks/results/quality.csv`. Of the photos as they
are, 1.4 % miss their mate at a false match rate of 1e-4. A bound lies where one in three does: such a photo keeps its
owner outside every third day. A stricter rule (one in ten) refused six of LFW's 860 gallery photos whose owners' other
photos were all found, so it did more harm than good (`docs/decisions.md`).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.types import Detection, Pixels, Quality, Reason

MIN_SIZE = 20.0
"""Pixels across, in the original image. 18 to 20: 40 % missed; 20 to 22: 25 %; 24 to 26: 12 %; 32 to 36: 3 %."""

MIN_SHARPNESS = 4.0
"""See `_sharpness`. 3 to 4: 45 % missed; 4 to 5: 31 %; 7 to 8: 12 %."""

MAX_YAW = 0.7
"""Quarter turns: 63 degrees. The edge of what LFW shows rather than a rise of misses: of its 25 probes turned by more
than 45 degrees one is missed, and none is turned further than this."""

MIN_BRIGHTNESS = 10.0
"""Mean luma, 0..255. 8 to 10: 35 % missed; 10 to 12: 27 %; 15 to 20: 10 %; from 60 on no more than usual."""

MAX_BRIGHTNESS = 240.0
"""Mean luma. 240 to 245: 46 % missed; 235 to 240: 33 %; 200 to 210: 8 %."""

MIN_CONTRAST = 5.0
"""Standard deviation of the luma. 4 to 5: 44 % missed; 5 to 6: 26 %; 8 to 10: 10 %; from 30 on no more than usual."""

FACE_REGION = slice(24, 104), slice(24, 88)
"""The part of the aligned crop that is face in every pose: eyes to chin, between the temples."""

SMOOTHING = 2.0
"""Pixels (sigma) of Gaussian blur before sharpness is measured. With 2 it tells missed from found faces best: area
under the ROC curve 0.88 over defocus, shake and noise (1.5 and 2.5: 0.87; 1: 0.81; a plain Laplacian: 0.56)."""

NOSE_DEPTH = 1.14
"""How far the nose tip lies before the plane of eyes and mouth corners, in halves of the eyes' distance: 3.6 to
3.15 cm in MediaPipe's `canonical_face_model.obj`."""


def measure(detection: Detection, crop: Pixels, sure: float) -> Quality:
    """`detection` in pixels of the original image, `crop` its aligned (112, 112, 3) RGB; `sure` is the score from which
    its detector's faces may be enrolled."""
    whole = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    smooth = np.asarray(cv2.GaussianBlur(whole.astype(np.float32), (0, 0), SMOOTHING), dtype=np.float32)
    grey = whole[FACE_REGION]
    quality = Quality(
        size=round(detection.box.size, 1),
        sharpness=round(_sharpness(smooth), 2),
        yaw=round(_yaw(detection), 3),
        brightness=round(float(grey.mean()), 1),
        contrast=round(float(grey.std()), 1),
    )
    reasons = _reasons(detection, quality, sure)
    return Quality(**{**quality.__dict__, "reasons": reasons}) if reasons else quality


def rejection_message(reason: Reason, detection: Detection, quality: Quality, sure: float) -> str:
    """What was measured for `reason`, and what was expected."""
    return {
        Reason.DETECTION_UNSURE: f"the detector is only {detection.score:.2f} sure of the face; "
        f"expected {sure} or more",
        Reason.FACE_TOO_SMALL: f"the face is {quality.size:.0f} pixels across; expected {MIN_SIZE:.0f} or more",
        Reason.FACE_TURNED_AWAY: f"the face is turned by about {abs(quality.yaw) * 90:.0f} degrees; "
        f"expected {MAX_YAW * 90:.0f} or less",
        Reason.FACE_BADLY_LIT: f"the face's mean brightness is {quality.brightness:.0f} and its contrast "
        f"{quality.contrast:.0f}; expected {MIN_BRIGHTNESS:.0f} to {MAX_BRIGHTNESS:.0f} and "
        f"{MIN_CONTRAST:.0f} or more",
        Reason.FACE_TOO_BLURRY: f"the face's sharpness is {quality.sharpness:.1f}; expected {MIN_SHARPNESS:g} or more",
    }[reason]


def _reasons(detection: Detection, quality: Quality, sure: float) -> tuple[Reason, ...]:
    """What is too little; what the photographer can mend before the detector's doubt, which often follows from it."""
    found = (
        (quality.size < MIN_SIZE, Reason.FACE_TOO_SMALL),
        (abs(quality.yaw) > MAX_YAW, Reason.FACE_TURNED_AWAY),
        (not MIN_BRIGHTNESS <= quality.brightness <= MAX_BRIGHTNESS, Reason.FACE_BADLY_LIT),
        (quality.contrast < MIN_CONTRAST, Reason.FACE_BADLY_LIT),
        (quality.sharpness < MIN_SHARPNESS, Reason.FACE_TOO_BLURRY),
        (detection.score < sure, Reason.DETECTION_UNSURE),
    )
    return tuple(dict.fromkeys(reason for poor, reason in found if poor))


def _sharpness(smooth: NDArray[np.float32]) -> float:
    """Mean square of the second derivative in the direction in which it is weakest, over the variance of the luma.

    The mean square of the Laplacian (Pech-Pacheco 2000) is high for noise, and stays high where the camera moved
    in one direction. Hence the smoothing before (see `measure`) and the weakest of eight directions. The division
    makes dark or flat light, which lowers both, leave it alone. In ten-thousandths per pixel^4.
    """
    xx, xy, yy = (cv2.Sobel(smooth, cv2.CV_32F, dx, dy)[FACE_REGION].ravel() / 4 for dx, dy in ((2, 0), (1, 1), (0, 2)))
    derivatives = np.stack([xx, xy, yy]).astype(np.float64)
    products = derivatives @ derivatives.T / xx.size
    weakest = min(float(d @ products @ d) for d in _DIRECTIONS)
    return 1e4 * weakest / max(float(smooth[FACE_REGION].var()), 1e-6)


def _directions(count: int) -> NDArray[np.float64]:
    """(count, 3): what the derivatives xx, xy and yy count for along each of `count` directions."""
    angle = np.arange(count) * np.pi / count
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * c, 2 * c * s, s * s], axis=1)


_DIRECTIONS = _directions(8)


def _yaw(detection: Detection) -> float:
    """The head's turn in quarter turns: 0 in front, 0.5 at 45 degrees, 1 in profile; positive to the image's right.

    The nose tip lies off the middle between eyes and mouth corners, along the line of the eyes, by
    NOSE_DEPTH * tan(angle) halves of the eyes' distance.
    """
    right_eye, left_eye, nose, right_mouth, left_mouth = detection.landmarks.astype(np.float64)
    axis = left_eye - right_eye
    length = float(np.hypot(*axis))
    if length == 0:
        return 1.0
    middle = (right_eye + left_eye + right_mouth + left_mouth) / 4
    offset = 2 * float(np.dot(nose - middle, axis)) / length**2
    return float(np.arctan(offset / NOSE_DEPTH) * 2 / np.pi)
