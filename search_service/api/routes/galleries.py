"""/v1/galleries"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request

from indexer.enrollment.duplicates import ALL_PAIRS, find_duplicates
from indexer.enrollment.lookalikes import lookalike_bound
from indexer.errors import Conflict, Overloaded
from indexer.serializers import gallery_detail, gallery_object
from search_service.api.models.base import Deleted
from search_service.api.models.galleries import (
    CalibrationPayload,
    DuplicatesPayload,
    GalleryDetailPayload,
    GalleryList,
    GalleryPayload,
    NewGallery,
    duplicates_payload,
)
from search_service.api.pages import BY_ID, Limit, Paged
from search_service.api.permissions import requires
from search_service.api.routes.openapi import failures
from search_service.api.security import key_of
from search_service.api.state import Service, State
from search_service.api.threads import writes
from search_service.calibration.report import calibrate, calibration_object
from search_service.store.api_keys import Scope

router = APIRouter(prefix="/v1/galleries", tags=["galleries"])

Compared = TypeVar("Compared")

Cosine = Annotated[
    float | None,
    Query(ge=-1, le=1, description="Cosine from which two identities look alike; by default that of enrollment."),
]


@router.get("", response_model=GalleryList, dependencies=[requires(Scope.SEARCH)])
def list_galleries(service: Service, request: Request, page: Paged) -> Any:
    """Lists the galleries that the key may use, oldest first."""
    key, store = key_of(request), service.context.store
    found = store.galleries.list(BY_ID.decode(page.cursor), page.wanted, key.galleries if key else None)
    return page.answer("galleries", found, lambda gallery: gallery_object(store, gallery))


@router.post(
    "",
    status_code=201,
    response_model=GalleryPayload,
    responses=failures(409, 413),
    dependencies=[requires(Scope.ADMIN, every_gallery=True)],
)
@writes
def create_gallery(service: Service, new: NewGallery) -> Any:
    """Creates an empty gallery for one model pack."""
    pack, store = service.pack(new.model), service.context.store
    return gallery_object(store, store.galleries.create(new.name, pack.name, pack.fingerprint, pack.dim))


@router.get("/{gallery}", response_model=GalleryDetailPayload, dependencies=[requires(Scope.SEARCH)])
def show_gallery(service: Service, gallery: str) -> Any:
    """Returns the gallery and the state of its index."""
    store = service.context.store
    found = store.galleries.get(gallery)
    return gallery_detail(store, found, service.context.indexes.get(found).state())


@router.delete("/{gallery}", response_model=Deleted, dependencies=[requires(Scope.ADMIN)])
@writes
def delete_gallery(service: Service, gallery: str) -> Any:
    """Deletes the gallery with all its identities."""
    store = service.context.store
    found = store.galleries.get(gallery)
    _, faces = store.galleries.counts(found.id)
    store.galleries.delete(gallery)
    service.context.indexes.delete(found)
    return Deleted(deleted=gallery, faces=faces)


@router.get(
    "/{gallery}/duplicates",
    response_model=DuplicatesPayload,
    responses=failures(409, 429),
    dependencies=[requires(Scope.ENROLL)],
)
async def gallery_duplicates(service: Service, gallery: str, threshold: Cosine = None, limit: Limit = 100) -> Any:
    """Lists identities that look alike, most likely one person under two ids; photos that look like another person
    than their own; and outliers, photos unlike all others of their identity."""

    def find() -> DuplicatesPayload:
        found = service.context.store.galleries.get(gallery)
        index = service.context.indexes.get(found)
        faces = len(index.catch_up())
        if faces > ALL_PAIRS:
            raise Conflict(
                f"gallery {gallery!r} holds {faces:,} faces, and a request compares {ALL_PAIRS:,} at most; "
                f"`whosthere gallery duplicates {gallery}` compares more",
                code="gallery_too_large",
            )
        bound = lookalike_bound(service.context.pack_of(found), faces) if threshold is None else threshold
        own_bound = service.context.own_bound(found)
        duplicates = find_duplicates(service.context.store, found, index, bound, own_bound=own_bound)
        return duplicates_payload(gallery, duplicates, limit)

    return await _alone(service, find)


@router.post(
    "/{gallery}/calibration",
    response_model=CalibrationPayload,
    responses=failures(409, 429),
    dependencies=[requires(Scope.ADMIN)],
)
async def calibrate_gallery(service: Service, gallery: str) -> Any:
    """Computes the gallery's thresholds from its own faces now, and how certain they are.

    This also happens in the background as a gallery grows. Likely duplicates of a person are not counted, and listed.
    """

    def report() -> dict[str, Any]:
        return calibration_object(calibrate(service.context, service.context.store.galleries.get(gallery)))

    return await _alone(service, report)


async def _alone(service: State, compare: Callable[[], Compared]) -> Compared:
    """Runs a comparison of all faces of a gallery. Raises Overloaded while another one is running."""
    if service.comparing.locked():
        raise Overloaded("the faces of a gallery are already being compared; try again when that has finished")
    async with service.comparing:
        return await service.off_loop(compare)
