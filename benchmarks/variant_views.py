"""Ways to look at a face again, to cut a crop and to embed it, which `benchmarks.variants` compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import lfw
from benchmarks.lfw import Shot, say
from indexer.models.packs import SFACE
from indexer.types import CROP_SIZE, Box, Detection, Pick, Pixels
from indexer.vision import detection, quality
from indexer.vision.align import REFERENCE_LANDMARKS, align, estimate_similarity
from indexer.vision.decode import Limits, Photo, decode
from indexer.vision.detection import SearchScope
from indexer.vision.detectors.base import Detector
from indexer.vision.embedders.base import Embedder
from indexer.vision.pipeline import REDUCED_SIDE
from indexer.vision.selection import next_faces

AT_ONCE = 64
"""Photos at a time."""

Item = TypeVar("Item")

Points = NDArray[np.float32]
"""(M, 5, 2) landmarks in pixels of the photos."""

Raw = NDArray[np.float32]
"""(M, 2, D) embeddings of a crop and of its mirror image."""


@dataclass(frozen=True)
class Look:
    """A way to detect landmarks at a second look."""

    face: int = detection.REFINE_FACE_SIZE
    """Width of the face in pixels, in a square of `side`."""
    side: int = detection.REFINE_SIDE
    mirror: bool = False
    """Looks at the mirrored face."""
    upright: bool = False
    """Turns the face upright and scales it by its landmarks, instead of by its box."""


LOOKS: Mapping[str, Look] = {
    "200": Look(),
    "160": Look(160),
    "240": Look(240),
    "200m": Look(mirror=True),
    "upright": Look(upright=True),
    "upright m": Look(upright=True, mirror=True),
    "upright 160": Look(160, upright=True),
    "upright 160 m": Look(160, upright=True, mirror=True),
    "upright 240": Look(240, upright=True),
    "upright 240 m": Look(240, upright=True, mirror=True),
    "upright in 256": Look(side=256, upright=True),
    "upright in 256 m": Look(side=256, upright=True, mirror=True),
    "upright in 384": Look(side=384, upright=True),
    "upright in 384 m": Look(side=384, upright=True, mirror=True),
}


def plain(crop: Pixels) -> Pixels:
    return crop


def blurred(crop: Pixels) -> Pixels:
    """Blurs as much as the quality gate just accepts."""
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), 2.5), np.uint8)


def zoom_landmarks(zoom: float) -> Callable[[Pixels], Pixels]:
    """Returns a function that zooms a crop and repeats its edge outside."""
    matrix = cv2.getRotationMatrix2D(((CROP_SIZE - 1) / 2, (CROP_SIZE - 1) / 2), 0, zoom)
    return lambda crop: np.asarray(
        cv2.warpAffine(crop, matrix, (CROP_SIZE, CROP_SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
        np.uint8,
    )


@dataclass(frozen=True)
class View:
    """A way to cut a crop and to run it."""

    looks: tuple[str, ...] = ("200",)
    """Names of the looks whose landmarks are averaged."""
    move: tuple[float, float] = (0.0, 0.0)
    """Shift of the face within the crop, in pixels."""
    zoom: float = 1.0
    paint: Callable[[Pixels], Pixels] = plain


UPRIGHT = ("upright", "upright m")

IN_256 = ("upright in 256", "upright in 256 m")

IN_384 = ("upright in 384", "upright in 384 m")

SIX = ("upright", "upright 160", "upright 240", "upright m", "upright 160 m", "upright 240 m")

VIEWS: Mapping[str, View] = {
    "200": View(),
    "both": View(("200", "200m")),
    "sizes": View(("160", "200", "240")),
    "upright": View(("upright",)),
    "upright both": View(UPRIGHT),
    "upright six": View(SIX),
    "left": View(move=(-2, 0)),
    "right": View(move=(2, 0)),
    "u near": View(UPRIGHT, zoom=1.05),
    "u wide": View(UPRIGHT, zoom=0.95),
    "256 near": View(IN_256, zoom=1.05),
    "256 wide": View(IN_256, zoom=0.95),
    "384 near": View(IN_384, zoom=1.05),
    "384 wide": View(IN_384, zoom=0.95),
    "crop wide": View(UPRIGHT, paint=zoom_landmarks(0.95)),
    "crop near": View(UPRIGHT, paint=zoom_landmarks(1.05)),
    "u blurred": View(UPRIGHT, paint=blurred),
}


class Study:
    """Landmarks and embeddings of all photos, computed when needed and stored in `cache`."""

    def __init__(self, shots: Sequence[Shot], cache: Path) -> None:
        self._cache = cache
        self._shots = shots
        self._photos: list[Photo] = []
        self._detector, self._embedder = lfw.load_pipeline(replace(SFACE, center=None))._load()

    def raw(self, name: str) -> Raw:
        return self._kept(f"raw {name}", lambda: self._run(VIEWS[name]))

    def landmarks(self, name: str) -> Points:
        return self._kept(f"points {name}", lambda: self._look(LOOKS[name]))

    def qualities(self) -> NDArray[np.float32]:
        """Returns (M, 4) detection score, size, sharpness and yaw at the first look."""
        return self._kept("quality", self._measure)

    def _kept(self, name: str, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        stored = self._cache / f"{name}.npy"
        if not stored.exists():
            say(name)
            np.save(stored, make())
        return np.asarray(np.load(stored), np.float32)

    def _all(self) -> list[Photo]:
        if not self._photos:
            self._photos = [decode(shot.path.read_bytes(), Limits(), REDUCED_SIDE) for shot in self._shots]
        return self._photos

    def _first(self) -> list[Detection]:
        """Returns the central face of each photo at the first look."""
        stored = self._cache / "first.npz"
        if not stored.exists():
            found: list[Detection] = []
            for some in in_parts(self._all()):
                for photo, faces in zip(
                    some, detection.detect_faces(self._detector, some, SearchScope.CENTER), strict=True
                ):
                    found += next_faces(faces, [], Pick.CENTER, photo)
            boxes = np.array([(f.box.x, f.box.y, f.box.w, f.box.h) for f in found])
            np.savez(stored, b=boxes, p=np.stack([f.landmarks for f in found]), s=np.array([f.score for f in found]))
        with np.load(stored) as file:
            return [
                Detection(Box(*b), p, s)
                for b, p, s in zip(file["b"].tolist(), file["p"], file["s"].tolist(), strict=True)
            ]

    def _look(self, look: Look) -> Points:
        pairs = list(zip(self._all(), self._first(), strict=True))
        return np.stack(
            [points for some in in_parts(pairs, 4) for points in refine_detections(self._detector, look, some)]
        )

    def _run(self, view: View) -> Raw:
        points = np.mean([self.landmarks(one) for one in view.looks], axis=0)
        pairs = list(zip(self._all(), points, strict=True))
        bare = Embedder(self._embedder._session, SFACE.dim, mirror=False)
        answers = []
        for some in in_parts(pairs):
            crops = np.stack([cut(photo, where, view) for photo, where in some])
            answers.append(np.stack([bare.embed(crops), bare.embed(np.ascontiguousarray(crops[:, :, ::-1]))], axis=1))
        return np.concatenate(answers)

    def _measure(self) -> NDArray[np.float32]:
        found = []
        for photo, face, points in zip(self._all(), self._first(), self.landmarks("upright"), strict=True):
            crop = align(photo.pixels, points)
            measured = quality.measure(Detection(face.box, points, face.score), crop, self._detector.enrollment_score)
            found.append((face.score, measured.size, measured.sharpness, measured.yaw))
        return np.array(found, np.float32)


def refine_detections(
    detector: Detector, look: Look, faces: Sequence[tuple[Photo, Detection]]
) -> list[NDArray[np.float32]]:
    """Returns the landmarks (5, 2) of each face in its photo."""
    side = look.side
    matrices = [to_canvas(look, face) for _, face in faces]
    squares = np.stack(
        [cv2.warpAffine(p.pixels, m, (side, side)) for (p, _), m in zip(faces, matrices, strict=True)]
    ).astype(np.uint8)
    answers = []
    seen = detector.detect(squares[:, :, ::-1] if look.mirror else squares)
    for (_, face), matrix, found in zip(faces, matrices, seen, strict=True):
        if not found:
            answers.append(face.landmarks)
            continue
        best = min(found, key=lambda a: np.hypot(a.box.center[0] - side / 2, a.box.center[1] - side / 2))
        points = best.landmarks.astype(np.float64)
        if look.mirror:
            points = points[detection.MIRRORED_LANDMARKS] * (-1, 1) + (side - 1, 0)
        back = cv2.invertAffineTransform(matrix)
        answers.append((points @ back[:, :2].T + back[:, 2]).astype(np.float32))
    return answers


def to_canvas(look: Look, face: Detection) -> NDArray[np.float64]:
    """Returns the (2, 3) matrix from the photo's pixels to those of the square."""
    side = look.side
    if look.upright:
        factor = look.face / detection.REFERENCE_FACE_SIZE
        target = (REFERENCE_LANDMARKS - CROP_SIZE / 2) * factor + side / 2
        return estimate_similarity(face.landmarks, target)
    factor = look.face / max(face.box.size, 1.0)
    cx, cy = face.box.center
    return np.array([[factor, 0, side / 2 - factor * cx], [0, factor, side / 2 - factor * cy]])


def cut(photo: Photo, points: NDArray[np.float32], view: View) -> Pixels:
    where = points
    if (view.move, view.zoom) != ((0.0, 0.0), 1.0):
        onto = estimate_similarity(points)
        center = (CROP_SIZE - 1) / 2
        turn = cv2.getRotationMatrix2D((center, center), 0, view.zoom)
        turn[:, 2] += np.array(view.move)
        # Landmarks that `align` brings to where `turn` moves the template from.
        whole = np.vstack([turn, (0, 0, 1)]) @ np.vstack([onto, (0, 0, 1)])
        back = cv2.invertAffineTransform(whole[:2])
        where = (REFERENCE_LANDMARKS @ back[:, :2].T + back[:, 2]).astype(np.float32)
    return view.paint(align(photo.pixels, where))


def in_parts(items: Sequence[Item], count: int = AT_ONCE) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), count):
        yield items[start : start + count]
