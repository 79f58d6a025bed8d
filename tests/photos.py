"""Photos for the tests, and functions that change and encode them.

Real faces come from installed packages (see `tests/photos.txt`) and from the project's shared folder; none is copied
into the repository.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from indexer.types import Pixels

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""The project's shared folder next to the checkout, which is optional."""


def astronaut() -> bytes:
    """Returns a PNG of 512 x 512 with one frontal face of about 100 pixels."""
    return _packaged("skimage", "data/astronaut.png").read_bytes()


def six_people() -> bytes:
    """Returns a JPEG of 1280 x 886 with six faces of about 120 pixels."""
    return _packaged("insightface", "data/images/t1.jpg").read_bytes()


def aligned_face() -> bytes:
    """Returns a PNG of 112 x 112 filled by one slightly turned face, cut off at the chin."""
    return _packaged("insightface", "data/images/Tom_Hanks_54745.png").read_bytes()


def no_faces() -> list[bytes]:
    """Returns photos without a face: pictures of masks, a coffee cup, a cat."""
    masks = [f"data/images/mask_{colour}.jpg" for colour in ("black", "blue", "green", "white")]
    return [
        *(_packaged("insightface", name).read_bytes() for name in masks),
        _packaged("skimage", "data/coffee.png").read_bytes(),
        _packaged("skimage", "data/chelsea.png").read_bytes(),
    ]


def shared(name: str) -> Path:
    """Returns a file or folder of the shared folder. Skips the test if it does not exist."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} does not exist: this test needs the project's shared folder next to the checkout")
    return path


def pixels(data: bytes) -> Pixels:
    """Returns a photo as (H, W, 3) uint8 RGB, decoded by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def stored(upright: Pixels, orientation: int) -> Pixels:
    """Returns the pixels in the order in which a file with this EXIF orientation stores them.

    EXIF 2.32 defines, for the tag 0x0112, which sides of the picture the first row and the first column are.
    """
    across, down = upright[:, ::-1], upright[::-1]
    both = down[:, ::-1]
    if orientation <= 4:
        turned = {1: upright, 2: across, 3: both, 4: down}[orientation]
    else:
        turned = {5: upright, 6: across, 7: both, 8: down}[orientation].transpose(1, 0, 2)
    return np.ascontiguousarray(turned)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def encode(image: Pixels | Image.Image, form: str, **options: Any) -> bytes:
    """Returns a file in Pillow's format `form`; lossy formats have high quality unless `options` say otherwise."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    if form == "HEIF":
        pillow_heif.from_pillow(picture).save(buffer, **{"quality": 95, "chroma": 444, **options})
    else:
        fine: dict[str, dict[str, Any]] = {
            "JPEG": {"quality": 97, "subsampling": 0},
            "WEBP": {"lossless": True},
            "AVIF": {"quality": 97, "subsampling": "4:4:4"},
        }
        picture.save(buffer, form, **{**fine.get(form, {}), **options})
    return buffer.getvalue()


def enlarged(image: Pixels, width: int, height: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _packaged(package: str, path: str) -> Path:
    """Returns a file of an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{package} is not installed; `make install` does (see tests/photos.txt)")
    return Path(spec.origin).parent / path
