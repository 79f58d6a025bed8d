"""Writes lossless JPEGs (ITU T.81, process 14), which Pillow and OpenCV only read."""

from __future__ import annotations

import struct

import numpy as np

from indexer.types import Pixels

CATEGORIES = 9
"""Numbers of bits of a difference between two values of 8 bits; each has a code of 4 bits."""


def write(gray: Pixels) -> bytes:
    """Returns a file with the gray picture (H, W), each pixel predicted from its left neighbor."""
    height, width = gray.shape
    predicted = np.roll(gray, 1, axis=1).astype(int)
    predicted[1:, 0] = gray[:-1, 0]
    predicted[0, 0] = 128
    differences = (gray - predicted).ravel().tolist()
    bits = "".join(map(_code, differences))
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    table = bytes([0, 0, 0, 0, CATEGORIES, *[0] * 12, *range(CATEGORIES)])
    return b"".join(
        [
            b"\xff\xd8",
            _segment(0xC3, struct.pack(">BHHB3B", 8, height, width, 1, 1, 0x11, 0)),
            _segment(0xC4, table),
            _segment(0xDA, bytes([1, 1, 0, 1, 0, 0])),
            data,
            b"\xff\xd9",
        ]
    )


def _code(difference: int) -> str:
    """Returns the category of a difference in 4 bits, then its bits; those of negative numbers are inverted."""
    category = abs(difference).bit_length()
    value = difference if difference > 0 else difference + (1 << category) - 1
    return f"{category:04b}" + (f"{value:0{category}b}" if category else "")


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body
