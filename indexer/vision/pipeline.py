"""Runs all steps from image files to embedded faces with one model pack: decode, detect, align, embed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat, zip_longest

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable, RejectedImage
from indexer.models.model_files import ModelFiles
from indexer.models.packs import Pack
from indexer.slices import end_slice
from indexer.timing import Stage, untimed
from indexer.types import CROP_SIZE, Detection, Device, Face, Pick, Precision, Vectors
from indexer.vision import detection, networks, quality
from indexer.vision.align import align, zoom_landmarks
from indexer.vision.batch_errors import describe_error, may_be_of_item
from indexer.vision.batches import batch_by_pixels
from indexer.vision.decode import Limits, Photo, decode_aside
from indexer.vision.detection import SearchScope
from indexer.vision.detectors.base import Detector
from indexer.vision.embedders.base import Embedder
from indexer.vision.further_search import FurtherSearch
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.liveness.crops import upright
from indexer.vision.runtime import Threads
from indexer.vision.selection import SEARCH_SCOPES, SeenFace, SeenImage, next_faces, select_faces

REDUCED_SIDE = 1000
"""Longest side, at least, to which a JPEG is first decoded: a photo of 4032 x 3024 at a quarter."""

EMBEDDED_AT_ONCE = 8
"""Faces embedded between two ends of slices."""


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
    max_faces: int = 100
    """Faces of an image that the second detection pass looks at, which takes 5 ms for each: the largest ones."""
    stage: Stage = untimed
    """Measures the time of `decode`, `detect`, `look` (second detection pass, alignment, quality), `liveness` and
    `embed`, each for all images of a batch."""


@dataclass(frozen=True, eq=False)
class ImageResult:
    """The faces of one image, or the reason why it was rejected. Width and height are those of the upright original.

    `faces_not_searched` is the number of further faces, which are smaller (`Options.max_faces`).
    """

    faces: tuple[Face, ...] = ()
    rejection: RejectedImage | None = None
    width: int = 0
    height: int = 0
    faces_not_searched: int = 0


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

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        """Detects, measures and embeds the faces that `pick` selects in each image file, or all, largest first.

        With `gate`, an image is rejected if its face does not meet the limits of `quality`, or is not live where
        `liveness` requires it. Raises ModelUnavailable; errors of a single image are in its result.
        """
        results: list[ImageResult] = []
        for batch in self._detect_batches(images, SEARCH_SCOPES[pick]):
            results += self._describe(batch, pick, gate, liveness)
        return results

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        """Returns embeddings (N, D) float32 of unit length for (N, 112, 112, 3) RGB uint8 aligned crops.

        The pack's `zooms` need the photo, so these embeddings are a little less accurate than those of `describe`, but
        comparable. Raises ModelUnavailable.
        """
        _, embedder = self._load()
        return embedder.embed(crops)

    def detect(
        self, images: Sequence[bytes], pick: Pick | None = None, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        """Detects and measures faces as `describe` does, with empty embeddings."""
        results: list[ImageResult] = []
        for batch in self._detect_batches(images, SEARCH_SCOPES[pick]):
            with self._options.stage("look"):
                self._select(batch, pick)
            self._assess(batch, liveness)
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

    def _detect_batches(self, images: Sequence[bytes], scope: SearchScope) -> Iterator[list[SeenImage | RejectedImage]]:
        """Yields the images in order, decoded and with the detections of the first pass."""
        decoded = (self._decode(data, scope) for data in images)
        for batch in batch_by_pixels(decoded, lambda item: _pixels(item.photo) if isinstance(item, SeenImage) else 0):
            with self._options.stage("detect"):
                self._detect(batch, scope)
            yield batch

    def _decode(self, data: bytes, scope: SearchScope) -> SeenImage | RejectedImage:
        side = None if scope is SearchScope.ALL else REDUCED_SIDE
        try:
            with self._options.stage("decode"):
                return SeenImage(data, decode_aside(data, self._options.limits, side))
        except RejectedImage as rejection:
            return rejection.without_traceback()

    def _detect(self, batch: list[SeenImage | RejectedImage], scope: SearchScope) -> None:
        detector, _ = self._load()
        decoded = [item for item in batch if isinstance(item, SeenImage)]
        found = detection.detect_faces(detector, [image.photo for image in decoded], scope)
        for image, faces in zip(decoded, found, strict=True):
            image.found = faces

    def _describe(
        self, batch: list[SeenImage | RejectedImage], pick: Pick | None, gate: bool, liveness: LivenessCheck | None
    ) -> list[ImageResult]:
        detector, embedder = self._load()
        with self._options.stage("look"):
            self._select(batch, pick)
        images = [item for item in batch if isinstance(item, SeenImage)]
        for image in images:
            if gate and image.rejection is None:
                face = image.chosen[0]
                image.rejection = quality.rejection(face.detection, face.quality, detector.enrollment_score)
        self._assess(batch, liveness)
        for image in images:
            if gate and liveness is not None and image.rejection is None:
                image.rejection = liveness.rejection(image.liveness[0])
        views = [face.views for image in images if image.rejection is None for face in image.chosen]
        with self._options.stage("embed"):
            vectors: list[NDArray[np.float32]] = []
            for start in range(0, len(views), EMBEDDED_AT_ONCE):
                vectors.extend(embedder.embed_views(np.stack(views[start : start + EMBEDDED_AT_ONCE])))
                end_slice()
        return _results(batch, iter(vectors))

    def _select(self, batch: list[SeenImage | RejectedImage], pick: Pick | None) -> None:
        """Runs the second detection pass and selects faces, with their crops and quality.

        Images that show no face with certainty are searched further, one at a time.
        """
        detector, _ = self._load()
        further = FurtherSearch(detector, self._look, self._full_size)
        self._look([item for item in batch if isinstance(item, SeenImage)], pick)
        for place, image in enumerate(batch):
            if not isinstance(image, SeenImage):
                continue
            if image.rejection is None and further.is_needed(image, pick):
                batch[place] = image = further.search(image, pick)
            try:
                image.skipped = image.skipped if pick is None else []  # otherwise one face is wanted
                if image.rejection is None:
                    image.chosen = select_faces(image.seen, pick, image.photo)
            except RejectedImage as rejection:
                image.rejection = rejection.without_traceback()

    def _assess(self, batch: Sequence[SeenImage | RejectedImage], liveness: LivenessCheck | None) -> None:
        """Scores how likely the chosen faces of the images are live, on the photos at full size."""
        if liveness is None:
            return
        images = [item for item in batch if isinstance(item, SeenImage) and item.rejection is None]
        with self._options.stage("liveness"):
            for part in batch_by_pixels(self._full_size_photos(images), lambda item: _pixels(item[1])):
                faces = [
                    upright(photo.pixels, face.detection.box, image.turn)
                    for image, photo in part
                    for face in image.chosen
                ]
                assessed = iter(liveness.model.assess(faces))
                for image, _ in part:
                    image.liveness = [next(assessed) for _ in image.chosen]
                part.clear()  # frees full-size photos before the next ones are decoded

    def _full_size_photos(self, images: Iterable[SeenImage]) -> Iterator[tuple[SeenImage, Photo]]:
        """Yields the images with their photos, without those that cannot be decoded at full size."""
        for image in images:
            try:
                photo = self._full_size(image)
            except RejectedImage as rejection:
                image.rejection = rejection.without_traceback()
                continue
            yield image, photo

    def _look(self, images: Sequence[SeenImage], pick: Pick | None) -> None:
        """Runs the second detection pass for the faces that may be selected, until it has seen enough."""
        waiting = True
        while waiting:
            waiting = False
            for part in batch_by_pixels(self._next_faces(images, pick), lambda item: _pixels(item[1])):
                waiting = True
                self._align(part)
                part.clear()  # frees full-size photos before the next ones are decoded

    def _next_faces(
        self, images: Sequence[SeenImage], pick: Pick | None
    ) -> Iterator[tuple[SeenImage, Photo, list[Detection]]]:
        """Yields each image with faces to look at, and the photo to crop them from, which is decoded at full size if
        the reduced one shows the faces too small."""
        for image in images:
            faces = self._largest(image, next_faces(image.found, image.seen, pick, image.photo))
            if not faces or image.rejection is not None:
                continue
            photo = image.photo
            if min(face.box.size for face in faces) / photo.scale < detection.REFINE_FACE_SIZE and photo.is_reduced:
                try:
                    photo = self._full_size(image)
                except RejectedImage as rejection:
                    image.rejection = rejection.without_traceback()
                    continue
            yield image, photo, faces

    def _largest(self, image: SeenImage, faces: list[Detection]) -> list[Detection]:
        """Returns those of an image's faces that are not too many, and forgets the others."""
        room = max(0, self._options.max_faces - len(image.seen))
        if len(faces) <= room:
            return faces
        ranked = sorted(faces, key=lambda face: -face.box.area)
        forgotten = {id(face) for face in ranked[room:]}
        image.found = [face for face in image.found if id(face) not in forgotten]
        image.skipped += ranked[room:]
        return ranked[:room]

    def _full_size(self, image: SeenImage) -> Photo:
        """Raises RejectedImage."""
        return decode_aside(image.data, self._options.limits) if image.photo.is_reduced else image.photo

    def _align(self, part: Sequence[tuple[SeenImage, Photo, list[Detection]]]) -> None:
        """Detects the faces of some images again, aligns them and measures their quality."""
        detector, _ = self._load()
        refined = iter(
            detection.refine_detections(detector, [(photo, face) for _, photo, faces in part for face in faces])
        )
        zooms = self.pack.zooms if self._options.thorough else (1.0,)
        for image, photo, faces in part:
            image.found = [face for face in image.found if all(face is not other for other in faces)]
            for face in (next(refined) for _ in faces):
                try:
                    points = photo.to_decoded(face.landmarks)
                    crop = align(photo.pixels, points)
                    views = [crop if zoom == 1 else align(photo.pixels, zoom_landmarks(points, zoom)) for zoom in zooms]
                except ValueError:  # the landmarks coincide: it is no face
                    continue
                if any(detection.are_same_face(face, other.detection) for other in image.seen):
                    continue
                measured = quality.measure(face, crop, detector.enrollment_score)
                image.seen.append(SeenFace(face, measured, crop, np.stack(views)))


def _gray_image() -> bytes:
    _, png = cv2.imencode(".png", np.full((CROP_SIZE, CROP_SIZE, 3), 128, np.uint8))
    return png.tobytes()


def _pixels(photo: Photo) -> int:
    return photo.pixels.size // 3


def _results(batch: Sequence[SeenImage | RejectedImage], vectors: Iterator[NDArray[np.float32]]) -> list[ImageResult]:
    """Returns one result per item; the faces of accepted images take their embeddings from `vectors`, in order."""
    results = []
    for item in batch:
        if isinstance(item, RejectedImage):
            results.append(ImageResult(rejection=item))
            continue
        faces: tuple[Face, ...] = ()
        if item.rejection is None:
            faces = tuple(
                Face(f.detection, f.quality, next(vectors), f.crop, item.turn, liveness)
                for f, liveness in zip_longest(item.chosen, item.liveness)
            )
        results.append(ImageResult(faces, item.rejection, item.photo.width, item.photo.height, len(item.skipped)))
    return results
