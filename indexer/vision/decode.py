"""Image bytes -> RGB pixels, the right way up. Sizes are checked from the header, before anything is decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from indexer.errors import RejectedImage
from indexer.types import Pixels, Reason
from indexer.vision import image_headers
from indexer.vision.image_headers import MAX_SEGMENTS, Header

FORMATS = {
    "JPEG": "JPEG",
    "MPO": "JPEG",  # a JPEG with further pictures behind the first, as phones write them; Pillow opens it as JPEG
    "PNG": "PNG",
    "WEBP": "WebP",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "HEIF": "HEIC",
    "AVIF": "AVIF",
}
"""Pillow's name of each format that is read, and the name people know."""

MAX_SCANS = 20
"""Of the largest progressive JPEG; a smaller one may have more. libjpeg's own script makes 10 (`jcparam.c`)."""

GIF = b"GIF87a", b"GIF89a"
TIFF = b"II*\0", b"MM\0*"

EXPECTED = "expected JPEG, PNG, WebP, BMP, TIFF, HEIC or AVIF"
TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""

SIDEWAYS = (5, 6, 7, 8)
"""The orientations that swap width and height."""

JPEG_SHRINKS = (8, 4, 2)
"""libjpeg decodes at 1/2, 1/4 or 1/8 of the size at a fraction of the cost (jpeglib.h, `scale_denom`)."""


@dataclass(frozen=True)
class Limits:
    """What is refused before it is decoded."""

    max_bytes: int = 32 * 2**20
    """A 12 MP JPEG has 3 to 6 MB, a 48 MP HEIC from a phone up to 10, a lossless 10 MP PNG about 25."""
    max_pixels: int = 100_000_000
    """Twice the 48 to 50 MP of today's phones; 300 MB as RGB."""


@dataclass(frozen=True, eq=False)
class Photo:
    """Decoded pixels, upright. `width` and `height` are those of the upright original, of which `pixels` may be
    a reduced copy; boxes are always told in the original's pixels."""

    pixels: Pixels
    width: int
    height: int

    @property
    def scale(self) -> tuple[float, float]:
        """Original pixels per decoded pixel, across and down."""
        height, width = self.pixels.shape[:2]
        return self.width / width, self.height / height

    @property
    def is_reduced(self) -> bool:
        return self.pixels.shape[:2] != (self.height, self.width)


def decode(data: bytes, limits: Limits = Limits(), longest_side: int | None = None) -> Photo:
    """The image in `data`, upright, as RGB uint8.

    EXIF orientation is applied; grey, palette, CMYK, 16-bit and transparent images become plain RGB (what is
    transparent becomes white). With `longest_side`, a JPEG is decoded at the smallest scale libjpeg offers whose
    longest side still has that many pixels; every other image, and every JPEG without it, comes whole.

    Raises RejectedImage: `unreadable_image` for what is no still image of a known format, or is cut short;
    `image_too_large` beyond `limits`.
    """
    if not data:
        raise _unreadable("the file is empty")
    if len(data) > limits.max_bytes:
        raise _too_large(f"the file has {len(data):,} bytes, more than the {limits.max_bytes:,} allowed")
    header = image_headers.read(data)
    if header is not None:
        _check_header(header, image_headers.count_scans(data), limits)
    try:
        with _open(data) as image:
            _check(image, limits)
            width, height = image.size
            if longest_side is not None and image.format in ("JPEG", "MPO"):
                _shrink(image, longest_side)
            image.load()  # first: a TIFF turns itself as it loads, its `size` is upright from the start
            orientation = _orientation(image)
            if orientation in SIDEWAYS:
                width, height = height, width
            upright = image.transpose(TURNS[orientation]) if orientation in TURNS else image
            return Photo(_to_rgb(upright), width, height)
    except RejectedImage:
        raise
    except MemoryError as error:
        raise _too_large("there is not enough memory to decode it") from error
    except Exception as error:  # hostile bytes make decoders raise nearly anything
        raise _unreadable(f"it cannot be decoded: {str(error) or type(error).__name__}") from error


def count_pixels(data: bytes) -> int:
    """How many pixels the image has, as its header says, in a bounded time; 0 where that cannot be read. A TIFF's may
    lie anywhere and be as long as the file: it is taken for a large image."""
    header = image_headers.read(data)
    if header is not None:
        return header.width * header.height
    if data.startswith(TIFF):
        return Limits.max_pixels
    try:
        with _open(data) as image:
            return image.width * image.height
    except Exception:  # hostile bytes make decoders raise nearly anything; `decode` says what
        return 0


def _open(data: bytes) -> Image.Image:
    _register_formats()
    if data.startswith(GIF):  # which Pillow walks through in Python
        raise _unreadable(f"GIF is not supported; {EXPECTED}")
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name != "MPO"])
    except UnidentifiedImageError:
        raise _unreadable(f"it is not an image; {EXPECTED}") from None


@cache
def _register_formats() -> None:
    import pi_heif

    Image.init()
    pi_heif.register_heif_opener()
    Image.MAX_IMAGE_PIXELS = None  # `Limits` decides, from the same header


def _check_header(header: Header, scans: int, limits: Limits) -> None:
    if header.parts > MAX_SEGMENTS:
        raise _unreadable(f"it has more than {MAX_SEGMENTS:,} parts beside its pixels; expected a photo")
    if scans * header.width * header.height > MAX_SCANS * limits.max_pixels:
        raise _too_large(f"its {header.width} x {header.height} pixels are told in {scans} scans, too many to read")


def _check(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise _too_large(
            f"the image is {width} x {height} pixels, more than the {limits.max_pixels / 1e6:g} million allowed"
        )
    if image.format not in FORMATS:
        raise _unreadable(f"{image.format} is not supported; {EXPECTED}")
    if image.format not in ("MPO", "TIFF", "HEIF") and getattr(image, "n_frames", 1) > 1:
        raise _unreadable("it is an animation; expected one still photo")


def _shrink(image: Image.Image, longest_side: int) -> None:
    """Tells libjpeg to decode at a reduced scale. In place, as Pillow's `draft` is."""
    width, height = image.size
    for shrink in JPEG_SHRINKS:
        if max(width, height) >= longest_side * shrink:
            image.draft(None, (max(1, width // shrink), max(1, height // shrink)))
            return


def _orientation(image: Image.Image) -> object:
    """The EXIF orientation (EXIF 2.32, tag 0x0112); 1, upright, where the EXIF data is damaged.

    `ImageOps.exif_transpose` would write the remaining EXIF anew, which fails on tags of a wrong type.
    """
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # Pillow parses EXIF lazily and raises nearly anything
        return 1


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16") or image.mode == "I":
        return np.repeat(_grey_to_8_bits(image)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise _unreadable("its pixels are floating-point numbers; expected 8 or 16 bits")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _grey_to_8_bits(image: Image.Image) -> Pixels:
    """16 bits to 8 (65535 / 257 = 255). Pillow's own conversion clips instead."""
    wide: NDArray[Any] = np.asarray(image)
    return np.asarray(np.clip(wide, 0, 65535) // 257, dtype=np.uint8)


def _unreadable(message: str) -> RejectedImage:
    return RejectedImage(message, code=Reason.UNREADABLE_IMAGE)


def _too_large(message: str) -> RejectedImage:
    return RejectedImage(message, code=Reason.IMAGE_TOO_LARGE)
