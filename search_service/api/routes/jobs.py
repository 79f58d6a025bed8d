"""/v1/jobs"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field

from indexer.errors import InvalidRequest, NotFound
from indexer.types import Outcome
from search_service.api.payloads import EnrolledPayload, Payload
from search_service.api.permissions import requires
from search_service.api.requests import cursor_after, cursor_of
from search_service.api.routes.galleries import Cursor, Limit
from search_service.api.security import check_gallery, key_of
from search_service.api.state import Service
from search_service.store.api_keys import Scope
from search_service.store.jobs import Job, JobResult, JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[requires(Scope.ENROLL)])

JobId = Annotated[str, Path(alias="id", description="As the answer to the enrolment names it.")]


class JobPayload(Payload):
    """A bulk enrolment. `done` of its `images` were `enrolled`, `unchanged` or `rejected`."""

    id: str
    gallery: str
    state: JobState
    images: int
    done: int
    enrolled: int
    unchanged: int
    rejected: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    problem: str | None = Field(description="Why it failed, or what keeps it waiting.")


class JobDetailPayload(JobPayload):
    results: list[EnrolledPayload] = Field(description="In the order of the archive's rows.")
    cursor: str | None = Field(description="Give it back to get the next page; null where nothing is left for now.")


class JobList(Payload):
    jobs: list[JobPayload]
    cursor: str | None


@router.get("", response_model=JobList)
async def list_jobs(
    service: Service,
    request: Request,
    gallery: Annotated[str | None, Query(description="Those of this gallery.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Any:
    """Bulk enrolments, the latest first."""
    if gallery is not None:
        check_gallery(request, gallery)
    key = key_of(request)
    opened = sorted(key.galleries) if key is not None and key.galleries is not None else None

    def page() -> dict[str, Any]:
        if gallery is not None:
            service.context.store.galleries.get(gallery)
        names = opened if gallery is None else [gallery]
        found = service.context.jobs.latest(names, _before(cursor), limit + 1)
        following = _cursor(found[limit - 1].id) if len(found) > limit else None
        return {"jobs": [job_object(job) for job in found[:limit]], "cursor": following}

    return await service.off_loop(page)


@router.get("/{id}", response_model=JobDetailPayload)
async def show_job(
    service: Service,
    request: Request,
    id: JobId,  # noqa: A002 (its name in the contract)
    outcome: Annotated[Outcome | None, Query(description="Results with this outcome only.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Any:
    """How far it is, and what became of each image."""

    def show() -> dict[str, Any]:
        job = _opened(service, request, id)
        found = service.context.jobs.results(id, outcome, cursor_after(cursor), limit + 1)
        following = cursor_of(found[limit - 1].place) if len(found) > limit else None
        return {**job_object(job), "results": _results(found[:limit]), "cursor": following}

    return await service.off_loop(show)


@router.post("/{id}/cancel", response_model=JobPayload)
async def cancel_job(service: Service, request: Request, id: JobId) -> Any:  # noqa: A002
    """Stops it: at once where it waits, soon where it runs. What was enrolled stays enrolled.

    One that has ended stays as it is.
    """

    def cancel() -> dict[str, Any]:
        _opened(service, request, id)
        return job_object(service.context.jobs.cancel(id))

    return await service.off_loop(cancel)


def job_object(job: Job) -> dict[str, Any]:
    """The fields of JobPayload."""
    counts = {str(outcome): job.outcomes.get(outcome, 0) for outcome in Outcome}
    return {
        "id": job.id,
        "gallery": job.gallery,
        "state": job.state,
        "images": job.images,
        "done": sum(counts.values()),
        **counts,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "problem": job.problem,
    }


def _opened(service: Service, request: Request, job_id: str) -> Job:
    """Raises NotFound, also where the key does not open its gallery: whoever guesses ids learns nothing."""
    job = service.context.jobs.get(job_id)
    key = key_of(request)
    if key is not None and not key.allows_gallery(job.gallery):
        raise NotFound(f"there is no job {job_id!r}", code="job_not_found")
    return job


def _results(found: Sequence[JobResult]) -> list[dict[str, Any]]:
    return [{name: value for name, value in vars(one).items() if name != "place"} for one in found]


def _cursor(job_id: str) -> str:
    return base64.urlsafe_b64encode(f"before:{job_id}".encode()).decode()


def _before(cursor: str | None) -> str | None:
    """Raises InvalidRequest on a cursor that was not given out."""
    if cursor is None:
        return None
    try:
        told = re.fullmatch(r"before:([0-9a-f]{32})", base64.urlsafe_b64decode(cursor.encode()).decode())
    except (ValueError, binascii.Error):
        told = None
    if told is None:
        raise InvalidRequest(f"the cursor {cursor!r} was not given out here")
    return told[1]
