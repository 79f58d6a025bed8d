"""/v1/galleries/{gallery}/identities and their faces."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from indexer.errors import Conflict, NotFound
from indexer.gallery.identity_search import MAX_METADATA_FILTERS, IdentityFilter, parse_metadata
from indexer.gallery.schema import MAX_NAME_LENGTH
from indexer.serializers import face_object, identity_object
from indexer.types import Identity, Outcome, Person, StoredFace
from search_service.api import enrolling
from search_service.api.etags import IfTags, etag_of
from search_service.api.models.base import Deleted
from search_service.api.models.identities import (
    EnrolledPayload,
    IdentityBody,
    IdentityList,
    IdentityPatch,
    IdentityPayload,
    MergeBody,
    MergedPayload,
    NewIdentity,
    ResultsPayload,
    StoredFaceList,
    StoredFacePayload,
)
from search_service.api.pages import BY_ID, LARGEST_ID, Paged
from search_service.api.paths import ExternalId
from search_service.api.permissions import BodyKind, accepts, requires
from search_service.api.requests import ENROLL_FIELDS, Enroll
from search_service.api.routes.openapi import Responses, failures, image_body, tagged
from search_service.api.security import check_key_again
from search_service.api.state import Service
from search_service.api.threads import writes
from search_service.store.api_keys import Scope

router = APIRouter(prefix="/v1/galleries/{gallery}", tags=["identities"], dependencies=[requires(Scope.ENROLL)])

CROP_TYPE = "image/webp"

CROP: Responses = {200: {"content": {CROP_TYPE: {"schema": {"type": "string", "format": "binary"}}}}}

FaceId = Annotated[int, Path(ge=1, le=LARGEST_ID)]


@router.get("/identities", response_model=IdentityList)
def list_identities(
    service: Service,
    gallery: str,
    page: Paged,
    q: Annotated[
        str,
        Query(
            max_length=MAX_NAME_LENGTH,
            description="Words that occur anywhere in `external_id` or `name`; case and accents do not matter.",
        ),
    ] = "",
    metadata: Annotated[
        list[str],
        Query(
            max_length=MAX_METADATA_FILTERS,
            description="`KEY=VALUE`: this key of the metadata has this value, written as text. May be repeated.",
        ),
    ] = [],  # noqa: B006 (FastAPI copies it)
) -> Any:
    """Lists the identities of a gallery that match all given parameters, oldest first."""
    store, wanted = service.context.store, IdentityFilter(q, parse_metadata(metadata))
    found = store.identities.list(store.galleries.get(gallery).id, BY_ID.decode(page.cursor), page.wanted, wanted)
    return page.answer("identities", found, identity_object)


@router.post("/identities", status_code=201, response_model=IdentityPayload, responses=tagged(201) | failures(409, 413))
@writes
def create_identity(service: Service, gallery: str, new: NewIdentity, response: Response) -> Any:
    """Creates an identity without faces."""
    store = service.context.store
    identity, created = store.identities.put(
        store.galleries.get(gallery).id, _person(new.external_id, new), replace=False
    )
    if not created:
        raise Conflict(f"there is already an identity {new.external_id!r}", code="identity_exists")
    return _tagged(response, identity)


@router.get(
    "/identities/{external_id}",
    response_model=IdentityPayload,
    responses=tagged(200) | {304: {"description": "`If-None-Match` has the current ETag."}},
)
def show_identity(service: Service, gallery: str, external_id: ExternalId, tags: IfTags, response: Response) -> Any:
    """Returns one identity."""
    store = service.context.store
    found = store.identities.get(store.galleries.get(gallery).id, external_id)
    if tags.is_known(found):
        return Response(status_code=304, headers={"ETag": etag_of(found)})
    return _tagged(response, found)


@router.put(
    "/identities/{external_id}",
    response_model=IdentityPayload,
    responses=tagged(200, 201) | failures(412, 413),
)
@writes
def put_identity(
    service: Service, gallery: str, external_id: ExternalId, body: IdentityBody, tags: IfTags, response: Response
) -> Any:
    """Creates the identity, or replaces all its properties; its faces stay.

    With `If-Match` it is only replaced while it has that ETag; with `If-None-Match: *` it is created, never replaced.
    """
    store = service.context.store
    person = _person(external_id, body)
    identity, created = store.identities.put(store.galleries.get(gallery).id, person, check=tags.check)
    response.status_code = 201 if created else 200
    return _tagged(response, identity)


@router.patch(
    "/identities/{external_id}",
    response_model=IdentityPayload,
    responses=tagged(200) | failures(412, 413),
)
@writes
def patch_identity(
    service: Service, gallery: str, external_id: ExternalId, patch: IdentityPatch, tags: IfTags, response: Response
) -> Any:
    """Changes the given properties and keeps the others; null removes, also keys of the metadata."""

    def change(current: Identity) -> Person:
        tags.check(current)
        return _patched(current, patch)

    store = service.context.store
    return _tagged(response, store.identities.change(store.galleries.get(gallery).id, external_id, change))


@router.delete("/identities/{external_id}", response_model=Deleted, responses=failures(412))
@writes
def delete_identity(service: Service, gallery: str, external_id: ExternalId, tags: IfTags) -> Any:
    """Deletes the identity and all its faces. They are never returned again."""
    found = service.context.store.galleries.get(gallery)
    faces = service.context.store.identities.delete(found.id, external_id, tags.check)
    service.follow(found)
    return Deleted(deleted=external_id, faces=faces)


@router.post("/identities/{external_id}/merge", response_model=MergedPayload, responses=failures(413))
@writes
def merge_identities(service: Service, gallery: str, external_id: ExternalId, body: MergeBody) -> Any:
    """Merges the identity `other` into this one: one person under two ids.

    The faces of `other` move to this identity, and `other` is deleted. The properties of this identity are kept, its
    dates too; name and metadata of `other` fill in what this one lacks.
    """
    found = service.context.store.galleries.get(gallery)
    kept, moved = service.context.store.identities.merge(found.id, external_id, body.other)
    service.follow(found)
    return {"identity": identity_object(kept), "merged": body.other, "faces": moved}


@router.get("/identities/{external_id}/faces", response_model=StoredFaceList)
def list_faces(service: Service, gallery: str, external_id: ExternalId, page: Paged) -> Any:
    """Lists the enrolled faces of an identity, oldest first."""
    store = service.context.store
    found = store.faces.list(store.galleries.get(gallery).id, external_id, BY_ID.decode(page.cursor), page.wanted)
    return page.answer("faces", found, lambda face: _face(face, external_id))


@router.post(
    "/identities/{external_id}/faces",
    status_code=201,
    dependencies=[accepts(BodyKind.IMAGES)],
    response_model=EnrolledPayload | ResultsPayload,
    responses=failures(409, 413, 429) | {200: {"model": EnrolledPayload | ResultsPayload}},
    openapi_extra=image_body(ENROLL_FIELDS, several=True),
)
async def enroll_face(service: Service, body: Enroll, request: Request, response: Response) -> Any:
    """Enrolls photos of a person, creating the identity if needed.

    One `image`: 201 enrolled, 200 unchanged (the same bytes are already enrolled), 422 rejected: the code says why.
    `images`, or `image` several times: 200 with one result for each, also if some are rejected.
    """
    results = await enrolling.enroll(service, body, partial(check_key_again, request.scope))
    if body.is_list:
        response.status_code = 200
        return {"results": results}
    (result,) = results
    if result.outcome is Outcome.REJECTED:
        raise enrolling.rejection(result)
    response.status_code = 201 if result.outcome is Outcome.ENROLLED else 200
    return EnrolledPayload.model_validate(result, from_attributes=True)


@router.get("/faces/{face_id}", response_model=StoredFacePayload)
def show_face(service: Service, gallery: str, face_id: FaceId) -> Any:
    """Returns one enrolled face and its identity."""
    store = service.context.store
    found = store.galleries.get(gallery)
    face = store.faces.get(found.id, face_id)
    owner = store.faces.known_images(found.id, [face.image_sha256]).get(face.image_sha256)
    if owner is None:  # deleted just now
        raise NotFound(f"there is no face {face_id} in this gallery", code="face_not_found")
    return _face(face, owner.external_id)


@router.get("/faces/{face_id}/crop", response_class=Response, responses=CROP)
def show_crop(service: Service, gallery: str, face_id: FaceId) -> Response:
    """Returns the kept crop of an enrolled face, 112 x 112 pixels; 404 where crops were not kept."""
    store = service.context.store
    crop = store.faces.crop(store.galleries.get(gallery).id, face_id)
    return Response(crop, media_type=CROP_TYPE, headers={"Cache-Control": "no-store"})


@router.delete("/faces/{face_id}", response_model=Deleted)
@writes
def delete_face(service: Service, gallery: str, face_id: FaceId) -> Any:
    """Deletes one face; the identity stays."""
    found = service.context.store.galleries.get(gallery)
    service.context.store.faces.delete(found.id, face_id)
    service.follow(found)
    return Deleted(deleted=str(face_id), faces=1)


def _tagged(response: Response, identity: Identity) -> dict[str, Any]:
    response.headers["ETag"] = etag_of(identity)
    return identity_object(identity)


def _face(face: StoredFace, external_id: str) -> dict[str, Any]:
    return {**face_object(face), "external_id": external_id}


def _person(external_id: str, body: IdentityBody) -> Person:
    return Person(external_id, body.name, body.valid_from, body.valid_until, body.metadata)


def _patched(current: Identity, patch: IdentityPatch) -> Person:
    """Returns the properties of a person after a patch (RFC 7396)."""
    changes = {name: getattr(patch, name) for name in patch.model_fields_set}
    if "metadata" in changes:
        changes["metadata"] = {} if patch.metadata is None else _merged(current.metadata, patch.metadata)
    kept = {name: getattr(current, name) for name in ("name", "valid_from", "valid_until", "metadata")}
    return Person(current.external_id, **{**kept, **changes})


def _merged(current: object, patch: Mapping[str, object]) -> dict[str, object]:
    merged = dict(current) if isinstance(current, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value) if isinstance(value, Mapping) else value
    return merged
