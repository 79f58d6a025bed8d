"""Faces of any size in photos of any size, with a detector that is good at some sizes only.

A first look goes over the whole photo at a few scales. A second look goes at each face that counts, cut out and
brought to the size at which the detector places landmarks best: landmarks decide accuracy more than anything that
comes after them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.types import Box, Detection, Pixels
from indexer.vision.decode import Photo
from indexer.vision.detectors.base import Detector, iou


class Seek(Enum):
    """Which faces matter. What does not matter is not searched for, which saves most of a large photo's time."""

    ALL = "all"
    LARGEST = "largest"
    """The largest, and others of about its size."""
    CENTER = "center"
    """The one nearest to the middle."""


LEVELS: tuple[int, ...] = (160, 320, 1280)
"""Longest sides, in pixels, at which a photo is looked at in turn; YuNet finds faces of 10 to 300 pixels."""

ALL_LEVELS = LEVELS[1:]
"""The levels for Seek.ALL: the first one finds nothing that they do not."""

PLAIN_FACE = 40
"""A face that a level shows this large (in its pixels) and as surely as `Detector.plain` is the photo's main one: what
that level misses is a third as large at most, so a finer level can only add bystanders."""

SAME_FACE = 0.4
"""Overlap (intersection over union) from which two boxes are one face seen twice."""

LOOK_SIDE = 320
LOOK_FACE = 200
"""A second look is a square of LOOK_SIDE pixels in which the face is LOOK_FACE across: of the sizes tried on LFW this
lost the fewest mates (`benchmarks/results/looks.csv`)."""

CANVAS_PIXELS = 4 * LOOK_SIDE**2
"""Pixels run through the detector at a time: four squares of 320 fit a core's cache, of sixteen each takes a quarter
longer."""


@dataclass(frozen=True)
class _Canvas:
    """A photo brought to one scale: what to run, and how to read the answer."""

    photo: int
    pixels: Pixels
    sx: float
    sy: float


def find(detector: Detector, photos: Sequence[Photo], seek: Seek = Seek.ALL) -> list[list[Detection]]:
    """The faces of each photo, surest first, in pixels of the upright original.

    A photo whose face in question is plain at one level is not looked at any closer, except for Seek.ALL.
    """
    found: list[list[Detection]] = [[] for _ in photos]
    left = list(range(len(photos)))
    for level in ALL_LEVELS if seek is Seek.ALL else LEVELS:
        _look(detector, photos, level, left, found)
        left = [
            i
            for i in left
            if max(photos[i].pixels.shape[:2]) > level
            and (seek is Seek.ALL or not _plain(photos[i], found[i], level, seek, detector.plain))
        ]
    return [_merge(faces) for faces in found]


def look_again(detector: Detector, faces: Sequence[tuple[Photo, Detection]]) -> list[Detection]:
    """Each face with box and landmarks as a second, closer look places them.

    A face that the closer look does not find again is returned as it was.
    """
    refined = [face for _, face in faces]
    per_run = max(1, CANVAS_PIXELS // LOOK_SIDE**2)
    for start in range(0, len(faces), per_run):
        batch = faces[start : start + per_run]
        cuts = [_cut(photo, face.box) for photo, face in batch]
        answers = detector.detect(np.stack([cut.pixels for cut in cuts]))
        for i, ((_, face), cut, answer) in enumerate(zip(batch, cuts, answers, strict=True)):
            again = [a.scaled(cut.sx, cut.sy, cut.dx, cut.dy) for a in answer]
            best = max(again, key=lambda a: iou(a.box, face.box), default=None)
            if best is not None and iou(best.box, face.box) >= SAME_FACE:
                refined[start + i] = best
    return refined


def _look(
    detector: Detector, photos: Sequence[Photo], level: int, which: Iterable[int], found: list[list[Detection]]
) -> None:
    """Adds to `found` what the detector sees at one level, photos of the same shape in one run."""
    waiting: dict[tuple[int, ...], list[_Canvas]] = defaultdict(list)

    def run(canvases: list[_Canvas]) -> None:
        for canvas, faces in zip(canvases, detector.detect(np.stack([c.pixels for c in canvases])), strict=True):
            found[canvas.photo] += [face.scaled(canvas.sx, canvas.sy) for face in faces]

    for index in which:
        canvas = _canvas(detector, index, photos[index], level)
        shape = canvas.pixels.shape
        waiting[shape].append(canvas)
        if (len(waiting[shape]) + 1) * shape[0] * shape[1] > CANVAS_PIXELS:
            run(waiting.pop(shape))
    for canvases in waiting.values():
        run(canvases)


def _canvas(detector: Detector, index: int, photo: Photo, level: int) -> _Canvas:
    """The photo with `level` pixels along its longest side, or as it is where it has fewer."""
    height, width = photo.pixels.shape[:2]
    factor = min(1.0, level / max(height, width))
    w, h = max(1, round(width * factor)), max(1, round(height * factor))
    small = photo.pixels
    if (w, h) != (width, height):
        # Averaging costs six times as much as sampling four pixels, which skips none down to a half.
        shrink = cv2.INTER_AREA if factor <= 0.5 else cv2.INTER_LINEAR
        small = np.asarray(cv2.resize(small, (w, h), interpolation=shrink), dtype=np.uint8)
    step = detector.stride
    canvas = np.zeros((-(-h // step) * step, -(-w // step) * step, 3), dtype=np.uint8)
    canvas[:h, :w] = small
    return _Canvas(index, canvas, photo.width / w, photo.height / h)


def _plain(photo: Photo, faces: Sequence[Detection], level: int, seek: Seek, sure: float) -> bool:
    """Whether one of `faces` is surely the one sought. A face that covers the middle is the nearest to it."""
    per_pixel = max(photo.width, photo.height) / level
    return any(
        face.score >= sure
        and face.box.size / per_pixel >= PLAIN_FACE
        and (seek is Seek.LARGEST or face.box.contains(photo.width / 2, photo.height / 2))
        for face in faces
    )


def _merge(faces: list[Detection]) -> list[Detection]:
    """One detection a face: of several looks at it the surest."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if all(iou(face.box, other.box) < SAME_FACE for other in kept):
            kept.append(face)
    return kept


@dataclass(frozen=True)
class _Cut:
    pixels: Pixels
    sx: float
    sy: float
    dx: float
    dy: float


def _cut(photo: Photo, box: Box) -> _Cut:
    """The square around a face, LOOK_SIDE pixels wide; black where it leaves the photo."""
    scale_x, scale_y = photo.scale
    around = max(box.size, 1.0) * LOOK_SIDE / LOOK_FACE
    cx, cy = box.center
    left, top = round((cx - around / 2) / scale_x), round((cy - around / 2) / scale_y)
    w, h = max(2, round(around / scale_x)), max(2, round(around / scale_y))
    height, width = photo.pixels.shape[:2]
    square: NDArray[np.uint8] = np.zeros((h, w, 3), dtype=np.uint8)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
    if x1 > x0 and y1 > y0:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = photo.pixels[y0:y1, x0:x1]
    shrinking = w > LOOK_SIDE
    pixels = cv2.resize(square, (LOOK_SIDE, LOOK_SIDE), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
    return _Cut(
        np.asarray(pixels, dtype=np.uint8),
        w / LOOK_SIDE * scale_x,
        h / LOOK_SIDE * scale_y,
        left * scale_x,
        top * scale_y,
    )
