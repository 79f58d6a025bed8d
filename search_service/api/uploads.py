"""Archives as they are sent, written to a file piece by piece: none is ever held in memory.

A ZIP stays as it is. Of single images and a manifest one is made, so that whoever works through it knows one form.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Protocol

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from indexer.enrollment.archives import MAX_ENTRIES
from indexer.enrollment.sources import MANIFEST
from indexer.errors import InvalidRequest, StorageUnavailable
from search_service.api.state import State

AT_ONCE = 2**20
"""Bytes that are gathered before a thread writes them: servers hand over a few kB at a time."""

ZIP_TYPES = ("application/zip", "application/x-zip-compressed")
"""The second is what Windows says."""

EXPECTED = "expected multipart/form-data with archive, or images and manifest; or application/zip"

LONGEST_FIELD = 1000
"""Bytes of a field that is no file."""


class _Sink(Protocol):
    values: dict[str, str]
    """Fields that are no files."""

    def write(self, data: bytes) -> None: ...

    def end(self) -> None:
        """The body is whole. Raises InvalidRequest where that cannot be."""

    def close(self) -> None:
        """Lets go of everything but the file, whether it ended or not."""


async def receive(service: State, request: Request, file: IO[bytes]) -> Mapping[str, str]:
    """Writes the body into the file as a ZIP; the other fields. Raises InvalidRequest, StorageUnavailable."""
    sink = _sink_of(request, file)
    gathered = bytearray()

    def write() -> None:
        data = bytes(gathered)
        gathered.clear()
        sink.write(data)

    try:
        async for chunk in request.stream():
            gathered += chunk
            if len(gathered) >= AT_ONCE:
                await service.off_loop(write)
        await service.off_loop(write)
        await service.off_loop(sink.end)
        await service.off_loop(file.flush)
    except ClientDisconnect as error:
        raise InvalidRequest("the caller hung up before the body was whole") from error
    except FormParserError as error:
        raise InvalidRequest(f"the body is not multipart/form-data: {error}") from error
    except OSError as error:
        raise StorageUnavailable(f"the archive cannot be written down: {error.strerror or error}") from error
    finally:
        await service.off_loop(sink.close)
    return sink.values


def _sink_of(request: Request, file: IO[bytes]) -> _Sink:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.decode("latin-1").lower() in ZIP_TYPES:
        return _Whole(file)
    if kind.lower() != b"multipart/form-data":
        raise InvalidRequest(f"the content type is {kind.decode('latin-1') or 'missing'}; {EXPECTED}")
    if not options.get(b"boundary"):
        raise InvalidRequest("the content type multipart/form-data names no boundary")
    try:
        return _Form(file, options[b"boundary"])
    except FormParserError as error:
        raise InvalidRequest(f"the body is not multipart/form-data: {error}") from error


class _Whole:
    """The body is the archive."""

    def __init__(self, file: IO[bytes]) -> None:
        self.values: dict[str, str] = {}
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def end(self) -> None:
        return

    def close(self) -> None:
        return


class _Form:
    """Multipart, its files taken apart while they come."""

    def __init__(self, file: IO[bytes], boundary: bytes) -> None:
        self.values: dict[str, str] = {}
        self._file = file
        self._archive = False
        self._zip: zipfile.ZipFile | None = None
        self._names: set[str] = set()
        self._header = self._value = b""
        self._disposition: bytes = b""
        self._field = ""
        self._text: bytearray | None = None
        self._out: IO[bytes] | None = None
        self._whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._on_data,
                "on_part_end": self._part_ends,
                "on_end": self._form_ends,
            },
        )

    def write(self, data: bytes) -> None:
        self._parser.write(data)

    def end(self) -> None:
        self._parser.finalize()
        if not self._whole:
            raise InvalidRequest("the body ends before its last boundary")
        if not (self._archive or self._zip):
            raise InvalidRequest(f"the body holds no images; {EXPECTED}")

    def close(self) -> None:
        for opened in (self._out, self._zip):
            if opened is not None and opened is not self._file:
                with suppress(OSError):  # of what is thrown away: all that counted was written before
                    opened.close()

    def _begin(self) -> None:
        self._disposition, self._text, self._out = b"", None, None

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        file_name = options.get(b"filename")
        if self._field == "archive" and file_name is not None:
            self._out = self._begin_archive()
        elif self._field == "images" and file_name is not None:
            self._out = self._begin_entry(file_name.decode("utf-8", "replace"))
        elif self._field == "manifest" and file_name is not None:
            self._out = self._begin_entry(MANIFEST)
        elif self._field == "pick" and file_name is None and self._field not in self.values:
            self._text = bytearray()
        elif self._field in ("archive", "images", "manifest"):
            raise InvalidRequest(f"{self._field} was sent as text; expected a file (with curl: -F {self._field}=@FILE)")
        else:
            again = " again" if self._field in self.values else ""
            raise InvalidRequest(f"the body has a field {self._field!r}{again}; {EXPECTED}, and pick")

    def _begin_archive(self) -> IO[bytes]:
        if self._archive or self._zip is not None:
            raise InvalidRequest("the body has more than one archive, or images beside it; expected one or the other")
        self._archive = True
        return self._file

    def _begin_entry(self, name: str) -> IO[bytes]:
        if self._archive:
            raise InvalidRequest(f"the body has {self._field} beside an archive; expected one or the other")
        if not name or name in self._names:
            raise InvalidRequest(f"two files of the body are named {name!r}" if name else "an image has no file name")
        if len(self._names) == MAX_ENTRIES:
            raise InvalidRequest(f"the body has more than the {MAX_ENTRIES:,} files allowed")
        self._names.add(name)
        if self._zip is None:
            self._zip = zipfile.ZipFile(self._file, "w")
        return self._zip.open(zipfile.ZipInfo(name), "w", force_zip64=True)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._out is not None:
            self._out.write(data[start:end])
        elif self._text is not None:
            self._text += data[start:end]
            if len(self._text) > LONGEST_FIELD:
                raise InvalidRequest(f"the field {self._field!r} has more than {LONGEST_FIELD:,} bytes")

    def _part_ends(self) -> None:
        if self._text is not None:
            self.values[self._field] = self._text.decode("utf-8", "replace")
        elif self._out is not None and self._out is not self._file:
            self._out.close()
        self._text = self._out = None

    def _form_ends(self) -> None:
        self._whole = True
        if self._zip is not None:  # here, where a full disk is still told of
            self._zip.close()
