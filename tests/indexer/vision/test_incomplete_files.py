"""Files whose end is missing: those that only lack their end marker are decoded, all others are refused in words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indexer.errors import RejectedImage
from indexer.types import Reason
from indexer.vision.decode import INCOMPLETE, Limits, decode
from tests import photos
from tests.indexer.vision import lossless_jpeg
from tests.indexer.vision.common import astronaut, noise, rejection
from tests.indexer.vision.tiff_files import Kind, write

SMALL = photos.enlarged(astronaut(), 72, 56)

JPEGS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("RGB", {}),
    "halved-colors": ("RGB", {"subsampling": 2, "quality": 70}),
    "low-quality": ("RGB", {"quality": 30}),
    "gray": ("L", {}),
    "cmyk": ("CMYK", {}),
    "progressive": ("RGB", {"progressive": True}),
    "progressive-gray": ("L", {"progressive": True, "quality": 60}),
    "restarts": ("RGB", {"restart_marker_blocks": 2}),
    "many-restarts": ("L", {"restart_marker_blocks": 1}),
}


def jpeg(kind: str) -> bytes:
    mode, options = JPEGS[kind]
    return photos.encode(Image.fromarray(SMALL).convert(mode), "JPEG", **options)


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_without_end_marker_has_the_same_pixels(kind: str) -> None:
    data = jpeg(kind)
    assert data.endswith(b"\xff\xd9")
    expected = decode(data).pixels
    for without in (data[:-2], data[:-1], data[:-2] + b"no marker"):
        for longest_side in (None, 30):
            assert np.array_equal(decode(without, longest_side=longest_side).pixels, expected)


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_cut_anywhere_is_refused_if_a_pixel_is_missing(kind: str) -> None:
    data = jpeg(kind)
    expected = decode(data).pixels
    messages = set()
    lengths = range(100, len(data) - 2, 7)
    ends = [match.start() for match in re.finditer(rb"\xff[\x00\xd0-\xd7\xc4\xda]", data)]
    for length in {*lengths, *ends, *(end + 1 for end in ends), *range(len(data) - 30, len(data) - 2)}:
        try:
            pixels = decode(data[:length]).pixels
        except RejectedImage as rejected:
            messages.add(rejected.message)
        else:
            assert np.array_equal(pixels, expected), length
            assert length > len(data) - 5
    assert messages == {INCOMPLETE}


@pytest.mark.parametrize("filling", [bytes(16), bytes(100_000), b"\xff" * 5000, b"\r\n--boundary--\r\n"])
def test_half_photo_that_is_filled_up_is_refused(filling: bytes) -> None:
    data = photos.encode(astronaut(), "JPEG")
    assert rejection(data[: len(data) // 2] + filling) == INCOMPLETE


def test_data_behind_the_end_does_not_matter() -> None:
    """As in motion photos, whose video may contain anything."""
    data = photos.encode(photos.enlarged(SMALL, 720, 560), "JPEG")
    for behind in (b"\xff\xda" + bytes(range(100)), b"\xff\xd9 \xff\xda", bytes(5000)):
        photo = decode(data + behind, longest_side=180)
        assert photo.pixels.shape == (140, 180, 3)
        assert np.array_equal(photo.pixels, decode(data, longest_side=180).pixels)


def test_limits_hold_for_a_jpeg_without_end_marker() -> None:
    rejection(jpeg("baseline")[:-2], Reason.IMAGE_TOO_LARGE, limits=Limits(max_pixels=1000))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("MPO", {}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": False}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("HEIF", {}),
        ("AVIF", {}),
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_cut_file_is_reported_as_incomplete(form: str, options: dict[str, Any], share: float) -> None:
    data = photos.encode(noise(1, 64, 96)[0], form, **options)
    assert decode(data).width == 96
    assert rejection(data[: int(len(data) * share)]) == INCOMPLETE


@pytest.mark.parametrize("has_planes", [False, True])
@pytest.mark.parametrize("is_deflated", [False, True])
def test_cut_tiff_is_reported_as_incomplete(has_planes: bool, is_deflated: bool) -> None:
    deep = noise(1, 64, 96)[0].astype(np.uint16) * 257
    data = write(deep, Kind("<", 2, has_planes, is_deflated=is_deflated))
    for length in (8, 100, len(data) // 2, len(data) - 200):
        assert rejection(data[:length]) == INCOMPLETE


def test_damaged_file_is_not_reported_as_incomplete() -> None:
    data = bytearray(photos.encode(noise(1, 64, 96)[0], "PNG"))
    data[100:200] = bytes(100)
    assert "it cannot be decoded" in rejection(bytes(data))


@pytest.mark.parametrize("longest_side", [None, 1280, 1000, 300])
def test_large_lossless_jpeg_is_decoded_at_full_size(longest_side: int | None) -> None:
    gray = photos.enlarged(astronaut(), 2600, 24)[..., 1]
    photo = decode(lossless_jpeg.write(gray), longest_side=longest_side)
    assert np.array_equal(photo.pixels, gray[..., None].repeat(3, axis=2))
    assert not photo.is_reduced


def test_lossless_jpeg_without_end_marker_is_decoded() -> None:
    gray = SMALL[..., 1]
    data = lossless_jpeg.write(gray)
    assert np.array_equal(decode(data[:-2]).pixels[..., 0], gray)
    assert rejection(data[: len(data) // 2]) == INCOMPLETE
