"""The answers of the service, with the field names of its API. Lists are tuples, times are aware.

Known values are enums; unknown values of a newer service are plain strings. Both compare equal to the string:
`face.decision == "match"` works like `face.decision is Decision.MATCH`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from search_service.client.enums import Basis, Decision, DecisionReason, Direction, Outcome, Reason

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a list. `cursor` requests the next page; None on the last one."""

    entries: tuple[T, ...]
    cursor: str | None


@dataclass(frozen=True)
class Problem:
    """Why one of several images was rejected."""

    code: Reason | str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """The measured quality of a face."""

    size: float
    """Pixels across in the original image."""
    sharpness: float
    yaw: float
    """-1..1; 0 for a frontal face."""
    brightness: float
    """Mean luma, 0..255."""
    contrast: float
    reasons: tuple[Reason | str, ...]
    """Why this face should not be enrolled; empty when it may be."""


@dataclass(frozen=True)
class Liveness:
    """Whether a face is live, rather than shown on a print or a screen."""

    score: float
    """0..1, higher for live faces."""
    live: bool
    model: str


@dataclass(frozen=True)
class Face:
    """A detected face. Coordinates are pixels of the upright original."""

    box: tuple[float, ...] | None
    """Left, top, width, height."""
    landmarks: tuple[tuple[float, ...], ...] | None
    """Right eye, left eye, nose tip, right and left mouth corner, as the subject has them."""
    detection_score: float | None
    quality: Quality | None
    turn: int | None
    """Degrees clockwise by which the photo has to be turned for the face to be upright; None for enrolled faces."""
    liveness: Liveness | None
    """None if it was not checked."""


@dataclass(frozen=True)
class Candidate:
    """An identity in the ranked answer."""

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
    """A recorded event, with the identity's data at that time."""

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
    reasons: tuple[DecisionReason | str, ...] = field(default=(), kw_only=True)
    """Why it is no match or a review; `not_live` is an attempted presentation attack."""
    liveness: Liveness | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Recorded(Event):
    """The event of a face in an answer."""

    recorded: bool
    """False if the face repeats this event, which was recorded earlier."""


@dataclass(frozen=True)
class FaceAnswer(Face):
    """The candidates and the decision for one face."""

    decision: Decision | str
    reasons: tuple[DecisionReason | str, ...]
    threshold: float
    fpir: float | None
    candidates: tuple[Candidate, ...]
    event: Recorded | None = None

    @property
    def match(self) -> Candidate | None:
        """The matched identity; None unless the decision is `match`."""
        return self.candidates[0] if self.decision == Decision.MATCH and self.candidates else None


@dataclass(frozen=True)
class Frame:
    """The result of one of several images of one person."""

    image: str | None
    error: Problem | None
    """Why it was ignored."""
    disagrees: bool
    """Whether it shows another person than the others."""
    shown: bool
    """Whether the answer's box, landmarks and quality are of this frame."""
    liveness: Liveness | None
    """Of this image alone."""


@dataclass(frozen=True)
class Answer:
    """The answer to one probe. If `faces` is empty, `error` is the reason. `frames` is set by `search_frames`."""

    image: str | None
    gallery: str
    model: str
    faces: tuple[FaceAnswer, ...]
    error: Problem | None
    frames: tuple[Frame, ...] | None
    faces_not_searched: int = 0
    """Further faces, smaller than those of `faces` and too many to be searched."""

    @property
    def match(self) -> Candidate | None:
        """The match of the first face, which is the only one without `all_faces`."""
        return self.faces[0].match if self.faces else None


@dataclass(frozen=True)
class Detected:
    """The faces of an image."""

    image: str | None
    width: int
    height: int
    faces: tuple[Face, ...]
    faces_not_searched: int = 0


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
    faces_not_searched: int = 0


@dataclass(frozen=True)
class Comparison:
    score: float
    threshold: float
    same: bool
    faces: tuple[Face, ...]
    reasons: tuple[DecisionReason | str, ...] = ()
    """`not_live` if a live face is required and one is not, regardless of the score."""


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
    """The entity tag of this state, for `if_match`; None in lists, which do not return it."""


@dataclass(frozen=True)
class StoredFace(Face):
    face_id: int
    external_id: str
    image_sha256: str
    created_at: datetime
    has_crop: bool


@dataclass(frozen=True)
class AttendanceRow:
    """One day of a person. Times are in the requested zone."""

    day: str
    external_id: str
    name: str | None
    first_in: datetime | None
    last_out: datetime | None
    hours: float | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Enrolled:
    """The result of one image."""

    image: str | None
    external_id: str
    outcome: Outcome | str
    reason: Reason | str | None
    face_id: int | None
    message: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Deleted:
    """What was deleted, and the number of its faces."""

    deleted: str
    faces: int


@dataclass(frozen=True)
class Merged:
    """The result of a merge."""

    identity: Identity
    merged: str
    faces: int
    """Number of moved faces."""


@dataclass(frozen=True)
class Side:
    """One of two identities that look alike, with its most similar face."""

    external_id: str
    name: str | None
    face_id: int


@dataclass(frozen=True)
class Pair:
    """Two identities that look alike; `score` is the cosine of their most similar faces."""

    score: float
    identities: tuple[Side, Side]


@dataclass(frozen=True)
class Outlier:
    """A face unlike all other faces of its identity; `own_score` is the highest cosine to one of them."""

    face: Side
    own_score: float


@dataclass(frozen=True)
class WrongPhoto:
    """A face that looks like another identity, and unlike the other faces of its own."""

    face: Side
    own_score: float
    score: float
    looks_like: Side


@dataclass(frozen=True)
class Duplicates:
    """The identities of a gallery that look alike."""

    gallery: str
    threshold: float
    faces: int
    exact: bool
    complete: bool
    pairs: tuple[Pair, ...]
    wrong_photos: tuple[WrongPhoto, ...]
    outliers: tuple[Outlier, ...] = ()


@dataclass(frozen=True)
class Threshold:
    """The threshold for a wanted FPIR, with its uncertainty."""

    fpir: float
    threshold: float
    low: float | None
    high: float | None
    fnir: float | None
    scores: int
    basis: Basis | str


@dataclass(frozen=True)
class LikelyOne:
    """Two identities that are likely one person."""

    external_ids: tuple[str, str]
    score: float


@dataclass(frozen=True)
class Calibration:
    """The thresholds of a gallery."""

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
