"""Encodes aligned crops as files, for galleries that store them.

The format is lossless WebP at its fastest setting. For 400 faces of LFW (`people/*/*_0001.jpg`, one core) a crop takes
15.1 kB, 0.37 ms to write and 0.28 ms to read. OpenCV's PNG takes 23.2 kB, 0.75 ms and 0.38 ms (19.5 kB and 2.7 ms to
write at zlib level 6); OpenCV's WebP takes 12.7 kB and 9.5 ms, as long as all other steps of enrolling a photo.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from indexer.errors import InvalidRequest
from indexer.types import CROP_SIZE, Pixels


def encode(crop: Pixels) -> bytes:
    """Returns the (112, 112, 3) RGB uint8 crop as a file; `decode` restores the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def decode(data: bytes) -> Pixels:
    """Returns the (112, 112, 3) RGB uint8 crop. Raises InvalidRequest if `data` is not such a file."""
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            if image.size != (CROP_SIZE, CROP_SIZE):
                raise InvalidRequest(f"a stored crop is {image.width}x{image.height}; expected {CROP_SIZE}x{CROP_SIZE}")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"a stored crop of {len(data)} bytes cannot be read; expected a WebP file") from error
