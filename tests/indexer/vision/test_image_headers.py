"""Headers of images, and rejection of files that Pillow would read for seconds."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from indexer.errors import RejectedImage
from indexer.types import Reason
from indexer.vision import image_headers
from indexer.vision.decode import Limits, count_pixels, decode
from indexer.vision.image_headers import MAX_SEGMENTS
from tests import photos
from tests.indexer.vision.common import astronaut

MANY = 10**7 // 4
"""Number of the smallest segments that fill 10 MB or more; Pillow would walk them one by one."""


def encoded(form: str, width: int = 300, height: int = 200, **options: Any) -> bytes:
    return photos.encode(photos.enlarged(astronaut(), width, height), form, **options)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "HEIF", "AVIF"])
def test_pixels_are_counted_by_the_header(form: str) -> None:
    assert count_pixels(encoded(form)) == 300 * 200


def test_tiff_counts_as_an_image_of_maximum_size() -> None:
    assert count_pixels(encoded("TIFF")) == Limits().max_pixels


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF"])
def test_unreadable_data_has_no_pixels(data: bytes) -> None:
    assert count_pixels(data) == 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 9}])
def test_segments_and_scans_of_a_jpeg_are_counted(options: dict[str, Any]) -> None:
    data = encoded("JPEG", **options)
    header = image_headers.read(data)
    assert header is not None
    assert (header.width, header.height) == (300, 200)
    assert header.segments < 20
    assert image_headers.count_scans(data) == (10 if "progressive" in options else 1)
    assert decode(data).width == 300


def test_chunks_of_a_png_are_counted_up_to_its_end() -> None:
    data = encoded("PNG", 2000, 1000)
    assert decode(data).width == 2000
    header = image_headers.read(data + bytes(12 * MAX_SEGMENTS))
    assert header is not None
    assert 10 < header.segments < MAX_SEGMENTS


@pytest.mark.parametrize(
    "segment",
    ["ffe50002", "fffe0002", "ffdb0002", "ffffffff", "ff00ff00"],
    ids=["APP5", "COM", "DQT", "padding", "stuffing"],
)
def test_jpeg_with_too_many_segments_is_rejected(segment: str) -> None:
    whole = encoded("JPEG")
    data = whole[:2] + bytes.fromhex(segment) * MANY + whole[2:]
    _assert_rejected_by_header(data)


def test_png_with_too_many_chunks_is_rejected() -> None:
    whole = encoded("PNG")
    chunk = b"\0\0\0\0abCd" + bytes.fromhex("3afccb03")  # its CRC is wrong, but never read
    _assert_rejected_by_header(whole[:33] + chunk * (MANY // 3) + whole[33:])


def _assert_rejected_by_header(data: bytes) -> None:
    header = image_headers.read(data)
    assert header is not None
    assert header.segments == MAX_SEGMENTS + 1  # stops counting there
    with pytest.raises(RejectedImage, match="more than 5,000 segments") as raised:
        decode(data)
    assert raised.value.code == Reason.UNREADABLE_IMAGE


def test_scans_of_a_large_jpeg_are_limited() -> None:
    whole = encoded("JPEG", 400, 300, progressive=True)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    data = whole[:-2] + last * 50 + whole[-2:]
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # libjpeg accepts it
    assert decode(data).width == 400
    limits = Limits(max_pixels=200_000)
    assert decode(whole, limits).width == 400
    with pytest.raises(RejectedImage, match="60 scans of 400 x 300 pixels") as raised:
        decode(data, limits)
    assert raised.value.code == Reason.IMAGE_TOO_LARGE
