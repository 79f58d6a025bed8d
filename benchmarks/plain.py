"""The plain loop of OpenCV's documentation, one photo at a time, for comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Precision, Vectors, normalize
from indexer.vision.align import align
from indexer.vision.detectors.yunet import MAX_OVERLAP
from indexer.vision.runtime import Preprocessing, Session, Threads, load

MIN_SCORE = 0.6

Embed = Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.float32]]


class PlainLoop:
    """Runs `cv2.FaceDetectorYN` on the photo, then SFace on one crop, without mirroring, batches or a second pass.

    `embed` is OpenCV's recognizer, or the same network in the runtime and precision of whosthere.
    """

    def __init__(self, detector: cv2.FaceDetectorYN, embed: Embed) -> None:
        self._detector = detector
        self._embed = embed

    def describe(self, data: bytes) -> NDArray[np.float32] | None:
        """Returns the embedding (D,) of the largest face, or None."""
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            return None
        self._detector.setInputSize((image.shape[1], image.shape[0]))
        faces: Any = self._detector.detect(image)[1]  # None if there is no face
        if faces is None or len(faces) == 0:
            return None
        largest = max(faces, key=lambda face: face[2] * face[3])
        return self._embed(np.asarray(image, dtype=np.uint8), np.asarray(largest, dtype=np.float32))


def opencv_loop() -> PlainLoop:
    """Returns the loop with OpenCV's detector and recognizer."""
    with tempfile.TemporaryDirectory() as folder:
        files = ModelFiles(Path(folder))
        detector = _detector(files, Path(folder))
        path = Path(folder) / "sface.onnx"
        path.write_bytes(files.prepared_model(SFACE.embedder))
        recognizer = cv2.FaceRecognizerSF.create(str(path), "")

    def embed(image: NDArray[np.uint8], face: NDArray[np.float32]) -> NDArray[np.float32]:
        raw = np.asarray(recognizer.feature(recognizer.alignCrop(image, face)), dtype=np.float32)
        return np.asarray(normalize(raw)[0], dtype=np.float32)

    return PlainLoop(detector, embed)


def same_embedder_loop(precision: Precision) -> PlainLoop:
    """Returns the loop with OpenCV's detector and whosthere's embedder, one crop at a time."""
    with tempfile.TemporaryDirectory() as folder:
        files = ModelFiles(Path(folder))
        detector = _detector(files, Path(folder))
        session: Session = load(files.prepared_model(SFACE.embedder), Preprocessing(), precision, Threads())

    def embed(image: NDArray[np.uint8], face: NDArray[np.float32]) -> NDArray[np.float32]:
        crop = align(np.ascontiguousarray(image[..., ::-1]), face[4:14].reshape(5, 2))
        (raw,) = session.run(crop[None])
        return np.asarray(normalize(raw)[0], dtype=np.float32)

    return PlainLoop(detector, embed)


def _detector(files: ModelFiles, folder: Path) -> cv2.FaceDetectorYN:
    path = folder / "yunet.onnx"
    path.write_bytes(files.read(SFACE.detector))
    return cv2.FaceDetectorYN.create(str(path), "", (320, 320), MIN_SCORE, MAX_OVERLAP)


class PlainGallery:
    """Embeddings in one array; the best inner product is the answer."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def best(self, vector: NDArray[np.float32]) -> int:
        return int((self._vectors @ vector).argmax())
