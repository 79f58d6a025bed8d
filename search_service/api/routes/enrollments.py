"""/v1/galleries/{gallery}/enrollments: many images, enrolled by a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from indexer.enrollment.archives import check_archive
from indexer.enrollment.sources import rows_of_archive
from indexer.errors import InvalidRequest
from indexer.types import Gallery, LivenessMode, Pick
from search_service.api.bodies import Body
from search_service.api.models.jobs import JobPayload, job_fields
from search_service.api.permissions import BodyKind, accepts, requires
from search_service.api.requests import ENROLL_FIELDS
from search_service.api.routes.openapi import Responses, failures
from search_service.api.security import check_key_again
from search_service.api.state import Service, State
from search_service.api.uploads import receive
from search_service.background.jobs import spool
from search_service.store.api_keys import Scope
from search_service.store.job_files import PART_BYTES
from search_service.store.jobs import Job

router = APIRouter(prefix="/v1/galleries/{gallery}", tags=["jobs"], dependencies=[requires(Scope.ENROLL)])

FILE = {"type": "string", "format": "binary"}

LOCATION: Responses = {202: {"headers": {"Location": {"schema": {"type": "string"}}}}}

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "archive": {**FILE, "description": "A ZIP of folders, of images, or with a manifest.csv."},
                        "images": {"type": "array", "items": FILE, "description": "Or single images."},
                        "manifest": {**FILE, "description": "CSV with the file names of the images."},
                        **ENROLL_FIELDS,
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
    responses=LOCATION | failures(409, 413, 429),
    openapi_extra=BODY,
)
async def enroll(
    service: Service,
    gallery: str,
    request: Request,
    response: Response,
    pick: Annotated[Pick | None, Query(description="Like the field `pick`, for a ZIP as the body.")] = None,
    liveness: Annotated[LivenessMode | None, Query(description="Like the field `liveness`.")] = None,
) -> Any:
    """Enrolls a ZIP of images, or images and a manifest, into an existing gallery.

    An unreadable archive is rejected at once; the job reports the outcome of each image.
    """
    target = await service.gallery(gallery)
    await service.off_loop(_check_possible, service, target)
    with await service.off_loop(spool, service.context.settings) as file:
        values = await receive(service, request, file)
        for name, value in (("pick", pick), ("liveness", liveness)):
            if value is not None and name in values:
                raise InvalidRequest(f"{name} was given twice, in the body and in the query")
        fields = Body({}, values)
        options = {"pick": str(pick or fields.pick(Pick.ONLY) or Pick.ONLY)}
        wanted = liveness or fields.liveness()
        if wanted is not None:
            options["liveness"] = str(wanted)
        async with service.listing:
            await service.off_loop(_check_possible, service, target)  # the last free place may be taken by now
            images = await service.off_loop(_count_images, file)
        await check_key_again(request.scope)
        job = await service.writers.run(_create, service, target, images, options, file)
    response.headers["Location"] = f"{request.scope.get('root_path', '')}/v1/jobs/{job.id}"
    return job_fields(job)


def _check_possible(service: State, gallery: Gallery) -> None:
    """Raises Overloaded when there are too many jobs, and any error that would make this one fail at once."""
    service.context.pack_of(gallery)
    service.context.jobs.check_room(service.context.settings.max_jobs)


def _count_images(file: IO[bytes]) -> int:
    """Raises InvalidRequest, also on an archive without images."""
    check_archive(file)
    images = len(rows_of_archive(file))
    if not images:
        raise InvalidRequest("there are no images in the archive", code="invalid_archive")
    return images


def _create(service: State, gallery: Gallery, images: int, options: Mapping[str, str], file: IO[bytes]) -> Job:
    """Raises Overloaded when other jobs were created in the meantime."""
    file.seek(0)
    parts, most = iter(lambda: file.read(PART_BYTES), b""), service.context.settings.max_jobs
    return service.context.jobs.create(gallery.id, images, options, parts, most)
