"""Search, detect, compare and embed: what is done with one probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from indexer.errors import Conflict
from indexer.types import Reason
from indexer.vision.pipeline import ImageResult
from search_service.api.disclosure import restricted_answer, restricted_comparison, restricted_query
from search_service.api.middleware.idempotency import Memory, memory_of
from search_service.api.models.probes import (
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
    COMPARE_FIELDS,
    COMPARE_IMAGES,
    EMBED_FIELDS,
    SEARCH_FIELDS,
    Compare,
    DescribeRequest,
    Detect,
    Embed,
    Search,
    SearchRequest,
)
from search_service.api.routes.openapi import failures, image_body
from search_service.api.security import check_key_again, check_scope, key_of
from search_service.api.state import Service, State
from search_service.events.recording import record, restore_events, serialize_events
from search_service.inference_queue import Kind
from search_service.search import Answer, compare_described
from search_service.store.api_keys import Scope

router = APIRouter(prefix="/v1", tags=["faces"])

IMAGE_FAILURES = failures(413, 429)


@router.post(
    "/galleries/{gallery}/search",
    dependencies=[requires(Scope.SEARCH), accepts(BodyKind.IMAGES)],
    response_model=AnswerPayload | AnswersPayload,
    responses=failures(409, 413, 429),
    openapi_extra=image_body(SEARCH_FIELDS, several=True, embedding=True),
)
async def search(service: Service, body: Search, request: Request, response: Response) -> Any:
    """Finds the enrolled people who look like the face in an image: multipart `image`, or JSON with `image` (base64)
    or `embedding`.

    `images`, or `image` several times: one answer each, with its own `error` where there is no face; or one answer
    from all of them, with `same_person`. With `record`, an event of each face is recorded, once for each person and
    device during the cooldown.

    A key with the scope `search` gets candidates above the threshold only, at most 10, with scores of two decimals,
    while decisions use exact ones. It cannot lower the threshold, and `embedding` needs the scope `investigate`.
    """
    key = key_of(request)
    if body.embedding is not None:
        check_scope(request, Scope.INVESTIGATE)
    body = replace(body, query=restricted_query(body.query, key))
    if body.recording is None:  # it changes nothing: a repeated request is searched again, as people may be deleted
        response.headers["Cache-Control"] = "no-store"
    counted = await service.off_loop(service.budget.spend, key, body.probes)
    try:
        answers = await _answers(service, body)
    except Conflict as error:  # re-embedded after the gallery was looked up
        if error.code != "model_mismatch" or body.embedding is not None:  # the embedding is the former pack's
            raise
        body = replace(body, gallery=await service.gallery(body.gallery.name))
        answers = await _answers(service, body)
    if counted:
        service.budget.add(key, sum(len(answer.faces[1:]) for answer in answers))
    if not body.is_list and answers[0].error is not None:
        raise answers[0].error
    if body.recording is not None:
        await check_key_again(request.scope)
    recorded = await _recorded(service, body, answers, memory_of(request))
    answers = [restricted_answer(answer, key) for answer in recorded]
    if not body.is_list:
        return answer_payload(answers[0], body.names)
    named = zip(answers, body.names, strict=True)
    return AnswersPayload(answers=[answer_payload(answer, [name]) for answer, name in named])


async def _answers(service: State, body: SearchRequest) -> Sequence[Answer]:
    """Returns one answer for each image, or one for all of them or the embedding."""
    gallery, query = body.gallery, body.query
    if body.embedding is not None:
        return [await service.off_loop(service.search.search_embedding, body.embedding, gallery, query)]
    service.context.indexes.check_ready(gallery)
    pipeline, images = service.context.pipeline_of(gallery), [image.data for image in body.images]
    liveness = service.context.liveness_check(query.liveness)
    if not body.same_person:
        return await service.queue.search(images, pipeline, gallery, query, liveness)
    seen = await service.queue.describe(images, pipeline, Kind(query.pick, liveness=liveness))
    return [await service.off_loop(service.search.search_described_frames, seen, gallery, query)]


async def _recorded(service: State, body: SearchRequest, answers: Sequence[Answer], memory: Memory) -> Sequence[Answer]:
    """Records an event of each face, if requested. A repeated request gets the events recorded the first time."""
    events, recording = service.context.events, body.recording
    if recording is None:
        return answers
    if memory.previous is not None:
        return await service.off_loop(restore_events, events, answers, recording, memory.previous)
    recorded = await service.writers.run(lambda: [record(events, body.gallery, one, recording) for one in answers])
    memory.keep = serialize_events(recorded)
    service.deliverer.wake()
    return recorded


@router.post(
    "/detect",
    dependencies=[requires(Scope.SEARCH), accepts(BodyKind.IMAGES)],
    response_model=DetectPayload,
    responses=IMAGE_FAILURES,
    openapi_extra=image_body({}),
)
async def detect(service: Service, body: Detect) -> Any:
    """Returns all faces of an image with their quality, largest first; an empty list if there are none."""
    (seen,) = await _described(service, body, embed=False)
    if seen.rejection is not None and seen.rejection.code != Reason.NO_FACE:
        raise seen.rejection
    return detect_payload(seen, body.images[0].name)


@router.post(
    "/embed",
    dependencies=[requires(Scope.INVESTIGATE), accepts(BodyKind.IMAGES)],
    response_model=EmbedPayload,
    responses=IMAGE_FAILURES,
    openapi_extra=image_body(EMBED_FIELDS),
)
async def embed(service: Service, body: Embed) -> Any:
    """Returns the embeddings of an image's faces, to be searched or stored elsewhere."""
    (seen,) = await _described(service, body)
    if seen.rejection is not None:
        raise seen.rejection
    return embed_payload(seen, body.images[0].name, body.pack.name, body.pack.dim)


@router.post(
    "/compare",
    dependencies=[requires(Scope.SEARCH), accepts(BodyKind.IMAGES)],
    response_model=ComparePayload,
    responses=IMAGE_FAILURES,
    openapi_extra=image_body(COMPARE_FIELDS, COMPARE_IMAGES),
)
async def compare(service: Service, body: Compare, request: Request) -> Any:
    """Returns whether the largest faces of two images show one person, at a false match rate of 1 in 1,000. Keys with
    the scope `search` get a score of two decimals."""
    compared = compare_described(await _described(service, body), body.pack, body.liveness)
    return compare_payload(restricted_comparison(compared, key_of(request)))


@router.get("/models", response_model=ModelsPayload, dependencies=[requires(Scope.SEARCH)])
def models(service: Service) -> Any:
    """Lists the model packs and their licences. `default` is the pack that new galleries use."""
    packs = service.context.packs
    return {"models": [packs.describe(name) for name in packs.names()], "default": service.context.pack.name}


async def _described(service: State, body: DescribeRequest, embed: bool = True) -> list[ImageResult]:
    pipeline = service.context.pipeline(body.pack)
    kind = Kind(body.pick, embed, liveness=service.context.liveness_check(body.liveness))
    return await service.queue.describe([image.data for image in body.images], pipeline, kind)
