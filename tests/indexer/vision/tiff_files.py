"""Writes TIFF files of kinds that Pillow cannot write (TIFF 6.0, and BigTIFF)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SHORT, LONG = 3, 4


@dataclass(frozen=True)
class Kind:
    """How `write` stores a picture."""

    order: str = "<"
    """Byte order: `<` little-endian, `>` big-endian."""
    photometric: int = 1
    """0 and 1 gray, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr."""
    has_planes: bool = False
    """Whether each channel is stored on its own."""
    block: tuple[int, int] | None = None
    """Height and width of a tile, multiples of 16; None for strips of 7 rows."""
    is_deflated: bool = False
    extra: Sequence[int] = ()
    """Meaning of the channels that follow those of the color: 0 unknown, 1 premultiplied alpha, 2 alpha."""
    bits: int | None = None
    """Bits of a sample, if they are not those of the array's type."""
    is_bit_reversed: bool = False
    is_bigtiff: bool = False
    tags: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """More tags, as SHORT, which replace those that follow from the fields above."""


def write(channels: NDArray[np.generic], kind: Kind) -> bytes:
    """Returns a file with the picture (H, W, C) of integers, floats or complex numbers."""
    height, width, count = channels.shape
    block_height, block_width = kind.block or (7, width)
    planes = np.split(channels, count, axis=2) if kind.has_planes else [channels]
    blocks = [
        _block(plane[y : y + block_height, x : x + block_width], kind)
        for plane in planes
        for y in range(0, height, block_height)
        for x in range(0, width, block_width)
    ]
    if kind.is_deflated:
        blocks = [zlib.compress(block) for block in blocks]
    if kind.is_bit_reversed:
        blocks = [bytes(int(f"{byte:08b}"[::-1], 2) for byte in block) for block in blocks]
    bits = kind.bits or channels.dtype.itemsize * 8
    head = 16 if kind.is_bigtiff else 8
    starts = [head + sum(map(len, blocks[:n])) for n in range(len(blocks))]
    offsets, counts = (324, 325) if kind.block else (273, 279)
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * count),
        259: (SHORT, [8 if kind.is_deflated else 1]),
        262: (SHORT, [kind.photometric]),
        266: (SHORT, [2 if kind.is_bit_reversed else 1]),
        277: (SHORT, [count]),
        284: (SHORT, [2 if kind.has_planes else 1]),
        339: (SHORT, [{"u": 1, "i": 2, "f": 3, "c": 6}[channels.dtype.kind]] * count),
        offsets: (LONG, starts),
        counts: (LONG, [len(block) for block in blocks]),
    }
    if kind.block:
        tags |= {322: (LONG, [block_width]), 323: (LONG, [block_height])}
    else:
        tags[278] = LONG, [block_height]
    if kind.extra:
        tags[338] = SHORT, kind.extra
    tags |= {tag: (SHORT, values) for tag, values in kind.tags.items()}
    pixels = b"".join(blocks)
    return _header(head + len(pixels), kind) + pixels + _directory(tags, head + len(pixels), kind)


def _block(samples: NDArray[np.generic], kind: Kind) -> bytes:
    """Returns the bytes of a strip or, padded to its full size, of a tile."""
    if kind.block:
        rest = [size - length for size, length in zip(kind.block, samples.shape[:2], strict=True)]
        samples = np.pad(samples, [(0, rest[0]), (0, rest[1]), (0, 0)])
    if kind.bits is None or kind.bits in (8, 16):
        return samples.astype(kind.order + samples.dtype.str[1:]).tobytes()
    rows = samples.reshape(len(samples), -1, 1).astype(">u2").view(np.uint8)
    return np.packbits(np.unpackbits(rows, axis=2)[..., -kind.bits :].reshape(len(samples), -1), axis=1).tobytes()


def _header(directory: int, kind: Kind) -> bytes:
    name = b"II" if kind.order == "<" else b"MM"
    if kind.is_bigtiff:
        return name + struct.pack(kind.order + "HHHQ", 43, 8, 0, directory)
    return name + struct.pack(kind.order + "HL", 42, directory)


def _directory(tags: Mapping[int, tuple[int, Sequence[int]]], at: int, kind: Kind) -> bytes:
    """Returns the directory that begins at the byte `at`, followed by the values that do not fit into it."""
    entry, count, offset, slot = ("HHQ", "Q", "Q", 8) if kind.is_bigtiff else ("HHL", "H", "L", 4)
    entries, values = struct.pack(kind.order + count, len(tags)), b""
    end = at + len(entries) + len(tags) * (struct.calcsize(kind.order + entry) + slot) + slot
    for tag, (form, numbers) in sorted(tags.items()):
        body = struct.pack(f"{kind.order}{len(numbers)}{'H' if form == SHORT else 'L'}", *numbers)
        entries += struct.pack(kind.order + entry, tag, form, len(numbers))
        if len(body) <= slot:
            entries += body.ljust(slot, b"\0")
        else:
            entries += struct.pack(kind.order + offset, end + len(values))
            values += body
    return entries + bytes(slot) + values
