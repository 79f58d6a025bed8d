"""Wire models of search, detect, embed and compare; the command line's `--json` prints the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from indexer.rounding import SCORE_DECIMALS
from indexer.types import Face, Liveness, Reason
from indexer.vision.pipeline import ImageResult
from search_service.api.models.base import ErrorBody, Payload, Score, error_body
from search_service.api.models.events import LivenessPayload, RecordedPayload
from search_service.matching.decision import Decision, DecisionReason
from search_service.matching.ranking import Candidate
from search_service.search import Answer, Comparison, FaceAnswer
from search_service.serializers import event_object

NotSearched = Annotated[
    int,
    Field(
        description="Further faces, smaller than those of `faces` and too many to be searched (WHOSTHERE_MAX_FACES).",
        examples=[0],
    ),
]

ImageName = Annotated[str | None, AfterValidator(lambda name: name or None), Field(examples=["ana.jpg"])]
"""The file's name as it was sent; null where there is none."""


class QualityPayload(Payload):
    size: float = Field(description="Pixels across in the original image.", examples=[118.4])
    sharpness: float = Field(examples=[21.7])
    yaw: float = Field(description="-1 to 1; 0 looks into the camera.", examples=[-0.06])
    brightness: float = Field(description="Mean luma, 0 to 255.", examples=[131.2])
    contrast: float = Field(examples=[48.9])
    reasons: list[Reason] = Field(
        description="Why this face should not be enrolled; empty when it may be.", examples=[[]]
    )


class FacePayload(Payload):
    """A face found in an image. Pixels of the upright original."""

    box: list[float] | None = Field(description="Left, top, width, height.", examples=[[97.1, 52.3, 90.2, 118.0]])
    landmarks: list[list[float]] | None = Field(
        description="Right eye, left eye, nose tip, right and left mouth corner, from the subject's point of view.",
        examples=[[[121.4, 98.0], [163.2, 97.1], [142.8, 121.9], [125.0, 144.3], [160.1, 143.6]]],
    )
    detection_score: float | None = Field(examples=[0.9412])
    quality: QualityPayload | None
    turn: int | None = Field(
        default=None,
        description="Degrees clockwise by which the photo has to be turned for the face to be upright: 90, 180 or 270 "
        "where the photo as it is shows no face with certainty, otherwise 0. Null for enrolled faces and embeddings.",
        examples=[0],
    )
    liveness: LivenessPayload | None = Field(
        default=None, description="Whether the face is live; null where `liveness` is `off`, and for enrolled faces."
    )


class CandidatePayload(Payload):
    rank: int = Field(examples=[1])
    identity_id: int = Field(examples=[17])
    external_id: str = Field(examples=["e-1042"])
    name: str | None = Field(examples=["Ana Kovač"])
    metadata: dict[str, Any] = Field(examples=[{"department": "Sales"}])
    score: Score = Field(description="Cosine similarity, -1 to 1.")
    face_id: int = Field(examples=[31])


class FaceAnswerPayload(FacePayload):
    decision: Decision
    reasons: list[DecisionReason] = Field(
        description="Why it is no match or a review, and what may have lowered the score. Empty for a match.",
        examples=[[]],
    )
    threshold: float = Field(examples=[0.4127])
    fpir: float | None = Field(examples=[0.01])
    candidates: list[CandidatePayload]
    event: RecordedPayload | None = Field(
        default=None, description="The recorded event, with `record`; null without, and on the command line."
    )


class FramePayload(Payload):
    """The outcome of one of several images of one person."""

    image: ImageName
    error: ErrorBody | None = Field(description="Why it was not used.", examples=[None])
    disagrees: bool = Field(description="Whether it looks like a different person than the others.", examples=[False])
    shown: bool = Field(description="Whether the answer's box, landmarks and quality are those of its face.")
    liveness: LivenessPayload | None = Field(default=None, description="Of this image alone.")


class AnswerPayload(Payload):
    """The answer to one probe."""

    image: ImageName
    gallery: str = Field(examples=["staff"])
    model: str = Field(examples=["sface"])
    faces: list[FaceAnswerPayload]
    error: ErrorBody | None = Field(examples=[None])
    frames: list[FramePayload] | None = Field(
        default=None, description="With `same_person`, one for each image in the order sent; null without."
    )
    faces_not_searched: NotSearched = 0


