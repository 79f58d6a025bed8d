"""Kept crops come back pixel by pixel, or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.errors import InvalidRequest
from indexer.types import Pick
from indexer.vision import crops
from indexer.vision.pipeline import FacePipeline
from tests.photos import aligned_face, astronaut, encode, pixels


def test_a_face_s_crop_comes_back_exactly(pipeline: FacePipeline) -> None:
    [seen] = pipeline.describe([astronaut()], Pick.LARGEST)
    crop = seen.faces[0].crop
    assert crop is not None
    file = crops.encode(crop)
    back = crops.decode(file)
    assert back.dtype == np.uint8
    assert np.array_equal(back, crop)
    assert len(file) < 0.6 * crop.nbytes
    assert np.allclose(pipeline.embed(back[None]), pipeline.embed(crop[None]), atol=1e-3)


def test_the_hardest_pixels_come_back_too() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    for crop in (noise, np.zeros_like(noise), np.full_like(noise, 255)):
        assert np.array_equal(crops.decode(crops.encode(crop)), crop)


def test_what_is_no_crop_is_refused() -> None:
    file = crops.encode(pixels(aligned_face()))
    for data in (b"", b"nonsense", file[:-100], file[:30], aligned_face()):
        with pytest.raises(InvalidRequest, match="expected a WebP file"):
            crops.decode(data)
    with pytest.raises(InvalidRequest, match="512x512; expected 112x112"):
        crops.decode(encode(pixels(astronaut()), "WEBP"))
