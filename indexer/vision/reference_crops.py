"""Crops on which two forms of a network are compared: faces of installed packages, and generated patterns."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.errors import RejectedImage
from indexer.types import CROP_SIZE, Pixels
from indexer.vision.align import align
from indexer.vision.decode import decode

PORTRAITS = (
    (
        "skimage",
        "data/astronaut.png",
        ((203.3, 101.4), (245.5, 105.3), (221.4, 127.0), (201.3, 141.3), (239.9, 144.5)),
    ),
    (
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        ((224.6, 191.3), (306.6, 189.5), (266.1, 233.7), (229.8, 266.7), (302.6, 266.1)),
    ),
)
"""Package, file in it, and the five landmarks of its one face as YuNet finds them: public portraits by NASA and the
U.S. Navy, which many installations have. The project ships no photo of a person."""

PATTERNS = 3
"""Generated crops, which every installation has."""


def reference_crops() -> NDArray[np.uint8]:
    """Returns at least PATTERNS different crops, (N, 112, 112, 3) RGB uint8, the same in every call: the aligned faces
    of the PORTRAITS that are installed, each also mirrored and darker, and generated ones."""
    faces = [crop for face in _portraits() for crop in (face, face[:, ::-1] // 2)]
    return np.stack([*faces, *map(_pattern, range(PATTERNS))])


def _portraits() -> Iterator[Pixels]:
    for package, name, landmarks in PORTRAITS:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec is not None else ():
            with suppress(OSError, RejectedImage):
                yield align(decode((Path(root) / name).read_bytes()).pixels, np.array(landmarks))


def _pattern(seed: int) -> Pixels:
    """Returns random areas and edges of all sizes, whose energy falls with the frequency as in photos."""
    rng = np.random.default_rng(seed)
    image = np.zeros((CROP_SIZE, CROP_SIZE, 3))
    for cells in (2, 4, 7, 14, 28, 56, 112):
        size = CROP_SIZE // cells
        image += np.kron(rng.normal(0, 1 / cells**0.5, (cells, cells, 3)), np.ones((size, size, 1)))
    return np.clip(127.5 + 60 * image, 0, 255).astype(np.uint8)
