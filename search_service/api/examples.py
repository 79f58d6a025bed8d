"""Examples of whole objects for OpenAPI, assembled from the examples of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

PREFIX = "#/components/schemas/"

BASE64 = "/9j/4AAQSkZJRgABAQAAAQABAAD..."
"""The first bytes of a JPEG file."""


def example_of(schema: Schema, schemas: Mapping[str, Schema]) -> Any:
    """Returns an example of a JSON schema. `schemas` are the components it refers to, by name.

    A value without an example is null where it may be. Raises KeyError on any other string or number.
    """
    if "examples" in schema:
        return schema["examples"][0]
    if "default" in schema:
        return schema["default"]
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].removeprefix(PREFIX)], schemas)
    if "anyOf" in schema:
        first = schema["anyOf"][0]
        return example_of(first, schemas) if "$ref" in first else None
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object":
            return {name: example_of(field, schemas) for name, field in schema["properties"].items()}
        case "array":
            return [example_of(schema["items"], schemas)]
        case "boolean":
            return True
    raise KeyError(schema.get("title"))
