"""What comes over the wire: images as multipart or base64, cursors, and what is asked of a search."""

from __future__ import annotations

import base64
import binascii
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from reprlib import Repr
from typing import Any, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from indexer.errors import InvalidRequest, InvalidVector
from indexer.types import Gallery, Identity, Pick, StoredFace
from search_service.events.recording import Recording
from search_service.search import Query
from search_service.store.events import Direction, Event
from search_service.store.webhooks import Delivery

Listed = TypeVar("Listed", Gallery, Identity, StoredFace, Event, Delivery)

MAX_PARTS = 100
"""Fields, and files, in one multipart body."""

MAX_IMAGES = 16
"""Images in one request: the default of `max_batch`, so that one caller's take no longer than a batch while others
wait. More are a bulk enrolment, or several requests, which share batches."""

MOST_VALUES = 100_000
"""In a JSON body: an embedding has some thousand numbers at most, and nobody else is answered while it is parsed, which
takes some seconds for as many as 64 MiB hold."""

LONGEST_SHOWN = 100
"""Characters of a bad value that an error repeats."""

SHORTENED = Repr()
"""Looks at the beginning of a value alone: a body may hold millions."""
SHORTENED.maxlist = SHORTENED.maxdict = SHORTENED.maxlevel = LONGEST_SHOWN
SHORTENED.maxstring = SHORTENED.maxlong = SHORTENED.maxother = 2 * LONGEST_SHOWN

PROBE_PICKS = (Pick.LARGEST, Pick.CENTER)
"""What a search may pick: a probe with several faces is no reason to refuse it."""

LARGEST_ID = 2**63 - 1
"""What a database takes as an id."""


IMAGE, IMAGES = "image", "images"
"""The fields of one image and of several."""


@dataclass(frozen=True)
class Upload:
    """One image as it was sent; `name` is the file's name, where the caller told one."""

    data: bytes
    name: str | None


@dataclass(frozen=True)
class Body:
    """A request's body, multipart and JSON alike: images by field name, and everything else as plain values."""

    images: Mapping[str, Sequence[Upload]]
    values: Mapping[str, Any] = field(default_factory=dict)

    def image(self, name: str) -> Upload:
        """Raises InvalidRequest when it was not sent, or several times."""
        if name in self.values:
            raise InvalidRequest(f"{name} was sent as text; expected a file (with curl: -F {name}=@photo.jpg)")
        if name not in self.images:
            raise InvalidRequest(f"the body has no {name}; expected multipart with {name}, or JSON with it as base64")
        if len(self.images[name]) > 1:
            raise InvalidRequest(f"the field {name!r} was sent twice")
        return self.images[name][0]

    @property
    def several(self) -> bool:
        """Whether the caller means a list of images: `images`, or `image` more than once."""
        return IMAGES in self.images or IMAGES in self.values or len(self.images.get(IMAGE, ())) > 1

    def all_images(self) -> Sequence[Upload]:
        """Those of IMAGE and IMAGES. Raises InvalidRequest when there is none, or there are more than MAX_IMAGES."""
        if IMAGES in self.values:
            raise InvalidRequest(
                f"{IMAGES} must be a list of base64 strings in JSON, or files (with curl: -F {IMAGES}=@photo.jpg)"
            )
        if IMAGE in self.values or not self.several:
            return [self.image(IMAGE)]
        sent = [*self.images.get(IMAGE, ()), *self.images.get(IMAGES, ())]
        if not 1 <= len(sent) <= MAX_IMAGES:
            raise InvalidRequest(f"the request has {len(sent)} images; expected 1 to {MAX_IMAGES}")
        return sent

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
    images: dict[str, list[Upload]] = {}
    values: dict[str, Any] = {}
    try:
        async with _form(request) as form:
            for name, value in form.multi_items():
                again = name in images and isinstance(value, UploadFile) and name in (IMAGE, IMAGES)
                if (name in images or name in values) and not again:
                    raise InvalidRequest(f"the field {name!r} was sent twice")
                if isinstance(value, UploadFile):
                    if name not in image_fields:
                        raise InvalidRequest(f"there is no file field {name!r}; expected {', '.join(image_fields)}")
                    images.setdefault(name, []).append(Upload(await value.read(), value.filename or None))
                else:
                    values[name] = value
    except MultiPartException as error:
        raise InvalidRequest(f"the body is not multipart/form-data: {error.message}") from error
    return Body(images, values)


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """In memory, however large: bodies are bounded before, and photos are not written to a disk."""
    async with aclosing(request.stream()) as stream:
        parser = MultiPartParser(request.headers, stream, max_files=MAX_PARTS, max_fields=MAX_PARTS)
        parser.spool_max_size = sys.maxsize
        form = await parser.parse()
    try:
        yield form
    finally:
        await form.close()


def _read_json(body: bytes, image_fields: tuple[str, ...]) -> Body:
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:  # base64 has none of these
        raise InvalidRequest(f"the body holds more than the {MOST_VALUES:,} values allowed")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InvalidRequest("the body must be a JSON object")
    values = {name: value for name, value in values.items() if value is not None}  # null is not said
    images = {name: _from_json(name, values.pop(name)) for name in image_fields if name in values}
    return Body(images, values)


def _from_json(name: str, value: object) -> list[Upload]:
    if name != IMAGES:
        return [Upload(_from_base64(name, value), None)]
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a list of base64 strings")
    return [Upload(_from_base64(f"{name}[{i}]", one), None) for i, one in enumerate(value)]


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


RECORDED = ("record", "device", "direction", "cooldown")
"""The fields that say what is to be recorded of a search."""


def recording_of(values: Mapping[str, Any], cooldown_seconds: float, request_id: str) -> Recording | None:
    """None where nothing is to be recorded. `cooldown_seconds` counts where the request says none. Raises
    InvalidRequest."""
    if not truth(values, "record"):
        return None
    device, direction = values.get("device"), values.get("direction") or None
    if not isinstance(device, str):
        raise InvalidRequest("record needs a device: the name of what the image was taken by, as north-door")
    if direction is not None and direction not in tuple(Direction):
        raise InvalidRequest(f"direction is {_short(direction)}; expected {' or '.join(Direction)}")
    cooldown = number(values, "cooldown")
    return Recording(
        device,
        None if direction is None else Direction(direction),
        cooldown_seconds if cooldown is None else cooldown,
        request_id,
    )


def embedding_of(value: object, dim: int) -> list[float]:
    """One embedding as it was sent. Raises InvalidVector unless it is `dim` numbers."""
    wanted = f"embedding must be a list of {dim} numbers"
    if not isinstance(value, list):
        raise InvalidVector(f"{wanted}; got {_short(value)}")
    for number in value[: dim + 1]:  # of more it is told how many they are
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
    every = truth(values, "all_faces")
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


def truth(values: Mapping[str, Any], name: str) -> bool:
    """False where it is not said. Raises InvalidRequest."""
    value = values.get(name, False)
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        value = value.lower() in ("true", "1")
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {_short(value)}; expected true or false")
    return value


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
    text = SHORTENED.repr(value)
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
    return found[:limit], cursor_of(found[limit - 1].id)


def cursor_of(last: int) -> str:
    """What `cursor_after` reads."""
    return base64.urlsafe_b64encode(f"after:{last}".encode()).decode()
