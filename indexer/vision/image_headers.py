"""What the beginning of a JPEG or PNG says, in a bounded time.

Pillow walks the segments of a JPEG and the chunks of a PNG in Python, each byte of padding too: a file of 30 MB made of
nothing else keeps it for seconds. Here they are counted first, as far as they are too many.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEGMENTS = 5_000
"""Segments of a JPEG before its pixels, or chunks of a PNG: a JPEG has some tens, a PNG of 32 MB as libpng writes it, 8
kB a chunk, 4,000."""

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of frames, which tell the size (ITU T.81, table B.1)."""

_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""

_SCAN = 0xDA


@dataclass(frozen=True)
class Header:
    width: int
    height: int
    """0 x 0 where it is not told before MAX_SEGMENTS."""
    parts: int
    """Counted up to one more than MAX_SEGMENTS."""


def read(data: bytes) -> Header | None:
    """None for every other format."""
    if data.startswith(JPEG):
        return _jpeg(data)
    return _png(data) if data.startswith(PNG) else None


def count_scans(data: bytes) -> int:
    """Of a JPEG, with those of further pictures in it, as a thumbnail: each goes over all pixels again."""
    return data.count(b"\xff\xda") if data.startswith(JPEG) else 0


def _jpeg(data: bytes) -> Header:
    width = height = parts = 0
    at, end = 2, len(data) - 1
    while at < end and data[at] == 0xFF and parts <= MAX_SEGMENTS:
        parts += 1
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker == 0 or marker in _ALONE:
            at += 2
        elif marker == _SCAN:
            break
        else:
            if marker in _SIZES:
                height, width = _number(data, at + 5, 2), _number(data, at + 7, 2)
            at += 2 + _number(data, at + 2, 2)
    return Header(width, height, parts)


def _png(data: bytes) -> Header:
    parts, at = 0, len(PNG)
    while at < len(data) and parts <= MAX_SEGMENTS:
        parts += 1
        if data[at + 4 : at + 8] == b"IEND":
            break
        at += 12 + _number(data, at, 4)
    return Header(_number(data, 16, 4), _number(data, 20, 4), parts)


def _number(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count])
