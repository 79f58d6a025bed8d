"""The values that flow through the pipeline, and the checks and serialization of embeddings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexer.errors import InvalidVector
from indexer.rounding import SCORE_DECIMALS, decimals

Pixels = NDArray[np.uint8]
"""One image, (H, W, 3), RGB."""

Vectors = NDArray[np.float32]
"""Embeddings, (N, D), each of unit length."""


class Pick(StrEnum):
    """Which of several faces in an image is used."""

    ONLY = "only"
    LARGEST = "largest"
    CENTER = "center"


class Outcome(StrEnum):
    ENROLLED = "enrolled"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why an image was rejected."""

    UNREADABLE_IMAGE = "unreadable_image"
    IMAGE_TOO_LARGE = "image_too_large"
    NO_FACE = "no_face"
    SEVERAL_FACES = "several_faces"
    FACE_TOO_SMALL = "face_too_small"
    FACE_TOO_BLURRY = "face_too_blurry"
    FACE_TURNED_AWAY = "face_turned_away"
    FACE_BADLY_LIT = "face_badly_lit"
    DETECTION_UNSURE = "detection_unsure"
    LOOKS_LIKE_ANOTHER_IDENTITY = "looks_like_another_identity"
    UNLIKE_OWN_IDENTITY = "unlike_own_identity"
    NOT_LIVE = "not_live"
    """The face seems to be shown on a print, a screen or a mask, and the enrollment requires a live one."""
    INVALID_ROW = "invalid_row"
    """The manifest row or archive entry is wrong, not its image: a bad date, a clashing id, an unsafe path."""


class Precision(StrEnum):
    """The number format in which an embedder computes."""

    FLOAT32 = "float32"
    NATIVE = "native"
    """bfloat16 on CPUs with instructions for it, half precision on GPUs."""
    INT8 = "int8"
    """The network that `models quantize` wrote, on the CPU."""


class Tier(StrEnum):
    """How an index searches. `AUTO` is exact for small galleries and compressed for large ones."""

    AUTO = "auto"
    EXACT = "exact"
    COMPRESSED = "compressed"
    GPU = "gpu"


class Device(StrEnum):
    """Where the networks run. `AUTO` is a CUDA GPU if there is one that the pack can use, otherwise the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class LivenessMode(StrEnum):
    """What is done about presentation attacks. The order is from lenient to strict."""

    OFF = "off"
    REPORT = "report"
    """Answers contain the score and affect nothing else."""
    REQUIRE = "require"
    """A face that is not live is neither matched nor enrolled."""


CROP_SIZE = 112
"""Width and height of an aligned crop, in pixels."""


@dataclass(frozen=True)
class ScoreTail:
    """The false match rate of single comparisons at high thresholds: FMR(t) = rate * exp(-(t - start) / scale).

    An exponential tail fitted above `start`. `before` has measured points below it, each a rate and its cosine, in
    falling order of the rates. `benchmarks/thresholds.py` measures both.
    """

    start: float
    rate: float
    scale: float
    before: tuple[tuple[float, float], ...] = ()

    def cosine(self, fmr: float) -> float:
        """Returns the cosine that a share `fmr` of the scores exceeds."""
        return self.cosine_at(-math.log(fmr))

    def cosine_at(self, surprise: float) -> float:
        """Returns the same for a given -log FMR, which can describe rates that are too small for a float."""
        (a, x), (b, y) = next((line for line in self._lines if surprise <= line[1][0]), self._lines[-1])
        return x + (y - x) * (surprise - a) / (b - a)

    def surprise(self, cosine: float) -> float:
        """Returns -log FMR at a cosine."""
        (a, x), (b, y) = next((line for line in self._lines if cosine <= line[1][1]), self._lines[-1])
        return a + (b - a) * (cosine - x) / (y - x)

    @cached_property
    def _lines(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """Lines between points of -log FMR and cosine, in rising order; the first and last one are extended."""
        points = [(-math.log(rate), cosine) for rate, cosine in (*self.before, (self.rate, self.start))]
        points.append((points[-1][0] + 1, points[-1][1] + self.scale))
        return [(one, other) for one, other in pairwise(points) if one[0] < other[0] and one[1] < other[1]]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: left, top, width, height."""

    x: float
    y: float
    w: float
    h: float

    @property
    def area(self) -> float:
        return self.w * self.h

    @property
    def size(self) -> float:
        """The side of the square of the same area, in pixels."""
        return float(np.sqrt(max(self.area, 0.0)))

    @property
    def center(self) -> tuple[float, float]:
        return self.x + self.w / 2, self.y + self.h / 2

    def contains(self, x: float, y: float) -> bool:
        return self.x <= x <= self.x + self.w and self.y <= y <= self.y + self.h


@dataclass(frozen=True, eq=False)
class Detection:
    """One face found by a detector.

    `landmarks` is (5, 2) float32: right eye, left eye, nose tip, right and left mouth corner (the subject's
    right, which is the image's left), in the pixels that `box` is in. `score` is 0..1.
    """

    box: Box
    landmarks: NDArray[np.float32]
    score: float

    def scaled(self, sx: float, sy: float, dx: float = 0.0, dy: float = 0.0) -> Detection:
        """Returns the same face in pixels that are `sx`, `sy` times finer, with the origin at (-`dx`, -`dy`)."""
        b = self.box
        return Detection(
            Box(b.x * sx + dx, b.y * sy + dy, b.w * sx, b.h * sy),
            (self.landmarks * (sx, sy) + (dx, dy)).astype(np.float32),
            self.score,
        )


