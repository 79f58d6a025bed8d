"""Decoding of every format and orientation, and rejection of damaged or malicious files."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from indexer.types import Pixels, Reason
from indexer.vision.decode import Limits, Photo, decode
from tests import photos
from tests.indexer.vision.common import rejection

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF")
LOSSLESS = ("PNG", "WEBP", "BMP", "TIFF")

LARGEST_WEBP = bytes.fromhex("524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03")
"""16383 x 16383 pixels: 1 GB as RGBA."""


def corners(width: int = 80, height: int = 48) -> Pixels:
    """A picture that differs from all its rotations and mirror images, and in RGB from BGR."""
    picture = np.full((height, width, 3), (90, 120, 150), np.uint8)
    half_w, half_h = width // 2 // 16 * 16, height // 2 // 16 * 16
    picture[:half_h, :half_w] = (220, 30, 40)
    picture[:half_h, width - half_w :] = (30, 200, 60)
    picture[height - half_h :, :half_w] = (40, 50, 210)
    return picture


def ramp(width: int, height: int) -> Pixels:
    """Red grows to the right, green downwards."""
    x, y = np.arange(width) * 255 // width, np.arange(height) * 255 // height
    picture = np.full((height, width, 3), 99, np.uint8)
    picture[..., 0], picture[..., 1] = x, y[:, None]
    return picture


def assert_same(photo: Photo, expected: Pixels, lossless: bool) -> None:
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.shape == expected.shape
    assert (photo.height, photo.width) == expected.shape[:2]
    difference = np.abs(photo.pixels.astype(int) - expected)
    assert difference.max() == 0 if lossless else difference.mean() < 2, difference.mean()


def decoded(image: Pixels | Image.Image, form: str, **options: Any) -> Pixels:
    return decode(photos.encode(image, form, **options)).pixels


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_decoded(form: str) -> None:
    photo = decode(photos.encode(corners(), form))
    assert_same(photo, corners(), form in LOSSLESS)
    assert not photo.is_reduced
    assert photo.scale == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("form", "options"),
    [
        *((form, {}) for form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_every_orientation_is_made_upright(form: str, options: dict[str, str], orientation: int) -> None:
    data = photos.encode(photos.stored(corners(), orientation), form, exif=photos.exif(orientation), **options)
    assert_same(decode(data), corners(), form in LOSSLESS)


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_unknown_orientation_counts_as_upright(orientation: int) -> None:
    assert_same(decode(photos.encode(corners(), "PNG", exif=photos.exif(orientation))), corners(), lossless=True)


def test_orientation_is_applied_to_16_bit_gray() -> None:
    gray = np.arange(48 * 80, dtype=np.uint16).reshape(48, 80) * 17
    stored = Image.fromarray(np.ascontiguousarray(gray[:, ::-1].T))
    assert np.array_equal(decoded(stored, "PNG", exif=photos.exif(6))[..., 0], gray // 257)


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_reject_the_photo() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    tags[0x010F] = "maker"
    raw = tags.tobytes()
    data = photos.encode(photos.stored(corners(), 6), "JPEG", exif=raw)
    start = data.index(b"Exif\0\0") + 6
    rng = np.random.default_rng(0)
    upright = 0
    for _ in range(500):
        damaged = bytearray(data)
        for at in rng.integers(0, len(raw) - 6, 3):
            damaged[start + at] = rng.integers(0, 256)
        photo = decode(bytes(damaged))
        assert sorted(photo.pixels.shape[:2]) == [48, 80]
        upright += photo.pixels.shape[:2] == (48, 80)
    assert 50 < upright < 500


def test_exif_tag_of_wrong_type_does_not_reject_the_photo() -> None:
    tags = struct.pack(">2sHIH", b"MM", 42, 8, 2)
    tags += struct.pack(">HHIHxx", 0x0112, 3, 1, 6)  # orientation, a SHORT
    tags += struct.pack(">HHI4s", 0x0100, 2, 4, b"wide")  # image width, as ASCII instead of a number
    data = photos.encode(photos.stored(corners(), 6), "JPEG", exif=b"Exif\0\0" + tags + bytes(4))
    assert_same(decode(data), corners(), lossless=False)


def half_transparent(mode: str) -> Image.Image:
    """A picture of `mode` with an opaque left half and a transparent right half."""
    image = Image.new("RGBA", (32, 16), (200, 80, 40, 255))
    image.paste((10, 20, 30, 0), (16, 0, 32, 16))
    if mode != "P":
        return image.convert(mode)
    palette = Image.new("P", (32, 16), 1)
    palette.putpalette([10, 20, 30, 200, 80, 40])
    palette.paste(0, (16, 0, 32, 16))
    return palette


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        *((form, "RGBA", {}) for form in ("PNG", "WEBP", "TIFF", "AVIF", "HEIF")),
        ("PNG", "LA", {}),
        ("PNG", "P", {"transparency": 0}),  # one transparent palette entry
        ("PNG", "P", {"transparency": b"\0\xff"}),  # an opacity for each entry
    ],
)
def test_transparent_areas_become_white(form: str, mode: str, options: dict[str, Any]) -> None:
    shown = decoded(half_transparent(mode), form, **options).astype(int)
    luma = round(0.299 * 200 + 0.587 * 80 + 0.114 * 40)
    color = (luma, luma, luma) if mode == "LA" else (200, 80, 40)
    exact = form == "PNG"
    assert np.abs(shown[:, 16 if exact else 20 :] - 255).max() <= (0 if exact else 3)
    assert np.abs(shown[:, : 16 if exact else 12] - color).max() <= (0 if exact else 8)


def test_partly_transparent_pixels_are_blended_with_white() -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 100, 128))
    assert np.abs(decoded(image, "PNG").astype(int) - (227, 127, 177)).max() <= 1


@pytest.mark.parametrize("form", FORMATS)
def test_gray_becomes_rgb(form: str) -> None:
    gray = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
    shown = decoded(Image.fromarray(gray), form)
    assert shown.shape == (32, 64, 3)
    assert np.abs(shown.astype(int) - gray[..., None]).max() <= (0 if form in LOSSLESS else 6)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(form: str) -> None:
    assert np.abs(decoded(Image.fromarray(corners()).convert("CMYK"), form).astype(int) - corners()).mean() < 2


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_one_bit_becomes_rgb(form: str) -> None:
    bits = np.indices((16, 24)).sum(0) % 2 == 0
    assert np.array_equal(decoded(Image.fromarray(bits), form), np.where(bits, 255, 0)[..., None].repeat(3, 2))


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_become_8(extension: str, channels: int) -> None:
    deep = np.linspace(0, 65535, 16 * 24 * 3).astype(np.uint16).reshape(16, 24, 3)[..., :channels]
    encoded, data = cv2.imencode(extension, deep)  # BGR
    assert encoded
    shown = decode(data.tobytes()).pixels.astype(float)
    assert shown.max() >= 254
    assert np.abs(shown - deep[..., ::-1] / 257).max() <= 1


def test_16_bit_gray_reaches_black_and_white() -> None:
    deep = np.array([[0, 256, 257, 32896, 65535]], np.uint16)
    assert decoded(Image.fromarray(deep), "PNG")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    ("longest_side", "width", "height"),
    [
        (None, 1201, 803),
        (1201, 1201, 803),
        (601, 1201, 803),
        (600, 601, 402),
        (301, 601, 402),
        (300, 301, 201),
        (150, 151, 101),
        (10, 151, 101),
    ],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_at_a_reduced_scale(
    longest_side: int | None, width: int, height: int, progressive: bool
) -> None:
    photo = decode(photos.encode(ramp(1201, 803), "JPEG", progressive=progressive), longest_side=longest_side)
    assert photo.pixels.shape == (height, width, 3)
    assert (photo.width, photo.height) == (1201, 803)
    assert photo.is_reduced == (width != 1201)
    assert photo.scale == {1201: 1, 601: 2, 301: 4, 151: 8}[width]
    expected = np.asarray(Image.fromarray(ramp(1201, 803)).resize((width, height), Image.Resampling.BOX))
    assert np.abs(photo.pixels.astype(int) - expected).mean() < 2


def assert_half_size(photo: Photo, step: int = 2) -> None:
    assert photo.pixels.shape == (480 // step, 640 // step, 3)
    assert (photo.width, photo.height, photo.is_reduced) == (640, 480, step > 1)
    assert np.abs(photo.pixels.astype(int) - ramp(640, 480)[::step, ::step]).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_jpeg_is_made_upright(orientation: int) -> None:
    data = photos.encode(photos.stored(ramp(640, 480), orientation), "JPEG", exif=photos.exif(orientation))
    assert_half_size(decode(data, longest_side=320))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_place_in_a_padded_reduced_jpeg_is_found_in_the_original(orientation: int, scale: int) -> None:
    """libjpeg pads 1,601 x 1,201 pixels to multiples of the scale, at the right and at the bottom of the file."""
    upright = np.zeros((1201, 1601, 3), np.uint8)
    upright[1168:1176, 1568:1576] = upright[16:24, 24:32] = 255
    data = photos.encode(photos.stored(upright, orientation), "JPEG", exif=photos.exif(orientation))
    photo = decode(data, longest_side=1600 // scale)
    assert photo.scale == scale
    for x, y in ((1572, 1172), (28, 20)):
        column, row = photo.to_decoded((x, y))
        rows, columns = np.mgrid[: photo.pixels.shape[0], : photo.pixels.shape[1]] + 0.5
        light = photo.pixels[..., 0] * (np.hypot(columns - column, rows - row) < 40 / scale)
        assert (light * columns).sum() / light.sum() == pytest.approx(column, abs=0.5 / scale)
        assert (light * rows).sum() / light.sum() == pytest.approx(row, abs=0.5 / scale)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_decoded_at_full_size(form: str) -> None:
    assert_half_size(decode(photos.encode(ramp(640, 480), form), longest_side=80), step=1)


@pytest.mark.parametrize(("width", "height"), [(8000, 5), (5, 8000), (9000, 1), (1, 1)])
def test_thin_jpeg_is_decoded(width: int, height: int) -> None:
    photo = decode(photos.encode(Image.new("RGB", (width, height), "red"), "JPEG"), longest_side=1000)
    assert (photo.width, photo.height) == (width, height)
    assert max(photo.pixels.shape[:2]) >= min(1000, max(width, height))


@pytest.mark.parametrize("longest_side", [None, 320])
def test_first_picture_of_mpo_is_decoded(longest_side: int | None) -> None:
    first, second = Image.fromarray(ramp(640, 480)), Image.new("RGB", (640, 480), "red")
    data = photos.encode(first, "MPO", save_all=True, append_images=[second], quality=97, subsampling=0)
    with Image.open(io.BytesIO(data)) as check:
        assert check.format == "MPO"
    assert_half_size(decode(data, longest_side=longest_side), step=2 if longest_side else 1)


def test_first_picture_of_tiff_and_primary_picture_of_heic_are_decoded() -> None:
    first, second = Image.fromarray(corners()), Image.new("RGB", (80, 48), "white")
    tiff = photos.encode(first, "TIFF", save_all=True, append_images=[second])
    assert_same(decode(tiff), corners(), lossless=True)
    for primary in (0, 1):
        heic = pillow_heif.from_pillow(second if primary else first)
        heic.add_from_pillow(first if primary else second)
        buffer = io.BytesIO()
        heic.save(buffer, quality=95, chroma=444, primary_index=primary)
        assert_same(decode(buffer.getvalue()), corners(), lossless=False)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"\xff", "not an image"),
        (b"hello, I am a text file\n" * 20, "not an image"),
        (bytes(10_000), "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%PDF-1.7\n" + bytes(100), "PDF is not supported"),
        (b"\xff\x0a" + bytes(100), "JPEG XL is not supported"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL is not supported"),
        (b"\xff\x4f\xff\x51" + bytes(100), "JPEG 2000 is not supported"),
        (b"II\xbc\x01" + bytes(100), "JPEG XR is not supported"),
        (b"8BPS" + bytes(100), "PSD is not supported"),
        (b"\xff\xd8\xff", "incomplete"),
        (b"\x89PNG\r\n\x1a\n", "incomplete"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "incomplete"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heic", "incomplete"),
    ],
)
def test_data_that_is_not_an_image_is_rejected(data: bytes, why: str) -> None:
    message = rejection(data)
    assert why in message
    assert ("expected JPEG" in message) == ("not" in why)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animation_is_rejected(form: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]
    data = photos.encode(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
    assert ("GIF is not supported" if form == "GIF" else "animation") in rejection(data)


@pytest.mark.parametrize("form", ["GIF", "PPM", "TGA", "JPEG2000", "ICO", "PCX"])
def test_unsupported_format_is_rejected(form: str) -> None:
    named = {"GIF": "GIF is not supported", "JPEG2000": "JPEG 2000 is not supported"}
    assert f"{named.get(form, 'it is not an image')}; expected JPEG" in rejection(photos.encode(corners(32, 32), form))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """Returns a PNG with this size in its header, whatever `data` it has."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_small_file_of_huge_image_is_rejected() -> None:
    message = rejection(png(30_000, 30_000), Reason.IMAGE_TOO_LARGE)
    assert "30000 x 30000" in message
    assert "100 million" in message


