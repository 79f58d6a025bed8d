"""RetinaFace against upstream's outputs, and the exported network against PyTorch."""

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
from tests.indexer.vision.common import assert_batch_equals_single_images, assert_same_faces, noise

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


def upstream_canvas() -> NDArray[np.uint8]:
    """(1, 160, 192, 3) RGB; upstream takes it as BGR."""
    return np.random.default_rng(8).integers(0, 256, (*SIDES, 3), np.uint8)[None, ..., ::-1]


def run(network: RetinaFaceNetwork, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    blob = torch.tensor(pixels[..., ::-1] - np.array([104, 117, 123], np.float32), dtype=torch.float32)
    return [output.numpy() for output in network(blob.permute(0, 3, 1, 2))]


def test_parameters_are_those_of_the_published_checkpoint(network: RetinaFaceNetwork) -> None:
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert ours == golden.shapes("retinaface_r50")


def test_outputs_equal_upstream(network: RetinaFaceNetwork) -> None:
    expected = golden.outputs("retinaface_r50")
    for found, name in zip(run(network, upstream_canvas()), ("loc", "conf", "landmarks"), strict=True):
        assert found.shape == expected[name].shape
        assert np.abs(found - expected[name]).max() < 1e-4


def test_priors_and_decoding_equal_upstream() -> None:
    expected = golden.outputs("retinaface_r50")
    height, width = SIDES
    anchors = priors(*SIDES)
    assert np.abs(anchors / (width, height, width, height) - expected["priors"]).max() < 1e-6
    boxes = decode_boxes(anchors, expected["loc"][0])
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    assert len(boxes) == 1260
    assert np.abs(corners / (width, height, width, height) - expected["boxes"]).max() < 1e-4
    points = decode_points(anchors, expected["landmarks"][0])
    assert points.shape == (1260, 5, 2)
    assert np.abs(points / (width, height) - expected["points"].reshape(-1, 5, 2)).max() < 1e-4
    assert boxes.dtype == points.dtype == anchors.dtype == np.float32


@pytest.mark.parametrize(("min_score", "faces"), [(0.9, 1), (0.5, 200)])
def test_detections_equal_upstream(
    session: Session, monkeypatch: pytest.MonkeyPatch, min_score: float, faces: int
) -> None:
    """At ModelScope's threshold, and at one that random weights often reach."""
    expected = golden.outputs("retinaface_r50")
    height, width = SIDES
    kept = expected["conf"][0, :, 1] >= min_score
    corners = expected["boxes"][kept] * np.array([width, height, width, height], np.float32)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    points = expected["points"][kept].reshape(-1, 5, 2) * np.array([width, height], np.float32)
    wanted = suppress_overlaps([(boxes, points, expected["conf"][0, kept, 1])], MAX_OVERLAP)
    if min_score != retinaface.MIN_SCORE:
        monkeypatch.setattr(retinaface, "MIN_SCORE", min_score)
    (found,) = RetinaFace(session).detect(upstream_canvas())
    assert len(wanted) >= faces
    assert_same_faces(found, wanted)


@pytest.mark.parametrize("shape", [(2, 160, 192), (1, 32, 32), (1, 64, 32), (3, 96, 320)])
def test_exported_network_equals_pytorch(
    session: Session, network: RetinaFaceNetwork, shape: tuple[int, int, int]
) -> None:
    pixels = noise(*shape)
    for found, expected in zip(session.run(pixels), run(network, pixels), strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4


def test_batch_equals_single_images(session: Session) -> None:
    batch = np.concatenate([noise(3, *SIDES), np.zeros((1, *SIDES, 3), np.uint8)])
    counts = assert_batch_equals_single_images(RetinaFace(session), batch)
    assert len(set(counts)) > 1
    assert counts[3] == 0


def test_priors_are_cached_and_thread_safe() -> None:
    sizes = [(32 * rows, 32 * columns) for rows in range(1, 5) for columns in range(1, 5)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda size: priors(*size), sizes * 8))
    for (height, width), anchors in zip(sizes * 8, found, strict=True):
        assert len(anchors) == height * width // 1024 * 2 * (16 + 4 + 1)
        assert anchors[-1].tolist() == [width - 16, height - 16, 512, 512]
    assert priors(64, 96) is priors(64, 96)
    with pytest.raises(ValueError, match="read-only"):
        priors(64, 96)[0, 0] = 1
