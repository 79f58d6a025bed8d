"""What goes over the wire, for HTTP and for `--json` alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from indexer.enrollment.enroller import Result
from indexer.enrollment.lookalikes import Duplicates, Side
from indexer.errors import WhosthereError
from indexer.gallery.schema import MAX_NAME_LENGTH
from indexer.gallery.validation import MAX_METADATA_BYTES, check_storable
from indexer.types import Detection, Face, Quality, Reason
from indexer.vision.pipeline import Seen
from search_service.calibration.report import Basis
from search_service.matching.decision import Decision, DecisionReason
from search_service.matching.ranking import Candidate
from search_service.search import Answer, Comparison, FaceAnswer, FrameAnswer
from search_service.serializers import event_object
from search_service.store.events import Direction

DECIMALS = 4
"""Of cosines and scores: the fifth depends on the CPU."""


def _utc(time: datetime) -> datetime:
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{time.isoformat()} is not within the years 1 to 9999 in UTC") from None


Utc = Annotated[datetime, AfterValidator(_utc)]
"""Without a zone, a time is UTC."""

Metadata = Annotated[
    dict[str, Any],
    AfterValidator(check_storable),
    Field(description=f"{MAX_METADATA_BYTES:,} bytes at most, as JSON in UTF-8 without spaces between."),
]

Name = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH})]
"""Of what may be in it as well, `check_name` decides."""


class Payload(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)  # errors of answers are logged


class ErrorBody(Payload):
    code: str = Field(examples=["no_face"])
    message: str = Field(examples=["no face was found"])
    details: dict[str, Any] = {}


class ErrorAnswer(Payload):
    """The one shape of every error."""

    error: ErrorBody
    request_id: str


class QualityPayload(Payload):
    size: float = Field(description="Pixels across in the original image.")
    sharpness: float
    yaw: float = Field(description="-1 to 1; 0 looks into the camera.")
    brightness: float = Field(description="Mean luma, 0 to 255.")
    contrast: float
    reasons: list[Reason] = Field(description="Why this face should not be enrolled; empty when it may be.")


class FacePayload(Payload):
    """A face found in an image. Pixels of the upright original."""

    box: list[float] | None = Field(description="Left, top, width, height.", examples=[[97.1, 52.3, 90.2, 118.0]])
    landmarks: list[list[float]] | None = Field(
        description="Right eye, left eye, nose tip, right and left mouth corner, as the subject has them."
    )
    detection_score: float | None
    quality: QualityPayload | None


class CandidatePayload(Payload):
    rank: int
    identity_id: int
    external_id: str
    name: str | None
    metadata: dict[str, Any]
    score: float = Field(description="Cosine similarity, -1 to 1.")
    face_id: int


class EventPayload(Payload):
    """Somebody was seen. What it says of the identity was true then."""

    id: int
    gallery: str
    at: datetime
    identity_id: int | None = Field(description="Null, with `external_id` and `name`, where nobody was recognised.")
    external_id: str | None
    name: str | None
    device: str
    direction: Direction | None
    decision: Decision
    score: float | None = Field(description="Cosine of the best candidate; null where there was none.")
    threshold: float
    request_id: str | None


class RecordedPayload(EventPayload):
    recorded: bool = Field(
        description="false: within the cooldown of this event, which was recorded earlier, and nothing was added."
    )


class FaceAnswerPayload(FacePayload):
    decision: Decision
    reasons: list[DecisionReason] = Field(
        description="Why it is no match or a review; what may have spoilt it as well. Empty for a match."
    )
    threshold: float
    fpir: float | None
    candidates: list[CandidatePayload]
    event: RecordedPayload | None = Field(
        default=None, description="What was recorded, with `record`; null without, and on the command line."
    )


class FramePayload(Payload):
    """What became of one of several images of one person."""

    image: str | None
    error: ErrorBody | None = Field(description="Why it was passed over.")
    disagrees: bool = Field(description="Whether it looks like somebody else than the others.")
    shown: bool = Field(description="Whether the answer's box, landmarks and quality are those of its face.")


class AnswerPayload(Payload):
    """The answer to one probe."""

    image: str | None
    gallery: str
    model: str
    faces: list[FaceAnswerPayload]
    error: ErrorBody | None
    frames: list[FramePayload] | None = Field(
        default=None, description="With `same_person`, of each image in the order they were sent; null without."
    )


class AnswersPayload(Payload):
    """One answer an image, in the order they were sent."""

    answers: list[AnswerPayload]


class DetectPayload(Payload):
    image: str | None
    width: int
    height: int
    faces: list[FacePayload]


class EmbeddedFacePayload(FacePayload):
    embedding: list[float]


class EmbedPayload(Payload):
    image: str | None
    model: str
    dim: int
    faces: list[EmbeddedFacePayload]


class ComparePayload(Payload):
    score: float
    threshold: float
    same: bool
    faces: list[FacePayload]


class GalleryPayload(Payload):
    name: str
    model: str
    dim: int
    identities: int
    faces: int
    created_at: datetime


class IndexPayload(Payload):
    kind: str
    faces: int
    seq: int
    snapshot_seq: int | None
    checked: dict[str, float] | None
    """What a compressed index found out about itself when it was built, against exact search."""


class GalleryDetailPayload(GalleryPayload):
    index: IndexPayload


class GalleryList(Payload):
    galleries: list[GalleryPayload]
    cursor: str | None = Field(description="Give it back to get the next page; null at the end.")


class NewGallery(Payload):
    name: Name = Field(examples=["staff"])
    model: str | None = None


class IdentityBody(Payload):
    """What is said of a person. Dates without a zone are UTC; valid from `valid_from` on and before `valid_until`."""

    name: Name | None = None
    metadata: Metadata = {}
    valid_from: Utc | None = None
    valid_until: Utc | None = None


class IdentityPatch(Payload):
    """What is to be said otherwise of a person (RFC 7396): what is not named stays, null removes, and the keys of
    `metadata` likewise."""

    name: Name | None = None
    metadata: Metadata | None = None
    valid_from: Utc | None = None
    valid_until: Utc | None = None


class NewIdentity(IdentityBody):
    external_id: Name = Field(examples=["e-1042"])


class IdentityPayload(NewIdentity):
    metadata: dict[str, Any]
    id: int
    faces: int
    created_at: datetime
    updated_at: datetime


class IdentityList(Payload):
    identities: list[IdentityPayload]
    cursor: str | None


class StoredFacePayload(FacePayload):
    face_id: int
    external_id: str
    image_sha256: str
    created_at: datetime


class StoredFaceList(Payload):
    faces: list[StoredFacePayload]
    cursor: str | None


class EnrolledPayload(Payload):
    """What became of one image, as `whosthere enroll --json` tells it."""

    image: str | None
    external_id: str
    outcome: str
    reason: Reason | None
    face_id: int | None
    message: str | None = None
    details: dict[str, Any] = Field(default={}, description="Of whom an enrolled face looks like, where that is told.")


class ResultsPayload(Payload):
    """One result an image, in the order they were sent."""

    results: list[EnrolledPayload]


class MergeBody(Payload):
    other: str = Field(description="The `external_id` of who is joined into this identity, and is gone after.")


class MergedPayload(Payload):
    """As `whosthere identity merge --json` tells it."""

    identity: IdentityPayload
    merged: str
    faces: int = Field(description="How many were moved.")


class SidePayload(Payload):
    external_id: str
    name: str | None
    face_id: int


class PairPayload(Payload):
    """Two identities that look alike; `score` is the cosine of their most similar faces."""

    score: float
    identities: tuple[SidePayload, SidePayload]


class WrongPhotoPayload(Payload):
    """A face that looks like somebody else, and like none of the other faces of its own identity."""

    face: SidePayload
    own_score: float
    score: float
    looks_like: SidePayload


class DuplicatesPayload(Payload):
    """As `whosthere gallery duplicates --json` tells it, the most similar first."""

    gallery: str
    threshold: float
    faces: int
    exact: bool = Field(description="Whether every pair of faces was scored.")
    complete: bool = Field(description="Whether all pairs and photos are told.")
    pairs: list[PairPayload]
    wrong_photos: list[WrongPhotoPayload]


class ThresholdPayload(Payload):
    """The threshold for one wanted FPIR."""

    fpir: float
    threshold: float
    low: float | None = Field(description="Where the threshold lies, in `interval_percent`; null where not measured.")
    high: float | None
    fnir: float | None = Field(description="Share of the people with several photos who would not be found.")
    scores: int = Field(description="People who have a stranger above the threshold.")
    basis: Basis


class LikelyOne(Payload):
    external_ids: tuple[str, str]
    score: float


class CalibrationPayload(Payload):
    """As `whosthere gallery calibrate --json` tells it."""

    gallery: str
    model: str
    faces: int
    people: int = Field(description="Searched among the others.")
    mated: int = Field(description="Of them, those with several photos.")
    supported_fpir: float | None = Field(description="The lowest that the scores support; null for none.")
    summary: str
    interval_percent: tuple[float, float]
    thresholds: list[ThresholdPayload]
    duplicates: list[LikelyOne] = Field(description="Likely one person under two ids, and left out.")


class ModelPayload(BaseModel):
    """One pack; of one that cannot be read, `problem` says why."""

    model_config = ConfigDict(extra="allow")

    name: str
    installed: bool


class ModelsPayload(Payload):
    models: list[ModelPayload]
    default: str = Field(description="The pack that new galleries are bound to.")


class AlivePayload(Payload):
    status: str


class ReadyPayload(Payload):
    status: str = Field(description="`ready`, `loading` or `failed`.")
    problem: str | None = None
    galleries: dict[str, str] = Field(default={}, description="What is wrong with galleries that cannot be searched.")


class Deleted(Payload):
    deleted: Annotated[str, Field(examples=["e-1042"])]
    faces: int


def error_body(error: WhosthereError) -> ErrorBody:
    return ErrorBody(code=str(error.code), message=error.message, details=error.details)


def face_payload(detection: Detection | None, quality: Quality | None) -> dict[str, Any]:
    """The fields of FacePayload."""
    return {
        "box": [round(v, 2) for v in (detection.box.x, detection.box.y, detection.box.w, detection.box.h)]
        if detection
        else None,
        "landmarks": [[round(float(v), 2) for v in point] for point in detection.landmarks] if detection else None,
        "detection_score": round(detection.score, DECIMALS) if detection else None,
        "quality": QualityPayload(**_quality(quality)) if quality else None,
    }


def answer_payload(answer: Answer, images: Sequence[str | None]) -> AnswerPayload:
    """`images` are the names of all that were searched together, of one where there is one."""
    return AnswerPayload(
        image=", ".join(name for name in images if name) or None,
        gallery=answer.gallery,
        model=answer.model,
        faces=[_face_answer(face) for face in answer.faces],
        error=error_body(answer.error) if answer.error else None,
        frames=None if answer.frames is None else list(map(_frame, answer.frames, images)),
    )


def _frame(frame: FrameAnswer, image: str | None) -> FramePayload:
    error = error_body(frame.error) if frame.error else None
    return FramePayload(image=image, error=error, disagrees=frame.disagrees, shown=frame.shown)


def enrolled_payload(result: Result, image: str | None) -> EnrolledPayload:
    return EnrolledPayload(
        image=image,
        external_id=result.external_id,
        outcome=result.outcome,
        reason=result.reason,
        face_id=result.face_id,
        message=result.message,
        details=dict(result.details),
    )


def duplicates_payload(gallery: str, found: Duplicates, limit: int) -> DuplicatesPayload:
    """The first `limit` pairs and wrong photos."""
    return DuplicatesPayload(
        gallery=gallery,
        threshold=found.threshold,
        faces=found.faces,
        exact=found.exact,
        complete=found.complete and max(len(found.pairs), len(found.wrong_photos)) <= limit,
        pairs=[
            PairPayload(score=round(p.score, DECIMALS), identities=_sides(*p.identities)) for p in found.pairs[:limit]
        ],
        wrong_photos=[
            WrongPhotoPayload(
                face=_side(wrong.face),
                own_score=round(wrong.own_score, DECIMALS),
                score=round(wrong.score, DECIMALS),
                looks_like=_side(wrong.looks_like),
            )
            for wrong in found.wrong_photos[:limit]
        ],
    )


def _sides(one: Side, other: Side) -> tuple[SidePayload, SidePayload]:
    return _side(one), _side(other)


def _side(side: Side) -> SidePayload:
    return SidePayload(external_id=side.external_id, name=side.name, face_id=side.face_id)


def detect_payload(seen: Seen, image: str | None) -> DetectPayload:
    faces = [FacePayload(**face_payload(face.detection, face.quality)) for face in seen.faces]
    return DetectPayload(image=image, width=seen.width, height=seen.height, faces=faces)


def embed_payload(seen: Seen, image: str | None, model: str, dim: int) -> EmbedPayload:
    return EmbedPayload(image=image, model=model, dim=dim, faces=[_embedded(face) for face in seen.faces])


def compare_payload(comparison: Comparison) -> ComparePayload:
    return ComparePayload(
        score=round(comparison.score, DECIMALS),
        threshold=comparison.threshold,
        same=comparison.same,
        faces=[FacePayload(**face_payload(face.detection, face.quality)) for face in comparison.faces],
    )


def _face_answer(face: FaceAnswer) -> FaceAnswerPayload:
    return FaceAnswerPayload(
        **face_payload(face.detection, face.quality),
        decision=face.decision,
        reasons=list(face.reasons),
        threshold=face.threshold,
        fpir=face.fpir,
        candidates=[_candidate(candidate) for candidate in face.candidates],
        event=RecordedPayload(**event_object(face.event.event), recorded=face.event.recorded) if face.event else None,
    )


def _candidate(candidate: Candidate) -> CandidatePayload:
    person = candidate.identity
    return CandidatePayload(
        rank=candidate.rank,
        identity_id=person.id,
        external_id=person.external_id,
        name=person.name,
        metadata=dict(person.metadata),
        score=round(candidate.score, DECIMALS),
        face_id=candidate.face_id,
    )


def _embedded(face: Face) -> EmbeddedFacePayload:
    return EmbeddedFacePayload(
        **face_payload(face.detection, face.quality), embedding=[float(v) for v in face.embedding]
    )


def _quality(quality: Quality) -> Mapping[str, Any]:
    return {**quality.__dict__, "reasons": list(quality.reasons)}
