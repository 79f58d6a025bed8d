"""Image bytes -> described faces: decode, detect, align, embed, as one object over one model pack."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.errors import RejectedImage
from indexer.models.model_files import ModelFiles
from indexer.models.packs import Pack
from indexer.timing import Stage, untimed
from indexer.types import CROP_SIZE, Detection, Device, Face, Pick, Pixels, Precision, Quality, Reason, Vectors
from indexer.vision import detection, networks, quality
from indexer.vision.align import align, estimate_similarity
from indexer.vision.decode import Limits, Photo, decode
from indexer.vision.detection import SearchScope
from indexer.vision.detectors.base import Detector
from indexer.vision.embedders.base import Embedder
from indexer.vision.runtime import Threads

MAX_BATCH_PIXELS = 48_000_000
"""Decoded pixels held at a time: four photos of 12 MP, 144 MB."""

REDUCED_SIDE = 1000
"""A JPEG is first decoded to this longest side or more: a photo of 4032 x 3024 at a quarter."""

SEARCH_SCOPES = {
    None: SearchScope.ALL,
    Pick.ONLY: SearchScope.LARGEST,
    Pick.LARGEST: SearchScope.LARGEST,
    Pick.CENTER: SearchScope.CENTER,
}

RIVAL_AREA_RATIO = 0.5
"""A second face counts from this share of the largest one's area (the public contract of `--pick only`)."""


@dataclass(frozen=True)
class Options:
    """How a pipeline runs. None of it changes what it answers, but `thorough`, and `precision`: scores by 0.001 on
    average and 0.016 at most (`benchmarks/runtime.py`)."""

    limits: Limits = field(default_factory=Limits)
    threads: Threads = field(default_factory=Threads)
    device: Device = Device.AUTO
    precision: Precision = Precision.NATIVE
    """Of the embedder."""
    thorough: bool = True
    """Whether all of a pack's `zooms` are embedded, or the aligned crop alone, in the embedder's time for one crop. The
    embeddings of either may be compared with the other's."""
    stage: Stage = untimed
    """Times `decode`, `detect`, `look` (the second look, aligning and measuring) and `embed`, of all images at once."""


@dataclass(frozen=True, eq=False)
class ImageResult:
    """One image: its faces, or why there are none to use."""

    faces: tuple[Face, ...] = ()
    rejection: RejectedImage | None = None
    width: int = 0
    height: int = 0


@dataclass(eq=False)
class _Image:
    """One image on its way through."""

    data: bytes
    photo: Photo
    detections: list[Detection]
    chosen: list[Detection]
    crops: list[Pixels] = field(default_factory=list)
    views: list[NDArray[np.uint8]] = field(default_factory=list)
    """Of each face, (V, 112, 112, 3): what is embedded."""
    qualities: list[Quality] = field(default_factory=list)
    rejection: RejectedImage | None = None


