"""TIFF files of all pixel types, byte orders, photometric interpretations and arrangements: each is decoded right or
refused by name."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.types import Pixels
from indexer.vision import tiff
from indexer.vision.decode import decode
from tests import photos
from tests.indexer.vision.common import rejection
from tests.indexer.vision.tiff_files import Kind, write

UNSUPPORTED = "this kind of TIFF is not supported: "

TYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8")

HEIGHT, WIDTH = 20, 36
RED, GREEN = (np.linspace(0, 1, size) for size in (WIDTH, HEIGHT))
PICTURE = np.stack(
    [
        np.tile(RED, (HEIGHT, 1)),
        np.tile(GREEN[:, None], (1, WIDTH)),
        np.tile(RED[::-1] ** 2, (HEIGHT, 1)),
    ],
    axis=2,
)
"""Red grows to the right and green downwards, from 0 to 1."""

ALPHA = np.where(np.arange(WIDTH) < WIDTH // 2, 1.0, 0.5)[None, :, None] * np.ones((HEIGHT, 1, 1))
"""Opaque at the left, half transparent at the right."""

COLORS: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], int, tuple[int, ...]]] = {
    "white-is-zero": (1 - PICTURE[..., :1], PICTURE[..., :1], 0, ()),
    "gray": (PICTURE[..., :1], PICTURE[..., :1], 1, ()),
    "gray-alpha": (np.dstack([PICTURE[..., :1], ALPHA]), PICTURE[..., :1] * ALPHA + 1 - ALPHA, 1, (2,)),
    "gray-multiplied": (np.dstack([PICTURE[..., :1] * ALPHA, ALPHA]), PICTURE[..., :1] * ALPHA + 1 - ALPHA, 1, (1,)),
    "gray-spare": (np.dstack([PICTURE[..., :1], ALPHA]), PICTURE[..., :1], 1, (0,)),
    "rgb": (PICTURE, PICTURE, 2, ()),
    "rgb-alpha": (np.dstack([PICTURE, ALPHA]), PICTURE * ALPHA + 1 - ALPHA, 2, (2,)),
    "rgb-multiplied": (np.dstack([PICTURE * ALPHA, ALPHA]), PICTURE * ALPHA + 1 - ALPHA, 2, (1,)),
    "rgb-spare": (np.dstack([PICTURE, ALPHA]), PICTURE, 2, (0,)),
    "cmyk": (np.dstack([1 - PICTURE, 0 * ALPHA]), PICTURE, 5, ()),
}
"""The channels in the file and the picture that they show, 0 to 1, the photometric interpretation and the extra
channels."""


def scaled(channels: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Returns channels from 0 to 1 with the whole range of a type, from 0."""
    if np.dtype(dtype).kind in "fc":
        return channels.astype(dtype)
    largest = np.iinfo(dtype).max
    return np.minimum(np.rint(channels * largest), np.nextafter(float(largest), 0)).astype(dtype)


def assert_shows(pixels: Pixels, picture: NDArray[np.float64]) -> None:
    expected = np.broadcast_to(picture * 255, (HEIGHT, WIDTH, 3))
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() < 2  # rounded twice where alpha is applied


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("color", COLORS)
def test_each_kind_is_decoded_right_or_refused_by_name(color: str, dtype: str) -> None:
    stored, picture, photometric, extra = COLORS[color]
    is_read = dtype == "u1" or (dtype == "u2" and not (color.startswith("gray-")))
    for order, has_planes, block, is_deflated in product("<>", (False, True), (None, (16, 16)), (False, True)):
        kind = Kind(order, photometric, has_planes, block, is_deflated, extra)
        data = write(scaled(stored, dtype), kind)
        if is_read and not (color.startswith("gray-") and has_planes):
            assert_shows(decode(data).pixels, picture)
        else:
            assert rejection(data).startswith(UNSUPPORTED), kind


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("is_bit_reversed", [False, True])
def test_gray_of_few_bits_is_decoded(order: str, photometric: int, bits: int, is_bit_reversed: bool) -> None:
    shown = np.rint(PICTURE[..., :1] * (2**bits - 1))
    stored = (2**bits - 1 - shown if photometric == 0 else shown).astype("u1")
    data = write(stored, Kind(order, photometric, bits=bits, is_bit_reversed=is_bit_reversed))
    assert_shows(decode(data).pixels, shown / (2**bits - 1))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [3, 6, 10, 12, 14])
