"""Every format, every orientation, and what hostile bytes do."""

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

from indexer.errors import RejectedImage
from indexer.types import Pixels, Reason
from indexer.vision.decode import Limits, Photo, decode
from tests import photos

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF")
LOSSLESS = ("PNG", "WEBP", "BMP", "TIFF")

BIG_WEBP = bytes.fromhex("524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03")


def marks(width: int = 80, height: int = 48) -> Pixels:
    """A picture of which every turn and mirror image differs, and RGB from BGR."""
    picture = np.full((height, width, 3), (90, 120, 150), np.uint8)
    half_w, half_h = width // 2 // 16 * 16, height // 2 // 16 * 16
    picture[:half_h, :half_w] = (220, 30, 40)
    picture[:half_h, width - half_w :] = (30, 200, 60)
    picture[height - half_h :, :half_w] = (40, 50, 210)
    return picture


def assert_same(photo: Photo, expected: Pixels, lossless: bool) -> None:
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.shape == expected.shape
    assert (photo.height, photo.width) == expected.shape[:2]
    difference = np.abs(photo.pixels.astype(int) - expected)
    assert difference.max() == 0 if lossless else difference.mean() < 2, difference.mean()


def rejection(data: bytes, **options: Any) -> RejectedImage:
    with pytest.raises(RejectedImage) as caught:
        decode(data, **options)
    return caught.value


