"""PNG and BMP files of all pixel types, whose pixels are compared with the picture that was written."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from indexer.types import Pixels
from indexer.vision.decode import decode
from tests import photos
from tests.indexer.vision import lossless_jpeg
from tests.indexer.vision.common import rejection

HEIGHT, WIDTH = 20, 36
RED, GREEN = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
PICTURE = np.stack([RED, GREEN, RED[:, ::-1] ** 2], axis=2)
ALPHA = np.where(np.arange(WIDTH) < WIDTH // 2, 1.0, 0.5) * np.ones((HEIGHT, 1))

PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column, and steps, of the passes of an interlaced PNG (Adam7)."""

Samples = NDArray[np.integer[Any]]


def png(samples: Samples, bits: int, color: int, is_interlaced: bool = False, **chunks: bytes) -> bytes:
    """Returns a PNG with the samples (H, W, C): color 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha."""
    passes = [samples[y::down, x::across] for y, x, down, across in PASSES] if is_interlaced else [samples]
    rows = [b"\0" + packed(row, bits) for part in passes if part.size for row in part]
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, int(is_interlaced))
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(b"".join(rows)), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind.encode(), body) for kind, body in parts.items())


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed(row: Samples, bits: int) -> bytes:
    places = np.unpackbits(row.ravel().astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    return np.packbits(places[:, -bits:].ravel()).tobytes()


def levels(channels: NDArray[np.float64], bits: int) -> Samples:
    return np.asarray(np.rint(channels * (2**bits - 1)), np.int64)


def assert_shows(data: bytes, expected: NDArray[np.floating[Any]]) -> None:
    """Compares with a picture (H, W) or (H, W, 3) from 0 to 1."""
    shown = np.broadcast_to((expected if expected.ndim == 3 else expected[..., None]) * 255, (HEIGHT, WIDTH, 3))
    assert np.abs(decode(data).pixels - shown).max() < 2  # rounded twice where alpha is applied


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_of_gray_is_decoded_with_and_without_a_transparent_level(bits: int, is_interlaced: bool) -> None:
    gray = levels(RED, bits)
    shown = gray / (2**bits - 1)
    assert_shows(png(gray[..., None], bits, 0, is_interlaced), shown)
    clear = gray[3, 20]
    data = png(gray[..., None], bits, 0, is_interlaced, tRNS=struct.pack(">H", clear))
    assert_shows(data, np.where(gray == clear, 1, shown))


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_png_of_rgb_is_decoded_with_and_without_a_transparent_color(bits: int, is_interlaced: bool) -> None:
    color = levels(PICTURE, bits)
    assert_shows(png(color, bits, 2, is_interlaced), PICTURE)
    clear = color[3, 20]
    data = png(color, bits, 2, is_interlaced, tRNS=struct.pack(">3H", *clear))
    assert_shows(data, np.where((color == clear).all(axis=2, keepdims=True), 1, PICTURE))


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_alpha_is_decoded(bits: int, is_interlaced: bool) -> None:
    gray = levels(np.dstack([RED, ALPHA]), bits)
    assert_shows(png(gray, bits, 4, is_interlaced), RED * ALPHA + 1 - ALPHA)
    color = levels(np.dstack([PICTURE, ALPHA]), bits)
    assert_shows(png(color, bits, 6, is_interlaced), PICTURE * ALPHA[..., None] + 1 - ALPHA[..., None])


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_with_palette_is_decoded_with_and_without_alpha(bits: int, is_interlaced: bool) -> None:
    index, ramp = levels(RED, bits), np.rint(np.linspace(0, 255, 2**bits)).astype(np.uint8)
    colors = np.stack([ramp, ramp[::-1], np.full_like(ramp, 77)], axis=1)
    data = png(index[..., None], bits, 3, is_interlaced, PLTE=colors.tobytes())
    assert_shows(data, colors[index] / 255)
    data = png(index[..., None], bits, 3, is_interlaced, PLTE=colors.tobytes(), tRNS=ramp.tobytes())
    alpha = ramp[index][..., None] / 255
    assert_shows(data, colors[index] / 255 * alpha + 1 - alpha)


def bmp(rows: list[bytes], bits: int, masks: tuple[int, ...] = (), header: int = 40, palette: bytes = b"") -> bytes:
    """Returns a BMP with these rows, the lowest first, and a header of this size with the `masks` of its channels."""
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    described = struct.pack("<IiiHHIIiiII", header, WIDTH, HEIGHT, 1, bits, 3 if masks else 0, len(data), 0, 0, 0, 0)
    described += struct.pack(f"<{len(masks)}I", *masks)
    described = described.ljust(header, b"\0") + palette
    start = 14 + len(described)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + described + data


def bmp_rows(channels: Pixels) -> list[bytes]:
    return [row.tobytes() for row in channels[::-1]]


BYTES = levels(PICTURE, 8).astype(np.uint8)
MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@pytest.mark.parametrize("header", [40, 56, 108, 124])
@pytest.mark.parametrize("filling", [0, 255])
@pytest.mark.parametrize("has_masks", [False, True])
def test_bmp_of_32_bits_is_opaque_whatever_its_unused_byte_is(header: int, filling: int, has_masks: bool) -> None:
    masks = () if not has_masks else MASKS[:3] if header == 40 else MASKS
    channels = np.dstack([BYTES[..., ::-1], np.full((HEIGHT, WIDTH), filling, np.uint8)])
    assert_shows(bmp(bmp_rows(channels), 32, masks, header), PICTURE)


def test_bmp_with_alpha_is_blended_with_white() -> None:
    channels = np.dstack([BYTES[..., ::-1], levels(ALPHA, 8).astype(np.uint8)])
    shown = PICTURE * ALPHA[..., None] + 1 - ALPHA[..., None]
    assert_shows(bmp(bmp_rows(channels), 32, MASKS, 124), shown)


@pytest.mark.parametrize(
    ("masks", "bits"),
    [((), (5, 5, 5)), ((0x7C00, 0x3E0, 0x1F), (5, 5, 5)), ((0xF800, 0x7E0, 0x1F), (5, 6, 5))],
)
def test_bmp_of_16_bits_is_decoded(masks: tuple[int, ...], bits: tuple[int, ...]) -> None:
    red, green, blue = (levels(PICTURE[..., n], bits[n]) for n in range(3))
    values = (red << (bits[1] + bits[2]) | green << bits[2] | blue).astype("<u2")
    shown = np.stack([channel / (2**n - 1) for channel, n in zip((red, green, blue), bits, strict=True)], axis=2)
    assert_shows(bmp([row.tobytes() for row in values[::-1]], 16, masks), shown)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_with_palette_is_decoded(bits: int) -> None:
    index, ramp = levels(RED, bits), np.rint(np.linspace(0, 255, 2**bits)).astype(np.uint8)
    colors = np.stack([ramp, ramp[::-1], np.full_like(ramp, 77), np.zeros_like(ramp)], axis=1)
    data = bmp([packed(row, bits) for row in index[::-1]], bits, palette=colors.tobytes())
    assert_shows(data, colors[index][..., 2::-1] / 255)


def test_unusual_bmp_is_refused_in_words() -> None:
    channels = np.dstack([BYTES, np.zeros((HEIGHT, WIDTH), np.uint8)])
    assert "bitfields layout" in rejection(bmp(bmp_rows(channels), 32, (0xFF, 0xFF00, 0xFF0000)))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_picture_that_is_transparent_everywhere_is_shown(form: str) -> None:
    channels = np.dstack([BYTES, np.zeros((HEIGHT, WIDTH), np.uint8)])
    options = {"exact": True} if form == "WEBP" else {}
    assert_shows(photos.encode(Image.fromarray(channels), form, **options), PICTURE)


@pytest.mark.parametrize("bits", [12, 16])
def test_jpeg_of_more_than_8_bits_is_refused_by_name(bits: int) -> None:
    data = bytearray(lossless_jpeg.write(BYTES[..., 0]))
    data[data.index(b"\xff\xc3") + 4] = bits
    assert rejection(bytes(data)) == f"JPEGs of {bits} bits are not supported; expected 8"
