"""The answers of the service, with the field names of its API. Lists are tuples, times are aware.

Known values are enums; unknown values of a newer service are plain strings. Both compare equal to the string:
`face.decision == "match"` works like `face.decision is Decision.MATCH`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Decision(StrEnum):
    MATCH = "match"
    NO_MATCH = "no_match"
    REVIEW = "review"


class DecisionReason(StrEnum):
    NO_CANDIDATES = "no_candidates"
    BELOW_THRESHOLD = "below_threshold"
    CLOSE_RUNNER_UP = "close_runner_up"
    POOR_PROBE = "poor_probe"
    FRAMES_DISAGREE = "frames_disagree"
    IDENTITY_EXPIRED = "identity_expired"
    IDENTITY_NOT_YET_VALID = "identity_not_yet_valid"


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


class Outcome(StrEnum):
    ENROLLED = "enrolled"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"


class Pick(StrEnum):
    """Which face of several counts."""

    ONLY = "only"
    LARGEST = "largest"
    CENTER = "center"


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


class JobState(StrEnum):
    RECEIVING = "receiving"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    DONE = "done"
    FAILED = "failed"


ENDED = frozenset({JobState.CANCELLED, JobState.DONE, JobState.FAILED})


class Scope(StrEnum):
    """What a key is for. Each contains those before it."""

    SEARCH = "search"
    ENROLL = "enroll"
    ADMIN = "admin"


class Basis(StrEnum):
    """What a threshold follows from."""

    MEASURED = "measured"
    EXTRAPOLATED = "extrapolated"
    BORROWED = "borrowed"
    PACK = "pack"


class DeliveryState(StrEnum):
    WAITING = "waiting"
    DEAD = "dead"


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some entries of a list; `cursor` is where the next ones begin, None at the end."""

    entries: tuple[T, ...]
    cursor: str | None


@dataclass(frozen=True)
class Problem:
    """What was wrong with one image of several."""

    code: Reason | str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    size: float
    """Pixels across in the original image."""
    sharpness: float
    yaw: float
    """-1..1; 0 looks into the camera."""
    brightness: float
    """Mean luma, 0..255."""
    contrast: float
    reasons: tuple[Reason | str, ...]
    """Why this face should not be enrolled; empty when it may be."""


@dataclass(frozen=True)
class Face:
    """A face found in an image. Pixels of the upright original."""

    box: tuple[float, ...] | None
    """Left, top, width, height."""
    landmarks: tuple[tuple[float, ...], ...] | None
    """Right eye, left eye, nose tip, right and left mouth corner, as the subject has them."""
    detection_score: float | None
    quality: Quality | None


@dataclass(frozen=True)
class Candidate:
    rank: int
    identity_id: int
    external_id: str
    name: str | None
    metadata: Mapping[str, Any]
    score: float
    """Cosine similarity, -1..1."""
    face_id: int


@dataclass(frozen=True)
class Event:
    """Somebody was seen. What it says of the identity was true then."""

    id: int
    gallery: str
    at: datetime
    identity_id: int | None
    external_id: str | None
    name: str | None
    device: str
    direction: Direction | str | None
    decision: Decision | str
    score: float | None
    threshold: float
    request_id: str | None


@dataclass(frozen=True)
class Recorded(Event):
    recorded: bool
    """False where it repeats this event, which was recorded earlier."""


@dataclass(frozen=True)
class FaceAnswer(Face):
    decision: Decision | str
    reasons: tuple[DecisionReason | str, ...]
    threshold: float
    fpir: float | None
    candidates: tuple[Candidate, ...]
    event: Recorded | None = None

    @property
    def match(self) -> Candidate | None:
        """Who it is; None unless the decision is `match`."""
        return self.candidates[0] if self.decision == Decision.MATCH and self.candidates else None


@dataclass(frozen=True)
class Frame:
    """What became of one of several images of one person."""

    image: str | None
    error: Problem | None
    """Why it was passed over."""
    disagrees: bool
    """Whether it looks like somebody else than the others."""
    shown: bool
    """Whether the answer's box, landmarks and quality are those of its face."""


@dataclass(frozen=True)
class Answer:
    """The answer to one probe. `faces` is empty where `error` says why. `frames` are of `search_frames`."""

    image: str | None
    gallery: str
    model: str
    faces: tuple[FaceAnswer, ...]
    error: Problem | None
    frames: tuple[Frame, ...] | None

    @property
    def match(self) -> Candidate | None:
        """Who the first face is, the only one unless `all_faces` were asked for; None unless its decision is
        `match`."""
        return self.faces[0].match if self.faces else None


@dataclass(frozen=True)
class Detected:
    image: str | None
    width: int
    height: int
    faces: tuple[Face, ...]


@dataclass(frozen=True)
class EmbeddedFace(Face):
    embedding: tuple[float, ...]
    """Of unit length."""


@dataclass(frozen=True)
class Embedded:
    image: str | None
    model: str
    dim: int
    faces: tuple[EmbeddedFace, ...]


