"""Decoding of SCRFD's outputs against InsightFace's own class, on the same file with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.models import onnx_prepare
from indexer.types import Detection, Pixels, Precision
from indexer.vision import runtime
from indexer.vision.detectors import scrfd
from indexer.vision.detectors.scrfd import ANCHORS, MAX_OVERLAP, MIN_SCORE, STRIDES, Scrfd
from indexer.vision.runtime import Threads
from tests.indexer.vision import upstream
from tests.indexer.vision.common import assert_batch_equals_single_images, astronaut

HEIGHT, WIDTH = 256, 320


def network(batched: bool = False) -> bytes:
    """Returns an ONNX model with the outputs of `det_10g.onnx`: 2-D, the batch behind the cells before they are
    flattened; with `batched`, 3-D as InsightFace exports since 2021. Each cell depends on its own pixels only."""
    from onnx import TensorProto, checker, helper, numpy_helper

    rng = np.random.default_rng(1)
    nodes, weights, outputs = [], [], []
    # Number of values of an anchor, their mean and how much a pixel changes them.
    for kind, count, mean, spread in (("score", 1, -4.5, 4.0), ("box", 4, 3.0, 1.0), ("points", 10, 0.0, 2.0)):
        for stride in STRIDES:
            name = f"{kind}_{stride}"
            shape = (ANCHORS * count, 3, stride, stride)
            kernel = rng.normal(0, spread / np.sqrt(3 * stride**2), shape).astype(np.float32)
            bias = np.full(len(kernel), mean, np.float32)
            flat = np.array([1, -1, count] if batched else [-1, count])
            weights += [
                numpy_helper.from_array(kernel, f"{name}_kernel"),
                numpy_helper.from_array(bias, f"{name}_bias"),
                numpy_helper.from_array(flat, f"{name}_shape"),
            ]
            last = "Sigmoid" if kind == "score" else "Softplus" if kind == "box" else "Identity"
            perm = [0, 2, 3, 1] if batched else [2, 3, 0, 1]
            inputs = ["input.1", f"{name}_kernel", f"{name}_bias"]
            nodes += [
                helper.make_node("Conv", inputs, [f"{name}_map"], strides=[stride, stride]),
                helper.make_node("Transpose", [f"{name}_map"], [f"{name}_cells"], perm=perm),
                helper.make_node("Reshape", [f"{name}_cells", f"{name}_shape"], [f"{name}_rows"]),
                helper.make_node(last, [f"{name}_rows"], [name]),
            ]
            rows = ANCHORS * (640 // stride) ** 2
            outputs.append(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, rows, count] if batched else [rows, count])
            )
    picture = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "scrfd", [picture], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module", params=[(engine, batched) for engine in runtime.ENGINES for batched in (False, True)])
def detector(request: pytest.FixtureRequest) -> Scrfd:
    engine, batched = request.param
    model = onnx_prepare.prepare(network(batched), free_sides=True)
    return Scrfd(runtime.load(model, Scrfd.preprocessing, Precision.FLOAT32, Threads(), engine))


@pytest.fixture(scope="module", params=[False, True], ids=["2-D", "3-D"])
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("scrfd") / "det.onnx"
    Path(path).write_bytes(network(request.param))
    return upstream.scrfd().SCRFD(str(path))


def pictures() -> list[Pixels]:
    """Returns a face, noise with its mirror image, and a gray image."""
    face = astronaut()[:HEIGHT, 60 : 60 + WIDTH]
    noise = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return [face, noise, noise[:, ::-1], np.full_like(face, 127)]


def numbers(faces: list[Detection]) -> NDArray[np.float64]:
    """Returns (K, 15): left, top, right, bottom, score, points."""
    rows = [
        [f.box.x, f.box.y, f.box.x + f.box.w, f.box.y + f.box.h, f.score, *f.landmarks.ravel().tolist()] for f in faces
    ]
    return np.array(rows).reshape(-1, 15)


def upstream_numbers(theirs: Any, picture: Pixels) -> NDArray[np.float64]:
    boxes, points = theirs.detect(np.ascontiguousarray(picture[..., ::-1]), input_size=(WIDTH, HEIGHT))
    return np.concatenate([boxes, points.reshape(-1, 10)], axis=1)


@pytest.mark.parametrize("suppressed", [False, True])
def test_detections_equal_those_of_insightface(
    detector: Scrfd, theirs: Any, suppressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all overlaps allowed, and with the default limit."""
    assert (MIN_SCORE, MAX_OVERLAP) == (0.5, 0.4)
    assert (theirs.det_thresh, theirs.nms_thresh) == (MIN_SCORE, MAX_OVERLAP)
    if not suppressed:
        monkeypatch.setattr(scrfd, "MAX_OVERLAP", 1.0)
        monkeypatch.setattr(theirs, "nms_thresh", 1.0)
    counts = []
    for picture in pictures():
        (faces,) = detector.detect(picture[None])
        found, expected = numbers(faces), upstream_numbers(theirs, picture)
        counts.append(len(expected))
        assert found.shape == expected.shape  # and in the same order
        assert np.abs(found - expected).max(initial=0) < 1e-3
    assert min(counts[:3]) > (5 if suppressed else 20)


def test_batch_equals_single_images(detector: Scrfd) -> None:
    counts = assert_batch_equals_single_images(detector, np.stack(pictures()), pixels=1e-3)
    assert len(set(counts)) == 4
