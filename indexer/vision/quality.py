"""Measurements of a face, and from where on it is too poor to be enrolled.

Every bound below was measured by `benchmarks/quality.py` on LFW; its table is in `benchmarks/results/quality.csv`.
"""

from __future__ import annotations

import cv2
import numpy as np

from indexer.types import Detection, Pixels, Quality, Reason

MIN_SIZE = 32.0
MIN_SHARPNESS = 20.0
MAX_YAW = 0.6
MIN_BRIGHTNESS = 35.0
MAX_BRIGHTNESS = 225.0
MIN_CONTRAST = 14.0
MIN_DETECTION = 0.7

INNER = slice(24, 104), slice(24, 88)
"""The part of the aligned crop that is face in every pose: eyes to chin, between the temples."""


def measure(detection: Detection, crop: Pixels) -> Quality:
    """`detection` in pixels of the original image, `crop` its aligned (112, 112, 3) RGB."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[INNER]
    quality = Quality(
        size=round(detection.box.size, 1),
        sharpness=round(_sharpness(grey), 1),
        yaw=round(_yaw(detection), 3),
        brightness=round(float(grey.mean()), 1),
        contrast=round(float(grey.std()), 1),
    )
    reasons = _reasons(detection, quality)
    return Quality(**{**quality.__dict__, "reasons": reasons}) if reasons else quality


def explain(reason: Reason, detection: Detection, quality: Quality) -> str:
    """What was measured for `reason`, and what was expected."""
    return {
        Reason.DETECTION_UNSURE: f"the detector is only {detection.score:.2f} sure of the face; "
        f"expected {MIN_DETECTION} or more",
        Reason.FACE_TOO_SMALL: f"the face is {quality.size:.0f} pixels across; expected {MIN_SIZE:.0f} or more",
        Reason.FACE_TURNED_AWAY: f"the face is turned by {abs(quality.yaw):.2f} of a profile; "
        f"expected {MAX_YAW} or less",
        Reason.FACE_BADLY_LIT: f"the face's mean brightness is {quality.brightness:.0f} and its contrast "
        f"{quality.contrast:.0f}; expected {MIN_BRIGHTNESS:.0f} to {MAX_BRIGHTNESS:.0f} and "
        f"{MIN_CONTRAST:.0f} or more",
        Reason.FACE_TOO_BLURRY: f"the face's sharpness is {quality.sharpness:.0f}; "
        f"expected {MIN_SHARPNESS:.0f} or more",
    }[reason]


def _reasons(detection: Detection, quality: Quality) -> tuple[Reason, ...]:
    """What is too little, gravest first."""
    found = (
        (detection.score < MIN_DETECTION, Reason.DETECTION_UNSURE),
        (quality.size < MIN_SIZE, Reason.FACE_TOO_SMALL),
        (abs(quality.yaw) > MAX_YAW, Reason.FACE_TURNED_AWAY),
        (not MIN_BRIGHTNESS <= quality.brightness <= MAX_BRIGHTNESS, Reason.FACE_BADLY_LIT),
        (quality.contrast < MIN_CONTRAST, Reason.FACE_BADLY_LIT),
        (quality.sharpness < MIN_SHARPNESS, Reason.FACE_TOO_BLURRY),
    )
    return tuple(dict.fromkeys(reason for poor, reason in found if poor))


def _sharpness(grey: Pixels) -> float:
    """Variance of the Laplacian (Pech-Pacheco 2000) over the variance of the luma, in thousandths: blur lowers
    it, and dark or flat light, which lowers both, does not."""
    variance = float(grey.var())
    return 1000 * float(cv2.Laplacian(grey, cv2.CV_32F).var()) / variance if variance > 0 else 0.0


def _yaw(detection: Detection) -> float:
    """How far the nose tip lies off the middle between eyes and mouth corners, along the line of the eyes, in
    halves of their distance: 0 in front, about 1 in profile."""
    right_eye, left_eye, nose, right_mouth, left_mouth = detection.landmarks.astype(np.float64)
    axis = left_eye - right_eye
    length = float(np.hypot(*axis))
    if length == 0:
        return 1.0
    middle = (right_eye + left_eye + right_mouth + left_mouth) / 4
    return float(np.clip(2 * np.dot(nose - middle, axis) / length**2, -1, 1))
