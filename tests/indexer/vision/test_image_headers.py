"""What a header says is what Pillow says, and what would keep Pillow for seconds is counted."""

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

MANY = 10**7 // 4
"""Parts of the smallest kind that fill 10 MB or more, which Pillow would walk one by one."""

FORMS = ["JPEG", "PNG", "WEBP", "BMP", "HEIF", "AVIF"]


def encoded(form: str, width: int = 300, height: int = 200, **options: Any) -> bytes:
    return photos.encode(photos.enlarged(photos.pixels(photos.astronaut()), width, height), form, **options)


@pytest.mark.parametrize("form", FORMS)
def test_pixels_are_those_of_the_image(form: str) -> None:
    assert count_pixels(encoded(form)) == 300 * 200


def test_a_tiff_is_taken_for_a_large_image() -> None:
    assert count_pixels(encoded("TIFF")) == Limits().max_pixels


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF"])
def test_what_cannot_be_read_has_no_pixels(data: bytes) -> None:
    assert count_pixels(data) == 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 9}])
def test_jpegs_of_many_kinds(options: dict[str, Any]) -> None:
    data = encoded("JPEG", **options)
    header = image_headers.read(data)
    assert header is not None
    assert (header.width, header.height) == (300, 200)
    assert header.parts < 20
    assert image_headers.count_scans(data) == (10 if "progressive" in options else 1)
    assert decode(data).width == 300


def test_a_png_of_many_chunks_is_read_and_what_follows_it_is_nothing() -> None:
    data = encoded("PNG", 2000, 1000)
    assert decode(data).width == 2000
    header = image_headers.read(data + bytes(12 * MAX_SEGMENTS))
    assert header is not None
    assert 10 < header.parts < MAX_SEGMENTS


JPEG_PARTS = {"APP5": "ffe50002", "COM": "fffe0002", "DQT": "ffdb0002", "padding": "ffffffff", "stuffing": "ff00ff00"}


@pytest.mark.parametrize("name", JPEG_PARTS)
def test_a_jpeg_of_nothing_but_parts_is_refused(name: str) -> None:
    whole = encoded("JPEG")
    data = whole[:2] + bytes.fromhex(JPEG_PARTS[name]) * MANY + whole[2:]
    _refused_by_its_header(data)


def test_a_png_of_nothing_but_chunks_is_refused() -> None:
    whole = encoded("PNG")
    chunk = b"\0\0\0\0abCd" + bytes.fromhex("3afccb03")  # whose CRC nobody comes to
    _refused_by_its_header(whole[:33] + chunk * (MANY // 3) + whole[33:])


def _refused_by_its_header(data: bytes) -> None:
    header = image_headers.read(data)
    assert header is not None
    assert header.parts == MAX_SEGMENTS + 1  # it looked no further
    with pytest.raises(RejectedImage, match="more than 5,000 parts") as raised:
        decode(data)
    assert raised.value.code == Reason.UNREADABLE_IMAGE


def test_scans_are_limited_by_the_pixels_that_each_goes_over() -> None:
    whole = encoded("JPEG", 400, 300, progressive=True)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    data = whole[:-2] + last * 50 + whole[-2:]
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # which libjpeg bears
    assert decode(data).width == 400
    limits = Limits(max_pixels=200_000)
    assert decode(whole, limits).width == 400
    with pytest.raises(RejectedImage, match="400 x 300 pixels are told in 60 scans") as raised:
        decode(data, limits)
    assert raised.value.code == Reason.IMAGE_TOO_LARGE
