"""Decodes image files to upright RGB pixels, those of rare formats in processes that can be ended.

What stays in this process is bounded by the pixels in the header: JPEG (with few scans), PNG and WebP. The decoders of
the other formats are slower or less used, and some take far longer for a file than its size suggests.
"""

from __future__ import annotations

from indexer.slices import run_aside
from indexer.vision import pillow_decoder
from indexer.vision.decoding_processes import DecodingProcesses
from indexer.vision.pillow_decoder import INCOMPLETE, Limits, Photo, count_pixels

__all__ = ["INCOMPLETE", "LARGE_PIXELS", "Limits", "Photo", "count_pixels", "decode", "decode_aside", "end_processes"]

RARE_STARTS = (b"BM", b"II", b"MM")
"""First bytes of BMP and TIFF files."""

LARGE_PIXELS = 8_000_000
"""Pixels beyond which an image is large: this many take up to 0.4 s (an RGBA PNG)."""

_processes = DecodingProcesses()


def decode(data: bytes, limits: Limits = Limits(), longest_side: int | None = None) -> Photo:
    """Decodes an image file to upright RGB uint8 pixels.

    The EXIF orientation is applied. Gray, palette, CMYK, 16-bit and transparent images are converted to RGB;
    transparent areas become white.

    Args:
        longest_side: If given, a JPEG is decoded at the smallest scale of libjpeg at which its longest side has at
            least this many pixels. All other images are decoded at full size.

    Raises:
        RejectedImage: `unreadable_image` if the data is truncated, takes too long, or is not a still image of a
            supported format, `image_too_large` if it exceeds `limits`.
    """
    if is_rare(data) and len(data) <= limits.max_bytes:
        return _processes.decode(data, limits)
    return pillow_decoder.decode(data, limits, longest_side)


def decode_aside(data: bytes, limits: Limits = Limits(), longest_side: int | None = None) -> Photo:
    """Does the same, on another thread for large images and rare formats, while this thread may do other work."""
    if count_pixels(data) <= LARGE_PIXELS and not is_rare(data):
        return decode(data, limits, longest_side)
    return run_aside(lambda: decode(data, limits, longest_side))


def is_rare(data: bytes) -> bool:
    """Returns whether an image is decoded in another process: a BMP, TIFF, HEIC or AVIF."""
    return data.startswith(RARE_STARTS) or data[4:8] == b"ftyp"


def end_processes() -> None:
    """Ends the processes that wait for images."""
    _processes.close()