@pytest.mark.parametrize("form", FORMATS)
def test_reads_every_format(form: str) -> None:
    photo = decode(photos.encode(marks(), form))
    assert_same(photo, marks(), form in LOSSLESS)
    assert not photo.is_reduced
    assert photo.scale == (1, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_turns_every_orientation_upright(form: str, orientation: int) -> None:
    data = photos.encode(photos.stored(marks(), orientation), form, exif=photos.exif(orientation))
    assert_same(decode(data), marks(), form in LOSSLESS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_turns_compressed_tiff_upright(compression: str, orientation: int) -> None:
    turned = photos.stored(marks(), orientation)
    data = photos.encode(turned, "TIFF", exif=photos.exif(orientation), compression=compression)
    assert_same(decode(data), marks(), lossless=True)


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_orientation_that_does_not_exist_is_upright(orientation: int) -> None:
    assert_same(decode(photos.encode(marks(), "PNG", exif=photos.exif(orientation))), marks(), lossless=True)


def test_orientation_turns_16_bit_grey() -> None:
    grey = np.arange(48 * 80, dtype=np.uint16).reshape(48, 80) * 17
    data = photos.encode(Image.fromarray(np.ascontiguousarray(grey[:, ::-1].T)), "PNG", exif=photos.exif(6))
    assert np.array_equal(decode(data).pixels[..., 0], grey // 257)


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_cost_the_photo() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    tags[0x010F] = "maker"
    raw = tags.tobytes()
    data = photos.encode(photos.stored(marks(), 6), "JPEG", exif=raw)
    start = data.index(b"Exif\0\0") + 6
    rng = np.random.default_rng(0)
    turned = 0
    for _ in range(500):
        damaged = bytearray(data)
        for at in rng.integers(0, len(raw) - 6, 3):
            damaged[start + at] = rng.integers(0, 256)
        photo = decode(bytes(damaged))
        assert sorted(photo.pixels.shape[:2]) == [48, 80]
        turned += photo.pixels.shape[:2] == (48, 80)
    assert 50 < turned < 500


def test_an_exif_tag_of_a_wrong_type_does_not_cost_the_photo() -> None:
    tags = struct.pack(">2sHIH", b"MM", 42, 8, 2)
    tags += struct.pack(">HHIHxx", 0x0112, 3, 1, 6)  # orientation, a SHORT
    tags += struct.pack(">HHI4s", 0x0100, 2, 4, b"wide")  # image width, as ASCII where a number is due
    data = photos.encode(photos.stored(marks(), 6), "JPEG", exif=b"Exif\0\0" + tags + bytes(4))
    assert_same(decode(data), marks(), lossless=False)


def transparent(mode: str) -> Image.Image:
    """A picture of `mode` whose left half is seen and whose right half is transparent."""
    image = Image.new("RGBA", (32, 16), (200, 80, 40, 255))
    image.paste((10, 20, 30, 0), (16, 0, 32, 16))
    if mode == "RGBA":
        return image
    if mode == "LA":
        return image.convert("LA")
    palette = Image.new("P", (32, 16), 1)
    palette.putpalette([10, 20, 30, 200, 80, 40])
    palette.paste(0, (16, 0, 32, 16))
    return palette


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_transparent_becomes_white(form: str) -> None:
    shown = decode(photos.encode(transparent("RGBA"), form)).pixels.astype(int)
    assert np.abs(shown[:, 20:] - 255).max() <= 3
    assert np.abs(shown[:, :12] - (200, 80, 40)).max() <= 8


def test_half_transparent_is_half_white() -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 100, 128))
    assert np.abs(decode(photos.encode(image, "PNG")).pixels.astype(int) - (227, 127, 177)).max() <= 1


def test_transparent_grey_and_palette_become_white() -> None:
    grey = decode(photos.encode(transparent("LA"), "PNG")).pixels
    assert (grey[:, :16] == round(0.299 * 200 + 0.587 * 80 + 0.114 * 40)).all()
    assert (grey[:, 16:] == 255).all()
    for transparency in (0, b"\0\xff"):  # one palette entry, or an opacity for each
        shown = decode(photos.encode(transparent("P"), "PNG", transparency=transparency)).pixels
        assert (shown[:, :16] == (200, 80, 40)).all()
        assert (shown[:, 16:] == 255).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF"])
def test_grey(form: str) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
    shown = decode(photos.encode(Image.fromarray(ramp), form)).pixels
    assert shown.shape == (32, 64, 3)
    assert np.abs(shown.astype(int) - ramp[..., None]).max() <= (0 if form in LOSSLESS else 6)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form: str) -> None:
    shown = decode(photos.encode(Image.fromarray(marks()).convert("CMYK"), form)).pixels
    assert np.abs(shown.astype(int) - marks()).mean() < 2


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_one_bit(form: str) -> None:
    bits = np.indices((16, 24)).sum(0) % 2 == 0
    shown = decode(photos.encode(Image.fromarray(bits), form)).pixels
    assert np.array_equal(shown, np.where(bits, 255, 0)[..., None].repeat(3, 2))


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("colours", [1, 3])
def test_16_bits(extension: str, colours: int) -> None:
    deep = np.linspace(0, 65535, 16 * 24 * 3).astype(np.uint16).reshape(16, 24, 3)[..., :colours]
    done, data = cv2.imencode(extension, deep)  # BGR
    assert done
    shown = decode(data.tobytes()).pixels.astype(float)
    assert shown.max() >= 254
    assert np.abs(shown - deep[..., ::-1] / 257).max() <= 1


def test_16_bit_grey_reaches_black_and_white() -> None:
    deep = np.array([[0, 256, 257, 32896, 65535]], np.uint16)
    assert decode(photos.encode(Image.fromarray(deep), "PNG")).pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_floating_point_is_refused() -> None:
    error = rejection(photos.encode(Image.new("F", (8, 8)), "TIFF"))
    assert error.code == Reason.UNREADABLE_IMAGE
    assert "floating-point" in error.message


