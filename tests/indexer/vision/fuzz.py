"""Damaged images made from a number, and a process that decodes some of them and reports the outcomes."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from PIL import Image

from indexer.errors import RejectedImage
from indexer.vision.decode import Limits, decode
from tests import photos
from tests.indexer.vision import lossless_jpeg
from tests.indexer.vision.tiff_files import Kind, write

REDUCED_SIDE = 32
"""Longest side at which JPEGs are decoded in addition to full size; the undamaged ones have 96 pixels."""

LARGE = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 9_999, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Sizes, counts and offsets that decoders often handle wrong: ends of ranges, and just below the pixel limit."""

ROUNDS = 4
"""A leak grows in each round; caches do not."""

Mutation = Callable[[np.random.Generator, bytearray], bytearray]


@cache
def seeds() -> Sequence[bytes]:
    """Small files of every format, in variants that use different code of the decoders."""
    picture = np.asarray(Image.open(io.BytesIO(photos.astronaut())).convert("RGB").resize((96, 80)))
    image = Image.fromarray(picture)
    gray, palette, clear = image.convert("L"), image.quantize(64), image.convert("RGBA")
    clear.putalpha(gray)
    rotated = photos.exif(6)
    deep = cv2.imencode(".png", picture.astype(np.uint16) * 257)[1].tobytes()
    several: list[dict[str, Any]] = [{"save_all": True, "append_images": [image.rotate(90)]}]
    files = [
        *(photos.encode(image, "JPEG", exif=rotated, **how) for how in ({}, {"progressive": True}, {"quality": 30})),
        photos.encode(image.convert("CMYK"), "JPEG"),
        photos.encode(gray, "JPEG", restart_marker_blocks=2),
        photos.encode(image, "MPO", **several[0]),
        *(photos.encode(one, "PNG", exif=rotated) for one in (image, gray, palette, clear, image.convert("1"))),
        photos.encode(palette, "PNG", transparency=3),
        photos.encode(image, "PNG", **several[0]),
        deep,
        *(photos.encode(one, "WEBP", exif=rotated) for one in (image, clear)),
        photos.encode(clear, "WEBP", lossless=False, quality=50),
        photos.encode(image, "WEBP", **several[0]),
        *(photos.encode(one, "BMP") for one in (image, gray, palette, image.convert("1"))),
        *(
            photos.encode(image, "TIFF", compression=how, exif=rotated)
            for how in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ),
        photos.encode(image.convert("1"), "TIFF", compression="group4"),
        photos.encode(clear, "TIFF"),
        *(photos.encode(one, "HEIF", exif=rotated) for one in (image, clear)),
        *(photos.encode(one, "AVIF", exif=rotated, speed=10) for one in (image, clear)),
        lossless_jpeg.write(picture[..., 1]),
        *(write(picture.astype(np.uint16) * 257, kind) for kind in (Kind(">", 2, True), Kind("<", 2, block=(32, 32)))),
        write(picture[..., :1].astype(np.uint16) * 257, Kind(">", 0)),
        write(np.asarray(clear), Kind("<", 2, extra=(2,), is_bigtiff=True)),
        photos.encode(palette, "GIF"),
    ]
    for file in files[:-1]:
        is_animation = file in (files[12], files[17])
        assert is_animation or decode(file).pixels.size, "seeds must be valid"
    return files


def mutant(number: int) -> bytes:
    """Returns the damaged image of this number, always the same."""
    rng = np.random.default_rng(number)
    data = bytearray(seeds()[int(rng.integers(len(seeds())))])
    for _ in range(int(rng.integers(1, 4))):
        data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](rng, data)
    return bytes(data)


