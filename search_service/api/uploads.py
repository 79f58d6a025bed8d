"""Archives, written to a file as they arrive and never held in memory.

A ZIP is stored as it is. Single images and a manifest are packed into a ZIP, so that jobs only read one format.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from indexer.enrollment.archives import MAX_DIRECTORY_BYTES, MAX_ENTRIES
from indexer.enrollment.containers import MANIFEST
from indexer.errors import InvalidRequest, StorageUnavailable
from search_service.api.parameters import BODY, Parameters
from search_service.api.requests import ENROLL_FIELDS
from search_service.api.state import State

WRITE_BYTES = 2**20
"""Bytes collected before a thread writes them: servers pass on a few kB at a time."""

ZIP_TYPES = ("application/zip", "application/x-zip-compressed")
"""The second is sent by Windows."""

EXPECTED = "expected multipart/form-data with archive, or images and manifest; or application/zip"

MAX_FIELD_BYTES = 1000
"""Bytes of a field that is not a file."""


async def receive(service: State, request: Request, file: IO[bytes]) -> Mapping[str, str]:
    """Writes the body to the file as a ZIP, and returns its other fields.

    Raises InvalidRequest, and StorageUnavailable where the file cannot be written.
    """
    body = _reader(request, file)
    pending = bytearray()

    def write() -> None:
        data = bytes(pending)
        pending.clear()
        body.write(data)

    try:
        async for chunk in request.stream():
            pending += chunk
            if len(pending) >= WRITE_BYTES:
                await service.off_loop(write)
        await service.off_loop(write)
        await service.off_loop(body.end)
        await service.off_loop(file.flush)
    except FormParserError as error:
        raise InvalidRequest(f"the body is not multipart/form-data: {error}") from error
    except OSError as error:
        raise StorageUnavailable(f"the archive cannot be written: {error.strerror or error}") from error
    finally:
        await service.off_loop(body.close)
    return body.values


def _reader(request: Request, file: IO[bytes]) -> _ZipBody:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.decode("latin-1").lower() in ZIP_TYPES:
        return _ZipBody(file)
    if kind.lower() != b"multipart/form-data":
        raise InvalidRequest(f"the content type is {kind.decode('latin-1') or 'missing'}; {EXPECTED}")
    if not options.get(b"boundary"):
        raise InvalidRequest("the content type multipart/form-data has no boundary")
    try:
        return _FormBody(file, options[b"boundary"], request.state.parameters)
    except FormParserError as error:
        raise InvalidRequest(f"the body is not multipart/form-data: {error}") from error


class _ZipBody:
    """A body that is the archive."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.values: dict[str, str] = {}
        """Fields that are not files."""

    def write(self, data: bytes) -> None:
        """Takes the next part of the body."""
        self._file.write(data)

    def end(self) -> None:
        """Checks that the body is complete. Raises InvalidRequest."""

    def close(self) -> None:
        """Closes everything but the file, also after a failure."""


class _FormBody(_ZipBody):
    """A multipart body, whose files are taken out while it arrives."""

    def __init__(self, file: IO[bytes], boundary: bytes, parameters: Parameters) -> None:
        super().__init__(file)
        self._parameters = parameters
        self._has_archive = self._is_complete = False
        self._zip: zipfile.ZipFile | None = None
        self._names: set[str] = set()
        self._name_bytes = 0
        self._header = self._header_value = self._disposition = b""
        self._field = ""
        self._text: bytearray | None = None
        """The value of the current part, unless it is a file."""
        self._out: IO[bytes] | None = None
        """Where the current part is written, if it is a file."""
        callbacks: Any = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end_form,
        }
        self._parser = MultipartParser(boundary, callbacks)

    def write(self, data: bytes) -> None:
        self._parser.write(data)

    def end(self) -> None:
        self._parser.finalize()
        if not self._is_complete:
            raise InvalidRequest("the body ends before its last boundary")
        if not (self._has_archive or self._zip):
            raise InvalidRequest(f"the body has no images; {EXPECTED}")

    def close(self) -> None:
        for opened in (self._out, self._zip):
            if opened is not None and opened is not self._file:
                with suppress(OSError):  # the file is discarded; a complete form has closed both before
                    opened.close()

    def _begin_part(self) -> None:
        self._disposition, self._text, self._out = b"", None, None

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        name = options[b"filename"].decode("utf-8", "replace") if b"filename" in options else None
        if self._field not in ("archive", "images", "manifest"):
            if self._field not in ENROLL_FIELDS:
                self._parameters.refuse(BODY, [self._field])
            if name is not None or self._field in self.values:
                problem = "was sent as a file" if name is not None else "was sent twice"
                raise InvalidRequest(f"the field {self._field!r} {problem}; {EXPECTED}, and {', '.join(ENROLL_FIELDS)}")
            self._text = bytearray()
        elif name is None:
            raise InvalidRequest(f"{self._field} was sent as text; expected a file (with curl: -F {self._field}=@FILE)")
        elif self._field == "archive":
            if self._has_archive or self._zip is not None:
                raise InvalidRequest("the body has an archive and other files; expected one or the other")
            self._has_archive, self._out = True, self._file
        else:
            self._out = self._begin_entry(MANIFEST if self._field == "manifest" else name)

    def _begin_entry(self, name: str) -> IO[bytes]:
        if self._has_archive:
            raise InvalidRequest(f"the body has an archive and {self._field}; expected one or the other")
        if not name or name in self._names:
            raise InvalidRequest(f"two files of the body are named {name!r}" if name else "an image has no file name")
        if len(self._names) == MAX_ENTRIES:
            raise InvalidRequest(f"the body has more than the {MAX_ENTRIES:,} files allowed")
        self._name_bytes += len(name.encode())
        if self._name_bytes > MAX_DIRECTORY_BYTES:  # the archive would be refused, with all its names in memory
            raise InvalidRequest(f"the names of the files have more than the {MAX_DIRECTORY_BYTES:,} bytes allowed")
        self._names.add(name)
        if self._zip is None:
            self._zip = zipfile.ZipFile(self._file, "w")
        return self._zip.open(zipfile.ZipInfo(name), "w", force_zip64=True)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._out is not None:
            self._out.write(data[start:end])
        elif self._text is not None:
            self._text += data[start:end]
            if len(self._text) > MAX_FIELD_BYTES:
                raise InvalidRequest(f"the field {self._field!r} has more than {MAX_FIELD_BYTES:,} bytes")

    def _end_part(self) -> None:
        if self._text is not None:
            self.values[self._field] = self._text.decode("utf-8", "replace")
        elif self._out is not None and self._out is not self._file:
            self._out.close()
        self._text = self._out = None

    def _end_form(self) -> None:
        self._is_complete = True
        if self._zip is not None:  # closed here, where a full disk is still reported
            self._zip.close()