class FacePipeline:
    """Thread-safe. The networks are loaded at the first call, once."""

    def __init__(self, pack: Pack, files: ModelFiles, options: Options = Options()) -> None:
        self.pack = pack
        self._files = files
        self._options = options
        self._lock = threading.Lock()
        self._networks: tuple[Detector, Embedder] | None = None

    def load(self) -> None:
        """Loads the networks now. Raises ModelUnavailable."""
        self._load()

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[ImageResult]:
        """The faces of each image that `pick` names (None: all of them, largest first), embedded.

        With `gate`, a face that `quality` finds too poor rejects its image. Raises ModelUnavailable; what is
        wrong with one image is in its own answer.
        """
        answers: list[ImageResult] = []
        for group in self._groups(images, SEARCH_SCOPES[pick]):
            answers += self._describe(group, pick, gate)
        return answers

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        """(N, 112, 112, 3) RGB uint8 aligned crops -> (N, D) float32 of unit length. Raises ModelUnavailable.

        Of crops alone there are no `zooms`: the answers may be compared with those of `describe`, and are a little
        worse.
        """
        _, embedder = self._load()
        return embedder.embed(crops)

    def detect(self, images: Sequence[bytes], pick: Pick | None = None) -> list[ImageResult]:
        """As `describe`, the faces measured but not embedded (their embeddings are empty)."""
        answers: list[ImageResult] = []
        for group in self._groups(images, SEARCH_SCOPES[pick]):
            with self._options.stage("look"):
                self._crop(group, pick)
            answers += _answers(group, repeat(np.empty(0, np.float32)))
        return answers

    def _load(self) -> tuple[Detector, Embedder]:
        with self._lock:
            if self._networks is None:
                options = self._options
                self._networks = networks.load(
                    self.pack, self._files, options.device, options.precision, options.threads
                )
            return self._networks

    def _groups(self, images: Sequence[bytes], seek: SearchScope) -> Iterator[list[_Image | RejectedImage]]:
        """Images decoded and looked at, in order, as many at a time as MAX_BATCH_PIXELS allows."""
        group: list[_Image | RejectedImage] = []
        pixels = 0
        for data in images:
            item = self._decode(data, seek)
            size = item.photo.pixels.size // 3 if isinstance(item, _Image) else 0
            if group and pixels + size > MAX_BATCH_PIXELS:
                with self._options.stage("detect"):
                    self._find(group, seek)
                yield group
                group, pixels = [], 0
            group.append(item)
            pixels += size
        if group:
            with self._options.stage("detect"):
                self._find(group, seek)
            yield group

    def _decode(self, data: bytes, seek: SearchScope) -> _Image | RejectedImage:
        side = max(detection.DETECTION_SIDES) if seek is SearchScope.ALL else REDUCED_SIDE
        try:
            with self._options.stage("decode"):
                return _Image(data, decode(data, self._options.limits, side), [], [])
        except RejectedImage as rejection:
            return rejection.without_traceback()

    def _find(self, group: list[_Image | RejectedImage], seek: SearchScope) -> None:
        detector, _ = self._load()
        read = [item for item in group if isinstance(item, _Image)]
        for item, faces in zip(read, detection.detect_faces(detector, [i.photo for i in read], seek), strict=True):
            item.detections = faces
        for item in read:
            if not item.detections and item.photo.is_reduced and seek is not SearchScope.ALL:
                try:
                    item.photo = decode(item.data, self._options.limits, max(detection.DETECTION_SIDES))
                except RejectedImage as rejection:
                    item.rejection = rejection.without_traceback()
                    continue
                (item.detections,) = detection.detect_faces(detector, [item.photo])

    def _describe(self, group: list[_Image | RejectedImage], pick: Pick | None, gate: bool) -> list[ImageResult]:
        detector, embedder = self._load()
        with self._options.stage("look"):
            self._crop(group, pick)
        read = [item for item in group if isinstance(item, _Image)]
        for image in read:
            if gate and image.rejection is None:
                image.rejection = _gate(image, detector.enrollment_score)
        views = [some for image in read if image.rejection is None for some in image.views]
        with self._options.stage("embed"):
            vectors = embedder.embed_views(
                np.stack(views) if views else np.empty((0, 1, CROP_SIZE, CROP_SIZE, 3), np.uint8)
            )
        return _answers(group, iter(vectors))

    def _crop(self, group: list[_Image | RejectedImage], pick: Pick | None) -> None:
        """Chooses faces, looks at them again, aligns and measures them; whole photos as many at a time as
        MAX_BATCH_PIXELS allows."""
        ready: list[tuple[_Image, Photo]] = []
        pixels = 0
        for item in group:
            if not isinstance(item, _Image) or item.rejection is not None:
                continue
            try:
                item.chosen = select_faces(item.detections, pick, item.photo)
                photo = item.photo
                if photo.is_reduced and _too_coarse(item):
                    photo = decode(item.data, self._options.limits)
            except RejectedImage as rejection:
                item.rejection, item.chosen = rejection.without_traceback(), []
                continue
            size = photo.pixels.size // 3
            if ready and pixels + size > MAX_BATCH_PIXELS:
                self._crop_faces(ready, pick)
                ready, pixels = [], 0
            ready.append((item, photo))
            pixels += size
        self._crop_faces(ready, pick)

    def _crop_faces(self, ready: list[tuple[_Image, Photo]], pick: Pick | None) -> None:
        detector, _ = self._load()
        pairs = [(photo, face) for item, photo in ready for face in item.chosen]
        again = iter(detection.refine_detections(detector, pairs))
        zooms = self.pack.zooms if self._options.thorough else (1.0,)
        for item, photo in ready:
            item.chosen = sorted((next(again) for _ in item.chosen), key=lambda face: -face.box.area)
            if pick is Pick.LARGEST:
                item.chosen = item.chosen[:1]
            for face in item.chosen:
                try:
                    points = face.landmarks / photo.scale
                    crop = align(photo.pixels, points)
                    views = [crop if zoom == 1 else align(photo.pixels, zoom_landmarks(points, zoom)) for zoom in zooms]
                except ValueError as error:
                    item.rejection = RejectedImage(f"the face has no shape: {error}", code=Reason.DETECTION_UNSURE)
                    item.chosen = []
                    break
                item.crops.append(crop)
                item.views.append(np.stack(views))
                item.qualities.append(quality.measure(face, crop, detector.enrollment_score))


