"""What comes over the wire: images as multipart or base64, cursors, and what is asked of a search."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from indexer.errors import InvalidRequest, InvalidVector
from indexer.types import Gallery, Identity, Pick, StoredFace
from search_service.search import Query

Listed = TypeVar("Listed", Gallery, Identity, StoredFace)

MAX_PARTS = 100
"""Fields, and files, in one multipart body."""

LONGEST_SHOWN = 100
"""Characters of a bad value that an error repeats."""

PROBE_PICKS = (Pick.LARGEST, Pick.CENTER)
"""What a search may pick: a probe with several faces is no reason to refuse it."""

LARGEST_ID = 2**63 - 1
"""What a database takes as an id."""


@dataclass(frozen=True)
class Upload:
    """One image as it was sent; `name` is the file's name, where the caller told one."""

    data: bytes
    name: str | None


@dataclass(frozen=True)
class Body:
    """A request's body, multipart and JSON alike: images by field name, and everything else as plain values."""

    images: Mapping[str, Upload]
    values: Mapping[str, Any] = field(default_factory=dict)

    def image(self, name: str) -> Upload:
        """Raises InvalidRequest when it was not sent."""
        if name in self.values:
            raise InvalidRequest(f"{name} was sent as text; expected a file (with curl: -F {name}=@photo.jpg)")
        if name not in self.images:
            raise InvalidRequest(f"the body has no {name}; expected multipart with {name}, or JSON with it as base64")
        return self.images[name]

    def only(self, *known: str) -> Body:
        """Raises InvalidRequest on a field that is not among `known`: a misspelt threshold must not be overlooked."""
        for name in (*self.images, *self.values):
            if name not in known:
                raise InvalidRequest(f"there is no field {name!r}; expected {', '.join(known)}")
        return self


async def read_body(request: Request, *image_fields: str) -> Body:
    """The body as multipart/form-data or as JSON, in which `image_fields` are base64. Raises InvalidRequest."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, image_fields)
    if kind == "application/json":
        return await run_in_threadpool(_read_json, await request.body(), image_fields)
    raise InvalidRequest(f"the content type is {kind or 'missing'}; expected multipart/form-data or application/json")


async def _read_form(request: Request, image_fields: tuple[str, ...]) -> Body:
    images: dict[str, Upload] = {}
    values: dict[str, Any] = {}
    try:
        async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS) as form:
            for name, value in form.multi_items():
                if name in images or name in values:
                    raise InvalidRequest(f"the field {name!r} was sent twice")
                if isinstance(value, UploadFile):
                    if name not in image_fields:
                        raise InvalidRequest(f"there is no file field {name!r}; expected {', '.join(image_fields)}")
                    images[name] = Upload(await value.read(), value.filename or None)
                else:
                    values[name] = value
    except MultiPartException as error:
        raise InvalidRequest(f"the body is not multipart/form-data: {error.message}") from error
    return Body(images, values)


def _read_json(body: bytes, image_fields: tuple[str, ...]) -> Body:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InvalidRequest("the body must be a JSON object")
    values = {name: value for name, value in values.items() if value is not None}  # null is not said
    images = {name: Upload(_from_base64(name, values.pop(name)), None) for name in image_fields if name in values}
    return Body(images, values)


def _from_base64(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a base64 string")
    _, comma, after = value.partition(",")
    text = after if comma and value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # many encoders break lines
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{name} is not base64: {error}") from error


def query_of(values: Mapping[str, Any]) -> Query:
    """top_k, fpir or threshold, pick or all_faces. Raises InvalidRequest."""
    return Query(
        top_k=whole(values, "top_k", Query.top_k),
        fpir=number(values, "fpir"),
        threshold=number(values, "threshold"),
        pick=pick_of(values, Pick.LARGEST, PROBE_PICKS),
    )


def embedding_of(value: object, dim: int) -> list[float]:
    """One embedding as it was sent. Raises InvalidVector unless it is `dim` numbers."""
    wanted = f"embedding must be a list of {dim} numbers"
    if not isinstance(value, list):
        raise InvalidVector(f"{wanted}; got {_short(value)}")
    for number in value:
        if isinstance(number, list):
            raise InvalidVector(f"{wanted}; got a list of lists (a request holds one embedding)")
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InvalidVector(f"{wanted}; got {_short(number)} among them")
    if len(value) != dim:
        raise InvalidVector(f"{wanted}; got {len(value)}")
    try:
        return [float(number) for number in value]
    except OverflowError:
        raise InvalidVector(f"{wanted}; one of them is too large") from None


def pick_of(values: Mapping[str, Any], default: Pick, choices: tuple[Pick, ...] = tuple(Pick)) -> Pick | None:
    """The face asked for, one of `choices`; None for all of them."""
    every = values.get("all_faces", False)
    if isinstance(every, str) and every.lower() in ("true", "false", "1", "0"):
        every = every.lower() in ("true", "1")
    if not isinstance(every, bool):
        raise InvalidRequest(f"all_faces is {_short(every)}; expected true or false")
    wanted = values.get("pick")
    if every:
        if wanted is not None:
            raise InvalidRequest("give pick or all_faces, not both")
        return None
    if wanted is None:
        return default
    if wanted not in choices:
        raise InvalidRequest(f"pick is {_short(wanted)}; expected {', '.join(choices)}")
    return Pick(wanted)


def number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"{name} is {_short(value)}; expected a number") from None


def whole(values: Mapping[str, Any], name: str, default: int) -> int:
    value = number(values, name)
    if value is None:
        return default
    if not value.is_integer():
        raise InvalidRequest(f"{name} is {_short(values[name])}; expected a whole number")
    return int(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def cursor_after(cursor: str | None) -> int:
    """The id that a page starts after. Raises InvalidRequest on a cursor that was not given out."""
    if cursor is None:
        return 0
    try:
        kind, value = base64.urlsafe_b64decode(cursor.encode()).decode().split(":")
        if kind != "after" or not 0 <= int(value) <= LARGEST_ID:
            raise ValueError
        return int(value)
    except (ValueError, binascii.Error):
        raise InvalidRequest(f"the cursor {cursor!r} was not given out here") from None


def page_of(found: Sequence[Listed], limit: int) -> tuple[Sequence[Listed], str | None]:
    """The first `limit` of `found`, of which one more was asked for, and the cursor of the page after it, if any."""
    if len(found) <= limit:
        return found, None
    return found[:limit], base64.urlsafe_b64encode(f"after:{found[limit - 1].id}".encode()).decode()
