"""/v1/galleries/{gallery}/identities and their faces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import AfterValidator

from indexer.errors import Conflict, NotFound
from indexer.serializers import face_object, identity_object
from indexer.types import Identity, Outcome, Person, Pick, StoredFace
from search_service.api import enrolling
from search_service.api.etags import Asked, etag_of
from search_service.api.paths import with_slashes
from search_service.api.payloads import (
    Deleted,
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
    enrolled_payload,
)
from search_service.api.permissions import BodyKind, accepts, requires
from search_service.api.requests import IMAGE, IMAGES, LARGEST_ID, cursor_after, page_of, pick_of, read_body
from search_service.api.routes.galleries import Cursor, Limit
from search_service.api.routes.openapi import failures, images_body, pick_field, tagged
from search_service.api.state import Service
from search_service.store.api_keys import Scope

router = APIRouter(prefix="/v1/galleries/{gallery}", tags=["identities"], dependencies=[requires(Scope.ENROLL)])

ExternalId = Annotated[
    str, Path(description="The caller's key of the person, percent-encoded."), AfterValidator(with_slashes)
]
FaceId = Annotated[int, Path(ge=1, le=LARGEST_ID)]


@router.get("/identities", response_model=IdentityList)
async def list_identities(service: Service, gallery: str, limit: Limit = 100, cursor: Cursor = None) -> Any:
    """The people of a gallery, in the order of their making."""

    def page() -> dict[str, Any]:
        store = service.context.store
        found = store.identities.list(store.galleries.get(gallery).id, cursor_after(cursor), limit + 1)
        shown, following = page_of(found, limit)
        return {"identities": [identity_object(person) for person in shown], "cursor": following}

    return await service.off_loop(page)


@router.post("/identities", status_code=201, response_model=IdentityPayload, responses=tagged(201) | failures(409, 413))
async def create_identity(service: Service, gallery: str, new: NewIdentity, response: Response) -> Any:
    """Makes an identity, without faces yet."""

    def create() -> Identity:
        store = service.context.store
        identity, made = store.identities.put(
            store.galleries.get(gallery).id, _person(new.external_id, new), replace=False
        )
        if not made:
            raise Conflict(f"there is an identity {new.external_id!r} already", code="identity_exists")
        return identity

    return _tagged(response, await service.off_loop(create))


@router.get(
    "/identities/{external_id}",
    response_model=IdentityPayload,
    responses=tagged(200) | {304: {"description": "`If-None-Match` names the state that it is in."}},
)
async def show_identity(
    service: Service, gallery: str, external_id: ExternalId, asked: Asked, response: Response
) -> Any:
    """One person, and what is said of them."""

    def show() -> Identity:
        store = service.context.store
        return store.identities.get(store.galleries.get(gallery).id, external_id)

    found = await service.off_loop(show)
    if asked.is_known(found):
        return Response(status_code=304, headers={"ETag": etag_of(found)})
    return _tagged(response, found)


@router.put(
    "/identities/{external_id}",
    response_model=IdentityPayload,
    responses=tagged(200, 201) | failures(412, 413),
)
async def put_identity(
    service: Service, gallery: str, external_id: ExternalId, said: IdentityBody, asked: Asked, response: Response
) -> Any:
    """Makes the identity, or replaces all that is said of it; its faces stay.

    With `If-Match` it is replaced only in the state of that ETag; with `If-None-Match: *` it is made, never replaced.
    """

    def put() -> tuple[Identity, bool]:
        store = service.context.store
        return store.identities.put(store.galleries.get(gallery).id, _person(external_id, said), check=asked.check)

    identity, made = await service.off_loop(put)
    response.status_code = 201 if made else 200
    return _tagged(response, identity)


@router.patch(
    "/identities/{external_id}",
    response_model=IdentityPayload,
    responses=tagged(200) | failures(412, 413),
)
async def patch_identity(
    service: Service, gallery: str, external_id: ExternalId, said: IdentityPatch, asked: Asked, response: Response
) -> Any:
    """Changes what is named and leaves the rest as it is; null removes, also keys of the metadata."""

    def change(there: Identity) -> Person:
        asked.check(there)
        return _patched(there, said)

    def patch() -> Identity:
        store = service.context.store
        return store.identities.change(store.galleries.get(gallery).id, external_id, change)

    return _tagged(response, await service.off_loop(patch))


@router.delete("/identities/{external_id}", response_model=Deleted, responses=failures(412))
async def delete_identity(service: Service, gallery: str, external_id: ExternalId, asked: Asked) -> Any:
    """Deletes the person and all their faces. They are never returned again."""

    def delete() -> Deleted:
        found = service.context.store.galleries.get(gallery)
        faces = service.context.store.identities.delete(found.id, external_id, asked.check)
        service.follow(found)
        return Deleted(deleted=external_id, faces=faces)

    return await service.off_loop(delete)


@router.post("/identities/{external_id}/merge", response_model=MergedPayload, responses=failures(413))
async def merge_identities(service: Service, gallery: str, external_id: ExternalId, body: MergeBody) -> Any:
    """Joins the identity `other` into this one: one person under two ids.

    The faces of `other` become those of this one, and it is gone. What is said of this one counts, its dates too; name
    and metadata of `other` are taken where nothing is said of this one.
    """

    def merge() -> dict[str, Any]:
        found = service.context.store.galleries.get(gallery)
        kept, moved = service.context.store.identities.merge(found.id, external_id, body.other)
        service.follow(found)
        return {"identity": identity_object(kept), "merged": body.other, "faces": moved}

    return await service.off_loop(merge)


@router.get("/identities/{external_id}/faces", response_model=StoredFaceList)
async def list_faces(
    service: Service, gallery: str, external_id: ExternalId, limit: Limit = 100, cursor: Cursor = None
) -> Any:
    """The enrolled faces of a person, in the order of their enrolment."""

    def page() -> dict[str, Any]:
        store = service.context.store
        found = store.faces.list(store.galleries.get(gallery).id, external_id, cursor_after(cursor), limit + 1)
        shown, following = page_of(found, limit)
        return {"faces": [_face(face, external_id) for face in shown], "cursor": following}

    return await service.off_loop(page)


@router.post(
    "/identities/{external_id}/faces",
    dependencies=[accepts(BodyKind.IMAGES)],
    status_code=201,
    response_model=EnrolledPayload | ResultsPayload,
    responses=failures(409, 413, 429) | {200: {"model": EnrolledPayload | ResultsPayload}},
    openapi_extra=images_body({"pick": pick_field(Pick, Pick.ONLY)}),
)
async def enroll_face(
    service: Service, gallery: str, external_id: ExternalId, request: Request, response: Response
) -> Any:
    """Enrols photos of a person, making the identity where it is missing.

    One `image`: 201 enrolled, 200 unchanged (the same bytes are enrolled already), 422 rejected: the code says why.
    `images`, or `image` several times: 200 with a result each, whatever became of them.
    """
    body = (await read_body(request, IMAGE, IMAGES)).only(IMAGE, IMAGES, "pick")
    photos, pick = body.all_images(), pick_of(body.values, Pick.ONLY)
    found = await service.gallery(gallery)
    results = await enrolling.enroll(service, found, external_id, photos, pick)
    told = [enrolled_payload(result, photo.name) for result, photo in zip(results, photos, strict=True)]
    if body.several:
        response.status_code = 200
        return ResultsPayload(results=told)
    if results[0].outcome is Outcome.REJECTED:
        raise enrolling.rejection(results[0])
    response.status_code = 201 if results[0].outcome is Outcome.ENROLLED else 200
    return told[0]


@router.get("/faces/{face_id}", response_model=StoredFacePayload)
async def show_face(service: Service, gallery: str, face_id: FaceId) -> Any:
    """One enrolled face, and whose it is."""

    def show() -> dict[str, Any]:
        store = service.context.store
        found = store.galleries.get(gallery)
        face = store.faces.get(found.id, face_id)
        owner = store.faces.known_images(found.id, [face.image_sha256]).get(face.image_sha256)
        if owner is None:  # deleted this moment
            raise NotFound(f"there is no face {face_id} in this gallery", code="face_not_found")
        return _face(face, owner.external_id)

    return await service.off_loop(show)


@router.delete("/faces/{face_id}", response_model=Deleted)
async def delete_face(service: Service, gallery: str, face_id: FaceId) -> Any:
    """Deletes one face; the identity stays."""

    def delete() -> Deleted:
        found = service.context.store.galleries.get(gallery)
        service.context.store.faces.delete(found.id, face_id)
        service.follow(found)
        return Deleted(deleted=str(face_id), faces=1)

    return await service.off_loop(delete)


def _tagged(response: Response, identity: Identity) -> dict[str, Any]:
    response.headers["ETag"] = etag_of(identity)
    return identity_object(identity)


def _face(face: StoredFace, external_id: str) -> dict[str, Any]:
    return {**face_object(face), "external_id": external_id}


def _person(external_id: str, said: IdentityBody) -> Person:
    return Person(external_id, said.name, said.valid_from, said.valid_until, said.metadata)


def _patched(there: Identity, said: IdentityPatch) -> Person:
    """What is said of a person after the patch (RFC 7396)."""
    named = said.model_fields_set
    return Person(
        there.external_id,
        said.name if "name" in named else there.name,
        said.valid_from if "valid_from" in named else there.valid_from,
        said.valid_until if "valid_until" in named else there.valid_until,
        _merged(there.metadata, said.metadata or {}) if said.metadata is not None or "metadata" not in named else {},
    )


def _merged(there: object, patch: Mapping[str, object]) -> dict[str, object]:
    merged = dict(there) if isinstance(there, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value) if isinstance(value, Mapping) else value
    return merged
