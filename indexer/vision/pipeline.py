"""Runs all steps from image files to embedded faces with one model pack: decode, detect, align, embed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable, RejectedImage
from indexer.models.model_files import ModelFiles
from indexer.models.packs import Pack
from indexer.timing import Stage, untimed
from indexer.types import CROP_SIZE, Detection, Device, Face, Pick, Pixels, Precision, Quality, Reason, Vectors
from indexer.vision import detection, networks, quality
from indexer.vision.align import align, estimate_similarity
from indexer.vision.batch_errors import describe_error, may_be_of_item
from indexer.vision.decode import Limits, Photo, decode
from indexer.vision.detection import SearchScope
from indexer.vision.detectors.base import Detector
from indexer.vision.embedders.base import Embedder
from indexer.vision.runtime import Threads

MAX_BATCH_PIXELS = 48_000_000
"""Decoded pixels held in memory at a time: four photos of 12 MP, 144 MB."""

REDUCED_SIDE = 1000
"""Longest side, at least, to which a JPEG is first decoded: a photo of 4032 x 3024 at a quarter."""

SEARCH_SCOPES = {
    None: SearchScope.ALL,
    Pick.ONLY: SearchScope.LARGEST,
    Pick.LARGEST: SearchScope.LARGEST,
    Pick.CENTER: SearchScope.CENTER,
}

RIVAL_AREA_RATIO = 0.5
"""A second face counts if its area is at least this share of the largest one's (public contract of `--pick only`)."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Options:
    """Options of a pipeline. Only `thorough` and `precision` affect results; `precision` changes scores by 0.001 on
    average and 0.016 at most (`benchmarks/runtime.py`)."""

    limits: Limits = field(default_factory=Limits)
    threads: Threads = field(default_factory=Threads)
    device: Device = Device.AUTO
    precision: Precision = Precision.NATIVE
    """Of the embedder."""
    thorough: bool = True
    """Whether to embed a crop for each of the pack's `zooms`, or only the aligned crop in the time of one crop. The
    embeddings of both are comparable."""
    stage: Stage = untimed
    """Measures the time of `decode`, `detect`, `look` (second detection pass, alignment, quality) and `embed`, each for
    all images of a batch."""


@dataclass(frozen=True, eq=False)
class ImageResult:
    """The faces of one image, or the reason why it was rejected. Width and height are those of the upright original."""

    faces: tuple[Face, ...] = ()
    rejection: RejectedImage | None = None
    width: int = 0
    height: int = 0


@dataclass(eq=False)
class _Image:
    """One image between the steps of the pipeline."""

    data: bytes
    photo: Photo
    detections: list[Detection] = field(default_factory=list)
    chosen: list[Detection] = field(default_factory=list)
    """The detections that `Pick` selects."""
    crops: list[Pixels] = field(default_factory=list)
    """The aligned crop of each chosen face."""
    views: list[NDArray[np.uint8]] = field(default_factory=list)
    """The V crops of each chosen face that are embedded, (V, 112, 112, 3) RGB."""
    qualities: list[Quality] = field(default_factory=list)
    rejection: RejectedImage | None = None


