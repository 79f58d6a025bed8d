"""What OpenAPI says of bodies that may be multipart or JSON, and of errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI

from indexer.gallery.schema import MAX_NAME_LENGTH
from indexer.types import Pick
from search_service.api import idempotency
from search_service.api.examples import BASE64, EXAMPLES
from search_service.api.idempotency import CHANGES_NOTHING
from search_service.api.payloads import ErrorAnswer, IdentityPayload
from search_service.api.requests import IMAGE, IMAGES, MAX_IMAGES

IDEMPOTENCY_KEY: Mapping[str, Any] = {
    "name": idempotency.HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
    "description": "Made up by the caller for one request. The same request again is not done again: it gets the same "
    f"answer, with `{idempotency.REPLAYED}: true`, for 24 hours. A search is searched anew, and records nothing again.",
}

MODEL: Mapping[str, Any] = {"type": "string", "description": "Model pack; the service's own where it is not named."}

ALL_FACES: Mapping[str, Any] = {"type": "boolean", "description": "true for every face, instead of `pick`."}


def pick_field(choices: Iterable[Pick], default: Pick) -> dict[str, Any]:
    text = f"Which face of several counts; `{default}` where it is not said."
    return {"type": "string", "enum": [str(choice) for choice in choices], "description": text}


def document(app: FastAPI) -> None:
    """Lets OpenAPI tell what all routes have in common: an example of each object, and the `Idempotency-Key`, for
    which any POST may answer 409."""
    plain = app.openapi

    def told() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            for name, example in EXAMPLES.items():
                if name in schema["components"]["schemas"]:
                    schema["components"]["schemas"][name]["examples"] = [example]
            for path, methods in schema["paths"].items():
                if "post" in methods and path not in CHANGES_NOTHING:
                    methods["post"].setdefault("parameters", []).append(IDEMPOTENCY_KEY)
                    methods["post"]["responses"].setdefault("409", methods["post"]["responses"]["400"])
        return app.openapi_schema or {}

    app.openapi = told  # type: ignore[method-assign]


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return {status: {"model": ErrorAnswer} for status in statuses}


def tagged(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with one identity."""
    tag = {"ETag": {"schema": {"type": "string"}, "description": "Of the state that the identity is in."}}
    return {status: {"model": IdentityPayload, "headers": tag} for status in statuses}


def images_body(fields: Mapping[str, Mapping[str, Any]], embedding: bool = False) -> dict[str, Any]:
    """The same for one image, or several."""
    body = image_body(IMAGE, fields=fields, embedding=embedding)
    for kind, form in (("multipart/form-data", "binary"), ("application/json", "byte")):
        schema = body["requestBody"]["content"][kind]["schema"]
        schema.pop("required", None)
        schema["properties"][IMAGES] = {
            "type": "array",
            "items": {"type": "string", "format": form},
            "minItems": 1,
            "maxItems": MAX_IMAGES,
            "description": "Instead of `image`: several, and an answer each.",
        }
    return body


def image_body(
    *images: str, fields: Mapping[str, Mapping[str, Any]] = MappingProxyType({}), embedding: bool = False
) -> dict[str, Any]:
    """A requestBody with `images` as files or base64, and plain `fields` with the schema of each."""
    files = {name: {"type": "string", "format": "binary"} for name in images}
    base64: dict[str, Any] = {name: {"type": "string", "format": "byte", "description": "base64"} for name in images}
    if embedding:
        base64["embedding"] = {
            "type": "array",
            "items": {"type": "number"},
            "description": "Instead of an image: numbers of unit length, made with the gallery's model pack.",
        }
    required = {} if embedding else {"required": list(images)}
    multipart = {"type": "object", "properties": {**files, **fields}, "required": list(images)}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": multipart},
                "application/json": {
                    "schema": {"type": "object", "properties": {**base64, **fields}, **required},
                    "example": dict.fromkeys(images, BASE64),
                },
            },
        }
    }
