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

from indexer.types import CROP_SIZE, Box, Detection, Pixels
from indexer.vision.align import REFERENCE_LANDMARKS, crop_and_downscale, estimate_similarity
from indexer.vision.decode import Photo
from indexer.vision.detectors.base import Detector, iou


class SearchScope(Enum):
    """Which faces matter. What does not matter is not searched for, which saves most of a large photo's time."""

    ALL = "all"
    LARGEST = "largest"
    """The largest, and others of about its size."""
    CENTER = "center"
    """The one nearest to the middle."""


DETECTION_SIDES: tuple[int, ...] = (160, 320, 1280)
"""Longest sides, in pixels, at which a photo is looked at in turn; YuNet finds faces of 10 to 300 pixels."""

ALL_FACES_SIDES = DETECTION_SIDES[1:]
"""The levels for SearchScope.ALL: the first one finds nothing that they do not."""

CONFIDENT_FACE_SIZE = 40
"""A face that a level shows this large (in its pixels) and as surely as `Detector.plain` is the photo's main one: what
that level misses is a third as large at most, so a finer level can only add bystanders."""

SAME_FACE_IOU = 0.4
"""Overlap (intersection over union) from which two boxes are one face seen twice."""

REFINE_SIDE = 320
REFINE_FACE_SIZE = 200
"""Pixels. The second detection pass uses a square of REFINE_SIDE in which an upright face is about REFINE_FACE_SIZE
wide: of the sizes tried on LFW this missed the fewest mates (`benchmarks/results/looks.csv`)."""

REFINE_BOX_RATIOS = 0.7, 1.25
"""Bounds of the first pass's box size in the square, relative to REFINE_FACE_SIZE; they limit the effect of wrong
landmarks. On LFW the box becomes 165 to 216 pixels."""

REFERENCE_FACE_SIZE = 100
"""Pixels across of the box of a face whose landmarks are `align.REFERENCE_LANDMARKS`; 94 on average on LFW."""

MAX_BATCH_PIXELS = 4 * REFINE_SIDE**2
"""Pixels run through the detector at a time: four squares of 320 fit a core's cache, of sixteen each takes a quarter
longer."""

MIRRORED = [1, 0, 2, 4, 3]
"""The landmarks of a mirrored face in the order of a face's."""


@dataclass(frozen=True)
class _Canvas:
    """A photo brought to one scale: what to run, and how to read the answer."""

    photo: int
    pixels: Pixels
    sx: float
    sy: float


def detect_faces(
    detector: Detector, photos: Sequence[Photo], seek: SearchScope = SearchScope.ALL
) -> list[list[Detection]]:
    """The faces of each photo, surest first, in pixels of the upright original.

    A photo whose face in question is plain at one level is not looked at any closer, except for SearchScope.ALL.
    """
    found: list[list[Detection]] = [[] for _ in photos]
    left = list(range(len(photos)))
    for level in ALL_FACES_SIDES if seek is SearchScope.ALL else DETECTION_SIDES:
        _look(detector, photos, level, left, found)
        left = [
            i
            for i in left
            if max(photos[i].pixels.shape[:2]) > level
            and (seek is SearchScope.ALL or not _plain(photos[i], found[i], level, seek, detector.confident_score))
        ]
    return [_merge(faces) for faces in found]