def _flip(rng: np.random.Generator, data: bytearray) -> bytearray:
    for at in rng.integers(0, max(1, len(data) * 8), int(rng.integers(1, 17))):
        if at < len(data) * 8:
            data[at // 8] ^= 1 << at % 8
    return data


def _flip_head(rng: np.random.Generator, data: bytearray) -> bytearray:
    """Damages sizes, tables and EXIF data."""
    return _flip(rng, data[:512]) + data[512:]


def _cut(rng: np.random.Generator, data: bytearray) -> bytearray:
    return data[: int(rng.integers(0, len(data) + 1))]


def _size(rng: np.random.Generator, data: bytearray) -> bytearray:
    """Overwrites a number somewhere in the first 512 bytes."""
    width = int(rng.choice([1, 2, 4]))
    value = LARGE[int(rng.integers(len(LARGE)))] % 256**width
    at = int(rng.integers(0, max(1, min(512, len(data)))))
    data[at : at + width] = value.to_bytes(width, "big" if rng.integers(2) else "little")
    return data


def _exif(rng: np.random.Generator, data: bytearray) -> bytearray:
    """Writes random bytes to the EXIF block, or to the middle of a file without one."""
    start = max(data.find(b"Exif"), data.find(b"II*\0"), data.find(b"MM\0*"), 0) or len(data) // 2
    length = int(rng.integers(1, 65))
    data[start : start + length] = rng.bytes(length)
    return data


def _piece(rng: np.random.Generator, data: bytearray) -> tuple[int, int]:
    start = int(rng.integers(0, len(data) + 1))
    return start, min(len(data), start + int(rng.integers(1, 1025)))


def _twice(rng: np.random.Generator, data: bytearray) -> bytearray:
    """Repeats a piece, there or elsewhere."""
    start, end = _piece(rng, data)
    at = int(rng.integers(0, len(data) + 1)) if rng.integers(2) else end
    return data[:at] + data[start:end] + data[at:]


def _without(rng: np.random.Generator, data: bytearray) -> bytearray:
    start, end = _piece(rng, data)
    return data[:start] + data[end:]


def _noise(rng: np.random.Generator, data: bytearray) -> bytearray:
    start, end = _piece(rng, data)
    return data[:start] + rng.bytes(end - start) + data[end:]


def _splice(rng: np.random.Generator, data: bytearray) -> bytearray:
    """Replaces the beginning by that of another file."""
    other = seeds()[int(rng.integers(len(seeds())))]
    cut = int(rng.integers(0, min(1024, len(other)) + 1))
    return bytearray(other[:cut]) + data[min(cut, len(data)) :]


MUTATIONS: Sequence[Mutation] = (_flip, _flip_head, _cut, _size, _size, _exif, _twice, _without, _noise, _splice)


def main(first: int, count: int, progress: Path) -> None:
    """Decodes the images ROUNDS times and prints a JSON object: the number of each outcome, errors other than
    RejectedImage, the longest CPU time with its image, and the bytes by which the process grew in each round."""
    warnings.simplefilter("ignore")  # Pillow warns of damage that it tolerates
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = (0.0, -1)
    held = []
    with progress.open("wb", buffering=0) as file:
        for _ in range(ROUNDS):
            ended.clear()
            wrong.clear()
            for number in range(first, first + count):
                os.pwrite(file.fileno(), b"%012d" % number, 0)  # known even if the process crashes
                began = time.process_time()
                for outcome in _outcomes(mutant(number)):
                    ended[outcome.partition(":")[0]] += 1
                    wrong += [f"image {number}: {outcome}"] if outcome.startswith("wrong") else []
                slowest = max(slowest, (time.process_time() - began, number))
            held.append(_held())
    grown = [after - before for before, after in pairwise(held)]
    sys.stdout.write(json.dumps({"ended": ended, "wrong": wrong, "slowest": slowest, "grown": grown, "held": held}))


def _outcomes(data: bytes) -> Iterator[str]:
    for longest_side in (None, REDUCED_SIDE):
        try:
            photo = decode(data, longest_side=longest_side)
            assert photo.pixels.dtype == np.uint8
            assert photo.pixels.shape[2:] == (3,)
            assert 0 < photo.pixels.size <= 3 * Limits.max_pixels
            assert photo.height >= photo.pixels.shape[0]
            assert photo.width >= photo.pixels.shape[1]
            yield "decoded"
        except RejectedImage as rejection:
            yield str(rejection.code)
        except Exception:
            yield f"wrong: {traceback.format_exc()}"


def _held() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
