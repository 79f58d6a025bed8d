"""Request bodies: bytes in memory and files on the disk, which are read while they are sent, for each attempt."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

CHUNK = 2**16
"""Bytes of a file sent at a time; httpx uses the same for files."""

Photo: TypeAlias = bytes | str | os.PathLike[str] | BinaryIO
"""An image: its bytes, the path of its file, or a file opened in binary mode."""


@dataclass(frozen=True)
class Body:
    content_type: str
    pieces: tuple[bytes | Path, ...]
    size: int
    """Total bytes, the `Content-Length`: a body that is too large is refused before it is sent."""

    def chunks(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from file_chunks(piece)

    async def async_chunks(self) -> AsyncIterator[bytes]:
        """Yields the same; files are read on a thread."""
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                chunks = file_chunks(piece)
                while (data := await asyncio.to_thread(next, chunks, None)) is not None:
                    yield data


def file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            yield data


@dataclass(frozen=True)
class File:
    """A file of a form. Answers refer to it by `name`, which may be empty."""

    field: str
    name: str
    content: bytes | Path


def photo(field: str, image: Photo, name: str | None = None) -> File:
    """Returns the image as a file of a form, under `name` or its own name.

    Raises:
        OSError: The file does not exist.
        TypeError: `image` is not an image.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return File(field, name or "", bytes(image))
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return File(field, name or path.name, path)
    data = image.read() if hasattr(image, "read") else None
    if not isinstance(data, bytes):
        raise TypeError(f"{field} is {type(image).__name__}; expected bytes, a path, or a file opened in binary mode")
    own_name = getattr(image, "name", "")
    return File(field, name or (Path(own_name).name if isinstance(own_name, str) else ""), data)


def form(files: Sequence[File], fields: Mapping[str, object]) -> Body:
    """Returns a multipart/form-data body; fields that are None are left out."""
    boundary = secrets.token_hex(16)
    pieces: list[bytes | Path] = []
    for name, value in without_none(fields).items():
        pieces.append(_part(boundary, f'name="{name}"') + _text(value).encode() + b"\r\n")
    for file in files:
        head = f'name="{file.field}"; filename="{_quoted(file.name)}"\r\nContent-Type: application/octet-stream'
        pieces += [_part(boundary, head), file.content, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return _body(f"multipart/form-data; boundary={boundary}", pieces)


def json_body(value: object) -> Body:
    """Returns a JSON body. Raises ValueError or TypeError for values that JSON cannot represent."""
    return _body("application/json", [json.dumps(value, allow_nan=False).encode()])


def file_body(content_type: str, path: str | os.PathLike[str]) -> Body:
    """Returns a body with the content of a file. Raises OSError if it does not exist."""
    return _body(content_type, [Path(path)])


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def iso_time(time: datetime | None) -> str | None:
    """Returns a time as JSON has it."""
    return None if time is None else time.isoformat()


def _body(content_type: str, pieces: Sequence[bytes | Path]) -> Body:
    size = sum(len(piece) if isinstance(piece, bytes) else piece.stat().st_size for piece in pieces)
    return Body(content_type, tuple(pieces), size)


def _part(boundary: str, disposition: str) -> bytes:
    return f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(name: str) -> str:
    """Quotes a file name (RFC 2183). The service would take the %22 of browsers literally."""
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "%0D").replace("\n", "%0A")
