"""Five landmarks -> the 112x112 crop that face embedders are trained on."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.types import CROP_SIZE, Pixels

REFERENCE_LANDMARKS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float64,
)
"""Where the five points come to lie, in pixels (ArcFace: insightface `face_align.arcface_dst`; SFace's
`alignCrop` in OpenCV uses the same)."""

MAX_WARP_SIDE = 32_766
"""The longest side that OpenCV 4's `warpAffine` takes; of a longer image only the part around the face is used."""


def estimate_similarity(
    landmarks: NDArray[np.floating], template: NDArray[np.floating] = REFERENCE_LANDMARKS
) -> NDArray[np.float64]:
    """The (2, 3) matrix that turns, scales and moves `landmarks` (5, 2) onto `template` with least squared error.

    The closed form for similarities in the plane: with points as complex numbers, z -> a z + b, where
    a = sum(conj(z - mean z) (w - mean w)) / sum |z - mean z|^2 (Umeyama 1991, without reflection).
    Raises ValueError where all points coincide.
    """
    z = landmarks[:, 0].astype(np.float64) + 1j * landmarks[:, 1].astype(np.float64)
    w = template[:, 0] + 1j * template[:, 1]
    z_mean, w_mean = z.mean(), w.mean()
    spread = float((np.abs(z - z_mean) ** 2).sum())
    if not np.isfinite(spread) or spread <= 0:
        raise ValueError("the landmarks coincide")
    a = np.sum(np.conj(z - z_mean) * (w - w_mean)) / spread
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(pixels: Pixels, landmarks: NDArray[np.floating]) -> Pixels:
    """The (112, 112, 3) RGB crop of one face. `landmarks` (5, 2) in the pixels of `pixels`.

    Outside the image is black. A face more than twice as large as the crop is first averaged down by a whole
    factor: bilinear sampling looks at four pixels only, and skipping the others makes noise of fine detail.
    """
    matrix = estimate_similarity(landmarks)
    shrink = max(1, int(1 / np.hypot(matrix[0, 0], matrix[1, 0])))
    if shrink >= 2 or max(pixels.shape[:2]) > MAX_WARP_SIDE:
        pixels, matrix = crop_and_downscale(pixels, matrix, shrink, CROP_SIZE) or (pixels, matrix)
    crop = cv2.warpAffine(pixels, matrix, (CROP_SIZE, CROP_SIZE), flags=cv2.INTER_LINEAR)
    return np.asarray(crop, dtype=np.uint8)


def crop_and_downscale(
    pixels: Pixels, matrix: NDArray[np.float64], shrink: int, side: int
) -> tuple[Pixels, NDArray[np.float64]] | None:
    """The part of the image that `matrix` brings into a square of `side` pixels, averaged down by `shrink`, and the
    matrix for it; None where no such pixel lies in the image."""
    corners = cv2.transform(
        np.array([[[0, 0], [side, 0], [0, side], [side, side]]], np.float64), cv2.invertAffineTransform(matrix)
    )[0]
    height, width = pixels.shape[:2]
    left, top = np.clip(np.floor(corners.min(0)).astype(int) - shrink, 0, (width, height))
    # Twice as far as on the left: the division below may lose almost one whole small pixel.
    right, bottom = np.clip(np.ceil(corners.max(0)).astype(int) + 2 * shrink, 0, (width, height))
    columns, rows = (right - left) // shrink, (bottom - top) // shrink
    if columns < 1 or rows < 1:
        return None
    part = pixels[top : top + rows * shrink, left : left + columns * shrink]
    if shrink > 1:
        part = np.asarray(cv2.resize(part, (int(columns), int(rows)), interpolation=cv2.INTER_AREA), np.uint8)
    # A small pixel's centre u lies at shrink * u + (shrink - 1) / 2 in the large image.
    offset = np.array([left, top]) + (shrink - 1) / 2
    linear = matrix[:, :2] * shrink
    moved = matrix[:, 2] + matrix[:, :2] @ offset
    return part, np.column_stack([linear, moved])
