"""Embeddings of crops: averaged with mirrored crops, minus the pack's center."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, Center
from indexer.types import Precision, normalize
from indexer.vision import networks, runtime
from indexer.vision.embedders.base import Embedder
from indexer.vision.pipeline import FacePipeline
from indexer.vision.runtime import Preprocessing, Session, Threads
from tests import photos

assert SFACE.center is not None
CENTER = SFACE.center


@pytest.fixture(scope="module")
def session(models_folder: Path) -> Session:
    return runtime.load(
        ModelFiles(models_folder).prepared_model(SFACE.embedder), Preprocessing(), Precision.FLOAT32, Threads()
    )


@pytest.fixture(scope="module")
def crops(pipeline: FacePipeline) -> NDArray[np.uint8]:
    (result,) = pipeline.describe([photos.six_people()], None)
    return np.stack([face.crop for face in result.faces if face.crop is not None])


@pytest.mark.numeric
def test_center_is_subtracted_from_the_mean_of_both_sides(session: Session, crops: NDArray[np.uint8]) -> None:
    center = networks.load_center(CENTER, SFACE.dim)
    assert 0.2 < float(np.linalg.norm(center)) < 0.5  # how unevenly embeddings are distributed before
    bare, mirrored = Embedder(session, 128, mirror=False), Embedder(session, 128, mirror=True)
    sides = bare.embed(crops) + bare.embed(np.ascontiguousarray(crops[:, :, ::-1]))
    assert np.allclose(mirrored.embed(crops), normalize(sides), atol=1e-5)
    centered = Embedder(session, 128, mirror=True, center=center).embed(crops)
    assert np.allclose(centered, normalize(normalize(sides) - center), atol=1e-5)
    assert np.allclose(np.linalg.norm(centered, axis=1), 1, atol=1e-6)
    assert Embedder(session, 128, mirror=True, center=center).embed(crops[:0]).shape == (0, 128)


@pytest.mark.numeric
def test_scores_of_strangers_are_around_zero(
    pipeline: FacePipeline, session: Session, crops: NDArray[np.uint8]
) -> None:
    apart = ~np.eye(len(crops), dtype=np.bool_)
    uncentered = Embedder(session, 128, mirror=True).embed(crops)
    centered = pipeline.embed(crops)
    before, after = ((vectors @ vectors.T)[apart].mean() for vectors in (uncentered, centered))
    assert abs(after) < 0.1
    assert after < before - 0.03


def test_wrong_or_missing_center_is_rejected() -> None:
    with pytest.raises(ModelUnavailable, match=r"sface_center\.json is [0-9a-f]{64}; expected 00000"):
        networks.load_center(replace(CENTER, sha256=64 * "0"), SFACE.dim)
    with pytest.raises(ModelUnavailable, match=r"shape \(128,\); expected \(512,\)"):
        networks.load_center(CENTER, 512)
    with pytest.raises(ModelUnavailable, match=r"nothing\.json cannot be read: .*reinstall whosthere"):
        networks.load_center(Center("nothing.json", ""), SFACE.dim)


@pytest.mark.numeric
def test_embeddings_of_several_crops_are_averaged(session: Session, crops: NDArray[np.uint8]) -> None:
    """Views span several batches: one contains eight crops and their mirror images."""
    embedder = Embedder(session, 128, mirror=True, center=networks.load_center(CENTER, 128))
    bare = Embedder(session, 128, mirror=False)
    views = np.stack([crops, np.roll(crops, 3, axis=2), np.roll(crops, 2, axis=1)], axis=1)
    sides = [bare.embed(np.ascontiguousarray(side)) for v in range(3) for side in (views[:, v], views[:, v, :, ::-1])]
    expected = normalize(normalize(np.sum(sides, axis=0)) - networks.load_center(CENTER, 128))
    assert np.allclose(embedder.embed_views(views), expected, atol=1e-4)
    assert np.allclose(embedder.embed_views(crops[:, None]), embedder.embed(crops))
