"""The values that flow through the pipeline, and the one place where embeddings are checked and serialised."""

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

Pixels = NDArray[np.uint8]
"""One image, (H, W, 3), RGB."""

Vectors = NDArray[np.float32]
"""Embeddings, (N, D), each of unit length."""


class Pick(StrEnum):
    """Which face of several counts."""

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
    INVALID_ROW = "invalid_row"
    """The manifest row or archive entry is wrong, whatever its image: a bad date, a clashing id, an unsafe path."""


class Precision(StrEnum):
    """How an embedder computes."""

    FLOAT32 = "float32"
    NATIVE = "native"
    """bfloat16 on a CPU whose instructions are made for it, half precision on a GPU."""
    INT8 = "int8"
    """On the CPU, what `models quantize` made of the network."""


class Tier(StrEnum):
    """How an index searches. `AUTO` is exact while that is fast, compressed beyond."""

    AUTO = "auto"
    EXACT = "exact"
    COMPRESSED = "compressed"
    GPU = "gpu"


class Device(StrEnum):
    """What networks run on. `AUTO` is a CUDA GPU where there is one that the pack can use, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


CROP_SIZE = 112
"""Width and height of an aligned crop, in pixels."""


@dataclass(frozen=True)
class ScoreTail:
    """How often two photos of different people score above t, far out: FMR(t) = rate * exp(-(t - start) / scale).

    An exponential tail fitted over `start`; `before` it are measured points, each a rate and its cosine, rates falling.
    Measured by `benchmarks/thresholds.py`.
    """

    start: float
    rate: float
    scale: float
    before: tuple[tuple[float, float], ...] = ()

    def cosine(self, fmr: float) -> float:
        """That a share `fmr` of the scores is above."""
        return self.cosine_at(-math.log(fmr))

    def cosine_at(self, surprise: float) -> float:
        """The same of a surprise, -log FMR, which may stand for a rate that is too small for a float."""
        (a, x), (b, y) = next((line for line in self._lines if surprise <= line[1][0]), self._lines[-1])
        return x + (y - x) * (surprise - a) / (b - a)

    def surprise(self, cosine: float) -> float:
        """-log FMR at a cosine."""
        (a, x), (b, y) = next((line for line in self._lines if cosine <= line[1][1]), self._lines[-1])
        return a + (b - a) * (cosine - x) / (y - x)

    @cached_property
    def _lines(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """Between points of surprise and cosine, rising; the first one goes on before its points, and the last one
        beyond."""
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
        """How many pixels the face is across: the side of the square of the same area."""
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
        """The same face in pixels that are `sx`, `sy` times finer and start at (`dx`, `dy`)."""
        b = self.box
        return Detection(
            Box(b.x * sx + dx, b.y * sy + dy, b.w * sx, b.h * sy),
            (self.landmarks * (sx, sy) + (dx, dy)).astype(np.float32),
            self.score,
        )


@dataclass(frozen=True)
class Quality:
    """Measurements of one face; `indexer.vision.quality` says how each is taken and what is too little."""

    size: float
    """Pixels across in the original image."""
    sharpness: float
    yaw: float
    """-1..1; 0 looks into the camera."""
    brightness: float
    """Mean luma of the face, 0..255."""
    contrast: float
    """Standard deviation of the face's luma."""
    reasons: tuple[Reason, ...] = ()
    """Why this face should not be enrolled; empty when it may be."""


@dataclass(frozen=True, eq=False)
class Face:
    """One face of an image, described and embedded. Box and landmarks: pixels of the upright original."""

    detection: Detection
    quality: Quality
    embedding: NDArray[np.float32]
    """(D,) float32 of unit length."""
    crop: Pixels | None = None
    """(112, 112, 3) RGB, what was embedded; None where nobody cut it out."""


@dataclass(frozen=True)
class Gallery:
    id: int
    name: str
    model: str
    """Name of the model pack the gallery is bound to."""
    fingerprint: str
    """Of the pack: what its embeddings depend on."""
    dim: int
    seq: int
    """Number of the last change made."""
    created_at: datetime


@dataclass(frozen=True)
class Person:
    """What a caller says of one identity."""

    external_id: str
    name: str | None = None
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Identity:
    """One enrolled person. Dates are UTC; valid from `valid_from` on and before `valid_until`."""

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
    """An identity as answers name it, and how many faces it has."""

    id: int
    external_id: str
    name: str | None
    metadata: Mapping[str, object]
    faces: int


@dataclass(frozen=True, eq=False)
class StoredFace:
    """One enrolled face as the gallery keeps it."""

    id: int
    identity_id: int
    image_sha256: str
    detection: Detection
    quality: Quality
    created_at: datetime


@dataclass(frozen=True)
class Hit:
    """One answer of a vector index: the best face of one identity."""

    identity_id: int
    face_id: int
    score: float


UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of an embedding may be. Half precision, which callers may have sent it through,
keeps 11 bits: 5e-4 relative at most (IEEE 754)."""


def check_vectors(values: ArrayLike | Sequence[object], dim: int) -> Vectors:
    """`values` as (N, `dim`) float32 rows of unit length, C-contiguous.

    A single vector becomes one row. Raises InvalidVector when the shape, the type, a value or a length is off;
    nothing is repaired silently, except that lengths within UNIT_TOLERANCE of 1 are made exact.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"its type is {array.dtype}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            array = np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidVector(f"an embedding must be {dim} numbers; {error}") from error
    if array.ndim != 2 or array.shape[1] != dim:
        raise InvalidVector(f"an embedding must have {dim} numbers; got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidVector("an embedding holds a number that is not finite")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(array, axis=1, keepdims=True)
    if (np.abs(lengths - 1) > UNIT_TOLERANCE).any():
        worst = float(lengths.flat[int(np.abs(lengths - 1).argmax())])
        raise InvalidVector(f"an embedding must have length 1; got {worst:.4f}")
    return np.asarray(array / lengths, dtype=np.float32)


def normalize(raw: NDArray[np.float32]) -> Vectors:
    """Rows of (N, D) brought to unit length. A row of zeros raises InvalidVector: it has no direction."""
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InvalidVector("the network answered with an embedding that has no direction")
    return np.asarray(raw / lengths, dtype=np.float32)


def vector_to_bytes(vector: NDArray[np.float32]) -> bytes:
    """Little-endian float32, the form in which embeddings are stored."""
    return np.asarray(vector, dtype="<f4").tobytes()


def vectors_from_bytes(rows: Sequence[bytes], dim: int) -> Vectors:
    """(N, `dim`) float32 from what `vector_to_bytes` wrote. Raises InvalidVector on a row of another size."""
    for row in rows:
        if len(row) != 4 * dim:
            raise InvalidVector(f"a stored embedding has {len(row)} bytes, expected {4 * dim}")
    return np.frombuffer(b"".join(rows), dtype="<f4").reshape(-1, dim).astype(np.float32)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
