"""/v1/galleries"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request

from indexer.enrollment.lookalikes import ALL_PAIRS, find_duplicates, lookalike_bound
from indexer.errors import Conflict, Overloaded
from indexer.serializers import gallery_detail, gallery_object
from search_service.api.payloads import (
    CalibrationPayload,
    Deleted,
    DuplicatesPayload,
    GalleryDetailPayload,
    GalleryList,
    GalleryPayload,
    NewGallery,
    duplicates_payload,
)
from search_service.api.permissions import requires
from search_service.api.requests import cursor_after, page_of
from search_service.api.routes.openapi import failures
from search_service.api.security import key_of
from search_service.api.state import Service, State
from search_service.calibration.report import calibrate, calibration_object
from search_service.store.api_keys import Scope

router = APIRouter(prefix="/v1/galleries", tags=["galleries"])

Compared = TypeVar("Compared")

Limit = Annotated[int, Query(ge=1, le=1000, description="Entries on one page.")]
Cosine = Annotated[
    float | None,
    Query(ge=-1, le=1, description="From which two identities look alike; else that from which enrolling says so."),
]
Cursor = Annotated[str | None, Query(description="What the page before answered as `cursor`.")]


@router.get("", response_model=GalleryList, dependencies=[requires(Scope.SEARCH)])
async def list_galleries(service: Service, request: Request, limit: Limit = 100, cursor: Cursor = None) -> Any:
    """The galleries, in the order of their making: those that the key opens."""
    key = key_of(request)

    def page() -> dict[str, Any]:
        found = service.context.store.galleries.list(cursor_after(cursor), limit + 1, key.galleries if key else None)
        shown, following = page_of(found, limit)
        return {
            "galleries": [gallery_object(service.context.store, gallery) for gallery in shown],
            "cursor": following,
        }

    return await service.off_loop(page)


@router.post(
    "",
    status_code=201,
    response_model=GalleryPayload,
    responses=failures(409, 413),
    dependencies=[requires(Scope.ADMIN, every_gallery=True)],
)
async def create_gallery(service: Service, new: NewGallery) -> Any:
    """Makes an empty gallery, bound for life to one model pack."""

    def create() -> dict[str, Any]:
        pack = service.pack(new.model)
        return gallery_object(
            service.context.store,
            service.context.store.galleries.create(new.name, pack.name, pack.fingerprint, pack.dim),
        )

    return await service.off_loop(create)


@router.get("/{gallery}", response_model=GalleryDetailPayload, dependencies=[requires(Scope.SEARCH)])
async def show_gallery(service: Service, gallery: str) -> Any:
    """The gallery and the state of its index."""
    return await service.off_loop(_detail, service, gallery)


@router.delete("/{gallery}", response_model=Deleted, dependencies=[requires(Scope.ADMIN)])
async def delete_gallery(service: Service, gallery: str) -> Any:
    """Deletes the gallery with everybody in it."""

    def delete() -> Deleted:
        found = service.context.store.galleries.get(gallery)
        _, faces = service.context.store.galleries.counts(found.id)
        service.context.store.galleries.delete(gallery)
        service.context.indexes.forget(found)
        return Deleted(deleted=gallery, faces=faces)

    return await service.off_loop(delete)


@router.get(
    "/{gallery}/duplicates",
    response_model=DuplicatesPayload,
    responses=failures(409, 429),
    dependencies=[requires(Scope.ENROLL)],
)
async def gallery_duplicates(service: Service, gallery: str, threshold: Cosine = None, limit: Limit = 100) -> Any:
    """The identities that look alike, one person under two ids most likely, and the photos that look like somebody else
    than their own person."""

    def find() -> DuplicatesPayload:
        found = service.context.store.galleries.get(gallery)
        index = service.context.indexes.of(found)
        faces = len(index.caught_up())
        if faces > ALL_PAIRS:
            raise Conflict(
                f"gallery {gallery!r} holds {faces:,} faces, {ALL_PAIRS:,} at most are compared while a caller waits; "
                f"`whosthere gallery duplicates {gallery}` compares more",
                code="gallery_too_large",
            )
        bound = lookalike_bound(service.context.pack_of(found), faces) if threshold is None else threshold
        return duplicates_payload(gallery, find_duplicates(service.context.store, found, index, bound), limit)

    return await _alone(service, find)


@router.post(
    "/{gallery}/calibration",
    response_model=CalibrationPayload,
    responses=failures(409, 429),
    dependencies=[requires(Scope.ADMIN)],
)
async def calibrate_gallery(service: Service, gallery: str) -> Any:
    """Computes the gallery's thresholds from its own people now, and tells how sure they are.

    Searches do so by themselves as a gallery grows. Who looks like one person under two ids is left out, and listed.
    """

    def report() -> dict[str, Any]:
        return calibration_object(calibrate(service.context, service.context.store.galleries.get(gallery)))

    return await _alone(service, report)


async def _alone(service: State, compare: Callable[[], Compared]) -> Compared:
    """Runs what compares the faces of a gallery, unless another such is running. Raises Overloaded."""
    if service.comparing.locked():
        raise Overloaded("the faces of a gallery are being compared already; try again when that is done")
    async with service.comparing:
        return await service.off_loop(compare)


def _detail(service: State, name: str) -> dict[str, Any]:
    gallery = service.context.store.galleries.get(name)
    return gallery_detail(service.context.store, gallery, service.context.indexes.of(gallery).state())