def test_gray_of_unusual_bits_is_decoded_right_or_refused_by_name(order: str, photometric: int, bits: int) -> None:
    largest = 2**bits - 1
    shown = np.rint(PICTURE[..., :1] * largest)
    stored = (largest - shown if photometric == 0 else shown).astype("u2")
    data = write(stored, Kind(order, photometric, bits=bits))
    if (bits, photometric, order) == (12, 1, "<"):
        assert_shows(decode(data).pixels, shown / largest)
    else:
        assert f"{bits}-bit gray" in rejection(data)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_is_decoded(order: str, bits: int) -> None:
    index = np.rint(PICTURE[..., :1] * (2**bits - 1)).astype("u1")
    colors = np.linspace(0, 65535, 2**bits).astype(int)
    table = [*colors, *colors[::-1], *[30_000] * 2**bits]
    data = write(index, Kind(order, 3, bits=bits, tags={320: table}))
    shown = np.dstack([colors[index], colors[::-1][index], np.full_like(index, 30_000, dtype=int)])
    assert_shows(decode(data).pixels, shown / 65535)


@pytest.mark.parametrize("is_bit_reversed", [False, True])
def test_bit_reversed_rgb_is_decoded(is_bit_reversed: bool) -> None:
    data = write(scaled(PICTURE, "u1"), Kind(photometric=2, is_bit_reversed=is_bit_reversed))
    assert_shows(decode(data).pixels, PICTURE)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("has_planes", [False, True])
def test_little_endian_bigtiff_is_decoded_and_big_endian_bigtiff_refused(dtype: str, has_planes: bool) -> None:
    kind = Kind("<", 2, has_planes, is_bigtiff=True)
    assert_shows(decode(write(scaled(PICTURE, dtype), kind)).pixels, PICTURE)
    assert "big-endian BigTIFF" in rejection(write(scaled(PICTURE, dtype), replace(kind, order=">")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("dtype", "has_planes"), [("u1", False), ("u2", True)])
def test_uncompressed_tiff_is_made_upright(orientation: int, dtype: str, has_planes: bool) -> None:
    stored = photos.stored(scaled(PICTURE, dtype), orientation)
    data = write(stored, Kind("<", 2, has_planes, tags={274: [orientation]}))
    assert_shows(decode(data).pixels, PICTURE)


@pytest.mark.parametrize(
    ("dtype", "kind", "name"),
    [
        ("f4", Kind(photometric=2), "32-bit floating-point RGB;"),
        ("u4", Kind(), "32-bit gray;"),
        ("i2", Kind(), "16-bit signed gray;"),
        ("u2", Kind(extra=(2,)), "16-bit gray with 1 more channel;"),
        ("u1", Kind(extra=(2,), has_planes=True), "8-bit gray with 1 more channel in separate planes;"),
        (
            "u1",
            Kind(photometric=2, extra=(2, 0), has_planes=True),
            "8-bit RGB with 2 more channels in separate planes;",
        ),
        ("u1", Kind(photometric=32803), "8-bit raw sensor data;"),
        ("u1", Kind(photometric=4711), "8-bit photometric interpretation 4711;"),
        ("u1", Kind(tags={259: [50002]}), "8-bit gray compressed as JPEG XL;"),
        ("u1", Kind(tags={259: [4711]}), "8-bit gray compressed as method 4711;"),
    ],
)
def test_refusal_names_the_kind_and_what_to_do(dtype: str, kind: Kind, name: str) -> None:
    channels = {2: 3}.get(kind.photometric, 1) + len(kind.extra)
    message = rejection(write(scaled(np.dstack([PICTURE, ALPHA, ALPHA])[..., :channels], dtype), kind))
    assert message == f"{UNSUPPORTED}{name} {tiff.ADVICE}"


def test_preview_of_a_raw_file_is_refused() -> None:
    message = rejection(write(scaled(PICTURE, "u1"), Kind(photometric=2, tags={254: [1]})))
    assert "reduced copy of another one, as in raw files" in message


def test_many_tags_are_read_in_bounded_time() -> None:
    data = bytearray(b"II*\0" + (8).to_bytes(4, "little") + (65535).to_bytes(2, "little"))
    entry = (273).to_bytes(2, "little") + (4).to_bytes(2, "little") + (2**20).to_bytes(4, "little") + bytes(4)
    data += entry * 65535 + bytes(2**22)
    layout = tiff.read(bytes(data))
    assert layout is not None
    assert layout.end == 0
