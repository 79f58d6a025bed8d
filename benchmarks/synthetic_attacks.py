"""Draws presentation attacks: photos of faces as a camera would see them on paper and on screens.

They are drawings with the marks that detectors look for (frames, halftone dots, moiré, glare, poor contrast), not
recordings of attacks: results on them show that a detector works at all, not its error rates at a door.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.types import Pixels

SIZE = (640, 480)
"""Width and height of what the camera sees."""

Attack = Callable[[Pixels, Pixels, np.random.Generator], Pixels]
"""Draws the photo of a face in front of a scene, both (H, W, 3) RGB uint8."""

SCENE_BLUR = 20
"""Standard deviation in pixels: no face that is in the scene is found."""

PAPER = (244, 241, 232)
HALFTONE_PERIOD = 3.1
"""Distance of a printer's dots in pixels of the camera."""
SUBPIXELS = 3
"""A screen's red, green and blue stripes."""


def print_with_border(photo: Pixels, scene: Pixels, rng: np.random.Generator) -> Pixels:
    """Draws a print on paper with a white border, held in front of a scene."""
    printed = _halftone(_flatten(photo, contrast=0.75, saturation=0.7), rng)
    border = max(8, photo.shape[1] // 12)
    height, width = printed.shape[:2]
    sheet = np.full((height + 2 * border, width + 2 * border, 3), PAPER, np.uint8)
    sheet[border:-border, border:-border] = printed
    return _hold(sheet, scene, rng.uniform(0.62, 0.9), rng)


def cut_print(photo: Pixels, scene: Pixels, rng: np.random.Generator) -> Pixels:
    """Draws a print without a border that fills the camera's view."""
    printed = _halftone(_flatten(photo, contrast=0.8, saturation=0.75), rng)
    return _hold(printed, scene, rng.uniform(1.05, 1.25), rng)


def phone(photo: Pixels, scene: Pixels, rng: np.random.Generator) -> Pixels:
    """Draws a phone that shows the photo, with its dark frame, held in front of a scene."""
    shown = _moire(_flatten(photo, contrast=0.9, saturation=1.15), rng)
    height, width = shown.shape[:2]
    frame = np.full((int(height * 1.25), int(width * 1.08), 3), 12, np.uint8)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    frame[top : top + height, left : left + width] = shown
    return _hold(_glare(frame, rng), scene, rng.uniform(0.6, 0.95), rng)


def screen(photo: Pixels, scene: Pixels, rng: np.random.Generator) -> Pixels:
    """Draws a large screen that fills the camera's view, with moiré and glare."""
    shown = _glare(_moire(_flatten(photo, contrast=0.85, saturation=1.1), rng), rng)
    return _hold(shown, scene, rng.uniform(1.1, 1.4), rng)


ATTACKS: dict[str, Attack] = {
    "print": print_with_border,
    "cut_print": cut_print,
    "phone": phone,
    "screen": screen,
}
"""Species of attacks."""


def _flatten(photo: Pixels, contrast: float, saturation: float) -> Pixels:
    """Reduces contrast and changes saturation, as paper and screens do."""
    values = photo.astype(np.float32)
    gray = values.mean(2, keepdims=True)
    return _image((gray + (values - gray) * saturation - 128) * contrast + 128)


def _halftone(photo: Pixels, rng: np.random.Generator) -> Pixels:
    """Adds a grid of dots, turned by 45 degrees, that is stronger in the middle tones."""
    rows, columns = np.mgrid[0 : photo.shape[0], 0 : photo.shape[1]].astype(np.float32)
    phase = rng.uniform(0, np.pi)
    grid = np.sin((rows + columns) * np.pi / HALFTONE_PERIOD + phase)
    grid *= np.sin((rows - columns) * np.pi / HALFTONE_PERIOD)
    tone = photo.astype(np.float32) / 255
    return _image(255 * (tone + 0.22 * (tone * (1 - tone) * 4) * grid[..., None]))


def _moire(photo: Pixels, rng: np.random.Generator) -> Pixels:
    """Shows the photo by stripes of red, green and blue and samples it again with a camera's other grid."""
    fine = cv2.resize(photo, None, fx=SUBPIXELS, fy=SUBPIXELS, interpolation=cv2.INTER_NEAREST).astype(np.float32)
    stripe = np.arange(fine.shape[1]) % SUBPIXELS
    mask = np.where(stripe[:, None] == np.arange(3), 1.0, 0.85).astype(np.float32)
    rows = np.where(np.arange(fine.shape[0]) % SUBPIXELS == 0, 0.9, 1.0).astype(np.float32)
    lit = fine * mask * rows[:, None, None]
    height, width = photo.shape[:2]
    turn = cv2.getRotationMatrix2D((lit.shape[1] / 2, lit.shape[0] / 2), float(rng.uniform(-2.5, 2.5)), 1.0)
    turn = np.diag([1 / (SUBPIXELS + rng.uniform(-0.12, 0.12))] * 2) @ turn
    return _image(1.1 * cv2.warpAffine(lit, turn, (width, height), borderMode=cv2.BORDER_REFLECT))


def _glare(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Adds the reflection of a lamp."""
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]].astype(np.float32)
    y, x = rng.uniform(0, image.shape[0]), rng.uniform(0, image.shape[1])
    distance = ((rows - y) ** 2 + (columns - x) ** 2) / (0.12 * image.shape[0] * image.shape[1])
    return _image(image + 90 * np.exp(-distance)[..., None])


def _hold(sheet: Pixels, scene: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Draws the sheet in front of the scene, its height `share` of the view's, tilted a little, out of perspective."""
    width, height = SIZE
    background = cv2.GaussianBlur(cv2.resize(scene, SIZE), (0, 0), SCENE_BLUR)
    tall = share * height
    wide = tall * sheet.shape[1] / sheet.shape[0]
    center = np.array([width, height]) / 2 + rng.uniform(-12, 12, 2)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (wide / 2, tall / 2)
    angle = rng.uniform(-0.06, 0.06)
    turned = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    target = (turned + rng.uniform(-0.03, 0.03, (4, 2)) * (wide, tall) + center).astype(np.float32)
    source = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * (sheet.shape[1], sheet.shape[0])
    transform = cv2.getPerspectiveTransform(source.astype(np.float32), target)
    drawn = cv2.warpPerspective(sheet, transform, SIZE, flags=cv2.INTER_LINEAR)
    mask = cv2.warpPerspective(np.ones(sheet.shape[:2], np.float32), transform, SIZE)[..., None]
    seen = background * (1 - mask) + drawn * mask
    return _image(cv2.GaussianBlur(seen, (0, 0), 0.7) + rng.normal(0, 2.5, seen.shape))


def _image(values: NDArray[np.floating]) -> Pixels:
    image: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return image