def test_limits_are_inclusive() -> None:
    data = png(20, 10, (b"\0" + bytes(60)) * 10)
    assert decode(data, Limits(max_pixels=200, max_bytes=len(data))).width == 20
    rejection(data, Reason.IMAGE_TOO_LARGE, limits=Limits(max_pixels=199))
    message = rejection(data, Reason.IMAGE_TOO_LARGE, limits=Limits(max_bytes=len(data) - 1))
    assert f"{len(data):,} bytes" in message


def test_full_size_of_a_reduced_jpeg_is_limited() -> None:
    data = photos.encode(ramp(640, 480), "JPEG")
    rejection(data, Reason.IMAGE_TOO_LARGE, limits=Limits(max_pixels=300_000), longest_side=80)


MEASURE_PEAK = """
import json, pathlib, re, sys
from indexer.errors import RejectedImage
from indexer.vision.decode import decode

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

def code(data):
    try:
        decode(data)
    except RejectedImage as error:
        return error.code
    return "decoded"

code(pathlib.Path(sys.argv[1]).read_bytes())
before = peak()
codes = [code(pathlib.Path(name).read_bytes()) for name in sys.argv[2:]]
print(json.dumps([codes, peak() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux' /proc")
def test_decompression_bombs_are_rejected_without_memory(tmp_path: Path) -> None:
    bombs = {
        "small.webp": photos.encode(corners(), "WEBP"),
        "bomb.webp": LARGEST_WEBP,
        "bomb.png": png(30_000, 30_000, bytes(1_000_000)),
        "bomb.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 30_000, 30_000, 1, 24, *[0] * 6),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE_PEAK, *(str(tmp_path / name) for name in bombs)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    codes, growth = json.loads(run.stdout)
    assert codes == ["image_too_large"] * 3
    assert growth < 64, f"{growth} MiB"
