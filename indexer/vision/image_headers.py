"""Reads the headers of JPEG and PNG files in bounded time.

Pillow walks the segments of a JPEG, including each padding byte, and the chunks of a PNG in Python: a file of 30 MB
that consists of nothing else takes seconds. Segments are therefore counted first, up to a limit.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEGMENTS = 5_000
"""Segments of a JPEG before its pixels, or chunks of a PNG. A JPEG has some tens; a PNG of 32 MB has 4,000 chunks of
the 8 kB that libpng writes."""

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

_START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of frame headers, which contain the size (ITU T.81, table B.1)."""

_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers that no length follows."""

_START_OF_SCAN = 0xDA


@dataclass(frozen=True)
class Header:
    """The size of an image in pixels, and its segments or chunks."""

    width: int
    height: int
    """0 x 0 if the size is not within the first MAX_SEGMENTS segments."""
    segments: int
    """Counted up to MAX_SEGMENTS + 1."""


def read(data: bytes) -> Header | None:
    """Returns the header of a JPEG or PNG, None for every other format."""
    if data.startswith(JPEG):
        return _read_jpeg(data)
    return _read_png(data) if data.startswith(PNG) else None


def count_scans(data: bytes) -> int:
    """Returns the number of scans of a JPEG, including those of embedded pictures such as thumbnails; 0 for other
    formats. Decoding visits all pixels once for each scan."""
    return data.count(b"\xff\xda") if data.startswith(JPEG) else 0


def _read_jpeg(data: bytes) -> Header:
    width = height = segments = 0
    at, end = 2, len(data) - 1
    while at < end and data[at] == 0xFF and segments <= MAX_SEGMENTS:
        segments += 1
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker == 0 or marker in _WITHOUT_LENGTH:
            at += 2
        elif marker == _START_OF_SCAN:
            break
        else:
            if marker in _START_OF_FRAME:
                height, width = _integer(data, at + 5, 2), _integer(data, at + 7, 2)
            at += 2 + _integer(data, at + 2, 2)
    return Header(width, height, segments)


def _read_png(data: bytes) -> Header:
    chunks, at = 0, len(PNG)
    while at < len(data) and chunks <= MAX_SEGMENTS:
        chunks += 1
        if data[at + 4 : at + 8] == b"IEND":
            break
        at += 12 + _integer(data, at, 4)
    return Header(_integer(data, 16, 4), _integer(data, 20, 4), chunks)


def _integer(data: bytes, at: int, size: int) -> int:
    """Returns the big-endian integer of `size` bytes."""
    return int.from_bytes(data[at : at + size])
