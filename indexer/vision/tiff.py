"""Reads the tags of a TIFF, and refuses the kinds that Pillow refuses without a reason or reads wrongly.

The numbers are those of TIFF 6.0 and its BigTIFF extension.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""Starts of TIFF and BigTIFF files, in little-endian and big-endian byte order."""

ADVICE = "save it as RGB or gray of 8 bits"

MAX_TAGS = 1_000
"""Tags read of a file; a camera's TIFF has some tens."""

MAX_PARTS = 100_000
"""Strips or tiles. A photo of 100 million pixels has up to 37,000, of 8 kB; libtiff takes microseconds for each."""

_SUBFILE_TYPE, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 258, 259, 262
_SAMPLES, _PLANAR, _SAMPLE_FORMAT = 277, 284, 339
_OFFSETS, _BYTE_COUNTS = (273, 324), (279, 325)
"""Tags with the offsets and the byte counts of strips and of tiles."""

_TAGS = frozenset(
    {_SUBFILE_TYPE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _SAMPLE_FORMAT, *_OFFSETS, *_BYTE_COUNTS}
)

_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
"""NumPy types of the tags' types BYTE, SHORT, LONG and LONG8."""

WHITE_IS_ZERO, GRAY, PALETTE = 0, 1, 3

COLORS = {
    WHITE_IS_ZERO: ("gray (white is zero)", 1),
    GRAY: ("gray", 1),
    2: ("RGB", 3),
    PALETTE: ("palette", 1),
    4: ("mask", 1),
    5: ("CMYK", 4),
    6: ("YCbCr", 3),
    8: ("CIELAB", 3),
    9: ("ICCLAB", 3),
    10: ("ITULAB", 3),
    32803: ("raw sensor data", 1),
    32844: ("LogL", 1),
    32845: ("LogLuv", 3),
    34892: ("linear raw data", 3),
}
"""The name and the number of channels of each photometric interpretation."""

SAMPLE_FORMATS = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}

COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000})
"""Methods that are read: none, CCITT, LZW, JPEG, Deflate, PackBits, LZMA and Zstandard."""

COMPRESSION_NAMES = {34712: "JPEG 2000", 34887: "LERC", 34933: "PNG", 34934: "JPEG XR", 50001: "WebP", 50002: "JPEG XL"}
"""Names of methods that Pillow's build of libtiff does not have."""


@dataclass(frozen=True)
class Layout:
    """How the first picture of a TIFF is stored."""

    parts: int
    """Strips or tiles, counted up to MAX_PARTS + 1."""
    bits: int
    """Bits of the first sample of a pixel."""
    sample_format: int
    """1 for unsigned integers; see SAMPLE_FORMATS."""
    photometric: int
    samples: int
    """Samples of a pixel, including alpha."""
    has_planes: bool
    """Whether each channel is stored on its own."""
    compression: int
    is_reduced_copy: bool
    """Whether the picture is a smaller version of another one in the same file, as in raw files of cameras."""
    is_big_endian_bigtiff: bool
    end: int
    """Bytes that the file must have to contain the whole picture."""

    @property
    def problem(self) -> str | None:
        """Returns why the picture cannot be read; None if that is left to Pillow."""
        if self.is_reduced_copy:
            return "its first picture is a reduced copy of another one, as in raw files of cameras; expected a photo"
        if self.parts > MAX_PARTS:
            return f"it has more than {MAX_PARTS:,} strips or tiles; save it as JPEG or PNG"
        is_misread = (
            self.sample_format != 1
            or self.bits > 16
            or self.compression not in COMPRESSIONS
            or self.is_big_endian_bigtiff
            or (self.has_planes and self.samples > 1 and self.photometric in (WHITE_IS_ZERO, GRAY, PALETTE))
            or (self.has_planes and self.samples > 4)
        )
        return self.refusal if is_misread else None

    @property
    def refusal(self) -> str:
        """Returns a message that names this kind of TIFF."""
        color, channels = COLORS.get(self.photometric, (f"photometric interpretation {self.photometric}", self.samples))
        extra = self.samples - channels
        compression = COMPRESSION_NAMES.get(self.compression, f"method {self.compression}")
        parts = [
            f"{self.bits}-bit {SAMPLE_FORMATS.get(self.sample_format, '')}{color}",
            f"with {extra} more channel{'s' if extra > 1 else ''}" if extra > 0 else "",
            "in separate planes" if self.has_planes else "",
            "" if self.compression in COMPRESSIONS else f"compressed as {compression}",
            "in a big-endian BigTIFF" if self.is_big_endian_bigtiff else "",
        ]
        return f"this kind of TIFF is not supported: {' '.join(filter(None, parts))}; {ADVICE}"


def read(data: bytes) -> Layout | None:
    """Returns the layout of the first picture of a TIFF, in bounded time.

    Returns None for all other files, and if the tags are damaged or outside of the file.
    """
    try:
        return _read(data) if data.startswith(MAGIC) else None
    except (struct.error, OverflowError, ValueError, IndexError):
        return None


def _read(data: bytes) -> Layout:
    order = "<" if data.startswith(b"II") else ">"
    is_big = 43 in data[2:4]
    (at,) = struct.unpack_from(order + ("Q" if is_big else "L"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, at)
    at += 8 if is_big else 2
    tags: dict[int, NDArray[np.unsignedinteger]] = {}
    for _ in range(min(count, MAX_TAGS)):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in _TAGS and tag not in tags and kind in _INTEGERS:
            tags[tag] = _values(data, at + 4, order, kind, is_big)
        at += 20 if is_big else 12
    ends = [
        int((tags[offsets].astype(np.uint64) + tags[counts]).max())
        for offsets, counts in zip(_OFFSETS, _BYTE_COUNTS, strict=True)
        if offsets in tags and counts in tags and 0 < tags[offsets].size == tags[counts].size
    ]
    first = {tag: int(values[0]) for tag, values in tags.items() if values.size}
    return Layout(
        parts=max((tags[tag].size for tag in (*_OFFSETS, *_BYTE_COUNTS) if tag in tags), default=0),
        bits=first.get(_BITS, 1),
        sample_format=first.get(_SAMPLE_FORMAT, 1),
        photometric=first.get(_PHOTOMETRIC, WHITE_IS_ZERO),
        samples=first.get(_SAMPLES, 1),
        has_planes=first.get(_PLANAR, 1) == 2,
        compression=first.get(_COMPRESSION, 1),
        is_reduced_copy=bool(first.get(_SUBFILE_TYPE, 0) & 1),
        is_big_endian_bigtiff=is_big and order == ">",
        end=max(ends, default=0),
    )


def _values(data: bytes, at: int, order: str, kind: int, is_big: bool) -> NDArray[np.unsignedinteger]:
    """Returns up to MAX_PARTS + 1 values of a tag; those that do not fit into its entry are elsewhere in the file."""
    (count,) = struct.unpack_from(order + ("Q" if is_big else "L"), data, at)
    dtype = np.dtype(order + _INTEGERS[kind])
    at += 8 if is_big else 4
    if count * dtype.itemsize > (8 if is_big else 4):
        (at,) = struct.unpack_from(order + ("Q" if is_big else "L"), data, at)
    return np.frombuffer(data, dtype, min(count, MAX_PARTS + 1), at)