class FacePipeline:
    """Detects and embeds faces with one model pack. Thread-safe. The networks are loaded at the first call."""

    def __init__(self, pack: Pack, files: ModelFiles, options: Options = Options()) -> None:
        self.pack = pack
        self._files = files
        self._options = options
        self._lock = threading.Lock()
        self._networks: tuple[Detector, Embedder] | None = None

    def load(self) -> None:
        """Loads the networks. Raises ModelUnavailable."""
        self._load()

    def check(self) -> None:
        """Runs the networks on a gray image and a gray crop. Raises ModelUnavailable if they fail on them, too."""
        try:
            self.describe([_gray_image()], None)
            self.embed(np.full((1, CROP_SIZE, CROP_SIZE, 3), 128, np.uint8))
        except Exception as error:
            if not may_be_of_item(error):
                raise
            raise ModelUnavailable(
                f"the networks of {self.pack.name} fail on every image: {describe_error(error)}"
            ) from error

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[ImageResult]:
        """Detects, measures and embeds the faces that `pick` selects in each image file, or all, largest first.

        With `gate`, an image is rejected if its face does not meet the limits of `quality`. Raises ModelUnavailable;
        errors of a single image are in its result.
        """
        results: list[ImageResult] = []
        for batch in self._detect_batches(images, SEARCH_SCOPES[pick]):
            results += self._describe(batch, pick, gate)
        return results

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        """Returns embeddings (N, D) float32 of unit length for (N, 112, 112, 3) RGB uint8 aligned crops.

        The pack's `zooms` need the photo, so these embeddings are a little less accurate than those of `describe`, but
        comparable. Raises ModelUnavailable.
        """
        _, embedder = self._load()
        return embedder.embed(crops)

    def detect(self, images: Sequence[bytes], pick: Pick | None = None) -> list[ImageResult]:
        """Detects and measures faces as `describe` does, with empty embeddings."""
        results: list[ImageResult] = []
        for batch in self._detect_batches(images, SEARCH_SCOPES[pick]):
            with self._options.stage("look"):
                self._align(batch, pick)
            results += _results(batch, repeat(np.empty(0, np.float32)))
        return results

    def _load(self) -> tuple[Detector, Embedder]:
        with self._lock:
            if self._networks is None:
                options = self._options
                self._networks = networks.load(
                    self.pack, self._files, options.device, options.precision, options.threads
                )
            return self._networks

    def _detect_batches(self, images: Sequence[bytes], scope: SearchScope) -> Iterator[list[_Image | RejectedImage]]:
        """Yields the images in order, decoded and with the detections of the first pass."""
        decoded = (self._decode(data, scope) for data in images)
        for batch in _batch_by_pixels(decoded, lambda item: _pixels(item.photo) if isinstance(item, _Image) else 0):
            with self._options.stage("detect"):
                self._detect(batch, scope)
            yield batch

    def _decode(self, data: bytes, scope: SearchScope) -> _Image | RejectedImage:
        side = max(detection.DETECTION_SIDES) if scope is SearchScope.ALL else REDUCED_SIDE
        try:
            with self._options.stage("decode"):
                return _Image(data, decode(data, self._options.limits, side))
        except RejectedImage as rejection:
            return rejection.without_traceback()

    def _detect(self, batch: list[_Image | RejectedImage], scope: SearchScope) -> None:
        detector, _ = self._load()
        decoded = [item for item in batch if isinstance(item, _Image)]
        found = detection.detect_faces(detector, [image.photo for image in decoded], scope)
        for image, faces in zip(decoded, found, strict=True):
            image.detections = faces
            if not faces and image.photo.is_reduced and scope is not SearchScope.ALL:
                try:
                    image.photo = decode(image.data, self._options.limits, max(detection.DETECTION_SIDES))
                except RejectedImage as rejection:
                    image.rejection = rejection.without_traceback()
                    continue
                (image.detections,) = detection.detect_faces(detector, [image.photo])

    def _describe(self, batch: list[_Image | RejectedImage], pick: Pick | None, gate: bool) -> list[ImageResult]:
        detector, embedder = self._load()
        with self._options.stage("look"):
            self._align(batch, pick)
        images = [item for item in batch if isinstance(item, _Image)]
        for image in images:
            if gate and image.rejection is None:
                image.rejection = _check_quality(image, detector.enrollment_score)
        views = [view for image in images if image.rejection is None for view in image.views]
        with self._options.stage("embed"):
            vectors = embedder.embed_views(
                np.stack(views) if views else np.empty((0, 1, CROP_SIZE, CROP_SIZE, 3), np.uint8)
            )
        return _results(batch, iter(vectors))

    def _align(self, batch: list[_Image | RejectedImage], pick: Pick | None) -> None:
        """Selects faces, runs the second detection pass, aligns the faces and measures their quality."""
        pairs = self._select(batch, pick)
        for part in _batch_by_pixels(pairs, lambda pair: _pixels(pair[1])):
            self._align_faces(part, pick)
            part.clear()  # frees full-size photos before the next ones are decoded

    def _select(self, batch: list[_Image | RejectedImage], pick: Pick | None) -> Iterator[tuple[_Image, Photo]]:
        """Yields each image that has the faces that `pick` selects, with the photo to crop them from, which is decoded
        at full size if the reduced one shows the faces too small."""
        for image in batch:
            if not isinstance(image, _Image) or image.rejection is not None:
                continue
            try:
                image.chosen = select_faces(image.detections, pick, image.photo)
                photo = image.photo
                if photo.is_reduced and _is_too_coarse(image):
                    photo = decode(image.data, self._options.limits)
            except RejectedImage as rejection:
                image.rejection, image.chosen = rejection.without_traceback(), []
                continue
            yield image, photo

    def _align_faces(self, pairs: list[tuple[_Image, Photo]], pick: Pick | None) -> None:
        detector, _ = self._load()
        faces = [(photo, face) for image, photo in pairs for face in image.chosen]
        refined = iter(detection.refine_detections(detector, faces))
        zooms = self.pack.zooms if self._options.thorough else (1.0,)
        for image, photo in pairs:
            image.chosen = sorted((next(refined) for _ in image.chosen), key=lambda face: -face.box.area)
            if pick is Pick.LARGEST:
                image.chosen = image.chosen[:1]
            for face in image.chosen:
                try:
                    points = photo.to_decoded(face.landmarks)
                    crop = align(photo.pixels, points)
                    views = [crop if zoom == 1 else align(photo.pixels, zoom_landmarks(points, zoom)) for zoom in zooms]
                except ValueError as error:
                    message = f"the face cannot be aligned: {error}"
                    image.rejection, image.chosen = RejectedImage(message, code=Reason.DETECTION_UNSURE), []
                    break
                image.crops.append(crop)
                image.views.append(np.stack(views))
                image.qualities.append(quality.measure(face, crop, detector.enrollment_score))


