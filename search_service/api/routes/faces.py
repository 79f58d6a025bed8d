"""Search, detect, compare, embed: what is done with one probe."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from indexer.errors import InvalidRequest
from indexer.types import Pick, Reason
from indexer.vision import packs
from indexer.vision.packs import PACKS, find_pack
from search_service.api.payloads import (
    AnswerPayload,
    ComparePayload,
    DetectPayload,
    EmbedPayload,
    answer_payload,
    compare_payload,
    detect_payload,
    embed_payload,
)
from search_service.api.requests import pick_of, query_of, read_body
from search_service.api.routes.openapi import image_body
from search_service.api.state import Service
from search_service.batching import Kind
from search_service.search import compare_seen

router = APIRouter(prefix="/v1", tags=["faces"])

WHICH = {"pick": "`largest` (the default), `center` or `only`", "all_faces": "true for every face"}


@router.post(
    "/galleries/{gallery}/search",
    response_model=AnswerPayload,
    openapi_extra=image_body(
        "image",
        fields={
            "top_k": "How many identities to return (5).",
            "fpir": "Share of strangers that may be answered with a match (0.01).",
            "threshold": "Or the cosine itself.",
            **WHICH,
        },
        embedding=True,
    ),
)
async def search(service: Service, gallery: str, request: Request) -> Any:
    """Who is this, out of the people enrolled? Multipart `image`, or JSON with `image` (base64) or `embedding`."""
    body = await read_body(request, "image")
    body.only("image", "embedding", "top_k", "fpir", "threshold", "pick", "all_faces")
    query = query_of(body.values)
    found = await service.gallery(gallery)
    if "embedding" in body.values:
        if body.images:
            raise InvalidRequest("give image or embedding, not both")
        values = body.values["embedding"]
        answer = await service.off_loop(service.search.search_embeddings, values, found, query)
        return answer_payload(answer, None)
    image = body.image("image")
    pipeline = service.home.pipeline_of(found)
    seen = await service.batcher.describe([image.data], pipeline, Kind(query.pick))
    (answer,) = await service.off_loop(service.search.search_seen, seen, found, query)
    if answer.error is not None:
        raise answer.error
    return answer_payload(answer, image.name)


@router.post("/detect", response_model=DetectPayload, openapi_extra=image_body("image"))
async def detect(service: Service, request: Request) -> Any:
    """All faces of an image, largest first, with their quality; none is an empty list."""
    image = (await read_body(request, "image")).only("image").image("image")
    pipeline = service.home.pipeline(service.home.pack)
    (seen,) = await service.batcher.describe([image.data], pipeline, Kind(None, embed=False))
    if seen.rejection is not None and seen.rejection.code != Reason.NO_FACE:
        raise seen.rejection
    return detect_payload(seen, image.name)


@router.post(
    "/embed", response_model=EmbedPayload, openapi_extra=image_body("image", fields={"model": "Model pack.", **WHICH})
)
async def embed(service: Service, request: Request) -> Any:
    """The embeddings of an image's faces, to be searched or kept elsewhere."""
    body = (await read_body(request, "image")).only("image", "model", "pick", "all_faces")
    image, pick = body.image("image"), pick_of(body.values, Pick.LARGEST)
    pack = find_pack(str(body.values["model"])) if "model" in body.values else service.home.pack
    (seen,) = await service.batcher.describe([image.data], service.home.pipeline(pack), Kind(pick))
    if seen.rejection is not None:
        raise seen.rejection
    return embed_payload(seen, image.name, pack.name, pack.dim)


@router.post(
    "/compare",
    response_model=ComparePayload,
    openapi_extra=image_body("image_a", "image_b", fields={"model": "Model pack."}),
)
async def compare(service: Service, request: Request) -> Any:
    """Whether the largest faces of two images are one person, at a false match rate of 1 in 1,000."""
    body = (await read_body(request, "image_a", "image_b")).only("image_a", "image_b", "model")
    images = [body.image("image_a").data, body.image("image_b").data]
    pack = find_pack(str(body.values["model"])) if "model" in body.values else service.home.pack
    seen = await service.batcher.describe(images, service.home.pipeline(pack), Kind(Pick.LARGEST))
    return compare_payload(compare_seen(seen, pack))


@router.get("/models")
async def models(service: Service) -> dict[str, Any]:
    """The model packs there are, with their licences; `default` is the one new galleries are bound to."""
    return {"models": [packs.describe(pack) for pack in PACKS.values()], "default": service.home.pack.name}
