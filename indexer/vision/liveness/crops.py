"""Cuts the regions around a face that liveness networks see: more than the face, because borders betray a print."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.models.liveness_packs import Border
from indexer.types import Box, Pixels

_MIN_SIDE = 1.0
"""Smallest side of a box in pixels, so that its crop is never empty."""


def crop(image: Pixels, box: Box, scale: float, size: int, border: Border) -> Pixels:
    """Returns the (size, size, 3) region around a face, `scale` times its box.

    Args:
        image: (H, W, 3) uint8.
        box: In pixels of the image; may reach beyond it.
    """
    box = Box(box.x, box.y, max(box.w, _MIN_SIDE), max(box.h, _MIN_SIDE))
    if border is Border.SHIFT:
        return cv2.resize(_cut_shifted(image, box, scale), (size, size)).astype(np.uint8, copy=False)
    region = _cut_reflected(image, box, scale)
    shrinks = region.shape[0] >= size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    return cv2.resize(region, (size, size), interpolation=interpolation).astype(np.uint8, copy=False)


def upright(image: Pixels, box: Box, turn: int) -> tuple[Pixels, Box]:
    """Returns the image and the face's box after turning both clockwise by `turn` degrees, a multiple of 90."""
    for _ in range(turn // 90):
        box = Box(image.shape[0] - box.y - box.h, box.x, box.h, box.w)
        image = np.rot90(image, -1)
    return image, box


def _cut_shifted(image: Pixels, box: Box, scale: float) -> Pixels:
    """Returns the enlarged box, as much smaller and moved as it needs to be to lie inside the image."""
    height, width = image.shape[:2]
    scale = min((height - 1) / box.h, (width - 1) / box.w, scale)
    center_x, center_y = box.center
    left, right = _move_inside(center_x - box.w * scale / 2, center_x + box.w * scale / 2, width)
    top, bottom = _move_inside(center_y - box.h * scale / 2, center_y + box.h * scale / 2, height)
    return image[top : bottom + 1, left : right + 1]


def _move_inside(start: float, end: float, length: int) -> tuple[int, int]:
    """Moves an interval into 0..length - 1, first from below 0, then from beyond the end; cuts off the fractions."""
    if start < 0:
        start, end = 0, end - start
    if end > length - 1:
        start, end = start - (end - (length - 1)), length - 1
    return max(0, int(start)), int(end)


def _cut_reflected(image: Pixels, box: Box, scale: float) -> Pixels:
    """Returns the square of the enlarged longer side about the box's center, with the image mirrored at its border."""
    height, width = image.shape[:2]
    length = max(box.w, box.h) * scale
    side = max(1, int(length))
    center_x, center_y = box.center
    columns = np.arange(side) + int(center_x - length / 2)
    rows = np.arange(side) + int(center_y - length / 2)
    if columns[0] >= 0 and columns[-1] < width and rows[0] >= 0 and rows[-1] < height:
        return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return image[_reflect(rows, height)[:, None], _reflect(columns, width)]


def _reflect(positions: NDArray[np.int_], length: int) -> NDArray[np.int_]:
    """Maps positions to 0..length - 1 as OpenCV's BORDER_REFLECT_101 does."""
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * (length - 1)
    positions = positions % period
    return np.minimum(positions, period - positions)
