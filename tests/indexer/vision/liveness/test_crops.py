"""The regions that liveness networks see, at the border of the image too."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from indexer.models.liveness_packs import Border
from indexer.types import Box, Pixels
from indexer.vision.liveness.crops import crop, upright


@pytest.fixture(scope="module")
def image() -> Pixels:
    """Red is the column, green is the row."""
    rows, columns = np.mgrid[0:120, 0:200]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)


def corners(region: Pixels) -> tuple[list[int], list[int]]:
    """Returns column and row of the first and of the last pixel of a region cut from `image`."""
    return region[0, 0, :2].tolist(), region[-1, -1, :2].tolist()


@pytest.mark.parametrize(
    ("box", "first", "last"),
    [
        pytest.param(Box(80, 40, 20, 30), [70, 25], [110, 85], id="inside"),
        pytest.param(Box(0, 0, 20, 30), [0, 0], [40, 60], id="moved right and down"),
        pytest.param(Box(190, 100, 20, 30), [159, 59], [199, 119], id="moved left and up"),
        pytest.param(Box(60, 20, 70, 80), [42, 0], [147, 119], id="made smaller"),
    ],
)
def test_crop_is_moved_inside_the_image(image: Pixels, box: Box, first: list[int], last: list[int]) -> None:
    width, height = last[0] - first[0] + 1, last[1] - first[1] + 1
    found = crop(image, box, 2.0, 80, Border.SHIFT)
    expected = cv2.resize(image[first[1] : last[1] + 1, first[0] : last[0] + 1], (80, 80))
    assert (width, height) != (80, 80)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "box",
    [
        Box(80, 40, 20, 32),
        Box(-10, 50, 30, 32),
        Box(185, -20, 32, 30),
        Box(190, 110, 32, 32),
        Box(50, -5, 100, 128),
        Box(-300, -300, 32, 32),
    ],
    ids=["inside", "left", "right and above", "right and below", "larger than the image", "outside"],
)
@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
def test_crop_is_reflected_at_the_border_as_opencv_does(image: Pixels, box: Box, scale: float) -> None:
    margin = 1000
    padded = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    length = max(box.w, box.h) * scale
    x, y = int(box.center[0] - length / 2) + margin, int(box.center[1] - length / 2) + margin
    found = crop(image, box, scale, int(length), Border.REFLECT)
    np.testing.assert_array_equal(found, padded[y : y + int(length), x : x + int(length)])


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_box_is_turned_with_the_image(image: Pixels, turn: int) -> None:
    turned, box = upright(image, Box(30, 20, 40, 10), turn)
    x, y, w, h = (int(value) for value in (box.x, box.y, box.w, box.h))
    np.testing.assert_array_equal(turned[y : y + h, x : x + w], np.rot90(image[20:30, 30:70], -turn // 90))


@pytest.mark.parametrize("border", Border)
@pytest.mark.parametrize("box", [Box(5, 5, 0, 0), Box(5, 5, 0.2, 3), Box(-2, -2, 1, 1)])
def test_crop_of_a_box_without_area_is_not_empty(image: Pixels, border: Border, box: Box) -> None:
    assert crop(image, box, 1.5, 80, border).shape == (80, 80, 3)


@pytest.mark.parametrize("border", Border)
def test_crop_of_an_image_of_one_pixel(border: Border) -> None:
    image = np.full((1, 1, 3), 7, np.uint8)
    assert (crop(image, Box(0, 0, 1, 1), 2.7, 80, border) == 7).all()
