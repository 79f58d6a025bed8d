"""Wire models of identities, their faces, and the outcome of enrolling images."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from indexer.types import Reason
from search_service.api.models.base import Cursor, Metadata, Name, Payload, Time, Utc
from search_service.api.models.probes import FacePayload, ImageName

NAME, EXTERNAL_ID = ["Ana Kovač"], ["e-1042"]
UNTIL = ["2026-12-31T23:59:59Z"]


class IdentityBody(Payload):
    """The properties of a person. Dates without a zone are UTC; valid from `valid_from` on and before `valid_until`."""

    name: Name | None = Field(default=None, examples=NAME)
    metadata: Metadata = Field(default={})
    valid_from: Utc | None = None
    valid_until: Utc | None = Field(default=None, examples=UNTIL)


class IdentityPatch(Payload):
    """Changes to a person (RFC 7396): omitted properties stay, null removes, also for the keys of `metadata`."""

    name: Name | None = Field(default=None, examples=["Ana Horvat"])
    metadata: Metadata | None = Field(default=None, examples=[{"department": "Support", "desk": None}])
    valid_from: Utc | None = None
    valid_until: Utc | None = None


class NewIdentity(IdentityBody):
    external_id: Name = Field(examples=EXTERNAL_ID)


class IdentityPayload(NewIdentity):
    metadata: dict[str, Any] = Field(examples=[{"department": "Sales"}])
    id: int = Field(examples=[17])
    faces: int = Field(examples=[2])
    created_at: Time
    updated_at: Time


class IdentityList(Payload):
    identities: list[IdentityPayload]
    cursor: Cursor


class StoredFacePayload(FacePayload):
    face_id: int = Field(examples=[31])
    external_id: str = Field(examples=EXTERNAL_ID)
    image_sha256: str = Field(examples=["9f86d081" * 8])
    created_at: Time
    has_crop: bool = Field(description="Whether its crop is kept (WHOSTHERE_KEEP_CROPS).", examples=[True])


class StoredFaceList(Payload):
    faces: list[StoredFacePayload]
    cursor: Cursor


class EnrolledPayload(Payload):
    """The outcome of one image, as in `whosthere enroll --json`."""

    image: ImageName
    external_id: str = Field(examples=EXTERNAL_ID)
    outcome: str = Field(examples=["enrolled"])
    reason: Reason | None = Field(examples=[None])
    face_id: int | None = Field(examples=[31])
    message: str | None = None
    details: dict[str, Any] = Field(
        default={},
        description="The identity that an enrolled face looks like; `turn` of a photo that is not upright.",
    )


class ResultsPayload(Payload):
    """One result for each image, in the order sent."""

    results: list[EnrolledPayload]


class MergeBody(Payload):
    other: str = Field(
        description="The `external_id` of the identity that is merged into this one and deleted.", examples=["7"]
    )


class MergedPayload(Payload):
    """The output of `whosthere identity merge --json`."""

    identity: IdentityPayload
    merged: str = Field(examples=["7"])
    faces: int = Field(description="How many faces were moved.", examples=[1])