def ramp(width: int, height: int) -> Pixels:
    x, y = np.arange(width) * 255 // width, np.arange(height) * 255 // height
    return np.stack([np.tile(x, (height, 1)), np.tile(y[:, None], (1, width)), np.full((height, width), 99)], 2).astype(
        np.uint8
    )


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
def test_reduced_jpeg(longest_side: int | None, width: int, height: int, progressive: bool) -> None:
    data = photos.encode(ramp(1201, 803), "JPEG", progressive=progressive)
    photo = decode(data, longest_side=longest_side)
    assert photo.pixels.shape == (height, width, 3)
    assert (photo.width, photo.height) == (1201, 803)
    assert photo.is_reduced == (width != 1201)
    assert photo.scale == (1201 / width, 803 / height)
    expected = np.asarray(Image.fromarray(ramp(1201, 803)).resize((width, height), Image.Resampling.BOX))
    assert np.abs(photo.pixels.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_and_turned(orientation: int) -> None:
    data = photos.encode(photos.stored(ramp(640, 480), orientation), "JPEG", exif=photos.exif(orientation))
    photo = decode(data, longest_side=320)
    assert photo.pixels.shape == (240, 320, 3)
    assert (photo.width, photo.height, photo.is_reduced) == (640, 480, True)
    assert np.abs(photo.pixels.astype(int) - ramp(640, 480)[::2, ::2]).mean() < 2


def test_only_jpeg_is_reduced() -> None:
    for form in ("PNG", "WEBP", "TIFF"):
        photo = decode(photos.encode(ramp(640, 480), form), longest_side=80)
        assert photo.pixels.shape == (480, 640, 3)
        assert not photo.is_reduced


@pytest.mark.parametrize(("width", "height"), [(8000, 5), (5, 8000), (9000, 1), (1, 1)])
def test_thin_jpeg(width: int, height: int) -> None:
    photo = decode(photos.encode(Image.new("RGB", (width, height), "red"), "JPEG"), longest_side=1000)
    assert (photo.width, photo.height) == (width, height)
    assert max(photo.pixels.shape[:2]) >= min(1000, max(width, height))


@pytest.mark.parametrize("longest_side", [None, 320])
def test_mpo_shows_its_first_picture(longest_side: int | None) -> None:
    first, second = Image.fromarray(ramp(640, 480)), Image.new("RGB", (640, 480), "red")
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=97, subsampling=0)
    with Image.open(io.BytesIO(buffer.getvalue())) as check:
        assert check.format == "MPO"
    photo = decode(buffer.getvalue(), longest_side=longest_side)
    step = 2 if longest_side else 1
    assert (photo.width, photo.height) == (640, 480)
    assert photo.pixels.shape == (480 // step, 640 // step, 3)
    assert np.abs(photo.pixels.astype(int) - ramp(640, 480)[::step, ::step]).mean() < 2


def test_of_several_pictures_tiff_shows_the_first_and_heic_the_primary_one() -> None:
    first, second = Image.fromarray(marks()), Image.new("RGB", (80, 48), "white")
    tiff = photos.encode(first, "TIFF", save_all=True, append_images=[second])
    assert_same(decode(tiff), marks(), lossless=True)
    for primary in (0, 1):
        heic = pillow_heif.from_pillow(second if primary else first)
        heic.add_from_pillow(first if primary else second)
        buffer = io.BytesIO()
        heic.save(buffer, quality=95, chroma=444, primary_index=primary)
        assert_same(decode(buffer.getvalue()), marks(), lossless=False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"hello, I am a text file\n" * 20,
        bytes(10_000),
        b"%PDF-1.7\n" + bytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"\0\0\0\x18ftypheic\0\0\0\0heic",
    ],
    ids=["empty", "byte", "text", "zeros", "pdf", "svg", "jpeg-start", "png-start", "webp-start", "heic-start"],
)
def test_no_image(data: bytes) -> None:
    error = rejection(data)
    assert error.code == Reason.UNREADABLE_IMAGE
    assert "empty" in error.message if not data else "expected JPEG" in error.message or "decoded" in error.message


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_cut_short(form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    data = photos.encode(noise, form)
    assert decode(data).width == 96
    assert rejection(data[: int(len(data) * share)]).code == Reason.UNREADABLE_IMAGE


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animations_are_refused(form: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    data = photos.encode(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
    error = rejection(data)
    assert error.code == Reason.UNREADABLE_IMAGE
    assert ("GIF is not supported" if form == "GIF" else "animation") in error.message


def test_other_formats_are_refused_by_name() -> None:
    assert "GIF is not supported; expected JPEG" in rejection(photos.encode(marks(), "GIF")).message
    for form in ("PPM", "TGA", "JPEG2000", "ICO", "PCX"):
        assert rejection(photos.encode(marks(32, 32), form)).code == Reason.UNREADABLE_IMAGE


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims a size, whatever its data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_small_file_of_a_huge_image_is_refused() -> None:
    error = rejection(png(30_000, 30_000))
    assert error.code == Reason.IMAGE_TOO_LARGE
    assert "30000 x 30000" in error.message
    assert "100 million" in error.message


def test_limits_are_inclusive() -> None:
    data = png(20, 10, (b"\0" + bytes(60)) * 10)
    assert decode(data, Limits(max_pixels=200, max_bytes=len(data))).width == 20
    assert rejection(data, limits=Limits(max_pixels=199)).code == Reason.IMAGE_TOO_LARGE
    error = rejection(data, limits=Limits(max_bytes=len(data) - 1))
    assert error.code == Reason.IMAGE_TOO_LARGE
    assert f"{len(data):,} bytes" in error.message


def test_a_jpeg_is_limited_by_its_whole_size_also_when_reduced() -> None:
    data = photos.encode(ramp(640, 480), "JPEG")
    error = rejection(data, limits=Limits(max_pixels=300_000), longest_side=80)
    assert error.code == Reason.IMAGE_TOO_LARGE


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
def test_refusing_bombs_takes_no_memory(tmp_path: Path) -> None:
    bombs = {
        "small.webp": photos.encode(marks(), "WEBP"),
        "bomb.webp": BIG_WEBP,  # 16383 x 16383, the largest WebP: 1 GB as RGBA
        "bomb.png": png(30_000, 30_000, bytes(1_000_000)),
        "bomb.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 30_000, 30_000, 1, 24, *[0] * 6),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAK, *(str(tmp_path / name) for name in bombs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    codes, grown = json.loads(run.stdout)
    assert codes == ["image_too_large"] * 3
    assert grown < 64, f"{grown} MiB"


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage; nobody has warnings as errors in production
@pytest.mark.parametrize("form", FORMATS)
def test_mutations_end_as_photo_or_rejection(form: str) -> None:
    rng = np.random.default_rng(FORMATS.index(form))
    whole = photos.encode(marks(), form, exif=photos.exif(6)) if form != "BMP" else photos.encode(marks(), form)
    outcomes = {"photo": 0, "rejected": 0}
    codes = set()
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            at, length = int(rng.integers(0, len(data))), int(rng.integers(1, 16))
            kind = rng.integers(0, 5)
            if kind == 0:
                data[at] = rng.integers(0, 256)
            elif kind == 1:
                data[at] ^= 1 << int(rng.integers(0, 8))
            elif kind == 2:
                data[at : at + length] = b"\xff" * length
            elif kind == 3:
                del data[at : at + length]
            else:
                data[at:at] = data[at : at + length]
        side = int(rng.integers(8, 64)) if rng.random() < 0.5 else None
        try:
            photo = decode(bytes(data), Limits(max_pixels=1_000_000), longest_side=side)
        except RejectedImage as error:
            codes.add(error.code)
            outcomes["rejected"] += 1
        else:
            assert photo.pixels.dtype == np.uint8
            assert photo.pixels.ndim == 3
            assert photo.pixels.shape[2] == 3
            assert 0 < photo.pixels.size <= 3_000_000
            assert photo.width >= photo.pixels.shape[1]
            assert photo.height >= photo.pixels.shape[0]
            outcomes["photo"] += 1
    assert min(outcomes.values()) > 5, outcomes
    assert codes <= {Reason.UNREADABLE_IMAGE, Reason.IMAGE_TOO_LARGE}
