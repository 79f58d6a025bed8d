"""Finds and decodes the files of manifests, and reads their records one at a time."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from indexer.enrollment.containers import Container, is_manifest
from indexer.errors import InvalidRequest, RejectedImage

MAX_MANIFEST_BYTES = 64 * 2**20
"""200,000 rows of 335 characters."""

MAX_ROWS = 200_000
"""Rows of a manifest with text: as many as an archive may have photos (`archives.MAX_ENTRIES`). Each row of a manifest
can name the same photo, so a few kB of archive could otherwise become millions of photos to enroll."""

MAX_LINES = 2**20
"""Lines of a manifest, also empty ones: the rows of a sheet in Excel, which some programs write in full."""

MAX_RECORD_BYTES = 2**20
"""Bytes of a row: many times the metadata that an identity may have."""

DECODED_BYTES = 2**20
"""Bytes decoded at a time."""

SAVE_AS_CSV = "save it in the spreadsheet program as 'CSV UTF-8 (comma delimited)'"

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before that of UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

WORKBOOKS = (
    (b"PK\x03\x04", "a workbook (XLSX or ODS)"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a workbook of an old Excel (XLS)"),
)
"""First bytes of ZIP files (APPNOTE 4.3.7) and of compound files (MS-CFB 2.2)."""

WORKBOOK_NAMES = ("manifest.xlsx", "manifest.xls", "manifest.xlsm", "manifest.ods")


@dataclass(frozen=True)
class Record:
    """The cells of a row of a manifest, and where it is: its offset in bytes, and the number of its last line."""

    start: int
    line: int
    cells: list[str]


@dataclass(frozen=True)
class Manifest:
    """A manifest in UTF-8, and its name for people."""

    data: bytes
    label: str

    def records(self) -> Iterator[Record]:
        """Yields the header and the rows with text, one at a time.

        Raises InvalidRequest if it is not CSV, or has more rows or longer ones than allowed.
        """
        lines = _Lines(self.data, self.label)
        reader = csv.reader(lines, self._dialect)
        rows = 0
        while True:
            start = lines.begin_record()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InvalidRequest(
                    f"the manifest {self.label}, line {reader.line_num}, is not CSV: {error}"
                ) from error
            if start and not any(cells):  # spreadsheets leave lines of commas
                continue
            if rows > MAX_ROWS:  # the header is not a row
                raise InvalidRequest(
                    f"the manifest {self.label} has more than the {MAX_ROWS:,} rows allowed; split it into several"
                )
            rows += 1
            yield Record(start, reader.line_num, cells)

    def cells_at(self, start: int) -> list[str]:
        """Returns the cells of the record at an offset that `records` has returned."""
        return next(csv.reader(_Lines(self.data, self.label, start), self._dialect))

    @cached_property
    def _dialect(self) -> type[csv.Dialect]:
        """The delimiter: a comma, or the semicolon or tab that spreadsheets use in many countries."""
        first = next(iter(next(_Lines(self.data, self.label), "").splitlines()), "")

        class Dialect(csv.excel):
            delimiter = max(",;\t", key=first.count)
            strict = True

        return Dialect


class _Lines:
    """Iterates over the lines of a manifest from an offset. Raises InvalidRequest beyond MAX_LINES and
    MAX_RECORD_BYTES."""

    def __init__(self, data: bytes, label: str, start: int = 0) -> None:
        self._data = data
        self._label = label
        self._at = self._record = start
        self._count = 0

    def begin_record(self) -> int:
        """Notes that a record begins, and returns its offset."""
        self._record = self._at
        return self._at

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._at == len(self._data):
            raise StopIteration
        end = self._data.find(b"\n", self._at) + 1 or len(self._data)
        self._count += 1
        if self._count > MAX_LINES:
            raise InvalidRequest(f"the manifest {self._label} has more than the {MAX_LINES:,} lines allowed")
        if end - self._record > MAX_RECORD_BYTES:
            raise InvalidRequest(
                f"the manifest {self._label}, line {self._count}: the row has more than the {MAX_RECORD_BYTES:,} bytes "
                "allowed"
            )
        line, self._at = self._data[self._at : end].decode(), end
        return line


def manifest_of(container: Container) -> Manifest | None:
    """Returns the manifest at the top of a folder or ZIP file; None if there is none.

    Raises InvalidRequest if it cannot be read or is a workbook.
    """
    names = container.top_files()
    name = next((name for name in names if is_manifest(name)), None)
    workbook = next((name for name in names if name.lower() in WORKBOOK_NAMES), None)
    if name is None and workbook is not None:
        raise InvalidRequest(
            f"{container.display_name(workbook)} is a workbook; {SAVE_AS_CSV}, as manifest.csv, or remove it"
        )
    reader = container.find(name) if name is not None else None
    if name is None or reader is None:
        return None
    label = container.display_name(name)
    try:
        return Manifest(_decode(reader(MAX_MANIFEST_BYTES), label), label)
    except RejectedImage as error:
        raise InvalidRequest(f"{label}: {error.message}") from error


def read_manifest(path: Path) -> Manifest:
    """Returns the manifest in a file. Raises InvalidRequest."""
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise InvalidRequest(f"the manifest {path} has more than {MAX_MANIFEST_BYTES:,} bytes")
        return Manifest(_decode(path.read_bytes(), str(path)), str(path))
    except OSError as error:
        raise InvalidRequest(f"the manifest {path} cannot be read: {error.strerror}") from error


def _decode(data: bytes, label: str) -> bytes:
    """Returns text in UTF-8, and in UTF-16 or UTF-32 with a byte order mark, as UTF-8 without one.

    Raises InvalidRequest for everything else. Bytes do not show which of the many 8-bit encodings they are in: most of
    them decode every byte, so a wrong one would garble names without an error.
    """
    for start, what in WORKBOOKS:
        if data.startswith(start):
            raise InvalidRequest(f"the manifest {label} is {what}; {SAVE_AS_CSV}")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 0 <= data.find(b"\0") < (data.find(b"\n") + 1 or len(data)):
        raise InvalidRequest(
            f"the manifest {label} has NUL bytes, as in UTF-16 without a byte order mark; {SAVE_AS_CSV}"
        )
    try:
        text = _to_utf8(data, encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        why = "its byte order mark announces that, but some of it is something else"
        if encoding == "utf-8":
            byte = data[error.start]
            why = f"it has the byte 0x{byte:02x} there, as in Windows-1252 and other encodings, which look alike"
        kind = encoding.removesuffix("-sig").upper()
        raise InvalidRequest(f"the manifest {label}, line {line}, is not {kind} text: {why}; {SAVE_AS_CSV}") from error
    return text if b"\n" in text else text.replace(b"\r", b"\n")  # 'CSV (Macintosh)' ends lines with CR alone


def _to_utf8(data: bytes, encoding: str) -> bytes:
    """Raises UnicodeDecodeError with a position in `data`."""
    decoder = codecs.getincrementaldecoder(encoding)()
    parts: list[bytes] = []
    for at in range(0, len(data), DECODED_BYTES):
        chunk = data[at : at + DECODED_BYTES]
        pending = decoder.getstate()[0]
        try:
            parts.append(decoder.decode(chunk, final=at + DECODED_BYTES >= len(data)).encode())
        except UnicodeDecodeError as error:
            error.start += at - len(pending)
            raise
    return data if encoding == "utf-8" else b"".join(parts)
