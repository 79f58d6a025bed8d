"""Request bodies with images, read from multipart/form-data or JSON into one form."""

from __future__ import annotations

import base64
import binascii
import json
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from indexer.errors import InvalidRequest
from indexer.types import LivenessMode, Pick
from indexer.vision.decode import count_pixels
from search_service.api.parameters import BODY, Parameters
from search_service.api.shortening import LONGEST_DETAIL, short, short_text

IMAGE, IMAGES = "image", "images"
"""The fields of one image and of several."""

MAX_PARTS = 100
"""Fields, and files, in one multipart body."""

MAX_IMAGES = 16
"""Images in one request: the default of `max_batch`, so that one request does not occupy the networks longer than one
batch. More images are a bulk enrollment, or several requests, which share batches."""

MOST_VALUES = 100_000
"""Values in a JSON body. An embedding has a few thousand numbers; parsing the millions that fit into 64 MiB would block
other requests for seconds."""


@dataclass(frozen=True)
class Upload:
    """One image as it was sent. `name` is the file's name, if there was one, shortened as answers repeat it."""

    data: bytes
    name: str | None


@dataclass(frozen=True)
class Body:
    """Images by field name, and all other fields as plain values. The methods raise InvalidRequest on wrong values."""

    images: Mapping[str, Sequence[Upload]]
    values: Mapping[str, Any]

    def image(self, name: str) -> Upload:
        """Returns the one image of a field."""
        if name in self.values:
            raise InvalidRequest(f"{name} was sent as text; expected a file (with curl: -F {name}=@photo.jpg)")
        if name not in self.images:
            raise InvalidRequest(f"the body has no {name}; expected multipart with {name}, or JSON with it as base64")
        if len(self.images[name]) > 1:
            raise InvalidRequest(f"the field {name!r} was sent twice")
        return self.images[name][0]

    @property
    def is_list(self) -> bool:
        """Whether the body has `images`, or `image` more than once."""
        return IMAGES in self.images or IMAGES in self.values or len(self.images.get(IMAGE, ())) > 1

    def all_images(self) -> Sequence[Upload]:
        """Returns the 1 to MAX_IMAGES images of the fields IMAGE and IMAGES."""
        if IMAGES in self.values:
            raise InvalidRequest(
                f"{IMAGES} must be a list of base64 strings in JSON, or files (with curl: -F {IMAGES}=@photo.jpg)"
            )
        if IMAGE in self.values or not self.is_list:
            return [self.image(IMAGE)]
        sent = [*self.images.get(IMAGE, ()), *self.images.get(IMAGES, ())]
        if not 1 <= len(sent) <= MAX_IMAGES:
            raise InvalidRequest(f"the request has {len(sent)} images; expected 1 to {MAX_IMAGES}")
        return sent

    def boolean(self, name: str) -> bool:
        """Returns a boolean field, False by default."""
        value = self.values.get(name, False)
        if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
            value = value.lower() in ("true", "1")
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name} is {short(value)}; expected true or false")
        return value

    def number(self, name: str) -> float | None:
        """Returns a number, None by default."""
        value = self.values.get(name)
        if value is None or value == "":
            return None
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise InvalidRequest(f"{name} is {short(value)}; expected a number") from None

    def integer(self, name: str, default: int) -> int:
        """Returns a whole number."""
        value = self.number(name)
        if value is None:
            return default
        if not value.is_integer():
            raise InvalidRequest(f"{name} is {short(self.values[name])}; expected a whole number")
        return int(value)

    def pick(self, default: Pick, choices: tuple[Pick, ...] = tuple(Pick)) -> Pick | None:
        """Returns which face of an image is used, from `pick` and `all_faces`. None means all faces."""
        every, wanted = self.boolean("all_faces"), self.values.get("pick")
        if every and wanted is not None:
            raise InvalidRequest("give pick or all_faces, not both")
        if wanted is not None and wanted not in choices:
            raise InvalidRequest(f"pick is {short(wanted)}; expected {', '.join(choices)}")
        if every:
            return None
        return default if wanted is None else Pick(wanted)

    def liveness(self) -> LivenessMode | None:
        """Returns what is done about presentation attacks, None by default."""
        wanted = self.values.get("liveness")
        if wanted is not None and wanted not in tuple(LivenessMode):
            raise InvalidRequest(f"liveness is {short(wanted)}; expected {', '.join(LivenessMode)}")
        return None if wanted is None else LivenessMode(wanted)


async def read_body(request: Request, images: Sequence[str], fields: Iterable[str] = ()) -> Body:
    """Reads multipart/form-data, or JSON in which the fields `images` are base64.

    The key's rate counts the pixels of the images.

    Raises InvalidRequest, also on a field that is neither in `images` nor in `fields`, as it may be misspelled.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body = await _read_form(request, images)
    elif kind == "application/json":
        body = await run_in_threadpool(_read_json, await request.body(), images)
    else:
        raise InvalidRequest(
            f"the content type is {kind or 'missing'}; expected multipart/form-data or application/json"
        )
    known = [*images, *fields]
    parameters: Parameters = request.state.parameters
    parameters.refuse(BODY, [name for name in (*body.images, *body.values) if name not in known])
    request.state.charge(sum(count_pixels(upload.data) for uploads in body.images.values() for upload in uploads))
    return body


async def _read_form(request: Request, image_fields: Sequence[str]) -> Body:
    images: dict[str, list[Upload]] = {}
    values: dict[str, Any] = {}
    try:
        async with _form(request) as form:
            for name, value in form.multi_items():
                again = name in images and isinstance(value, UploadFile) and name in (IMAGE, IMAGES)
                if (name in images or name in values) and not again:
                    raise InvalidRequest(f"the field {short(name)} was sent twice")
                if isinstance(value, UploadFile):
                    if name not in image_fields:
                        raise InvalidRequest(
                            f"there is no file field {short(name)}; expected {', '.join(image_fields)}"
                        )
                    file_name = short_text(value.filename or "", LONGEST_DETAIL) or None
                    images.setdefault(name, []).append(Upload(await value.read(), file_name))
                else:
                    values[name] = value
    except MultiPartException as error:
        raise InvalidRequest(f"the body is not multipart/form-data: {error.message}") from error
    return Body(images, values)


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """Parses the form in memory: the size of bodies is limited before, and photos must not be written to disk."""
    async with aclosing(request.stream()) as stream:
        parser = MultiPartParser(request.headers, stream, max_files=MAX_PARTS, max_fields=MAX_PARTS)
        parser.spool_max_size = sys.maxsize
        form = await parser.parse()
    try:
        yield form
    finally:
        await form.close()


def _read_json(body: bytes, image_fields: Sequence[str]) -> Body:
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:  # base64 has none of these
        raise InvalidRequest(f"the body holds more than the {MOST_VALUES:,} values allowed")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InvalidRequest("the body must be a JSON object")
    values = {name: value for name, value in values.items() if value is not None}  # null is the same as omitted
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
