"""What OpenAPI says of bodies that may be multipart or JSON, and of errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from indexer.types import Pick
from search_service.api.payloads import ErrorAnswer

MODEL: Mapping[str, Any] = {"type": "string", "description": "Model pack; the service's own where it is not named."}

ALL_FACES: Mapping[str, Any] = {"type": "boolean", "description": "true for every face, instead of `pick`."}


def pick_field(choices: Iterable[Pick], default: Pick) -> dict[str, Any]:
    text = f"Which face of several counts; `{default}` where it is not said."
    return {"type": "string", "enum": [str(choice) for choice in choices], "description": text}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return {status: {"model": ErrorAnswer} for status in statuses}


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
                "application/json": {"schema": {"type": "object", "properties": {**base64, **fields}, **required}},
            },
        }
    }
