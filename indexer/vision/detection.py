"""Detects faces of any size in photos of any size, with a detector that works well at some face sizes only.

The first detection pass runs the detector on the whole photo at a few scales. The second pass crops each face that
counts and scales it to the size at which the detector is most accurate: landmarks affect accuracy more than all later
steps.
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
    """Which faces are searched for. Skipping the others saves most of the time for a large photo."""

    ALL = "all"
    LARGEST = "largest"
    """The largest face, and others of about its size."""
    CENTER = "center"
    """The face nearest to the center."""


DETECTION_SIDES: tuple[int, ...] = (160, 320, 1280)
"""Longest sides in pixels to which a photo is scaled, one after the other; YuNet finds faces of 10 to 300 pixels."""

ALL_FACES_SIDES = DETECTION_SIDES[1:]
"""The scales for SearchScope.ALL: the first one finds nothing that these do not."""

CONFIDENT_FACE_SIZE = 40
"""A face of this size in pixels of the scaled photo, with at least `Detector.confident_score`, is the main face of the
photo: faces missed at this scale are a third as large at most, so finer scales can only add bystanders."""

SAME_FACE_IOU = 0.4
"""Intersection over union from which two boxes are detections of one face."""

REFINE_SIDE = 320
REFINE_FACE_SIZE = 200
"""The second pass scales each face to about REFINE_FACE_SIZE pixels, upright, in a square of REFINE_SIDE pixels: of the
sizes tried on LFW this missed the fewest mates (`benchmarks/results/looks.csv`)."""

REFINE_BOX_RATIOS = 0.7, 1.25
"""Bounds for the size of the first pass's box in the square, relative to REFINE_FACE_SIZE. They limit the effect of
wrong landmarks; on LFW, boxes become 165 to 216 pixels."""

REFERENCE_FACE_SIZE = 100
"""Size in pixels of the box of a face with the landmarks `align.REFERENCE_LANDMARKS`; 94 on average on LFW."""

MAX_BATCH_PIXELS = 4 * REFINE_SIDE**2
"""Pixels of a batch: four squares of 320 pixels fit the cache of a core; with sixteen, each takes a quarter longer."""

MIRRORED_LANDMARKS = [1, 0, 2, 4, 3]
"""The order of a face's landmarks in its mirror image."""


@dataclass(frozen=True)
class _Canvas:
    """A scaled and padded photo."""

    photo: int
    """Index of the photo."""
    pixels: Pixels
    sx: float
    """Pixels of the original per pixel of the canvas, horizontally."""
    sy: float
    origin: tuple[float, float]
    """Of the canvas, in pixels of the original."""


def detect_faces(
    detector: Detector, photos: Sequence[Photo], scope: SearchScope = SearchScope.ALL
) -> list[list[Detection]]:
    """Returns the faces of each photo, highest score first, in pixels of the upright original.

    Finer scales are skipped for photos in which a coarser scale shows the wanted face with confidence, except for
    SearchScope.ALL.
    """
    found: list[list[Detection]] = [[] for _ in photos]
    remaining = list(range(len(photos)))
    for side in ALL_FACES_SIDES if scope is SearchScope.ALL else DETECTION_SIDES:
        _detect_at_scale(detector, photos, side, remaining, found)
        remaining = [
            i
            for i in remaining
            if max(photos[i].pixels.shape[:2]) > side
            and (
                scope is SearchScope.ALL
                or not _has_confident_face(photos[i], found[i], side, scope, detector.confident_score)
            )
        ]
    return [_merge(faces) for faces in found]


