"""Decodes image files by Pillow to upright RGB pixels. Sizes are checked in the header before anything is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from indexer.errors import RejectedImage
from indexer.types import Pixels, Reason
from indexer.vision import image_headers, tiff
from indexer.vision.image_headers import MAX_SEGMENTS, Header
from indexer.vision.tiff import Layout

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF")
"""Accepted formats by Pillow's names. MPO is a JPEG followed by further pictures, as phones write it; Pillow detects
it when it opens a JPEG."""

ANIMATED_FORMATS = ("PNG", "WEBP", "AVIF")
"""Formats of which files with several frames are animations; in MPO, TIFF and HEIF they are separate pictures."""

MAX_SCANS = 20
"""Scans of a progressive JPEG of the maximum size; smaller ones may have more. libjpeg's own script makes 10
(`jcparam.c`)."""

UNSUPPORTED = {
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc\x01": "JPEG XR",
    b"8BPS": "PSD",
    b"%PDF": "PDF",
}
"""First bytes of formats that people mistake for accepted ones."""

EXPECTED = "expected JPEG, PNG, WebP, BMP, TIFF, HEIC or AVIF"

INCOMPLETE = "the file is incomplete, its end is missing; copy or send it again"

ORIENTATION_TAG = 0x0112
"""EXIF 2.32."""

SIDEWAYS = (5, 6, 7, 8)
"""Orientations with width and height swapped."""

RIGHT_FIRST, BOTTOM_FIRST = (2, 3, 7, 8), (3, 4, 6, 7)
"""Orientations in which the file's first column or row is turned round in the upright image."""

RIGHT_TO_LEFT, BOTTOM_TO_TOP = (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations in which the upright image's left or upper side is stored last: at the right or at the bottom."""

END_OF_IMAGE = b"\xff\xd9"
"""The end marker of a JPEG (ITU T.81, table B.1)."""

ANY_DATA = bytes(range(254, -1, -1))
"""Bytes that libjpeg reads as data of a scan. They begin with ones, because it reads zeros where data is missing."""

STRIP_PIXELS = 2**20
"""Pixels converted at a time, so that conversions of a large image need no copies of it."""

JPEG_REDUCTIONS = (8, 4, 2)
"""libjpeg decodes at 1/2, 1/4 or 1/8 of the size at a fraction of the cost (jpeglib.h, `scale_denom`)."""


@dataclass(frozen=True)
class Limits:
    """Limits above which an image is rejected before it is decoded."""

    max_bytes: int = 32 * 2**20
    """A 12 MP JPEG has 3 to 6 MB, a 48 MP HEIC from a phone up to 10, a lossless 10 MP PNG about 25."""
    max_pixels: int = 100_000_000
    """Twice the 48 to 50 MP of current phones; 300 MB as RGB. While it is decoded, an image takes up to 9 bytes of
    memory for each pixel: 4 of Pillow's image, 3 of the result, and some of the decoder. AVIF takes 13 and WebP 17,
    because of copies that their decoders make (measured in tests)."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded, upright photo. `width` and `height` are those of the upright original; `pixels` (H, W, 3) RGB may be
    a reduced copy. Boxes and landmarks are always in pixels of the original."""

    pixels: Pixels
    width: int
    height: int
    scale: int = 1
    """Original pixels per decoded pixel."""
    origin: tuple[int, int] = (0, 0)
    """Upper left corner of `pixels` in the original, below 0 where libjpeg padded the upright image's first column or
    row."""

    @property
    def is_reduced(self) -> bool:
        return self.scale > 1

    def to_decoded(self, points: ArrayLike) -> NDArray[np.float64]:
        """Returns points (..., 2) of the original in decoded pixels."""
        return (np.asarray(points, np.float64) - self.origin) / self.scale


Allocate = Callable[[tuple[int, int, int]], Pixels]
"""Returns memory for pixels (H, W, 3) uint8."""


def allocate(shape: tuple[int, int, int]) -> Pixels:
    return np.empty(shape, np.uint8)


def decode(
    data: bytes, limits: Limits = Limits(), longest_side: int | None = None, allocate: Allocate = allocate
) -> Photo:
    """Decodes an image file in this process; see `indexer.vision.decode.decode`."""
    if not data:
        raise unreadable("the file is empty")
    if len(data) > limits.max_bytes:
        raise too_large(f"the file has {len(data):,} bytes, more than the {limits.max_bytes:,} allowed")
    header = image_headers.read(data)
    if header is not None:
        _check_header(header, image_headers.count_scans(data), limits)
    try:
        if data.startswith(image_headers.JPEG) and image_headers.is_incomplete(data):
            return _decode_without_end(data, limits)
        return _decode(data, limits, longest_side, allocate)
    except RejectedImage:
        raise
    except MemoryError as error:
        raise too_large("there is not enough memory to decode it") from error
    except Exception as error:  # decoders raise almost any error on malicious data
        if "truncated" in str(error).lower() or _is_incomplete(data):
            raise unreadable(INCOMPLETE) from error
        raise unreadable(f"it cannot be decoded: {str(error) or type(error).__name__}") from error


def _decode(data: bytes, limits: Limits, longest_side: int | None, allocate: Allocate = allocate) -> Photo:
    header = image_headers.read(data)
    with _open(data) as image:
        _check_image(image, limits)
        width, height = image.size
        scale = 1
        is_reducible = image.format in ("JPEG", "MPO") and not (header and header.is_lossless)
        if longest_side is not None and is_reducible:
            scale = _reduce_decoding(image, longest_side)
        image.load()  # first: Pillow makes a TIFF upright as it loads; its `size` is upright from the start
        if header is not None and image.format == "PNG":
            _scale_transparency(image, header.bits)
        orientation = _orientation(image)
        if orientation in SIDEWAYS:
            width, height = height, width
        pixels = _upright_rgb(image, tiff.read(data), orientation, allocate)
        return Photo(pixels, width, height, scale, _origin(pixels, width, height, scale, orientation))


def _decode_without_end(data: bytes, limits: Limits) -> Photo:
    """Decodes a JPEG that only lacks its end marker, at full size.

    libjpeg fills in pixels whose data is missing, without an error. The photo is therefore decoded with no data and
    with some in place of what may be missing: the pixels are equal only if nothing is.

    Raises:
        RejectedImage: More is missing.
    """
    data = image_headers.without_padding(data)
    more = ANY_DATA + image_headers.next_restart(data) + ANY_DATA
    if image_headers.has_all_scans(data):
        photo, other = (_decode(data + ending + END_OF_IMAGE, limits, None) for ending in (b"", more))
        if np.array_equal(photo.pixels, other.pixels):
            return photo
    raise unreadable(INCOMPLETE)


def count_pixels(data: bytes) -> int:
    """Returns the image's number of pixels according to its header, in bounded time; 0 if the header is unreadable.

    The header of a TIFF can be anywhere and as long as the file, so a TIFF counts as an image of the maximum size.
    """
    header = image_headers.read(data)
    if header is not None:
        return header.width * header.height
    if data.startswith(tiff.MAGIC):
        return Limits.max_pixels
    try:
        with _open(data) as image:
            return image.width * image.height
    except Exception:  # decoders raise almost any error on malicious data; `decode` reports it
        return 0


def _open(data: bytes) -> Image.Image:
    _register_formats()
    for start, name in UNSUPPORTED.items():
        if data.startswith(start):
            raise unreadable(f"{name} is not supported; {EXPECTED}")
    if image_headers.is_run_length_coded(data):  # which Pillow decodes in Python
        raise unreadable("run-length coded BMPs are not supported; save it as JPEG or PNG")
    layout = tiff.read(data)
    if layout is not None and layout.problem is not None:
        raise unreadable(layout.problem)
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name != "MPO"])
    except UnidentifiedImageError:
        raise unreadable(_why_unidentified(data, layout)) from None


