"""Finds and decodes the files of manifests."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from indexer.enrollment.containers import Container, is_manifest
from indexer.errors import InvalidRequest, RejectedImage

MAX_MANIFEST_BYTES = 64 * 2**20
"""A million rows of 60 characters."""

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
class Manifest:
    """The text of a manifest, and its name for people."""

    text: str
    label: str


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


def _decode(data: bytes, label: str) -> str:
    """Returns the text of UTF-8, and of UTF-16 or UTF-32 with a byte order mark.

    Raises InvalidRequest for everything else. Bytes do not show which of the many 8-bit encodings they are in: most of
    them decode every byte, so a wrong one would garble names without an error.
    """
    for start, what in WORKBOOKS:
        if data.startswith(start):
            raise InvalidRequest(f"the manifest {label} is {what}; {SAVE_AS_CSV}")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidRequest(
            f"the manifest {label}, line {line}, is not {encoding.removesuffix('-sig').upper()} text: it has the byte "
            f"0x{data[error.start]:02x} there, as in Windows-1252 and other encodings, which look alike; "
            f"{SAVE_AS_CSV}"
        ) from error
    if "\0" in text.partition("\n")[0]:
        raise InvalidRequest(
            f"the manifest {label} has NUL bytes, as in UTF-16 without a byte order mark; {SAVE_AS_CSV}"
        )
    return text
