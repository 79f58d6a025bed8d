"""Wire models of galleries, their duplicates and their calibration."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from indexer.enrollment.duplicates import Duplicates
from search_service.api.models.base import Cursor, Name, Payload, Score, Time
from search_service.calibration.report import Basis

SIDES = (
    {"external_id": "e-1042", "name": "Ana Kovač", "face_id": 31},
    {"external_id": "7", "name": "Ana Kovac", "face_id": 9},
)


class GalleryPayload(Payload):
    name: str = Field(examples=["staff"])
    model: str = Field(examples=["sface"])
    dim: int = Field(examples=[128])
    identities: int = Field(examples=[212])
    faces: int = Field(examples=[431])
    created_at: Time


class IndexPayload(Payload):
    kind: str = Field(examples=["exact"])
    faces: int = Field(examples=[431])
    seq: int = Field(examples=[643])
    snapshot_seq: int | None = Field(examples=[600])
    checked: dict[str, float] | None = Field(examples=[None])
    """What a compressed index measured against exact search when it was built."""


class GalleryDetailPayload(GalleryPayload):
    index: IndexPayload


class GalleryList(Payload):
    galleries: list[GalleryPayload]
    cursor: Cursor


class NewGallery(Payload):
    name: Name = Field(examples=["staff"])
    model: str | None = Field(default=None, examples=["sface"])


class SidePayload(Payload):
    external_id: str = Field(examples=["e-1042"])
    name: str | None = Field(examples=["Ana Kovač"])
    face_id: int = Field(examples=[31])


class PairPayload(Payload):
    """Two identities that look alike; `score` is the cosine of their most similar faces."""

    score: Score
    identities: tuple[SidePayload, SidePayload] = Field(examples=[SIDES])


class WrongPhotoPayload(Payload):
    """A face that looks like another identity, and like none of the other faces of its own."""

    face: SidePayload = Field(examples=[SIDES[0]])
    own_score: Score = Field(examples=[0.0612])
    score: Score
    looks_like: SidePayload = Field(examples=[SIDES[1]])


class OutlierPayload(Payload):
    """A face unlike all other faces of its identity; `own_score` is the highest cosine to one of them."""

    face: SidePayload = Field(examples=[SIDES[0]])
    own_score: Score = Field(examples=[0.0612])


class DuplicatesPayload(Payload):
    """The output of `whosthere gallery duplicates --json`, most similar first."""

    gallery: str = Field(examples=["staff"])
    threshold: float = Field(examples=[0.4127])
    faces: int = Field(examples=[431])
    exact: bool = Field(description="Whether every pair of faces was scored.")
    complete: bool = Field(description="Whether all pairs and photos are listed.")
    pairs: list[PairPayload]
    wrong_photos: list[WrongPhotoPayload]
    outliers: list[OutlierPayload]


class ThresholdPayload(Payload):
    """The threshold for one requested FPIR."""

    fpir: float = Field(examples=[0.1])
    threshold: float = Field(examples=[0.3514])
    low: float | None = Field(
        description="Lower end of the threshold's `interval_percent`; null where it was not measured.",
        examples=[0.3402],
    )
    high: float | None = Field(examples=[0.3655])
    fnir: float | None = Field(
        description="Share of the people with several photos who would not be found.", examples=[0.0071]
    )
    scores: int = Field(description="People with a non-mated score above the threshold.", examples=[21])
    basis: Basis


class LikelyOne(Payload):
    external_ids: tuple[str, str] = Field(examples=[["e-1042", "7"]])
    score: float = Field(examples=[0.8012])


class CalibrationPayload(Payload):
    """The output of `whosthere gallery calibrate --json`."""

    gallery: str = Field(examples=["staff"])
    model: str = Field(examples=["sface"])
    faces: int = Field(examples=[431])
    people: int = Field(description="People searched among the others.", examples=[212])
    mated: int = Field(description="Those of them with several photos.", examples=[140])
    supported_fpir: float | None = Field(
        description="The lowest FPIR that the scores support; null for none.", examples=[0.0236]
    )
    summary: str = Field(examples=["212 people support an FPIR of 2.4 % or more."])
    interval_percent: tuple[float, float] = Field(examples=[[5, 95]])
    thresholds: list[ThresholdPayload]
    duplicates: list[LikelyOne] = Field(description="Likely one person under two ids, and not counted.")


def duplicates_payload(gallery: str, found: Duplicates, limit: int) -> DuplicatesPayload:
    """Serializes the first `limit` pairs, wrong photos and outliers."""
    fields: dict[str, Any] = {
        "gallery": gallery,
        "threshold": found.threshold,
        "faces": found.faces,
        "exact": found.exact,
        "complete": found.complete and max(len(found.pairs), len(found.wrong_photos), len(found.outliers)) <= limit,
        "pairs": found.pairs[:limit],
        "wrong_photos": found.wrong_photos[:limit],
        "outliers": found.outliers[:limit],
    }
    return DuplicatesPayload.model_validate(fields, from_attributes=True)
