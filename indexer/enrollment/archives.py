"""Checks an untrusted ZIP file, without decompressing anything."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import IO

from indexer.enrollment.containers import escapes, zip_problem
from indexer.errors import InvalidRequest

MAX_ENTRIES = 200_000
"""Files in an archive: 2 GiB of photos of 10 kB, which show a face of a hundred pixels."""

MAX_DIRECTORY_BYTES = 200 * MAX_ENTRIES
"""Of the central directory, which is read as a whole: 46 bytes for each file, its name, and 36 of extra fields."""

MOST_UNPACKED = 20
"""Accepted ratio of decompressed to compressed size. Photos hardly shrink, uncompressed ones to a third, a manifest to
a tenth; ZIP bombs to a thousandth."""

FREELY_UNPACKED = 64 * 2**20
"""Bytes to which any archive may decompress: a few images of a single color are not a bomb."""

LOCAL_HEADER = 30
"""Bytes of a local file header without the name (APPNOTE 4.3.7)."""

ENCRYPTED = 0x1
"""The bit of `flag_bits` (APPNOTE 4.4.4)."""


def check_archive(file: IO[bytes]) -> None:
    """Checks that an archive can be processed.

    Raises:
        InvalidRequest: Code `invalid_archive`: not a ZIP file, too many files, encrypted or overlapping files, names
            that point out of the archive, or far more bytes than photos decompress to.
    """
    try:
        archive = zipfile.ZipFile(_Bounded(file))
    except InvalidRequest:
        raise
    except Exception as error:  # a damaged central directory raises nearly any exception
        raise _invalid(f"the archive is not a readable ZIP file: {zip_problem(file, error)}") from error
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise _invalid(f"the archive has {len(entries):,} files; {MAX_ENTRIES:,} are allowed")
    for entry in entries:
        if entry.flag_bits & ENCRYPTED:
            raise _invalid(f"the archive's file {entry.filename!r} is encrypted; expected files without a password")
        if escapes(entry.filename):
            raise _invalid(f"the archive's file {entry.filename!r} points out of the archive")
    _check_overlaps(entries, archive.start_dir)
    unpacked, size = sum(entry.file_size for entry in entries), file.seek(0, io.SEEK_END)
    if unpacked > max(FREELY_UNPACKED, MOST_UNPACKED * size):
        raise _invalid(
            f"the archive has {size:,} bytes, decompressed {unpacked:,}; {MOST_UNPACKED} times its size are allowed"
        )


def _check_overlaps(entries: Sequence[zipfile.ZipInfo], end: int) -> None:
    """Raises InvalidRequest for overlapping entries: they decompress the same bytes many times."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    starts = [entry.header_offset for entry in ordered] + [end]
    for entry, following in zip(ordered, starts[1:], strict=True):
        if entry.header_offset + LOCAL_HEADER + entry.compress_size > following:
            raise _invalid(f"the archive's file {entry.filename!r} overlaps the next one")


class _Bounded:
    """A file that refuses reads of more than MAX_DIRECTORY_BYTES: `ZipFile` reads the central directory at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        most = MAX_DIRECTORY_BYTES + 1
        data = self._file.read(most if size < 0 else min(size, most))
        if len(data) == most:
            raise _invalid(f"the archive's central directory has more than the {MAX_DIRECTORY_BYTES:,} bytes allowed")
        return data


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_archive")
