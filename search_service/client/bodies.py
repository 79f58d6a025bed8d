"""What is sent: pieces in memory and files on the disk, which are read while they are sent, and again for each try."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

CHUNK = 2**16
"""Bytes of a file that are sent at a time: what httpx reads of a file that it is given."""

Photo: TypeAlias = bytes | str | os.PathLike[str] | BinaryIO
"""An image: its bytes, the path of its file, or a file opened in binary mode."""


@dataclass(frozen=True)
class Body:
    content_type: str
    pieces: tuple[bytes | Path, ...]
    size: int
    """Bytes in all, as said in `Content-Length`: what is too large is refused before it is sent."""

    def chunks(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from chunks_of(piece)


def chunks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            yield data


@dataclass(frozen=True)
class File:
    """One file of a form. `name` is what the answer calls it; empty for none."""

    field: str
    name: str
    content: bytes | Path


def photo(field: str, image: Photo, name: str | None = None) -> File:
    """`image` under its own name, or under `name`. Raises OSError where its file is not there, TypeError on what is no
    image."""
    if isinstance(image, bytes | bytearray | memoryview):
        return File(field, name or "", bytes(image))
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return File(field, name or path.name, path)
    data = image.read() if hasattr(image, "read") else None
    if not isinstance(data, bytes):
        raise TypeError(f"{field} is {type(image).__name__}; expected bytes, a path, or a file opened in binary mode")
    told = getattr(image, "name", "")
    return File(field, name or (Path(told).name if isinstance(told, str) else ""), data)


def form(files: Sequence[File], fields: Mapping[str, object]) -> Body:
    """multipart/form-data; of the fields those that are not None."""
    boundary = secrets.token_hex(16)
    pieces: list[bytes | Path] = []
    for name, value in said(fields).items():
        pieces.append(_part(boundary, f'name="{name}"') + _text(value).encode() + b"\r\n")
    for file in files:
        head = f'name="{file.field}"; filename="{_quoted(file.name)}"\r\nContent-Type: application/octet-stream'
        pieces += [_part(boundary, head), file.content, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return _body(f"multipart/form-data; boundary={boundary}", pieces)


def json_body(value: object) -> Body:
    """Raises ValueError, TypeError on what is not JSON."""
    return _body("application/json", [json.dumps(value, allow_nan=False).encode()])


def file_body(content_type: str, path: str | os.PathLike[str]) -> Body:
    """The file as it is. Raises OSError where it is not there."""
    return _body(content_type, [Path(path)])


def said(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _body(content_type: str, pieces: Sequence[bytes | Path]) -> Body:
    size = sum(len(piece) if isinstance(piece, bytes) else piece.stat().st_size for piece in pieces)
    return Body(content_type, tuple(pieces), size)


def _part(boundary: str, disposition: str) -> bytes:
    return f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(name: str) -> str:
    """A quoted string (RFC 2183), which the service reads; browsers' %22 it would take for what it says."""
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "%0D").replace("\n", "%0A")