@dataclass(frozen=True)
class Comparison:
    score: float
    threshold: float
    same: bool
    faces: tuple[Face, ...]


@dataclass(frozen=True)
class Gallery:
    name: str
    model: str
    dim: int
    identities: int
    faces: int
    created_at: datetime


@dataclass(frozen=True)
class Index:
    kind: str
    faces: int
    seq: int
    snapshot_seq: int | None
    checked: Mapping[str, float] | None


@dataclass(frozen=True)
class GalleryDetail(Gallery):
    index: Index


@dataclass(frozen=True)
class Identity:
    """A person. Valid from `valid_from` on and before `valid_until`."""

    external_id: str
    name: str | None
    metadata: Mapping[str, Any]
    valid_from: datetime | None
    valid_until: datetime | None
    id: int
    faces: int
    created_at: datetime
    updated_at: datetime
    etag: str | None = field(default=None, compare=False)
    """Of this state, for `if_match`; None in lists, which do not say it."""


@dataclass(frozen=True)
class StoredFace(Face):
    face_id: int
    external_id: str
    image_sha256: str
    created_at: datetime


@dataclass(frozen=True)
class Enrolled:
    """What became of one image."""

    image: str | None
    external_id: str
    outcome: Outcome | str
    reason: Reason | str | None
    face_id: int | None
    message: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Deleted:
    deleted: str
    faces: int


@dataclass(frozen=True)
class Merged:
    identity: Identity
    merged: str
    faces: int
    """How many were moved."""


@dataclass(frozen=True)
class Side:
    external_id: str
    name: str | None
    face_id: int


@dataclass(frozen=True)
class Pair:
    """Two identities that look alike; `score` is the cosine of their most similar faces."""

    score: float
    identities: tuple[Side, Side]


@dataclass(frozen=True)
class WrongPhoto:
    """A face that looks like somebody else, and like none of the other faces of its own identity."""

    face: Side
    own_score: float
    score: float
    looks_like: Side


@dataclass(frozen=True)
class Duplicates:
    gallery: str
    threshold: float
    faces: int
    exact: bool
    complete: bool
    pairs: tuple[Pair, ...]
    wrong_photos: tuple[WrongPhoto, ...]


@dataclass(frozen=True)
class Threshold:
    fpir: float
    threshold: float
    low: float | None
    high: float | None
    fnir: float | None
    scores: int
    basis: Basis | str


@dataclass(frozen=True)
class LikelyOne:
    external_ids: tuple[str, str]
    score: float


@dataclass(frozen=True)
class Calibration:
    gallery: str
    model: str
    faces: int
    people: int
    mated: int
    supported_fpir: float | None
    summary: str
    interval_percent: tuple[float, float]
    thresholds: tuple[Threshold, ...]
    duplicates: tuple[LikelyOne, ...]


@dataclass(frozen=True)
class ModelFile:
    name: str
    sha256: str | None
    size: int | None
    licence: str | None
    origin: str | None
    url: str | None


@dataclass(frozen=True)
class Model:
    """A model pack; of one that cannot be read, `problem` says why, and nothing else is told."""

    name: str
    installed: bool
    dim: int | None = None
    fingerprint: str | None = None
    summary: str | None = None
    same_threshold: float | None = None
    thresholds_measured: bool | None = None
    files: tuple[ModelFile, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Models:
    models: tuple[Model, ...]
    default: str


@dataclass(frozen=True)
class Job:
    """A bulk enrolment. `done` of its `images` were `enrolled`, `unchanged` or `rejected`."""

    id: str
    gallery: str
    state: JobState | str
    images: int
    done: int
    enrolled: int
    unchanged: int
    rejected: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    problem: str | None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Key:
    """A key, without its secret."""

    id: str
    name: str
    scopes: tuple[Scope | str, ...]
    galleries: tuple[str, ...] | None
    per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class MadeKey(Key):
    key: str = field(repr=False)
    """Shown this once, and kept nowhere."""


@dataclass(frozen=True)
class Webhook:
    """A webhook, without its secret."""

    url: str
    gallery: str | None
    decisions: tuple[Decision | str, ...]
    id: str
    created_at: datetime
    waiting: int
    dead: int


@dataclass(frozen=True)
class MadeWebhook(Webhook):
    secret: str = field(repr=False)
    """Signs what is sent. Shown this once."""


@dataclass(frozen=True)
class Webhooks:
    webhooks: tuple[Webhook, ...]


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one webhook."""

    id: int
    webhook_id: str
    event_id: int
    state: DeliveryState | str
    attempts: int
    next_at: datetime
    problem: str | None


@dataclass(frozen=True)
class WebhookDeleted:
    deleted: str
    undelivered: int


@dataclass(frozen=True)
class Ready:
    """`status` is `ready`, `loading` or `failed`."""

    status: str
    problem: str | None = None
    galleries: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.status == "ready"
