"""Encoding and decoding of stored crops."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.errors import InvalidRequest
from indexer.types import Pick
from indexer.vision import crops
from indexer.vision.pipeline import FacePipeline
from tests.indexer.vision.common import noise
from tests.photos import aligned_face, astronaut, encode, pixels


def test_crop_of_a_face_is_restored_exactly(pipeline: FacePipeline) -> None:
    (result,) = pipeline.describe([astronaut()], Pick.LARGEST)
    crop = result.faces[0].crop
    assert crop is not None
    file = crops.encode(crop)
    restored = crops.decode(file)
    assert restored.dtype == np.uint8
    assert np.array_equal(restored, crop)
    assert len(file) < 0.6 * crop.nbytes
    assert np.allclose(pipeline.embed(restored[None]), pipeline.embed(crop[None]), atol=1e-3)


def test_noise_and_uniform_crops_are_restored_exactly() -> None:
    (random,) = noise(1)
    for crop in (random, np.zeros_like(random), np.full_like(random, 255)):
        assert np.array_equal(crops.decode(crops.encode(crop)), crop)


def test_data_that_is_not_a_crop_is_rejected() -> None:
    file = crops.encode(pixels(aligned_face()))
    for data in (b"", b"nonsense", file[:-100], file[:30], aligned_face()):
        with pytest.raises(InvalidRequest, match="expected a WebP file"):
            crops.decode(data)
    with pytest.raises(InvalidRequest, match="512x512; expected 112x112"):
        crops.decode(encode(pixels(astronaut()), "WEBP"))