def _why_unidentified(data: bytes, layout: Layout | None) -> str:
    if _is_incomplete(data):
        return INCOMPLETE
    if layout is not None:
        return layout.refusal
    header = image_headers.read(data)
    if header is not None and header.bits not in (0, 8) and data.startswith(image_headers.JPEG):
        return f"JPEGs of {header.bits} bits are not supported; expected 8"
    return f"it is not an image; {EXPECTED}"


def _is_incomplete(data: bytes) -> bool:
    """Returns whether the file ends too early, judged by the lengths, offsets and end markers in it."""
    if data.startswith(tiff.MAGIC):
        layout = tiff.read(data)
        return layout is None or layout.end > len(data)
    return image_headers.is_incomplete(data)


@cache
def _register_formats() -> None:
    import pi_heif

    Image.init()
    pi_heif.register_heif_opener()
    Image.MAX_IMAGE_PIXELS = None  # `Limits` applies instead, to the same header
    # Pillow's own decoder scrambles planes of 16 bits. libtiff decodes all other TIFFs by default.
    TiffImagePlugin.READ_LIBTIFF = True
    # Pillow reads these pixels in one byte order only; `_gray_to_8_bits` inverts both.
    TiffImagePlugin.OPEN_INFO.setdefault(
        (TiffImagePlugin.MM, tiff.WHITE_IS_ZERO, (1,), 1, (16,), ()), ("I;16B", "I;16B")
    )


def _check_header(header: Header, scans: int, limits: Limits) -> None:
    if header.segments > MAX_SEGMENTS:
        raise unreadable(f"it has more than {MAX_SEGMENTS:,} segments; expected a photo")
    if scans * header.width * header.height > MAX_SCANS * limits.max_pixels:
        raise too_large(f"it has {scans} scans of {header.width} x {header.height} pixels, too many to decode")