def refine_detections(detector: Detector, faces: Sequence[tuple[Photo, Detection]]) -> list[Detection]:
    """Runs the second detection pass and returns each face with its box and landmarks.

    The face is rotated upright and detected twice, as it is and mirrored. The results are averaged, which cancels
    errors of the detector to one side (`benchmarks/results/variants.csv`). A face that is not found again is returned
    unchanged.
    """
    refined = [face for _, face in faces]
    batch_size = max(1, MAX_BATCH_PIXELS // (2 * REFINE_SIDE**2))
    for start in range(0, len(faces), batch_size):
        batch = faces[start : start + batch_size]
        canvases = np.zeros((2, len(batch), REFINE_SIDE, REFINE_SIDE, 3), np.uint8)
        matrices = [
            _crop_upright(photo, face, square) for (photo, face), square in zip(batch, canvases[0], strict=True)
        ]
        for square, mirrored in canvases.swapaxes(0, 1):
            cv2.flip(square, 1, mirrored)
        results = detector.detect_large(canvases.reshape(-1, *canvases.shape[2:]))
        for i, ((_, face), matrix) in enumerate(zip(batch, matrices, strict=True)):
            unmirrored = [_mirror(result) for result in results[len(batch) + i]]
            sides = ([_transform(result, matrix) for result in side] for side in (results[i], unmirrored))
            matches = [best for side in sides if (best := _find_same_face(side, face)) is not None]
            if matches:
                refined[start + i] = _mean(matches)
    return refined


def _find_same_face(faces: Sequence[Detection], wanted: Detection) -> Detection | None:
    best = max(faces, key=lambda face: iou(face.box, wanted.box), default=None)
    return best if best is not None and iou(best.box, wanted.box) >= SAME_FACE_IOU else None


def _mirror(face: Detection) -> Detection:
    """Converts a detection in the mirrored square to the square. Pixel x becomes REFINE_SIDE - 1 - x."""
    box, points = face.box, face.landmarks[MIRRORED_LANDMARKS] * (-1, 1) + (REFINE_SIDE - 1, 0)
    return Detection(Box(REFINE_SIDE - 1 - box.x - box.w, box.y, box.w, box.h), points.astype(np.float32), face.score)


def _mean(faces: Sequence[Detection]) -> Detection:
    """Averages boxes and landmarks; the score is the highest one."""
    boxes = np.array([(face.box.x, face.box.y, face.box.w, face.box.h) for face in faces]).mean(0)
    landmarks = np.stack([face.landmarks for face in faces]).mean(0)
    return Detection(Box(*boxes.tolist()), landmarks.astype(np.float32), max(face.score for face in faces))


def _detect_at_scale(
    detector: Detector, photos: Sequence[Photo], side: int, indices: Iterable[int], found: list[list[Detection]]
) -> None:
    """Adds the faces of the photos at `indices`, scaled to `side`, to `found`. Canvases of one shape share a batch."""
    waiting: dict[tuple[int, ...], list[_Canvas]] = defaultdict(list)

    def run(canvases: list[_Canvas]) -> None:
        for canvas, faces in zip(canvases, detector.detect(np.stack([c.pixels for c in canvases])), strict=True):
            found[canvas.photo] += [face.scaled(canvas.sx, canvas.sy, *canvas.origin) for face in faces]

    for index in indices:
        canvas = _scale_and_pad(detector.stride, index, photos[index], side)
        shape = canvas.pixels.shape
        waiting[shape].append(canvas)
        if (len(waiting[shape]) + 1) * shape[0] * shape[1] > MAX_BATCH_PIXELS:
            run(waiting.pop(shape))
    for canvases in waiting.values():
        run(canvases)


def _scale_and_pad(stride: int, index: int, photo: Photo, side: int) -> _Canvas:
    """Scales the photo down to `side` pixels at its longest side and pads it to multiples of `stride`."""
    height, width = photo.pixels.shape[:2]
    factor = min(1.0, side / max(height, width))
    w, h = max(1, round(width * factor)), max(1, round(height * factor))
    small = photo.pixels
    if (w, h) != (width, height):
        # Area averaging takes six times as long as bilinear sampling, which skips no pixels down to half the size.
        interpolation = cv2.INTER_AREA if factor <= 0.5 else cv2.INTER_LINEAR
        small = np.asarray(cv2.resize(small, (w, h), interpolation=interpolation), dtype=np.uint8)
    canvas = np.zeros((-(-h // stride) * stride, -(-w // stride) * stride, 3), dtype=np.uint8)
    canvas[:h, :w] = small
    return _Canvas(index, canvas, photo.scale * width / w, photo.scale * height / h, photo.origin)


def _has_confident_face(
    photo: Photo, faces: Sequence[Detection], side: int, scope: SearchScope, min_score: float
) -> bool:
    """Returns whether one of `faces` is certainly the wanted one. A face that covers the center is nearest to it."""
    per_pixel = max(photo.width, photo.height) / side
    return any(
        face.score >= min_score
        and face.box.size / per_pixel >= CONFIDENT_FACE_SIZE
        and (scope is SearchScope.LARGEST or face.box.contains(photo.width / 2, photo.height / 2))
        for face in faces
    )


def _merge(faces: list[Detection]) -> list[Detection]:
    """Keeps the detection with the highest score of each face."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if all(iou(face.box, other.box) < SAME_FACE_IOU for other in kept):
            kept.append(face)
    return kept


def _transform(face: Detection, matrix: NDArray[np.float64]) -> Detection:
    """Transforms a detection by a (2, 3) similarity. The new box encloses the transformed ellipse in the old box."""
    linear, offset = matrix[:, :2], matrix[:, 2]
    x, y = linear @ face.box.center + offset
    w, h = np.hypot(*(linear * (face.box.w, face.box.h)).T)
    points = face.landmarks @ linear.T + offset
    return Detection(Box(float(x - w / 2), float(y - h / 2), float(w), float(h)), points.astype(np.float32), face.score)


def _crop_upright(photo: Photo, face: Detection, square: Pixels) -> NDArray[np.float64]:
    """Writes the upright surroundings of a face to `square`, which is black, and returns the (2, 3) matrix from pixels
    of the square to those of the upright original.

    Areas outside the photo stay black. A face that becomes less than half as large is first averaged down by an integer
    factor, as in `align`.
    """
    size = max(face.box.size / photo.scale, 1.0)
    matrix = _upright_matrix(photo.to_decoded(face.landmarks), photo.to_decoded(face.box.center), size)
    inverse = cv2.invertAffineTransform(matrix)
    factor = max(1, int(np.hypot(inverse[0, 0], inverse[1, 0])))
    part = crop_and_downscale(photo.pixels, matrix, factor, REFINE_SIDE)
    if part is not None:
        cv2.warpAffine(*part, (REFINE_SIDE, REFINE_SIDE), square, flags=cv2.INTER_LINEAR)
    return np.asarray(inverse * photo.scale + [[0, 0, x] for x in photo.origin], np.float64)


def _upright_matrix(landmarks: NDArray[np.float64], center: NDArray[np.float64], size: float) -> NDArray[np.float64]:
    """Returns the (2, 3) matrix from the photo to the square for a face with a box of that center and size. Uses the
    box alone if the landmarks coincide."""
    target = (REFERENCE_LANDMARKS - CROP_SIZE / 2) * (REFINE_FACE_SIZE / REFERENCE_FACE_SIZE) + REFINE_SIDE / 2
    try:
        linear = estimate_similarity(landmarks, target)[:, :2]
    except ValueError:
        linear, landmarks = np.eye(2) * REFINE_FACE_SIZE / size, center[None]
        target = np.full((1, 2), REFINE_SIDE / 2)
    smallest, largest = (REFINE_FACE_SIZE * ratio / size for ratio in REFINE_BOX_RATIOS)
    factor = float(np.hypot(*linear[:, 0]))
    linear = linear * (min(max(factor, smallest), largest) / factor)
    return np.column_stack([linear, target.mean(0) - linear @ landmarks.mean(0)])
