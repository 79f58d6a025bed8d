"""Whether a ZIP from somebody unknown may be worked through. Nothing of it is unpacked for that."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import IO

from indexer.enrollment.sources import escapes
from indexer.errors import InvalidRequest

MAX_ENTRIES = 200_000
"""Files in an archive: 2 GiB of photos of 10 kB, which hold a face of a hundred pixels."""

MAX_DIRECTORY_BYTES = 200 * MAX_ENTRIES
"""Of the list of its files, which is read whole: each takes 46 bytes, its name, and 36 for what systems add."""

MOST_UNPACKED = 20
"""Times its own size that an archive may unpack to. Photos hardly shrink, uncompressed ones to a third, a manifest to a
tenth; what ZIP bombs are made of, to a thousandth."""

FREELY_UNPACKED = 64 * 2**20
"""Bytes that any archive may unpack to: a few pictures of one colour are no bomb."""

LOCAL_HEADER = 30
"""Bytes before each file in an archive, and its name (APPNOTE 4.3.7)."""

ENCRYPTED = 0x1
"""The bit of `flag_bits` (APPNOTE 4.4.4)."""


def check_archive(file: IO[bytes]) -> None:
    """Raises InvalidRequest, code `invalid_archive`: no ZIP, too many files, files that are encrypted, lie within each
    other or point out of the archive, or far more bytes than photos pack."""
    try:
        archive = zipfile.ZipFile(_Bounded(file))
    except InvalidRequest:
        raise
    except Exception as error:  # a damaged directory of entries raises nearly anything
        raise _invalid(f"the archive is not a ZIP that can be read: {error}") from error
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise _invalid(f"the archive holds {len(entries):,} files; {MAX_ENTRIES:,} are allowed")
    for entry in entries:
        if entry.flag_bits & ENCRYPTED:
            raise _invalid(f"the archive's file {entry.filename!r} is encrypted; expected one without a password")
        if escapes(entry.filename):
            raise _invalid(f"the archive's file {entry.filename!r} points out of the archive")
    _check_apart(entries, archive.start_dir)
    unpacked, size = sum(entry.file_size for entry in entries), file.seek(0, io.SEEK_END)
    if unpacked > max(FREELY_UNPACKED, MOST_UNPACKED * size):
        raise _invalid(
            f"the archive has {size:,} bytes and unpacks to {unpacked:,}; {MOST_UNPACKED} times its size are allowed"
        )


def _check_apart(entries: Sequence[zipfile.ZipInfo], end: int) -> None:
    """One piece of the file that many entries show unpacks to more than any ratio tells."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    starts = [entry.header_offset for entry in ordered] + [end]
    for entry, following in zip(ordered, starts[1:], strict=True):
        if entry.header_offset + LOCAL_HEADER + entry.compress_size > following:
            raise _invalid(f"the archive's file {entry.filename!r} reaches into the one after it")


class _Bounded:
    """A file of which no more than MAX_DIRECTORY_BYTES are read at a time, as `ZipFile` reads its list of files."""

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
            raise _invalid(f"the list of the archive's files has more than the {MAX_DIRECTORY_BYTES:,} bytes allowed")
        return data


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_archive")
