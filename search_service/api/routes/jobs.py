"""/v1/jobs"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from indexer.errors import NotFound
from indexer.types import Outcome
from search_service.api.models.jobs import JobDetailPayload, JobList, JobPayload, job_fields
from search_service.api.pages import BY_ID, NEWEST_FIRST, Paged
from search_service.api.permissions import requires
from search_service.api.security import check_gallery, key_of
from search_service.api.state import Service
from search_service.api.threads import writes
from search_service.store.api_keys import Scope
from search_service.store.jobs import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[requires(Scope.ENROLL)])

JobId = Annotated[str, Path(alias="id", description="The `id` in the answer to the enrollment.")]


@router.get("", response_model=JobList)
def list_jobs(
    service: Service,
    request: Request,
    page: Paged,
    gallery: Annotated[str | None, Query(description="Only jobs of this gallery.")] = None,
) -> Any:
    """Lists bulk enrollments, newest first."""
    key = key_of(request)
    names = sorted(key.galleries) if key is not None and key.galleries is not None else None
    if gallery is not None:
        check_gallery(request, gallery)
        names = [service.context.store.galleries.get(gallery).name]
    found = service.context.jobs.latest(names, NEWEST_FIRST.decode(page.cursor), page.wanted)
    return page.answer("jobs", found, job_fields, NEWEST_FIRST)


@router.get("/{id}", response_model=JobDetailPayload)
def show_job(
    service: Service,
    request: Request,
    job_id: JobId,
    page: Paged,
    outcome: Annotated[Outcome | None, Query(description="Only results with this outcome.")] = None,
) -> Any:
    """Returns the progress of a job and the outcome of each image."""
    job = _permitted(service, request, job_id)
    found = service.context.jobs.results(job_id, outcome, BY_ID.decode(page.cursor), page.wanted)
    return job_fields(job) | page.answer("results", found, position=lambda result: result.place)


@router.post("/{id}/cancel", response_model=JobPayload)
@writes
def cancel_job(service: Service, request: Request, job_id: JobId) -> Any:
    """Cancels a job: at once if it is waiting, soon if it is running. What was enrolled stays enrolled.

    A job that has ended does not change.
    """
    _permitted(service, request, job_id)
    return job_fields(service.context.jobs.cancel(job_id))


def _permitted(service: Service, request: Request, job_id: str) -> Job:
    """Returns a job. Raises NotFound, also where the key may not use its gallery, so that ids cannot be guessed."""
    job = service.context.jobs.get(job_id)
    key = key_of(request)
    if key is not None and not key.allows_gallery(job.gallery):
        raise NotFound(f"there is no job {job_id!r}", code="job_not_found")
    return job
