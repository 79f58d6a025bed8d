"""Detects faces of any size in photos of any size, with a detector that works well at some face sizes only.

The first detection pass runs the detector on the whole photo at a few scales, and on tiles of a large one. The second
pass crops each face that counts and scales it to the size at which the detector is most accurate: landmarks affect
accuracy more than all later steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.slices import end_slice
from indexer.types import CROP_SIZE, Box, Detection, Pixels
from indexer.vision.align import REFERENCE_LANDMARKS, crop_and_downscale, estimate_similarity
from indexer.vision.decode import Photo
from indexer.vision.detectors.base import Detector, boxes_of, iou, ious


class SearchScope(Enum):
    """Which faces are searched for. Skipping the others saves most of the time for a large photo."""

    ALL = "all"
    LARGEST = "largest"
    """The largest face, and others of about its size."""
    ONLY = "only"
    """The same, and other faces at the scales of ALL: a face of half the area must not depend on the size of the photo.
    """
    CENTER = "center"
    """The face nearest to the center."""


DETECTION_SIDES: tuple[int, ...] = (160, 320, 1280)
"""Longest sides in pixels to which a photo is scaled, one after the other; YuNet finds faces of 10 to 300 pixels."""

FINE_SIDES = DETECTION_SIDES[1:]
"""The scales for SearchScope.ALL: the first one finds nothing that these do not. SearchScope.ONLY uses them always: of
237 photos of LFW with two faces that may be enrolled, a search that ends at 160 pixels sees one only in 18."""

TURNS = (90, 180, 270)
"""Degrees clockwise by which a photo is turned if it shows no face with certainty as it is."""

CONFIDENT_FACE_SIZE = 40
"""A face of this size in pixels of the scaled photo, with at least `Detector.confident_score`, is the main face of the
photo: faces missed at this scale are a third as large at most, so finer scales can only add bystanders."""

TILE_SIDE = 1280
"""Longest sides of a tile in pixels."""

MAX_UNTILED_SIDE = 1600
"""Longest side of a photo that needs no tiles: scaled to 1280 pixels, the smallest face that may be enrolled
(`quality.MIN_SIZE`) has 16. The finest tiles are not scaled: of faces of 20 pixels they show 98 %, at 0.8 times the
size 65 %."""

TILE_OVERLAP = 160
"""Pixels that adjacent tiles have in common, and the largest face that is taken from them: larger ones are found at a
coarser scale."""

TILE_STEP = 8.0
"""Largest ratio of one tile scale to the next coarser one, which finds all faces from 16 pixels on: they have up to 128
pixels in the tiles, which leaves a margin of 16 on both sides in the overlap."""

CUT_MARGIN = 0.1
"""A box this close to an inner border of a tile, relative to its size, may be a part of a face; another tile shows the
whole. A face that is half cut off still has a score of 0.78, so the score does not show it."""

SAME_FACE_IOU = 0.4
"""Intersection over union from which two boxes are detections of one face."""

MAX_DETECTIONS = 5_000
"""Detections of a photo that are compared with each other to find those of one face, which takes 0.5 s."""
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
    """A scaled, turned and padded photo, or a part of it."""

    photo: int
    """Index of the photo."""
    pixels: Pixels
    matrix: NDArray[np.float64]
    """(2, 3), from pixels of the canvas to those of the original."""
    borders: tuple[float, float, float, float] = (-math.inf, -math.inf, math.inf, math.inf)
    """Left, upper, right and lower inner border of a tile in the original; infinite where the photo ends."""
    largest: float = math.inf
    """Size in pixels of the original up to which faces are kept."""


def detect_faces(
    detector: Detector,
    photos: Sequence[Photo],
    scope: SearchScope = SearchScope.ALL,
    sides: Sequence[int] | None = None,
    turn: int = 0,
) -> list[list[Detection]]:
    """Returns the faces of each photo, highest score first, in pixels of the upright original.

    Finer scales are skipped for photos in which a coarser scale shows the wanted face with confidence, except for
    SearchScope.ALL. SearchScope.ONLY takes the wanted face from the same scale as SearchScope.LARGEST, so that an
    enrolled photo and a probe give the same embedding, and other faces from FINE_SIDES.

    Args:
        sides: Longest sides to which the photos are scaled, one after the other; by default those of `scope`.
        turn: Degrees clockwise by which the photos are turned first, a multiple of 90.
    """
    found: list[list[Detection]] = [[] for _ in photos]
    wanted: list[list[Detection]] = [[] for _ in photos]
    remaining = list(range(len(photos)))
    goes_on = scope is SearchScope.ONLY and sides is None
    if sides is None:
        sides = FINE_SIDES if scope is SearchScope.ALL else DETECTION_SIDES
    for side in sides:
        _detect(detector, (_whole_canvas(detector.stride, i, photos[i], side, turn) for i in remaining), found)
        remaining = [i for i in remaining if max(photos[i].pixels.shape[:2]) > side]
        if scope is SearchScope.ALL:
            continue
        certain = {i: _confident_face(photos[i], found[i], side, scope, detector.confident_score) for i in remaining}
        if goes_on and side == sides[0]:
            for i, face in certain.items():
                if face is not None:
                    wanted[i], found[i] = [face], []
        else:
            remaining = [i for i in remaining if certain[i] is None]
    return [_join(kept, merge(faces)) for kept, faces in zip(wanted, found, strict=True)]


def needs_tiles(photo: Photo) -> bool:
    """Returns whether a photo may have faces that only `detect_in_tiles` finds."""
    return max(photo.width, photo.height) > MAX_UNTILED_SIDE


def detect_in_tiles(detector: Detector, photo: Photo, side: int, turn: int = 0) -> list[Detection]:
    """Returns the faces of a photo at full size that are too small when it is scaled to `side` pixels.

    With their overlaps, the tiles have 1.3 to 1.6 times as many pixels as the photo.
    """
    coarse = side / max(photo.width, photo.height)
    steps = math.ceil(math.log(1 / coarse) / math.log(TILE_STEP))
    found: list[list[Detection]] = [[]]
    for step in range(1, steps + 1):
        factor = coarse ** (1 - step / steps)
        _detect(detector, _tiles(detector.stride, photo, factor, turn), found)
    return merge(found[0])


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
        end_slice()
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


def _detect(detector: Detector, canvases: Iterable[_Canvas], found: list[list[Detection]]) -> None:
    """Adds the faces in the canvases to those of their photos in `found`. Canvases of one shape share a batch."""
    waiting: dict[tuple[int, ...], list[_Canvas]] = defaultdict(list)

    def run(batch: list[_Canvas]) -> None:
        for canvas, faces in zip(batch, detector.detect(np.stack([c.pixels for c in batch])), strict=True):
            original = [_transform(face, canvas.matrix) for face in faces]
            found[canvas.photo] += [
                face for face in original if face.box.size <= canvas.largest and _is_whole(face.box, canvas.borders)
            ]
        end_slice()

    for canvas in canvases:
        shape = canvas.pixels.shape
        waiting[shape].append(canvas)
        if (len(waiting[shape]) + 1) * shape[0] * shape[1] > MAX_BATCH_PIXELS:
            run(waiting.pop(shape))
    for batch in waiting.values():
        run(batch)


def _whole_canvas(stride: int, index: int, photo: Photo, side: int, turn: int) -> _Canvas:
    """Scales the photo down to `side` pixels at its longest side."""
    height, width = photo.pixels.shape[:2]
    return _canvas(stride, index, photo, (0, 0, width, height), min(1.0, side / max(height, width)), turn)


def _tiles(stride: int, photo: Photo, factor: float, turn: int) -> Iterator[_Canvas]:
    """Yields overlapping tiles of a photo at full size, scaled by `factor`."""
    height, width = photo.pixels.shape[:2]
    for top, bottom in _spans(height, factor):
        for left, right in _spans(width, factor):
            borders = (
                left if left > 0 else -math.inf,
                top if top > 0 else -math.inf,
                right if right < width else math.inf,
                bottom if bottom < height else math.inf,
            )
            canvas = _canvas(stride, 0, photo, (left, top, right, bottom), factor, turn)
            yield replace(canvas, borders=borders, largest=TILE_OVERLAP / factor)


def _spans(length: int, factor: float) -> Iterator[tuple[int, int]]:
    """Yields the first and last pixel of tiles along a side of a photo, evenly distributed."""
    tile, overlap = round(TILE_SIDE / factor), math.ceil(TILE_OVERLAP / factor)
    count = max(1, math.ceil((length - overlap) / (tile - overlap)))
    tile = min(tile, length)
    for i in range(count):
        start = (length - tile) * i // max(1, count - 1)
        yield start, start + tile


def _is_whole(box: Box, borders: tuple[float, float, float, float]) -> bool:
    """Returns whether the box is far enough from the borders."""
    left, top, right, bottom = borders
    margin = CUT_MARGIN * box.size
    return (
        box.x - margin >= left
        and box.y - margin >= top
        and box.x + box.w + margin <= right
        and box.y + box.h + margin <= bottom
    )


def _canvas(
    stride: int, index: int, photo: Photo, part: tuple[int, int, int, int], factor: float, turn: int
) -> _Canvas:
    """Scales a part of the photo (left, top, right, bottom in decoded pixels), turns it and pads it to multiples of
    `stride`."""
    left, top, right, bottom = part
    small = photo.pixels[top:bottom, left:right]
    width, height = right - left, bottom - top
    w, h = max(1, round(width * factor)), max(1, round(height * factor))
    if (w, h) != (width, height):
        # Area averaging takes six times as long as bilinear sampling, which skips no pixels down to half the size.
        interpolation = cv2.INTER_AREA if factor <= 0.5 else cv2.INTER_LINEAR
        small = np.asarray(cv2.resize(small, (w, h), interpolation=interpolation), dtype=np.uint8)
    small = np.rot90(small, -turn // 90)
    rows, columns = small.shape[:2]
    canvas = np.zeros((-(-rows // stride) * stride, -(-columns // stride) * stride, 3), dtype=np.uint8)
    canvas[:rows, :columns] = small
    scale = photo.scale * np.array([width / w, height / h])
    origin = np.array(photo.origin) + photo.scale * np.array([left, top])
    matrix = _turn_back(turn, w, h) * scale[:, None]
    matrix[:, 2] += origin
    return _Canvas(index, canvas, matrix)


def _turn_back(turn: int, width: int, height: int) -> NDArray[np.float64]:
    """Returns the (2, 3) matrix from a picture turned clockwise to the picture as it was, `width` x `height` pixels."""
    return np.array(
        {
            0: [[1, 0, 0], [0, 1, 0]],
            90: [[0, 1, 0], [-1, 0, height]],
            180: [[-1, 0, width], [0, -1, height]],
            270: [[0, -1, width], [1, 0, 0]],
        }[turn],
        np.float64,
    )


def _confident_face(
    photo: Photo, faces: Sequence[Detection], side: int, scope: SearchScope, min_score: float
) -> Detection | None:
    """Returns the largest of `faces` that is certainly the wanted one. A face that covers the center is nearest to
    it."""
    per_pixel = max(photo.width, photo.height) / side
    certain = [
        face
        for face in faces
        if face.score >= min_score
        and face.box.size / per_pixel >= CONFIDENT_FACE_SIZE
        and (scope is not SearchScope.CENTER or face.box.contains(photo.width / 2, photo.height / 2))
    ]
    return max(certain, key=lambda face: face.box.area, default=None)


def are_same_face(a: Detection, b: Detection) -> bool:
    return iou(a.box, b.box) >= SAME_FACE_IOU


def _join(kept: list[Detection], faces: list[Detection]) -> list[Detection]:
    """Returns the detections of `kept`, and those of other faces, highest score first."""
    return sorted((*kept, *exclude(faces, kept)), key=lambda face: -face.score)


def merge(faces: Sequence[Detection]) -> list[Detection]:
    """Keeps the detection with the highest score of each face, of MAX_DETECTIONS."""
    ranked = sorted(faces, key=lambda f: -f.score)[:MAX_DETECTIONS]
    boxes = boxes_of(ranked)
    kept: list[Detection] = []
    is_left = np.ones(len(ranked), bool)
    for i, face in enumerate(ranked):
        if is_left[i]:
            kept.append(face)
            is_left &= ious(face.box, boxes) < SAME_FACE_IOU
    return kept


def exclude(faces: Sequence[Detection], known: Sequence[Detection]) -> list[Detection]:
    """Returns those of `faces` that are none of the known ones."""
    boxes = boxes_of(known)
    return [face for face in faces if (ious(face.box, boxes) < SAME_FACE_IOU).all()]


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
