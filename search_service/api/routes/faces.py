"""Search, detect, compare, embed: what is done with one probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from indexer.errors import Conflict, InvalidRequest
from indexer.types import Gallery, Pick, Reason
from search_service.api.errors import request_id
from search_service.api.idempotency import Memory, memory_of
from search_service.api.payloads import (
    AnswerPayload,
    AnswersPayload,
    ComparePayload,
    DetectPayload,
    EmbedPayload,
    ModelsPayload,
    answer_payload,
    compare_payload,
    detect_payload,
    embed_payload,
)
from search_service.api.permissions import BodyKind, accepts, requires
from search_service.api.requests import (
    IMAGE,
    IMAGES,
    PROBE_PICKS,
    RECORDED,
    Body,
    embedding_of,
    pick_of,
    query_of,
    read_body,
    recording_of,
    truth,
)
from search_service.api.routes.openapi import ALL_FACES, MODEL, failures, image_body, images_body, pick_field
from search_service.api.state import Service, State
from search_service.events.recording import LONGEST_COOLDOWN_SECONDS, Recording, record, remembered, told_again
from search_service.inference_queue import Kind
from search_service.search import MAX_TOP_K, MIN_FPIR, Answer, Query, compare_seen
from search_service.store.api_keys import Scope
from search_service.store.events import Direction

router = APIRouter(prefix="/v1", tags=["faces"], dependencies=[requires(Scope.SEARCH)])

IMAGE_FAILURES = failures(413, 429)


RECORD_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "record": {"type": "boolean", "description": "true to record an event of each face."},
    "device": {"type": "string", "description": "With `record`: what the image was taken by, as `north-door`."},
    "direction": {"type": "string", "enum": [str(d) for d in Direction], "description": "Where they are going."},
    "cooldown": {
        "type": "number",
        "minimum": 0,
        "maximum": LONGEST_COOLDOWN_SECONDS,
        "description": "Seconds in which a person is recorded once at a device (WHOSTHERE_COOLDOWN_SECONDS).",
    },
}


@router.post(
    "/galleries/{gallery}/search",
    dependencies=[accepts(BodyKind.IMAGES)],
    response_model=AnswerPayload | AnswersPayload,
    responses=failures(409, 413, 429),
    openapi_extra=images_body(
        {
            "top_k": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_TOP_K,
                "description": "How many identities to return (5).",
            },
            "fpir": {
                "type": "number",
                "minimum": MIN_FPIR,
                "exclusiveMaximum": 1,
                "description": "Share of strangers that may be answered with a match (0.01).",
            },
            "threshold": {"type": "number", "minimum": -1, "maximum": 1, "description": "Or the cosine itself."},
            "pick": pick_field(PROBE_PICKS, Pick.LARGEST),
            "all_faces": ALL_FACES,
            "same_person": {
                "type": "boolean",
                "description": "true where all images are of one person, as frames of a video: one answer from them "
                "together, each counting for its quality.",
            },
            **RECORD_FIELDS,
        },
        embedding=True,
    ),
)
async def search(service: Service, gallery: str, request: Request, response: Response) -> Any:
    """Who is this, out of the people enrolled? Multipart `image`, or JSON with `image` (base64) or `embedding`.

    `images`, or `image` several times: an answer each, with its own `error` where there are no faces to search; or one
    answer from all together, with `same_person`. With `record`, an event of each face is recorded: once a person,
    device and cooldown.
    """
    body = await read_body(request, IMAGE, IMAGES)
    body.only(IMAGE, IMAGES, "embedding", "top_k", "fpir", "threshold", "pick", "all_faces", "same_person", *RECORDED)
    query = query_of(body.values)
    recording = recording_of(body.values, service.context.settings.cooldown_seconds, request_id(request))
    if recording is None:  # nothing was changed: made again, it is answered as it is then, whoever was deleted since
        response.headers["Cache-Control"] = "no-store"
    if "embedding" in body.values and (body.images or "same_person" in body.values):
        raise InvalidRequest("give image or embedding, not both; same_person is for images")
    if truth(body.values, "same_person") and query.pick is None:
        raise InvalidRequest("give same_person or all_faces, not both")
    found = await service.gallery(gallery)
    try:
        answers = await _search(service, found, body, query)
    except Conflict as error:  # re-embedded between the look at the gallery and the look at its index
        if error.code != "model_mismatch" or "embedding" in body.values:  # one that the former pack made
            raise
        found = await service.gallery(gallery)
        answers = await _search(service, found, body, query)
    names = [None] if "embedding" in body.values else [image.name for image in body.all_images()]
    if _apart(body):
        answers = await _recorded(service, found, answers, recording, memory_of(request))
        told = zip(answers, names, strict=True)
        return AnswersPayload(answers=[answer_payload(answer, [name]) for answer, name in told])
    if answers[0].error is not None:
        raise answers[0].error
    (answer,) = await _recorded(service, found, answers, recording, memory_of(request))
    return answer_payload(answer, names)


def _apart(body: Body) -> bool:
    """Whether each of several images is answered by itself."""
    return "embedding" not in body.values and body.several and not truth(body.values, "same_person")


async def _search(service: State, gallery: Gallery, body: Body, query: Query) -> Sequence[Answer]:
    if "embedding" in body.values:
        values = embedding_of(body.values["embedding"], gallery.dim)
        return [await service.off_loop(service.search.search_embedding, values, gallery, query)]
    images = [image.data for image in body.all_images()]
    pipeline = service.context.pipeline_of(gallery)
    if truth(body.values, "same_person"):
        seen = await service.queue.describe(images, pipeline, Kind(query.pick))
        return [await service.off_loop(service.search.search_seen_frames, seen, gallery, query)]
    return await service.queue.search(images, pipeline, gallery, query)


async def _recorded(
    service: State, gallery: Gallery, answers: Sequence[Answer], recording: Recording | None, memory: Memory
) -> Sequence[Answer]:
    """The answers with the events of their faces, where those are to be recorded; with those that were, where the
    request is made again."""
    events = service.context.events
    if recording is None:
        return answers
    if memory.then is not None:
        return await service.off_loop(told_again, events, answers, recording, memory.then)
    told = await service.off_loop(lambda: [record(events, gallery, one, recording) for one in answers])
    memory.keep = remembered(told)
    service.deliverer.wake()
    return told


@router.post(
    "/detect",
    dependencies=[accepts(BodyKind.IMAGES)],
    response_model=DetectPayload,
    responses=IMAGE_FAILURES,
    openapi_extra=image_body("image"),
)
async def detect(service: Service, request: Request) -> Any:
    """All faces of an image, largest first, with their quality; none is an empty list."""
    image = (await read_body(request, "image")).only("image").image("image")
    pipeline = service.context.pipeline(await service.off_loop(service.pack))
    (seen,) = await service.queue.describe([image.data], pipeline, Kind(None, embed=False))
    if seen.rejection is not None and seen.rejection.code != Reason.NO_FACE:
        raise seen.rejection
    return detect_payload(seen, image.name)


@router.post(
    "/embed",
    dependencies=[accepts(BodyKind.IMAGES)],
    response_model=EmbedPayload,
    responses=IMAGE_FAILURES,
    openapi_extra=image_body(
        "image", fields={"model": MODEL, "pick": pick_field(Pick, Pick.LARGEST), "all_faces": ALL_FACES}
    ),
)
async def embed(service: Service, request: Request) -> Any:
    """The embeddings of an image's faces, to be searched or kept elsewhere."""
    body = (await read_body(request, "image")).only("image", "model", "pick", "all_faces")
    image, pick = body.image("image"), pick_of(body.values, Pick.LARGEST)
    pack = await service.off_loop(service.pack, body.values.get("model"))
    (seen,) = await service.queue.describe([image.data], service.context.pipeline(pack), Kind(pick))
    if seen.rejection is not None:
        raise seen.rejection
    return embed_payload(seen, image.name, pack.name, pack.dim)


@router.post(
    "/compare",
    dependencies=[accepts(BodyKind.IMAGES)],
    response_model=ComparePayload,
    responses=IMAGE_FAILURES,
    openapi_extra=image_body("image_a", "image_b", fields={"model": MODEL}),
)
async def compare(service: Service, request: Request) -> Any:
    """Whether the largest faces of two images are one person, at a false match rate of 1 in 1,000."""
    body = (await read_body(request, "image_a", "image_b")).only("image_a", "image_b", "model")
    images = [body.image("image_a").data, body.image("image_b").data]
    pack = await service.off_loop(service.pack, body.values.get("model"))
    seen = await service.queue.describe(images, service.context.pipeline(pack), Kind(Pick.LARGEST))
    return compare_payload(compare_seen(seen, pack))


@router.get("/models", response_model=ModelsPayload)
async def models(service: Service) -> Any:
    """The model packs there are, with their licences; `default` is the one new galleries are bound to."""
    return await service.off_loop(_models, service)


def _models(service: State) -> dict[str, Any]:
    home = service.context
    return {"models": [home.packs.describe(name) for name in home.packs.names()], "default": home.pack.name}