def _gray_image() -> bytes:
    _, png = cv2.imencode(".png", np.full((CROP_SIZE, CROP_SIZE, 3), 128, np.uint8))
    return png.tobytes()


def select_faces(faces: Sequence[Detection], pick: Pick | None, photo: Photo) -> list[Detection]:
    """Returns the faces that `pick` selects, largest first.

    For `largest` these are all of about that size, because the second detection pass can change their order.

    Raises:
        RejectedImage: `no_face` or `several_faces`.
    """
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
    """Returns the landmarks (5, 2) with which `align` makes the same crop, magnified by `zoom` about its center."""
    inverse = cv2.invertAffineTransform(estimate_similarity(landmarks))
    center = inverse @ ((CROP_SIZE - 1) / 2, (CROP_SIZE - 1) / 2, 1)
    return np.asarray(center + (landmarks - center) / zoom, np.float64)


def _pixels(photo: Photo) -> int:
    return photo.pixels.size // 3


def _batch_by_pixels(items: Iterable[Item], pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yields the items in batches of at most MAX_BATCH_PIXELS; a single larger item is a batch too."""
    batch: list[Item] = []
    total = 0
    for item in items:
        size = pixels(item)
        if batch and total + size > MAX_BATCH_PIXELS:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def _is_too_coarse(image: _Image) -> bool:
    """Returns whether the second detection pass can use more pixels of a face than the reduced photo has."""
    return min(face.box.size for face in image.chosen) / image.photo.scale < detection.REFINE_FACE_SIZE


def _check_quality(image: _Image, min_score: float) -> RejectedImage | None:
    """Returns the rejection of an image whose face is below the limits of `quality`."""
    reasons = image.qualities[0].reasons
    if not reasons:
        return None
    return RejectedImage(
        quality.rejection_message(reasons[0], image.chosen[0], image.qualities[0], min_score),
        code=reasons[0],
        details={"reasons": [str(reason) for reason in reasons]},
    )


def _results(batch: Sequence[_Image | RejectedImage], vectors: Iterator[NDArray[np.float32]]) -> list[ImageResult]:
    """Returns one result per item; the faces of accepted images take their embeddings from `vectors`, in order."""
    results = []
    for item in batch:
        if isinstance(item, RejectedImage):
            results.append(ImageResult(rejection=item))
            continue
        faces: tuple[Face, ...] = ()
        if item.rejection is None:
            found = zip(item.chosen, item.qualities, item.crops, strict=True)
            faces = tuple(Face(d, q, next(vectors), crop) for d, q, crop in found)
        results.append(ImageResult(faces, item.rejection, item.photo.width, item.photo.height))
    return results