def refine_detections(detector: Detector, faces: Sequence[tuple[Photo, Detection]]) -> list[Detection]:
    """Each face with box and landmarks as a second, closer look places them.

    The face is turned upright and looked at twice, as it is and mirrored; the mean of both answers counts, so that what
    the detector errs by to one side cancels out (`benchmarks/results/variants.csv`). A face that neither finds again is
    returned as it was.
    """
    refined = [face for _, face in faces]
    per_run = max(1, MAX_BATCH_PIXELS // (2 * REFINE_SIDE**2))
    for start in range(0, len(faces), per_run):
        batch = faces[start : start + per_run]
        canvases = np.zeros((2, len(batch), REFINE_SIDE, REFINE_SIDE, 3), np.uint8)
        squares = [_square(photo, face, onto) for (photo, face), onto in zip(batch, canvases[0], strict=True)]
        for straight, mirrored in canvases.swapaxes(0, 1):
            cv2.flip(straight, 1, mirrored)
        answers = detector.detect_large(canvases.reshape(-1, *canvases.shape[2:]))
        for i, ((_, face), square) in enumerate(zip(batch, squares, strict=True)):
            back = [_mirrored(answer) for answer in answers[len(batch) + i]]
            sides = ([square.back(answer) for answer in side] for side in (answers[i], back))
            again = [best for side in sides if (best := _same(side, face)) is not None]
            if again:
                refined[start + i] = _mean(again)
    return refined


def _same(faces: Sequence[Detection], wanted: Detection) -> Detection | None:
    """The one of `faces` that is the face wanted."""
    best = max(faces, key=lambda face: iou(face.box, wanted.box), default=None)
    return best if best is not None and iou(best.box, wanted.box) >= SAME_FACE_IOU else None


def _mirrored(face: Detection) -> Detection:
    """A face of a mirrored square as the square itself shows it. Pixel x lies at REFINE_SIDE - 1 - x."""
    box, points = face.box, face.landmarks[MIRRORED] * (-1, 1) + (REFINE_SIDE - 1, 0)
    return Detection(Box(REFINE_SIDE - 1 - box.x - box.w, box.y, box.w, box.h), points.astype(np.float32), face.score)


def _mean(faces: Sequence[Detection]) -> Detection:
    """Box and landmarks are the mean ones; the detector is as sure as where it is surest."""
    boxes = np.array([(face.box.x, face.box.y, face.box.w, face.box.h) for face in faces]).mean(0)
    landmarks = np.stack([face.landmarks for face in faces]).mean(0)
    return Detection(Box(*boxes.tolist()), landmarks.astype(np.float32), max(face.score for face in faces))


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
        if (len(waiting[shape]) + 1) * shape[0] * shape[1] > MAX_BATCH_PIXELS:
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


def _plain(photo: Photo, faces: Sequence[Detection], level: int, seek: SearchScope, sure: float) -> bool:
    """Whether one of `faces` is surely the one sought. A face that covers the middle is the nearest to it."""
    per_pixel = max(photo.width, photo.height) / level
    return any(
        face.score >= sure
        and face.box.size / per_pixel >= CONFIDENT_FACE_SIZE
        and (seek is SearchScope.LARGEST or face.box.contains(photo.width / 2, photo.height / 2))
        for face in faces
    )


def _merge(faces: list[Detection]) -> list[Detection]:
    """One detection a face: of several looks at it the surest."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if all(iou(face.box, other.box) < SAME_FACE_IOU for other in kept):
            kept.append(face)
    return kept


@dataclass(frozen=True, eq=False)
class _Square:
    """The way back from a face cut out upright to its photo."""

    matrix: NDArray[np.float64]
    """(2, 3), from the square's pixels to those of the upright original."""

    def back(self, face: Detection) -> Detection:
        """The box is the one around the oval that fills the square's."""
        linear, offset = self.matrix[:, :2], self.matrix[:, 2]
        x, y = linear @ face.box.center + offset
        w, h = np.hypot(*(linear * (face.box.w, face.box.h)).T)
        points = face.landmarks @ linear.T + offset
        return Detection(
            Box(float(x - w / 2), float(y - h / 2), float(w), float(h)), points.astype(np.float32), face.score
        )


def _square(photo: Photo, face: Detection, onto: Pixels) -> _Square:
    """Writes the upright square around a face, REFINE_SIDE pixels wide, to `onto`, which is black where the square
    leaves the photo.

    A face that is made less than half as large is first averaged down by a whole factor, as in `align`.
    """
    scale = np.array(photo.scale)
    size = max(face.box.size / float(scale.mean()), 1.0)
    matrix = _upright(face.landmarks / scale, np.array(face.box.center) / scale, size)
    back = cv2.invertAffineTransform(matrix)
    shrink = max(1, int(np.hypot(back[0, 0], back[1, 0])))
    part = crop_and_downscale(photo.pixels, matrix, shrink, REFINE_SIDE)
    if part is not None:
        cv2.warpAffine(*part, (REFINE_SIDE, REFINE_SIDE), onto, flags=cv2.INTER_LINEAR)
    return _Square(back * scale[:, None])


def _upright(landmarks: NDArray[np.float64], center: NDArray[np.float64], size: float) -> NDArray[np.float64]:
    """The (2, 3) matrix that brings a face whose box has that center and size into the square: by its landmarks, or by
    its box alone where they lie in one point."""
    onto = (REFERENCE_LANDMARKS - CROP_SIZE / 2) * (REFINE_FACE_SIZE / REFERENCE_FACE_SIZE) + REFINE_SIDE / 2
    try:
        linear = estimate_similarity(landmarks, onto)[:, :2]
    except ValueError:
        linear, landmarks, onto = np.eye(2) * REFINE_FACE_SIZE / size, center[None], np.full((1, 2), REFINE_SIDE / 2)
    least, most = (REFINE_FACE_SIZE * bound / size for bound in REFINE_BOX_RATIOS)
    factor = float(np.hypot(*linear[:, 0]))
    linear = linear * (min(max(factor, least), most) / factor)
    return np.column_stack([linear, onto.mean(0) - linear @ landmarks.mean(0)])