def _check_image(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise too_large(
            f"the image is {width} x {height} pixels, more than the {limits.max_pixels / 1e6:g} million allowed"
        )
    if image.format not in FORMATS:
        raise unreadable(f"{image.format} is not supported; {EXPECTED}")
    if image.format in ANIMATED_FORMATS and getattr(image, "n_frames", 1) > 1:
        raise unreadable("it is an animation; expected one still photo")


def _reduce_decoding(image: Image.Image, longest_side: int) -> int:
    """Makes libjpeg decode `image` at a reduced scale (Pillow's `draft` works in place), and returns the factor.

    The factor is exact: where a side is not a multiple of it, the last column or row is padded (jdmaster.c rounds up).
    """
    width, height = image.size
    for factor in JPEG_REDUCTIONS:
        if max(width, height) >= longest_side * factor:
            drafted = image.draft(None, (max(1, width // factor), max(1, height // factor)))
            return 1 if drafted is None else round(width / drafted[1][2])
    return 1


def _origin(pixels: Pixels, width: int, height: int, scale: int, orientation: object) -> tuple[int, int]:
    """Returns `Photo.origin` of upright pixels: padding at the right and at the bottom of the file may now be first."""
    rows, columns = pixels.shape[:2]
    return (
        width - columns * scale if orientation in RIGHT_TO_LEFT else 0,
        height - rows * scale if orientation in BOTTOM_TO_TOP else 0,
    )


def _orientation(image: Image.Image) -> object:
    """Returns the EXIF orientation; 1 (upright) if the EXIF data is damaged.

    `ImageOps.exif_transpose` would rewrite the remaining EXIF data, which fails on tags of a wrong type.
    """
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow parses EXIF lazily and raises almost any error
        return 1


def _scale_transparency(image: Image.Image, bits: int) -> None:
    """Scales the color of a PNG's pixels that are transparent to 8 bits, as Pillow does with the pixels themselves."""
    color = image.info.get("transparency")
    if image.mode == "L" and isinstance(color, int):
        image.info["transparency"] = color * 255 // (2**bits - 1)
    elif image.mode == "RGB" and isinstance(color, tuple):
        image.info["transparency"] = tuple(value >> (bits - 8) for value in color)


def _upright_rgb(image: Image.Image, layout: Layout | None, orientation: object, allocate: Allocate) -> Pixels:
    """Returns the pixels of a loaded image, upright and in RGB, on white where it is transparent."""
    width, height = image.size
    pixels = allocate((width, height, 3) if orientation in SIDEWAYS else (height, width, 3))
    stored = _as_stored(pixels, orientation)
    is_visible = False
    for rows, strip in _strips(image):
        stored[rows], has_color = _to_rgb(strip, layout)
        is_visible |= has_color
    if not is_visible:  # some programs leave the alpha channel of a BMP at zero
        for rows, strip in _strips(image):
            stored[rows] = np.asarray(strip.convert("RGBA").convert("RGB"))
    pixels.flags.writeable = False
    return pixels


def _as_stored(upright: Pixels, orientation: object) -> Pixels:
    """Returns a view of an upright image whose rows and columns are those of the file (EXIF 2.32)."""
    view = upright.transpose(1, 0, 2) if orientation in SIDEWAYS else upright
    rows = slice(None, None, -1 if orientation in BOTTOM_FIRST else 1)
    columns = slice(None, None, -1 if orientation in RIGHT_FIRST else 1)
    return view[rows, columns]


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yields an image in strips of about STRIP_PIXELS, each with its rows."""
    width, height = image.size
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        yield slice(top, bottom), image.crop((0, top, width, bottom))


def _to_rgb(image: Image.Image, layout: Layout | None) -> tuple[Pixels, bool]:
    """Returns the pixels, and whether some of them are not transparent."""
    if image.mode.startswith("I;16"):
        return np.repeat(_gray_to_8_bits(image, layout)[:, :, None], 3, axis=2), True
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        # Pillow converts premultiplied gray to LA only.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB")), rgba.getbbox() is not None
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), True


def _gray_to_8_bits(image: Image.Image, layout: Layout | None) -> Pixels:
    """Scales 16 bits to 8 (65535 / 257 = 255), and the 12 bits of some TIFFs; Pillow's own conversion clips instead."""
    wide: NDArray[Any] = np.asarray(image)
    gray = np.asarray(wide // (16 if layout and layout.bits == 12 else 257), dtype=np.uint8)
    if layout and layout.photometric == tiff.WHITE_IS_ZERO:
        return 255 - gray
    if "transparency" in image.info:
        gray[wide == image.info["transparency"]] = 255
    return gray


def unreadable(message: str) -> RejectedImage:
    return RejectedImage(message, code=Reason.UNREADABLE_IMAGE)


def too_large(message: str) -> RejectedImage:
    return RejectedImage(message, code=Reason.IMAGE_TOO_LARGE)
