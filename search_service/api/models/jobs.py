"""Wire models of bulk enrollments."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from indexer.serializers import fields_of
from indexer.types import Outcome
from search_service.api.models.base import Cursor, Payload, Time
from search_service.api.models.identities import EnrolledPayload
from search_service.store.jobs import Job, JobState


class JobPayload(Payload):
    """A bulk enrollment. `done` of its `images` were `enrolled`, `unchanged` or `rejected`."""

    id: str = Field(examples=["9d1b60f2c84e4a35"])
    gallery: str = Field(examples=["staff"])
    state: JobState
    images: int = Field(examples=[2140])
    done: int = Field(examples=[1])
    enrolled: int = Field(examples=[1])
    unchanged: int = Field(examples=[0])
    rejected: int = Field(examples=[0])
    created_at: Time
    started_at: datetime | None = Field(examples=[None])
    finished_at: datetime | None = Field(examples=[None])
    problem: str | None = Field(description="Why it failed, or why it is waiting.", examples=[None])


class JobDetailPayload(JobPayload):
    results: list[EnrolledPayload] = Field(description="In the order of the archive's rows.")
    cursor: Annotated[
        str | None,
        Field(description="Pass it as `cursor` to get the next page; null when there are no more results yet."),
    ] = Field(examples=[None])


class JobList(Payload):
    jobs: list[JobPayload]
    cursor: Cursor


def job_fields(job: Job) -> dict[str, Any]:
    """Returns the fields of JobPayload."""
    fields = fields_of(job)
    outcomes = fields.pop("outcomes")
    counts = {str(outcome): outcomes.get(outcome, 0) for outcome in Outcome}
    return fields | counts | {"done": sum(counts.values())}
