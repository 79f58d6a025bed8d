"""What the wire models share: their base class, common fields, and the shape of every error."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from indexer.errors import WhosthereError
from indexer.gallery.schema import MAX_NAME_LENGTH
from indexer.gallery.validation import MAX_METADATA_BYTES, check_storable
from indexer.rounding import SCORE_DECIMALS
from search_service.api.shortening import short_error

TIME = "2026-03-02T07:58:12.041000Z"
"""The time in every example."""


def _to_utc(time: datetime) -> datetime:
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{time.isoformat()} is not within the years 1 to 9999 in UTC") from None


Time = Annotated[datetime, Field(examples=[TIME])]

Utc = Annotated[datetime, AfterValidator(_to_utc)]
"""A time in a request. Without a zone it is UTC."""

Score = Annotated[float, AfterValidator(lambda score: round(score, SCORE_DECIMALS)), Field(examples=[0.7213])]

Metadata = Annotated[
    dict[str, Any],
    AfterValidator(check_storable),
    Field(
        description=f"At most {MAX_METADATA_BYTES:,} bytes as compact JSON in UTF-8.",
        examples=[{"department": "Sales"}],
    ),
]

Name = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH})]
"""A name in a request. `check_name` refuses control characters and the like later."""

Cursor = Annotated[
    str | None, Field(description="Pass it as `cursor` to get the next page; null on the last one.", examples=[None])
]


class Payload(BaseModel):
    """Base of all JSON objects. Each field has an example, or a type that OpenAPI's examples know."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)  # validation errors are logged


class ErrorBody(Payload):
    """An error. Message and details are shortened here, for every answer."""

    code: str = Field(examples=["no_face"])
    message: str = Field(examples=["no face was found"])
    details: dict[str, Any] = {}

    @model_validator(mode="after")
    def _shorten(self) -> Self:
        self.message, self.details = short_error(self.message, self.details)
        return self


def error_body(error: WhosthereError) -> ErrorBody:
    """Serializes an error."""
    return ErrorBody(code=str(error.code), message=error.message, details=error.details)


class ErrorAnswer(Payload):
    """The shape of every error."""

    error: ErrorBody
    request_id: str = Field(examples=["5b0e3f0c2d8a4d6f"])


class Deleted(Payload):
    deleted: Annotated[str, Field(examples=["e-1042"])]
    faces: int = Field(examples=[2])


class AlivePayload(Payload):
    status: str = Field(examples=["alive"])


class ReadyPayload(Payload):
    status: str = Field(description="`ready`, `loading` or `failed`.", examples=["ready"])
    problem: str | None = None
    galleries: dict[str, str] = Field(default={}, description="Why each gallery that cannot be searched cannot be.")