@dataclass(frozen=True)
class Quality:
    """Measurements of one face, made by `indexer.vision.quality`, which also has the limits."""

    size: float
    """`Box.size` in pixels of the original image."""
    sharpness: float
    yaw: float
    """-1..1; 0 is frontal."""
    brightness: float
    """Mean luma of the face, 0..255."""
    contrast: float
    """Standard deviation of the face's luma."""
    reasons: tuple[Reason, ...] = ()
    """Why the face should not be enrolled; empty if it can be."""


@dataclass(frozen=True)
class Liveness:
    """How likely a face is live rather than a presentation attack."""

    score: float
    """0..1."""
    live: bool
    model: str
    """Name of the liveness pack."""
    threshold: float
    """A face is live from this score on."""

    def to_json(self) -> dict[str, object]:
        """Returns the fields that answers contain."""
        return {"score": round(self.score, SCORE_DECIMALS), "live": self.live, "model": self.model}


@dataclass(frozen=True, eq=False)
class Face:
    """One face of an image with its embedding. Box and landmarks are in pixels of the upright original."""

    detection: Detection
    quality: Quality
    embedding: NDArray[np.float32]
    """(D,) float32 of unit length."""
    crop: Pixels | None = None
    """(112, 112, 3) RGB, the aligned crop that was embedded; None if it was not kept."""
    turn: int = 0
    """Degrees clockwise by which the photo has to be turned for the face to be upright: 0, 90, 180 or 270."""
    liveness: Liveness | None = None
    """None if it was not asked for."""


@dataclass(frozen=True)
class Gallery:
    id: int
    name: str
    model: str
    """Name of the model pack the gallery is bound to."""
    fingerprint: str
    """Fingerprint of the pack's files and preprocessing, on which embeddings depend."""
    dim: int
    seq: int
    """Sequence number of the last change."""
    created_at: datetime


@dataclass(frozen=True)
class Person:
    """A caller's description of one identity."""

    external_id: str
    name: str | None = None
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    cleared: frozenset[str] = frozenset()
    """The fields and metadata keys whose stored values are removed; others without a value keep it."""


@dataclass(frozen=True)
class Identity:
    """One enrolled person, valid at or after `valid_from` and before `valid_until` (UTC)."""

    id: int
    external_id: str
    name: str | None
    metadata: Mapping[str, object]
    valid_from: datetime | None
    valid_until: datetime | None
    faces: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class NamedIdentity:
    """The part of an identity that search results contain, and its number of faces."""

    id: int
    external_id: str
    name: str | None
    metadata: Mapping[str, object]
    faces: int


@dataclass(frozen=True, eq=False)
class StoredFace:
    """One enrolled face as it is stored."""

    id: int
    identity_id: int
    image_sha256: str
    detection: Detection
    quality: Quality
    created_at: datetime
    has_crop: bool
    """Whether the aligned crop is kept."""


@dataclass(frozen=True)
class Hit:
    """One result of a vector index: the best face of one identity."""

    identity_id: int
    face_id: int
    score: float


UNIT_TOLERANCE = 1e-3
"""Accepted difference of an embedding's length from 1. Half precision, in which callers may have stored it, has 11
bits: a relative error of at most 5e-4 (IEEE 754)."""


def check_vectors(values: ArrayLike | Sequence[object], dim: int) -> Vectors:
    """Returns `values` as C-contiguous (N, `dim`) float32 rows of unit length; a single vector becomes one row.

    Lengths within UNIT_TOLERANCE of 1 are normalized; nothing else is repaired.

    Raises:
        InvalidVector: The shape, the type, a value or a length is wrong.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"its type is {array.dtype}")
        with np.errstate(over="ignore"):  # too large values become infinite and are rejected below
            array = np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidVector(f"an embedding must be {dim} numbers; {error}") from error
    if array.ndim != 2 or array.shape[1] != dim:
        raise InvalidVector(f"an embedding must have {dim} numbers; got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidVector("an embedding contains a number that is not finite")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(array, axis=1, keepdims=True)
    if (np.abs(lengths - 1) > UNIT_TOLERANCE).any():
        worst = float(lengths.flat[int(np.abs(lengths - 1).argmax())])
        places = decimals(abs(worst - 1), UNIT_TOLERANCE, 4)
        raise InvalidVector(f"an embedding must have length 1; got {worst:.{places}f}")
    return np.asarray(array / lengths, dtype=np.float32)


def normalize(raw: NDArray[np.float32]) -> Vectors:
    """Returns the rows of (N, D) scaled to unit length. Raises InvalidVector on a row of zeros or infinite values."""
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InvalidVector("the network returned an embedding of length zero or of infinite values")
    return np.asarray(raw / lengths, dtype=np.float32)


def vector_to_bytes(vector: NDArray[np.float32]) -> bytes:
    """Returns little-endian float32, the form in which embeddings are stored."""
    return np.asarray(vector, dtype="<f4").tobytes()


def vectors_from_bytes(rows: Sequence[bytes], dim: int) -> Vectors:
    """Returns (N, `dim`) float32 from rows of `vector_to_bytes`. Raises InvalidVector on a row of another size."""
    for row in rows:
        if len(row) != 4 * dim:
            raise InvalidVector(f"a stored embedding has {len(row)} bytes, expected {4 * dim}")
    return np.frombuffer(b"".join(rows), dtype="<f4").reshape(-1, dim).astype(np.float32)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
