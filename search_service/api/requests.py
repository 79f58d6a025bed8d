"""Requests with images, each parsed and validated once into one value.

The `read_` functions are FastAPI dependencies. All raise InvalidRequest; those that look up a gallery or a model pack
raise NotFound. The `_FIELDS` are both the known fields of a body and their description in OpenAPI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Request

from indexer.errors import InvalidRequest, InvalidVector
from indexer.models.packs import Pack
from indexer.types import Gallery, LivenessMode, Pick
from search_service.api.bodies import IMAGE, IMAGES, Body, Upload, read_body
from search_service.api.errors import request_id
from search_service.api.paths import ExternalId
from search_service.api.shortening import short
from search_service.api.state import Service
from search_service.events.recording import LONGEST_COOLDOWN_SECONDS, Recording
from search_service.search import MAX_TOP_K, MIN_FPIR, Query
from search_service.store.event_pages import Direction

Fields = Mapping[str, Mapping[str, Any]]

PROBE_PICKS = (Pick.LARGEST, Pick.CENTER)
"""Choices of a search, which unlike an enrollment does not reject images with several faces."""


def pick_field(choices: Iterable[Pick], default: Pick) -> dict[str, Any]:
    """Returns the schema of `pick`."""
    text = f"Which face is used if the image has several; `{default}` by default."
    return {"type": "string", "enum": [str(choice) for choice in choices], "description": text}


def liveness_field(text: str) -> Fields:
    """Returns the schema of `liveness`."""
    about = "What is done about presentation attacks: `report` shows each face's liveness, `require` also refuses "
    schema = {"type": "string", "enum": [str(mode) for mode in LivenessMode], "description": f"{about}{text}"}
    return {"liveness": schema}


MODEL_FIELD: Fields = {"model": {"type": "string", "description": "Model pack; the service's default if omitted."}}
ALL_FACES_FIELD: Fields = {"all_faces": {"type": "boolean", "description": "true for every face, instead of `pick`."}}
PROBE_LIVENESS_FIELD = liveness_field("faces that are not live. It may only ask for more than WHOSTHERE_LIVENESS.")
ENROLL_FIELDS: Fields = {
    "pick": pick_field(Pick, Pick.ONLY),
    **liveness_field("photos of faces that are not live; by default as in WHOSTHERE_LIVENESS."),
}
COMPARE_FIELDS: Fields = {**MODEL_FIELD, **PROBE_LIVENESS_FIELD}
EMBED_FIELDS: Fields = {**MODEL_FIELD, "pick": pick_field(Pick, Pick.LARGEST), **ALL_FACES_FIELD}
COMPARE_IMAGES = ("image_a", "image_b")
SEARCH_FIELDS: Fields = {
    "top_k": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_TOP_K,
        "description": "How many identities to return (5); 10 at most with the scope `search`.",
    },
    "fpir": {
        "type": "number",
        "minimum": MIN_FPIR,
        "exclusiveMaximum": 1,
        "description": "Share of non-mated probes that may be answered with a match (0.01). With the scope "
        "`search`, not more than the service's own share.",
    },
    "threshold": {
        "type": "number",
        "minimum": -1,
        "maximum": 1,
        "description": "A cosine, instead of `fpir`. With the scope `search` it is rounded up to two decimals, and "
        "raised to the gallery's threshold.",
    },
    "pick": pick_field(PROBE_PICKS, Pick.LARGEST),
    **ALL_FACES_FIELD,
    **PROBE_LIVENESS_FIELD,
    "same_person": {
        "type": "boolean",
        "description": "true if all images show one person, such as frames of a video: one answer from all of them, "
        "weighted by quality.",
    },
    "record": {"type": "boolean", "description": "true to record an event for each face."},
    "device": {"type": "string", "description": "With `record`: which device took the image, such as `north-door`."},
    "direction": {"type": "string", "enum": [str(d) for d in Direction], "description": "Which way people walk there."},
    "cooldown": {
        "type": "number",
        "minimum": 0,
        "maximum": LONGEST_COOLDOWN_SECONDS,
        "description": "Seconds during which a person is recorded once at a device (WHOSTHERE_COOLDOWN_SECONDS).",
    },
}


@dataclass(frozen=True, eq=False)
class SearchRequest:
    """A search by images or by an embedding."""

    gallery: Gallery
    query: Query
    images: Sequence[Upload]
    """Empty where an embedding is searched."""
    embedding: Sequence[float] | None
    same_person: bool
    """Whether one answer is computed from all images together."""
    is_list: bool
    """Whether each image is answered separately."""
    recording: Recording | None
    """How faces are recorded as events; None where they are not."""

    @property
    def probes(self) -> list[bytes]:
        """What is searched, for counting."""
        return [image.data for image in self.images] or [np.asarray(self.embedding).tobytes()]

    @property
    def names(self) -> list[str | None]:
        """The file names of the images; one None for an embedding."""
        return [image.name for image in self.images] or [None]


@dataclass(frozen=True, eq=False)
class EnrollRequest:
    """Photos of one person."""

    gallery: Gallery
    external_id: str
    photos: Sequence[Upload]
    is_list: bool
    """Whether the answer is a list of results."""
    pick: Pick | None
    liveness: LivenessMode


@dataclass(frozen=True, eq=False)
class DescribeRequest:
    """Images whose faces are described by a model pack."""

    images: Sequence[Upload]
    pack: Pack
    pick: Pick | None
    """None means all faces."""
    liveness: LivenessMode = LivenessMode.OFF


async def read_search(request: Request, service: Service, gallery: str) -> SearchRequest:
    """Reads the body of a search. Raises InvalidVector on an embedding that does not fit the gallery."""
    body = await read_body(request, (IMAGE, IMAGES), ("embedding", *SEARCH_FIELDS))
    query = Query(
        top_k=body.integer("top_k", Query.top_k),
        fpir=body.number("fpir"),
        threshold=body.number("threshold"),
        pick=body.pick(Pick.LARGEST, PROBE_PICKS),
        liveness=service.context.search_liveness(body.liveness()),
    )
    recording = _recording(body, service.context.settings.cooldown_seconds, request_id(request))
    embedding = body.values.get("embedding")
    if embedding is not None and (body.images or "same_person" in body.values):
        raise InvalidRequest("give image or embedding, not both; same_person is for images")
    same_person = body.boolean("same_person")
    if same_person and query.pick is None:
        raise InvalidRequest("give same_person or all_faces, not both")
    found = await service.gallery(gallery)
    return SearchRequest(
        found,
        query,
        images=() if embedding is not None else body.all_images(),
        embedding=None if embedding is None else _checked_embedding(embedding, found.dim),
        same_person=same_person,
        is_list=body.is_list and not same_person,
        recording=recording,
    )


async def read_enroll(request: Request, service: Service, gallery: str, external_id: ExternalId) -> EnrollRequest:
    """Reads the photos of one person."""
    body = await read_body(request, (IMAGE, IMAGES), ENROLL_FIELDS)
    photos, pick = body.all_images(), body.pick(Pick.ONLY)
    liveness = service.context.enrollment_liveness(body.liveness())
    return EnrollRequest(await service.gallery(gallery), external_id, photos, body.is_list, pick, liveness)


async def read_detect(request: Request, service: Service) -> DescribeRequest:
    """Reads the one image of a detection."""
    body = await read_body(request, (IMAGE,))
    return DescribeRequest([body.image(IMAGE)], await service.off_loop(service.pack), pick=None)


async def read_embed(request: Request, service: Service) -> DescribeRequest:
    """Reads the one image whose faces are embedded."""
    body = await read_body(request, (IMAGE,), EMBED_FIELDS)
    image, pick = body.image(IMAGE), body.pick(Pick.LARGEST)
    return DescribeRequest([image], await service.off_loop(service.pack, body.values.get("model")), pick)


async def read_compare(request: Request, service: Service) -> DescribeRequest:
    """Reads the two images of a comparison."""
    body = await read_body(request, COMPARE_IMAGES, COMPARE_FIELDS)
    images = [body.image(name) for name in COMPARE_IMAGES]
    liveness = service.context.search_liveness(body.liveness())
    pack = await service.off_loop(service.pack, body.values.get("model"))
    return DescribeRequest(images, pack, Pick.LARGEST, liveness)


Search = Annotated[SearchRequest, Depends(read_search)]
Enroll = Annotated[EnrollRequest, Depends(read_enroll)]
Detect = Annotated[DescribeRequest, Depends(read_detect)]
Embed = Annotated[DescribeRequest, Depends(read_embed)]
Compare = Annotated[DescribeRequest, Depends(read_compare)]


def _recording(body: Body, default_cooldown_seconds: float, request_id: str) -> Recording | None:
    if not body.boolean("record"):
        return None
    device, direction = body.values.get("device"), body.values.get("direction") or None
    if not isinstance(device, str):
        raise InvalidRequest("record needs a device: the name of what took the image, such as north-door")
    if direction is not None and direction not in tuple(Direction):
        raise InvalidRequest(f"direction is {short(direction)}; expected {' or '.join(Direction)}")
    cooldown = body.number("cooldown")
    return Recording(
        device,
        None if direction is None else Direction(direction),
        default_cooldown_seconds if cooldown is None else cooldown,
        request_id,
    )


def _checked_embedding(value: object, dim: int) -> list[float]:
    """Returns one embedding, (dim,). Raises InvalidVector."""
    expected = f"embedding must be a list of {dim} numbers"
    if not isinstance(value, list):
        raise InvalidVector(f"{expected}; got {short(value)}")
    for number in value[: dim + 1]:  # of a longer list, the length is reported
        if isinstance(number, list):
            raise InvalidVector(f"{expected}; got a list of lists (a request holds one embedding)")
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InvalidVector(f"{expected}; got {short(number)} among them")
    if len(value) != dim:
        raise InvalidVector(f"{expected}; got {len(value)}")
    try:
        return [float(number) for number in value]
    except OverflowError:
        raise InvalidVector(f"{expected}; one of them is too large") from None