def select_faces(faces: Sequence[Detection], pick: Pick | None, photo: Photo) -> list[Detection]:
    """The faces that `pick` names, largest first; for `largest` all of about that size, as the second look may tell
    another order. Raises RejectedImage: `no_face`, `several_faces`."""
    if not faces:
        raise RejectedImage("no face was found", code=Reason.NO_FACE)
    ranked = sorted(faces, key=lambda face: -face.box.area)
    if pick is None:
        return ranked
    if pick is Pick.CENTER:
        cx, cy = photo.width / 2, photo.height / 2
        return [min(ranked, key=lambda f: (f.box.center[0] - cx) ** 2 + (f.box.center[1] - cy) ** 2)]
    rivals = [face for face in ranked if face.box.area >= RIVAL_AREA_RATIO * ranked[0].box.area]
    if pick is Pick.ONLY and len(rivals) > 1:
        raise RejectedImage(
            f"{len(rivals)} faces of similar size were found; expected one person, or --pick largest or center",
            code=Reason.SEVERAL_FACES,
            details={"faces": len(rivals)},
        )
    return rivals


def zoom_landmarks(landmarks: NDArray[np.floating], zoom: float) -> NDArray[np.float64]:
    """Landmarks (5, 2) by which `align` cuts the same crop `zoom` times nearer, about its middle."""
    back = cv2.invertAffineTransform(estimate_similarity(landmarks))
    middle = back @ ((CROP_SIZE - 1) / 2, (CROP_SIZE - 1) / 2, 1)
    return np.asarray(middle + (landmarks - middle) / zoom, np.float64)


def _too_coarse(item: _Image) -> bool:
    """Whether the whole photo would show a face with more pixels than its second look can use."""
    sx, sy = item.photo.scale
    return min(face.box.size for face in item.chosen) / max(sx, sy) < detection.REFINE_FACE_SIZE


def _gate(item: _Image, sure: float) -> RejectedImage | None:
    reasons = item.qualities[0].reasons
    if not reasons:
        return None
    return RejectedImage(
        quality.rejection_message(reasons[0], item.chosen[0], item.qualities[0], sure),
        code=reasons[0],
        details={"reasons": [str(reason) for reason in reasons]},
    )


def _answers(group: Sequence[_Image | RejectedImage], vectors: Iterator[NDArray[np.float32]]) -> list[ImageResult]:
    """One answer an item; the faces of those that are not rejected take their embeddings from `vectors`, in order."""
    answers = []
    for item in group:
        if isinstance(item, RejectedImage):
            answers.append(ImageResult(rejection=item))
            continue
        faces: tuple[Face, ...] = ()
        if item.rejection is None:
            found = zip(item.chosen, item.qualities, item.crops, strict=True)
            faces = tuple(Face(d, q, next(vectors), crop) for d, q, crop in found)
        answers.append(ImageResult(faces, item.rejection, item.photo.width, item.photo.height))
    return answers
