"""Additions to the OpenAPI document: bodies that may be multipart or JSON, errors, examples, `Idempotency-Key`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from indexer.gallery.schema import MAX_NAME_LENGTH
from search_service.api.bodies import IMAGE, IMAGES, MAX_IMAGES
from search_service.api.examples import BASE64, example_of
from search_service.api.middleware import idempotency
from search_service.api.middleware.idempotency import CHANGES_NOTHING
from search_service.api.models.base import ErrorAnswer
from search_service.api.models.identities import IdentityPayload
from search_service.api.requests import Fields

Responses = dict[int | str, dict[str, Any]]

IDEMPOTENCY_KEY: Mapping[str, Any] = {
    "name": idempotency.HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
    "description": "A unique value for each request. A repeated request is not executed again: for 24 hours it gets "
    f"the same answer, with `{idempotency.REPLAYED}: true`. A repeated search is searched again, but not recorded.",
}

EMBEDDING: Mapping[str, Any] = {
    "type": "array",
    "items": {"type": "number"},
    "description": "Instead of an image: numbers of unit length, made with the gallery's model pack.",
}


def document(app: FastAPI) -> None:
    """Adds an example of each object, and to each POST that changes something the `Idempotency-Key` and its 409."""
    generate = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schemas = document["components"]["schemas"]
            for schema in schemas.values():
                if schema["type"] == "object":
                    schema["examples"] = [example_of(schema, schemas)]
            for path, methods in document["paths"].items():
                if "post" in methods and path not in CHANGES_NOTHING:
                    methods["post"].setdefault("parameters", []).append(IDEMPOTENCY_KEY)
                    methods["post"]["responses"].setdefault("409", methods["post"]["responses"]["400"])
        return app.openapi_schema or {}

    app.openapi = complete  # type: ignore[method-assign]


def failures(*statuses: int) -> Responses:
    """Returns the `responses` of a route that may answer with these errors."""
    return {status: {"model": ErrorAnswer} for status in statuses}


def tagged(*statuses: int) -> Responses:
    """Returns the `responses` of a route that answers with one identity and its ETag."""
    tag = {"ETag": {"schema": {"type": "string"}, "description": "Identifies the identity's current state."}}
    return {status: {"model": IdentityPayload, "headers": tag} for status in statuses}


def image_body(
    fields: Fields, images: Sequence[str] = (IMAGE,), *, several: bool = False, embedding: bool = False
) -> dict[str, Any]:
    """Returns a requestBody with the fields `images` as files or base64, and plain `fields` with the schema of each.

    With `several`, `images` is an alternative to `image`; with `embedding`, JSON may hold an embedding instead.
    """

    def schema(image: Mapping[str, Any], **others: Mapping[str, Any]) -> dict[str, Any]:
        properties = {**dict.fromkeys(images, image), **others, **fields}
        if not several:
            return {"type": "object", "properties": properties, "required": list(images)}
        properties[IMAGES] = {
            "type": "array",
            "items": image,
            "minItems": 1,
            "maxItems": MAX_IMAGES,
            "description": "Instead of `image`: several, with an answer for each.",
        }
        return {"type": "object", "properties": properties}

    in_json = schema(
        {"type": "string", "format": "byte", "description": "base64"}, **({"embedding": EMBEDDING} if embedding else {})
    )
    content = {
        "multipart/form-data": {"schema": schema({"type": "string", "format": "binary"})},
        "application/json": {"schema": in_json, "example": dict.fromkeys(images, BASE64)},
    }
    return {"requestBody": {"required": True, "content": content}}
