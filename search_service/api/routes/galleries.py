"""/v1/galleries"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from indexer.objects import gallery_detail, gallery_object
from search_service.api.payloads import Deleted, GalleryDetailPayload, GalleryList, GalleryPayload, NewGallery
from search_service.api.requests import cursor_after, page_of
from search_service.api.routes.openapi import failures
from search_service.api.state import Service, State

router = APIRouter(prefix="/v1/galleries", tags=["galleries"])

Limit = Annotated[int, Query(ge=1, le=1000, description="Entries on one page.")]
Cursor = Annotated[str | None, Query(description="What the page before answered as `cursor`.")]


@router.get("", response_model=GalleryList)
async def list_galleries(service: Service, limit: Limit = 100, cursor: Cursor = None) -> Any:
    """The galleries, in the order of their making."""

    def page() -> dict[str, Any]:
        found = service.home.store.galleries(cursor_after(cursor), limit + 1)
        shown, following = page_of(found, limit)
        return {
            "galleries": [gallery_object(service.home.store, gallery) for gallery in shown],
            "cursor": following,
        }

    return await service.off_loop(page)


@router.post("", status_code=201, response_model=GalleryPayload, responses=failures(409, 413))
async def create_gallery(service: Service, new: NewGallery) -> Any:
    """Makes an empty gallery, bound for life to one model pack."""

    def create() -> dict[str, Any]:
        pack = service.pack(new.model)
        return gallery_object(
            service.home.store, service.home.store.create_gallery(new.name, pack.name, pack.fingerprint, pack.dim)
        )

    return await service.off_loop(create)


@router.get("/{gallery}", response_model=GalleryDetailPayload)
async def show_gallery(service: Service, gallery: str) -> Any:
    """The gallery and the state of its index."""
    return await service.off_loop(_detail, service, gallery)


@router.delete("/{gallery}", response_model=Deleted)
async def delete_gallery(service: Service, gallery: str) -> Any:
    """Deletes the gallery with everybody in it."""

    def delete() -> Deleted:
        found = service.home.store.gallery(gallery)
        _, faces = service.home.store.counts(found.id)
        service.home.store.delete_gallery(gallery)
        service.home.indexes.forget(found)
        return Deleted(deleted=gallery, faces=faces)

    return await service.off_loop(delete)


def _detail(service: State, name: str) -> dict[str, Any]:
    gallery = service.home.store.gallery(name)
    return gallery_detail(service.home.store, gallery, service.home.indexes.of(gallery).state())
