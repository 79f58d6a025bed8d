"""/v1/galleries/{gallery}/enrollments: many images, as a job."""

from __future__ import annotations

from typing import IO, Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from indexer.enrollment.archives import check_archive
from indexer.enrollment.sources import rows_of_archive
from indexer.errors import InvalidRequest
from indexer.types import Gallery, Pick
from search_service.api.permissions import BodyKind, accepts, requires
from search_service.api.requests import pick_of
from search_service.api.routes.jobs import JobPayload, job_object
from search_service.api.routes.openapi import failures, pick_field
from search_service.api.state import Service, State
from search_service.api.uploads import receive
from search_service.background.jobs import spool
from search_service.store.api_keys import Scope
from search_service.store.jobs import PART_BYTES, Job, JobRepository

router = APIRouter(prefix="/v1/galleries/{gallery}", tags=["jobs"], dependencies=[requires(Scope.ENROLL)])

FILE = {"type": "string", "format": "binary"}

LOCATION: dict[int | str, dict[str, Any]] = {202: {"headers": {"Location": {"schema": {"type": "string"}}}}}

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "archive": {**FILE, "description": "A ZIP of folders, of images, or with a manifest.csv."},
                        "images": {"type": "array", "items": FILE, "description": "Or the images one by one."},
                        "manifest": {**FILE, "description": "CSV; names images as they are sent."},
                        "pick": pick_field(Pick, Pick.ONLY),
                    },
                }
            },
            "application/zip": {"schema": FILE},
        },
    }
}


@router.post(
    "/enrollments",
    dependencies=[accepts(BodyKind.ARCHIVE)],
    status_code=202,
    response_model=JobPayload,
    responses={**LOCATION, **failures(409, 413, 429)},
    openapi_extra=BODY,
)
async def enroll(
    service: Service,
    gallery: str,
    request: Request,
    response: Response,
    pick: Annotated[Pick | None, Query(description="As the field `pick`, where the body is a ZIP.")] = None,
) -> Any:
    """Enrols a ZIP of images, or images and a manifest, into a gallery that is there.

    What cannot be read as such is refused at once; what becomes of each image is told by the job.
    """
    target = await service.gallery(gallery)
    jobs = service.context.jobs
    await service.off_loop(_check_welcome, service, jobs, target)
    with await service.off_loop(spool, service.context.settings) as file:
        values = await receive(service, request, file)
        if pick is not None and "pick" in values:
            raise InvalidRequest("pick was given twice, in the body and in the address")
        chosen = pick or pick_of(values, Pick.ONLY) or Pick.ONLY
        async with service.listing:
            await service.off_loop(jobs.check_room, service.context.settings.max_jobs)  # others were faster
            images = await service.off_loop(_images_in, file)
        job = await service.off_loop(_create, service, target, images, chosen, file)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_object(job)


def _check_welcome(service: State, jobs: JobRepository, gallery: Gallery) -> None:
    """Raises Overloaded, and what would fail the job as soon as it ran."""
    service.context.pack_of(gallery)
    jobs.check_room(service.context.settings.max_jobs)


def _images_in(file: IO[bytes]) -> int:
    """How many. Raises InvalidRequest, and where there are none too."""
    check_archive(file)
    images = len(rows_of_archive(file))
    if not images:
        raise InvalidRequest("there are no images in the archive", code="invalid_archive")
    return images


def _create(service: State, gallery: Gallery, images: int, pick: Pick, file: IO[bytes]) -> Job:
    """Raises Overloaded: of several that came at once, there may be room for one."""
    file.seek(0)
    parts, most = iter(lambda: file.read(PART_BYTES), b""), service.context.settings.max_jobs
    return service.context.jobs.create(gallery.id, images, {"pick": str(pick)}, parts, most)