class AnswersPayload(Payload):
    """One answer for each image, in the order sent."""

    answers: list[AnswerPayload]


class DetectPayload(Payload):
    image: ImageName
    width: int = Field(examples=[1280])
    height: int = Field(examples=[960])
    faces: list[FacePayload]
    faces_not_searched: NotSearched


class EmbeddedFacePayload(FacePayload):
    embedding: list[float] = Field(examples=[[0.0312, -0.1127, 0.0841]])


class EmbedPayload(Payload):
    image: ImageName
    model: str = Field(examples=["sface"])
    dim: int = Field(examples=[128])
    faces: list[EmbeddedFacePayload]
    faces_not_searched: NotSearched


class ComparePayload(Payload):
    score: Score
    threshold: float = Field(examples=[0.3631])
    same: bool
    faces: list[FacePayload]
    reasons: list[DecisionReason] = Field(
        default=[], description="`not_live`: `require` refuses a face, regardless of the score.", examples=[[]]
    )


class ModelPayload(BaseModel):
    """One model pack. `problem` is set where a pack cannot be read."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(examples=["sface"])
    installed: bool


class ModelsPayload(Payload):
    models: list[ModelPayload]
    default: str = Field(description="The pack that new galleries use.", examples=["sface"])


def answer_payload(answer: Answer, images: Sequence[str | None]) -> AnswerPayload:
    """Serializes an answer. `images` are the names of all images of the probe: one, or one for each frame."""
    frames = answer.frames
    return AnswerPayload(
        image=", ".join(name for name in images if name),
        gallery=answer.gallery,
        model=answer.model,
        faces=[_face_answer(face) for face in answer.faces],
        error=error_body(answer.error) if answer.error else None,
        frames=None
        if frames is None
        else [
            FramePayload(
                image=image,
                error=error_body(frame.error) if frame.error else None,
                disagrees=frame.disagrees,
                shown=frame.shown,
                liveness=_liveness(frame.liveness),
            )
            for frame, image in zip(frames, images, strict=True)
        ],
        faces_not_searched=answer.faces_not_searched,
    )


def detect_payload(seen: ImageResult, image: str | None) -> DetectPayload:
    """Serializes the detected faces."""
    faces = [FacePayload(**_face_fields(face)) for face in seen.faces]
    return DetectPayload(
        image=image, width=seen.width, height=seen.height, faces=faces, faces_not_searched=seen.faces_not_searched
    )


def embed_payload(seen: ImageResult, image: str | None, model: str, dim: int) -> EmbedPayload:
    """Serializes the faces with their embeddings."""
    faces = [EmbeddedFacePayload(**_face_fields(face), embedding=face.embedding.tolist()) for face in seen.faces]
    return EmbedPayload(image=image, model=model, dim=dim, faces=faces, faces_not_searched=seen.faces_not_searched)


def compare_payload(comparison: Comparison) -> ComparePayload:
    """Serializes a comparison of two faces."""
    faces = [FacePayload(**_face_fields(face)) for face in comparison.faces]
    return ComparePayload(
        score=comparison.score,
        threshold=comparison.threshold,
        same=comparison.same,
        faces=faces,
        reasons=list(comparison.reasons),
    )


def _face_answer(face: FaceAnswer) -> FaceAnswerPayload:
    return FaceAnswerPayload(
        **_face_fields(face),
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
        score=candidate.score,
        face_id=candidate.face_id,
    )


def _face_fields(face: Face | FaceAnswer) -> dict[str, Any]:
    """Returns the fields of FacePayload. All are null for a searched embedding."""
    detection, quality = face.detection, face.quality
    return {
        "box": [round(v, 2) for v in (detection.box.x, detection.box.y, detection.box.w, detection.box.h)]
        if detection
        else None,
        "landmarks": [[round(float(v), 2) for v in point] for point in detection.landmarks] if detection else None,
        "detection_score": round(detection.score, SCORE_DECIMALS) if detection else None,
        "quality": QualityPayload.model_validate(quality, from_attributes=True) if quality else None,
        "turn": face.turn,
        "liveness": _liveness(face.liveness),
    }


def _liveness(liveness: Liveness | None) -> LivenessPayload | None:
    return LivenessPayload.model_validate(liveness.to_json()) if liveness else None
