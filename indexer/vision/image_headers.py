"""Reads the headers of JPEG and PNG files in bounded time, and notices files that end too early.

Pillow walks the segments of a JPEG, including each padding byte, and the chunks of a PNG in Python: a file of 30 MB
that consists of nothing else takes seconds. Segments are therefore counted first, up to a limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

MAX_SEGMENTS = 5_000
"""Segments of a JPEG before its pixels, or chunks of a PNG. A JPEG has some tens; a PNG of 32 MB has 4,000 chunks of
the 8 kB that libpng writes."""

PADDING = 16
"""Zero bytes at the end of a file that are not data of a scan, except in rare, uniform pictures."""

JPEG, PNG, BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"

_START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of frame headers, which contain the size (ITU T.81, table B.1)."""

_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers that no length follows."""

_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
"""Frame headers of lossless JPEGs, which libjpeg decodes at full size only."""

_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})

_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA

_AFTER_SCAN = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
"""A marker that ends the data of a scan; stuffed zeros and restart markers are part of it."""


@dataclass(frozen=True)
class Header:
    """The size of an image in pixels, and its segments or chunks."""

    width: int
    height: int
    """0 x 0 if the size is not within the first MAX_SEGMENTS segments."""
    segments: int
    """Counted up to MAX_SEGMENTS + 1."""
    bits: int
    """Bits of a sample; 0 if unknown, like the size."""
    is_lossless: bool = False
    """Whether it is a lossless JPEG."""


def read(data: bytes) -> Header | None:
    """Returns the header of a JPEG or PNG, None for every other format."""
    if data.startswith(JPEG):
        return _read_jpeg(data)
    return _read_png(data) if data.startswith(PNG) else None


def count_scans(data: bytes) -> int:
    """Returns the number of scans of a JPEG, including those of embedded pictures such as thumbnails; 0 for other
    formats. Decoding visits all pixels once for each scan."""
    return data.count(b"\xff\xda") if data.startswith(JPEG) else 0


def is_run_length_coded(data: bytes) -> bool:
    """Returns whether a BMP is compressed by runs of pixels (`biCompression` BI_RLE8 or BI_RLE4)."""
    header_bytes, compression = (int.from_bytes(data[at : at + 4], "little") for at in (14, 30))
    return data.startswith(BMP) and header_bytes >= 40 and compression in (1, 2)


def is_incomplete(data: bytes) -> bool:
    """Returns whether a JPEG, PNG, WebP, HEIC or AVIF ends too early, judged by its lengths and end markers."""
    if data.startswith(JPEG):
        # Data behind the end, such as the video of a motion photo, may look like a scan.
        end = data.rfind(b"\xff\xd9")
        return (end < 0 or b"\xff\xda" in data[end:]) and not _has_end(data)
    if data.startswith(PNG):
        return b"IEND" not in data
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return data[4:8] == b"ftyp" and _lacks_boxes(data)


def _has_end(data: bytes) -> bool:
    """Returns whether an end marker follows the scans of a JPEG."""
    return any(marker == _END_OF_IMAGE for marker, _ in islice(_segments(data, with_scans=True), MAX_SEGMENTS))


def _lacks_boxes(data: bytes) -> bool:
    """Returns whether the last box of an ISO base media file (ISO/IEC 14496-12) ends behind the file."""
    at = 0
    for _ in range(MAX_SEGMENTS):
        size = _integer(data, at, 4)
        if size == 1:
            size = _integer(data, at + 8, 8)
        if at >= len(data) or size < 8:  # 0 stands for the rest of the file
            break
        at += size
    return at > len(data)


def without_padding(data: bytes) -> bytes:
    """Returns a JPEG that lacks its end without what an interrupted copy filled it up with, or half of a marker."""
    kept = data.rstrip(b"\0")
    if len(data) - len(kept) < PADDING:
        kept = data
    return kept.rstrip(b"\xff")


def has_all_scans(data: bytes) -> bool:
    """Returns whether the scans of a JPEG, the last of which may be cut, bring every coefficient of every component.

    A progressive JPEG is refined from scan to scan: without the last ones it is blurred, but looks complete.
    """
    missing: dict[int, set[int]] = {}
    is_progressive = False
    for marker, at in islice(_segments(data, with_scans=True), MAX_SEGMENTS):
        if marker in _START_OF_FRAME:
            is_progressive = marker in _PROGRESSIVE
            end = at + 10 + 3 * _integer(data, at + 9, 1)
            missing = {component: set(range(64)) for component in data[at + 10 : end : 3]}
        elif marker == _START_OF_SCAN:
            end = at + 5 + 2 * _integer(data, at + 4, 1)
            first, last, approximation = (_integer(data, end + n, 1) for n in range(3))
            if not is_progressive:
                first, last, approximation = 0, 63, 0
            if approximation & 15 == 0:
                for component in data[at + 5 : end : 2]:
                    missing.setdefault(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def next_restart(data: bytes) -> bytes:
    """Returns the restart marker, of the cycle of eight, that may follow in the last scan of a JPEG."""
    scan = data.rfind(b"\xff\xda")
    at, number = max((data.rfind(bytes([0xFF, 0xD0 + number]), scan), number) for number in range(8))
    return bytes([0xFF, 0xD0 if at < 0 else 0xD0 + (number + 1) % 8])


def _read_jpeg(data: bytes) -> Header:
    width = height = bits = segments = 0
    is_lossless = False
    for marker, at in islice(_segments(data), MAX_SEGMENTS + 1):
        segments += 1
        if marker in _START_OF_FRAME:
            height, width = _integer(data, at + 5, 2), _integer(data, at + 7, 2)
            bits, is_lossless = _integer(data, at + 4, 1), marker in _LOSSLESS
    return Header(width, height, segments, bits, is_lossless)


def _segments(data: bytes, with_scans: bool = False) -> Iterator[tuple[int, int]]:
    """Yields each marker of a JPEG and where it is, up to the first scan or, with `with_scans`, up to the end."""
    at, end = 2, len(data) - 1
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        yield marker, at
        if marker == 0xFF:  # padding
            at += 1
        elif marker == 0 or marker in _WITHOUT_LENGTH:
            at += 2
        elif marker == _START_OF_SCAN:
            after = _AFTER_SCAN.search(data, at + 2 + _integer(data, at + 2, 2)) if with_scans else None
            if after is None:
                break
            at = after.start()
        else:
            at += 2 + _integer(data, at + 2, 2)


def _read_png(data: bytes) -> Header:
    chunks, at = 0, len(PNG)
    while at < len(data) and chunks <= MAX_SEGMENTS:
        chunks += 1
        if data[at + 4 : at + 8] == b"IEND":
            break
        at += 12 + _integer(data, at, 4)
    return Header(_integer(data, 16, 4), _integer(data, 20, 4), chunks, _integer(data, 24, 1))


def _integer(data: bytes, at: int, size: int) -> int:
    """Returns the big-endian integer of `size` bytes."""
    return int.from_bytes(data[at : at + size])
