"""/v1/galleries/{gallery}/identities and their faces."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import AfterValidator

from indexer.enrollment import another_identity, looks_like, new_face
from indexer.errors import Conflict, NotFound
from indexer.objects import face_object, identity_object
from indexer.types import Gallery, Outcome, Person, Pick, StoredFace, sha256
from search_service.api.paths import with_slashes
from search_service.api.payloads import (
    Deleted,
    EnrolledPayload,
    IdentityBody,
    IdentityList,
    IdentityPayload,
    NewIdentity,
    StoredFaceList,
    StoredFacePayload,
)
from search_service.api.requests import LARGEST_ID, cursor_after, page_of, pick_of, read_body
from search_service.api.routes.galleries import Cursor, Limit
from search_service.api.routes.openapi import failures, image_body, pick_field
from search_service.api.state import Service, State
from search_service.batching import Kind

router = APIRouter(prefix="/v1/galleries/{gallery}", tags=["identities"])

ExternalId = Annotated[
    str, Path(description="The caller's key of the person, percent-encoded."), AfterValidator(with_slashes)
]
FaceId = Annotated[int, Path(ge=1, le=LARGEST_ID)]


@router.get("/identities", response_model=IdentityList)
async def list_identities(service: Service, gallery: str, limit: Limit = 100, cursor: Cursor = None) -> Any:
    """The people of a gallery, in the order of their making."""

    def page() -> dict[str, Any]:
        store = service.home.store
        found = store.identities(store.gallery(gallery).id, cursor_after(cursor), limit + 1)
        shown, following = page_of(found, limit)
        return {"identities": [identity_object(person) for person in shown], "cursor": following}

    return await service.off_loop(page)


@router.post("/identities", status_code=201, response_model=IdentityPayload, responses=failures(409, 413))
async def create_identity(service: Service, gallery: str, new: NewIdentity) -> Any:
    """Makes an identity, without faces yet."""

    def create() -> dict[str, Any]:
        store = service.home.store
        identity, made = store.put_identity(store.gallery(gallery).id, _person(new.external_id, new), replace=False)
        if not made:
            raise Conflict(f"there is an identity {new.external_id!r} already", code="identity_exists")
        return identity_object(identity)

    return await service.off_loop(create)


@router.get("/identities/{external_id}", response_model=IdentityPayload)
async def show_identity(service: Service, gallery: str, external_id: ExternalId) -> Any:
    def show() -> dict[str, Any]:
        store = service.home.store
        return identity_object(store.identity(store.gallery(gallery).id, external_id))

    return await service.off_loop(show)


@router.put("/identities/{external_id}", response_model=IdentityPayload, responses=failures(413))
async def put_identity(
    service: Service, gallery: str, external_id: ExternalId, said: IdentityBody, response: Response
) -> Any:
    """Makes the identity, or replaces all that is said of it; its faces stay."""

    def put() -> tuple[dict[str, Any], bool]:
        store = service.home.store
        identity, made = store.put_identity(store.gallery(gallery).id, _person(external_id, said))
        return identity_object(identity), made

    shown, made = await service.off_loop(put)
    response.status_code = 201 if made else 200
    return shown


@router.delete("/identities/{external_id}", response_model=Deleted)
async def delete_identity(service: Service, gallery: str, external_id: ExternalId) -> Any:
    """Deletes the person and all their faces. They are never returned again."""

    def delete() -> Deleted:
        found = service.home.store.gallery(gallery)
        faces = service.home.store.delete_identity(found.id, external_id)
        _follow(service, found)
        return Deleted(deleted=external_id, faces=faces)

    return await service.off_loop(delete)


@router.get("/identities/{external_id}/faces", response_model=StoredFaceList)
async def list_faces(
    service: Service, gallery: str, external_id: ExternalId, limit: Limit = 100, cursor: Cursor = None
) -> Any:
    """The enrolled faces of a person, in the order of their enrolment."""

    def page() -> dict[str, Any]:
        store = service.home.store
        found = store.faces(store.gallery(gallery).id, external_id, cursor_after(cursor), limit + 1)
        shown, following = page_of(found, limit)
        return {"faces": [_face(face, external_id) for face in shown], "cursor": following}

    return await service.off_loop(page)


@router.post(
    "/identities/{external_id}/faces",
    status_code=201,
    response_model=EnrolledPayload,
    responses=failures(409, 413, 429),
    openapi_extra=image_body("image", fields={"pick": pick_field(Pick, Pick.ONLY)}),
)
async def enroll_face(
    service: Service, gallery: str, external_id: ExternalId, request: Request, response: Response
) -> Any:
    """Enrols one photo of a person, making the identity where it is missing.

    201 enrolled, 200 unchanged (the same bytes are enrolled already), 422 rejected: the code says why.
    """
    body = (await read_body(request, "image")).only("image", "pick")
    image = body.image("image")
    pick = pick_of(body.values, Pick.ONLY)
    found = await service.gallery(gallery)
    sha = await service.off_loop(sha256, image.data)
    known = (await service.off_loop(service.home.store.known_images, found.id, [sha])).get(sha)
    if known is not None and known.external_id == external_id:
        response.status_code = 200
        return _enrolled(image.name, external_id, Outcome.UNCHANGED, known.face_id)
    if known is not None:
        raise another_identity(known.external_id)
    pipeline = service.home.pipeline_of(found)
    (seen,) = await service.batcher.describe([image.data], pipeline, Kind(pick, gate=True))
    if seen.rejection is not None:
        raise seen.rejection

    def commit() -> EnrolledPayload:
        new = new_face(Person(external_id), sha, seen.faces[0], service.home.settings.keep_crops)
        lookalikes = service.home.lookalikes(found)
        alike = lookalikes.find([new])[0] if lookalikes else None
        if alike is not None and lookalikes is not None and lookalikes.hold:
            raise looks_like(alike)
        (became,) = service.home.store.enroll(found, [new])
        if became.outcome is Outcome.REJECTED:
            raise another_identity(became.owner or "")
        _follow(service, found)
        told = _enrolled(image.name, external_id, became.outcome, became.face_id)
        if alike is None or became.outcome is not Outcome.ENROLLED:
            return told
        return told.model_copy(update={"message": alike.message, "details": alike.details})

    enrolled = await service.off_loop(commit)
    response.status_code = 201 if enrolled.outcome == Outcome.ENROLLED else 200
    return enrolled


@router.get("/faces/{face_id}", response_model=StoredFacePayload)
async def show_face(service: Service, gallery: str, face_id: FaceId) -> Any:
    """One enrolled face, and whose it is."""

    def show() -> dict[str, Any]:
        store = service.home.store
        found = store.gallery(gallery)
        face = store.face(found.id, face_id)
        owner = store.known_images(found.id, [face.image_sha256]).get(face.image_sha256)
        if owner is None:  # deleted this moment
            raise NotFound(f"there is no face {face_id} in this gallery", code="face_not_found")
        return _face(face, owner.external_id)

    return await service.off_loop(show)


@router.delete("/faces/{face_id}", response_model=Deleted)
async def delete_face(service: Service, gallery: str, face_id: FaceId) -> Any:
    """Deletes one face; the identity stays."""

    def delete() -> Deleted:
        found = service.home.store.gallery(gallery)
        service.home.store.delete_face(found.id, face_id)
        _follow(service, found)
        return Deleted(deleted=str(face_id), faces=1)

    return await service.off_loop(delete)


def _follow(service: State, gallery: Gallery) -> None:
    """The index learns of what was committed. Where the gallery was re-embedded since, that one is no more, and the
    next one has it from SQL."""
    try:
        service.home.indexes.of(gallery).caught_up()
    except Conflict as error:
        if error.code != "model_mismatch":
            raise


def _face(face: StoredFace, external_id: str) -> dict[str, Any]:
    return {**face_object(face), "external_id": external_id}


def _enrolled(image: str | None, external_id: str, outcome: Outcome, face_id: int | None) -> EnrolledPayload:
    return EnrolledPayload(image=image, external_id=external_id, outcome=outcome, reason=None, face_id=face_id)


def _person(external_id: str, said: IdentityBody) -> Person:
    return Person(external_id, said.name, said.valid_from, said.valid_until, said.metadata)
