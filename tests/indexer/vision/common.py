"""Pictures and comparisons that several tests of this folder share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.errors import RejectedImage
from indexer.types import Box, Detection, Pixels, Reason
from indexer.vision.decode import decode
from indexer.vision.detectors.base import Detector
from tests import photos


def astronaut() -> Pixels:
    """A face of about 100 pixels, (512, 512, 3) RGB."""
    return photos.pixels(photos.astronaut())


def six_people() -> Pixels:
    """Six faces of about 120 pixels, (886, 1280, 3) RGB."""
    return photos.pixels(photos.six_people())


def rejection(data: bytes, code: Reason = Reason.UNREADABLE_IMAGE, **options: Any) -> str:
    """Returns the message with which `data` is rejected for the reason `code`."""
    with pytest.raises(RejectedImage) as caught:
        decode(data, **options)
    assert caught.value.code == code
    return caught.value.message


def noise(count: int, height: int = 112, width: int = 112, seed: int = 0) -> NDArray[np.uint8]:
    """Random images (count, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def box_values(box: Box) -> tuple[float, float, float, float]:
    return box.x, box.y, box.w, box.h


def mirrored_landmarks(landmarks: NDArray[np.floating], width: int) -> NDArray[np.float64]:
    """The landmarks (5, 2) in the mirror image of a picture `width` pixels wide."""
    return np.asarray(landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (width - 1, 0))


def assert_same_faces(found: list[Detection], expected: list[Detection], pixels: float = 0.01) -> None:
    """Compares faces in order; boxes and landmarks may differ by `pixels`."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-4)
        assert np.allclose(a.landmarks, b.landmarks, atol=pixels)
        assert np.allclose(box_values(a.box), box_values(b.box), atol=pixels)


def assert_batch_equals_single_images(
    detector: Detector, canvases: NDArray[np.uint8], pixels: float = 0.01
) -> list[int]:
    """Compares the faces found in a batch with those found in each canvas alone; returns their numbers."""
    together = detector.detect(canvases)
    for canvas, faces in zip(canvases, together, strict=True):
        (alone,) = detector.detect(canvas[None])
        assert_same_faces(alone, faces, pixels)
    return [len(faces) for faces in together]
