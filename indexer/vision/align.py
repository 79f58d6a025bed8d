"""Aligns a face by its five landmarks to the 112x112 crop that face embedders are trained on."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.types import CROP_SIZE, Pixels

REFERENCE_LANDMARKS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float64,
)
"""Positions of the landmarks in a crop, (5, 2) in pixels (ArcFace: insightface `face_align.arcface_dst`; SFace's
`alignCrop` in OpenCV uses the same)."""

MAX_WARP_SIDE = 32_766
"""The longest side that OpenCV 4's `warpAffine` accepts. Longer images are first cropped to the surroundings of the
face."""


def estimate_similarity(
    landmarks: NDArray[np.floating], reference: NDArray[np.floating] = REFERENCE_LANDMARKS
) -> NDArray[np.float64]:
    """Returns the (2, 3) matrix that rotates, scales and moves `landmarks` (5, 2) to `reference` with least squared
    error.

    This is the closed form for similarities in the plane: with points as complex numbers, z -> a z + b, where
    a = sum(conj(z - mean z) (w - mean w)) / sum |z - mean z|^2 (Umeyama 1991, without reflection).

    Raises:
        ValueError: All points coincide, or a coordinate is not finite.
    """
    z = landmarks[:, 0].astype(np.float64) + 1j * landmarks[:, 1].astype(np.float64)
    w = reference[:, 0] + 1j * reference[:, 1]
    z_mean, w_mean = z.mean(), w.mean()
    spread = float((np.abs(z - z_mean) ** 2).sum())
    if not np.isfinite(spread) or spread <= 0:
        raise ValueError("the landmarks coincide")
    a = np.sum(np.conj(z - z_mean) * (w - w_mean)) / spread
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(pixels: Pixels, landmarks: NDArray[np.floating]) -> Pixels:
    """Returns the (112, 112, 3) RGB uint8 crop of one face; `landmarks` (5, 2) are in the pixels of `pixels`.

    Areas outside the image are black. A face more than twice as large as the crop is first averaged down by an integer
    factor: bilinear sampling reads only four pixels, and skipping the others causes aliasing.
    """
    matrix = estimate_similarity(landmarks)
    factor = max(1, int(1 / np.hypot(matrix[0, 0], matrix[1, 0])))
    if factor >= 2 or max(pixels.shape[:2]) > MAX_WARP_SIDE:
        pixels, matrix = crop_and_downscale(pixels, matrix, factor, CROP_SIZE) or (pixels, matrix)
    crop = cv2.warpAffine(pixels, matrix, (CROP_SIZE, CROP_SIZE), flags=cv2.INTER_LINEAR)
    return np.asarray(crop, dtype=np.uint8)


def zoom_landmarks(landmarks: NDArray[np.floating], zoom: float) -> NDArray[np.float64]:
    """Returns the landmarks (5, 2) with which `align` makes the same crop, magnified by `zoom` about its center."""
    inverse = cv2.invertAffineTransform(estimate_similarity(landmarks))
    center = inverse @ ((CROP_SIZE - 1) / 2, (CROP_SIZE - 1) / 2, 1)
    return np.asarray(center + (landmarks - center) / zoom, np.float64)


def crop_and_downscale(
    pixels: Pixels, matrix: NDArray[np.float64], factor: int, side: int
) -> tuple[Pixels, NDArray[np.float64]] | None:
    """Returns the part of the image that `matrix` (2, 3) maps to a square of `side` pixels, averaged down by `factor`,
    and the matrix for that part; None if the square does not overlap the image."""
    corners = cv2.transform(
        np.array([[[0, 0], [side, 0], [0, side], [side, side]]], np.float64), cv2.invertAffineTransform(matrix)
    )[0]
    height, width = pixels.shape[:2]
    left, top = np.clip(np.floor(corners.min(0)).astype(int) - factor, 0, (width, height))
    # Twice the margin of the left side: the division below can drop almost one downscaled pixel.
    right, bottom = np.clip(np.ceil(corners.max(0)).astype(int) + 2 * factor, 0, (width, height))
    columns, rows = (right - left) // factor, (bottom - top) // factor
    if columns < 1 or rows < 1:
        return None
    part = pixels[top : top + rows * factor, left : left + columns * factor]
    if factor > 1:
        part = np.asarray(cv2.resize(part, (int(columns), int(rows)), interpolation=cv2.INTER_AREA), np.uint8)
    # The center of downscaled pixel u is at factor * u + (factor - 1) / 2 in the original image.
    offset = np.array([left, top]) + (factor - 1) / 2
    linear = matrix[:, :2] * factor
    moved = matrix[:, 2] + matrix[:, :2] @ offset
    return part, np.column_stack([linear, moved])
