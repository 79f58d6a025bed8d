"""RetinaFace against upstream's answers and, exported, against itself in PyTorch."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from indexer.models import checkpoints
from indexer.models.architectures.retinaface import RetinaFaceNetwork
from indexer.models.packs import IR50
from indexer.types import Precision
from indexer.vision import runtime
from indexer.vision.detectors import retinaface
from indexer.vision.detectors.base import suppress_overlaps
from indexer.vision.detectors.retinaface import MAX_OVERLAP, RetinaFace, decode_boxes, decode_points, priors
from indexer.vision.runtime import Session, Threads
from tests.indexer.vision import golden

SIDES = (160, 192)
"""Height and width of upstream's image."""


@pytest.fixture(scope="module")
def network() -> RetinaFaceNetwork:
    return golden.fill(RetinaFaceNetwork())


@pytest.fixture(scope="module")
def exported(network: RetinaFaceNetwork) -> bytes:
    checkpoint = io.BytesIO()
    torch.save(network.state_dict(), checkpoint)
    return checkpoints.convert_to_onnx(checkpoint.getvalue(), IR50.detector)


@pytest.fixture(scope="module", params=runtime.ENGINES)
def session(request: pytest.FixtureRequest, exported: bytes) -> Session:
    return runtime.load(exported, RetinaFace.preprocessing, Precision.FLOAT32, Threads(), request.param)


def canvases(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def upstream_canvas() -> NDArray[np.uint8]:
    """(1, 160, 192, 3) RGB; upstream takes it as BGR."""
    return np.random.default_rng(8).integers(0, 256, (*SIDES, 3), np.uint8)[None, ..., ::-1]


def ask(network: RetinaFaceNetwork, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    fed = torch.tensor(pixels[..., ::-1] - np.array([104, 117, 123], np.float32), dtype=torch.float32)
    return [output.numpy() for output in network(fed.permute(0, 3, 1, 2))]


def test_the_published_checkpoint_fits(network: RetinaFaceNetwork) -> None:
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert ours == golden.shapes("retinaface_r50")


def test_it_answers_as_upstream(network: RetinaFaceNetwork) -> None:
    expected = golden.answers("retinaface_r50")
    for found, name in zip(ask(network, upstream_canvas()), ("loc", "conf", "landmarks"), strict=True):
        assert found.shape == expected[name].shape
        assert np.abs(found - expected[name]).max() < 1e-4


def test_priors_and_decoding_are_upstreams() -> None:
    expected = golden.answers("retinaface_r50")
    height, width = SIDES
    among = priors(*SIDES)
    assert np.abs(among / (width, height, width, height) - expected["priors"]).max() < 1e-6
    boxes = decode_boxes(among, expected["loc"][0])
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    assert len(boxes) == 1260
    assert np.abs(corners / (width, height, width, height) - expected["boxes"]).max() < 1e-4
    points = decode_points(among, expected["landmarks"][0])
    assert points.shape == (1260, 5, 2)
    assert np.abs(points / (width, height) - expected["points"].reshape(-1, 5, 2)).max() < 1e-4
    assert boxes.dtype == points.dtype == among.dtype == np.float32


@pytest.mark.parametrize(("least", "faces"), [(0.9, 1), (0.5, 200)])
def test_detections_are_upstreams(session: Session, monkeypatch: pytest.MonkeyPatch, least: float, faces: int) -> None:
    """At ModelScope's score, and at one that these weights reach often."""
    expected = golden.answers("retinaface_r50")
    height, width = SIDES
    kept = expected["conf"][0, :, 1] >= least
    corners = expected["boxes"][kept] * np.array([width, height, width, height], np.float32)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    points = expected["points"][kept].reshape(-1, 5, 2) * np.array([width, height], np.float32)
    wanted = suppress_overlaps(boxes, points, expected["conf"][0, kept, 1], MAX_OVERLAP)
    if least != retinaface.MIN_SCORE:
        monkeypatch.setattr(retinaface, "MIN_SCORE", least)
    (found,) = RetinaFace(session).detect(upstream_canvas())
    assert len(found) == len(wanted) >= faces
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
        assert np.abs(ours.landmarks - theirs.landmarks).max() < 0.01
        box, other = ours.box, theirs.box
        assert np.abs(np.subtract([box.x, box.y, box.w, box.h], [other.x, other.y, other.w, other.h])).max() < 0.01


@pytest.mark.parametrize("shape", [(2, 160, 192), (1, 32, 32), (1, 64, 32), (3, 96, 320)])
def test_the_export_answers_as_pytorch(
    session: Session, network: RetinaFaceNetwork, shape: tuple[int, int, int]
) -> None:
    pixels = canvases(*shape)
    for found, expected in zip(session.run(pixels), ask(network, pixels), strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4


def test_a_batch_equals_its_parts(session: Session) -> None:
    detector = RetinaFace(session)
    batch = np.concatenate([canvases(3, *SIDES), np.zeros((1, *SIDES, 3), np.uint8)])
    together = detector.detect(batch)
    assert len({len(faces) for faces in together}) > 1
    assert together[3] == []
    for canvas, faces in zip(batch, together, strict=True):
        (alone,) = detector.detect(canvas[None])
        assert [face.score for face in alone] == pytest.approx([face.score for face in faces], abs=1e-4)
        for a, b in zip(alone, faces, strict=True):
            assert np.allclose(a.landmarks, b.landmarks, atol=0.01)


def test_priors_are_kept_and_shared_by_threads() -> None:
    sizes = [(32 * rows, 32 * columns) for rows in range(1, 5) for columns in range(1, 5)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda size: priors(*size), sizes * 8))
    for (height, width), among in zip(sizes * 8, found, strict=True):
        assert len(among) == height * width // 1024 * 2 * (16 + 4 + 1)
        assert among[-1].tolist() == [width - 16, height - 16, 512, 512]
    assert priors(64, 96) is priors(64, 96)
    with pytest.raises(ValueError, match="read-only"):
        priors(64, 96)[0, 0] = 1
