"""How bodies that may be multipart or JSON are described in OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def image_body(
    *images: str, fields: Mapping[str, str] = MappingProxyType({}), embedding: bool = False
) -> dict[str, Any]:
    """A requestBody with `images` as files or base64, and plain `fields` with what is said of each."""
    plain = {name: {"description": text} for name, text in fields.items()}
    files = {name: {"type": "string", "format": "binary"} for name in images}
    base64 = {name: {"type": "string", "format": "byte", "description": "base64"} for name in images}
    if embedding:
        base64["embedding"] = {
            "type": "array",
            "description": "Instead of an image: numbers of unit length, made with the gallery's model pack.",
        }
    required = {} if embedding else {"required": list(images)}
    multipart = {"type": "object", "properties": {**files, **plain}, "required": list(images)}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": multipart},
                "application/json": {"schema": {"type": "object", "properties": {**base64, **plain}, **required}},
            },
        }
    }
