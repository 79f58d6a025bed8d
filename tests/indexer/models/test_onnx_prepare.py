"""Prepared networks run in every runtime, in any batch size, with the results of the original files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from indexer.models import onnx_prepare
from indexer.models.model_files import ModelFiles
from indexer.models.packs import DETECTORS, SFACE, ModelFile
from indexer.types import Precision
from indexer.vision import runtime
from indexer.vision.runtime import Preprocessing, Session, Threads

FILES = [SFACE.detector, SFACE.embedder]
IDS = ["yunet", "sface"]


def session(models_folder: Path, file: ModelFile, engine: str) -> Session:
    return runtime.load(
        ModelFiles(models_folder).prepared_model(file), Preprocessing(), Precision.FLOAT32, Threads(), engine
    )


def batch(count: int, height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, height // 8, width // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_prepared_graph_is_plain_float32(models_folder: Path, file: ModelFile) -> None:
    original = onnx.load_model_from_string(ModelFiles(models_folder).read(file))
    assert any(node.op_type == "DequantizeLinear" for node in original.graph.node)
    model = onnx.load_model_from_string(ModelFiles(models_folder).prepared_model(file))
    assert len(model.graph.input) == 1
    (image,) = model.graph.input
    sides = [dim.dim_value or dim.dim_param for dim in image.type.tensor_type.shape.dim]
    assert sides == (["batch", 3, "height", "width"] if file.network in DETECTORS else ["batch", 3, 112, 112])
    assert not {node.op_type for node in model.graph.node} & {"DequantizeLinear", "QuantizeLinear"}
    weights = {i.name: i.data_type for i in model.graph.initializer}
    assert onnx.TensorProto.INT8 not in weights.values()
    assert onnx.TensorProto.UINT8 not in weights.values()
    used = {name for node in model.graph.node for name in node.input}
    assert set(weights) <= used
    assert [o.name for o in model.graph.output] == [o.name for o in original.graph.output]


def test_extracted_outputs_equal_those_of_the_whole(models_folder: Path) -> None:
    whole = ModelFiles(models_folder).prepared_model(SFACE.detector)
    part = onnx_prepare.extract_outputs(whole, slice(2, None, 3))
    graph = onnx.load_model_from_string(part).graph
    assert [o.name for o in graph.output] == ["cls_32", "obj_32", "bbox_32", "kps_32"]
    assert len(graph.node) < len(onnx.load_model_from_string(whole).graph.node) / 2 + 10
    canvases = batch(2, 96, 64)
    some, every = (runtime.load(m, Preprocessing(), Precision.FLOAT32, Threads()).run(canvases) for m in (part, whole))
    for a, b in zip(some, every[2::3], strict=True):
        assert np.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_preparing_a_prepared_file_changes_nothing(models_folder: Path, file: ModelFile) -> None:
    once = ModelFiles(models_folder).prepared_model(file)
    twice = onnx_prepare.prepare(once, file.network in DETECTORS)
    a, b = onnx.load_model_from_string(once), onnx.load_model_from_string(twice)
    assert list(a.graph.node) == list(b.graph.node)
    assert list(a.graph.initializer) == list(b.graph.initializer)


def smaller(model: Any, height: int, width: int) -> Any:
    """Sets a smaller input size, which the reference implementation computes faster."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_value, dims[3].dim_value = height, width
    return model


@pytest.mark.parametrize("engine", runtime.engines())
@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_prepared_model_equals_the_original(models_folder: Path, file: ModelFile, engine: str) -> None:
    """Compares with ONNX's reference implementation, which runs the quantized file unchanged."""
    original = onnx.load_model_from_string(ModelFiles(models_folder).read(file))
    height, width = (160, 192) if file.network in DETECTORS else (112, 112)
    blob = batch(1, height, width)
    expected = ReferenceEvaluator(smaller(original, height, width)).run(
        None, {original.graph.input[0].name: runtime.to_blob(blob, Preprocessing())}
    )
    found = session(models_folder, file, engine).run(blob)
    assert len(found) == len(expected) == (12 if file.network in DETECTORS else 1)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == np.float32
        assert np.abs(ours - theirs).max() < 1e-4 * max(1.0, float(np.abs(theirs).max()))


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_runtimes_agree(models_folder: Path, file: ModelFile) -> None:
    assert runtime.engines() == ["openvino", "onnxruntime"]
    blob = batch(3, 224, 320) if file.network in DETECTORS else batch(3, 112, 112)
    answers = [session(models_folder, file, engine).run(blob) for engine in runtime.engines()]
    for a, b in zip(*answers, strict=True):
        assert a.shape == b.shape
        assert a.shape[0] == 3
        assert np.abs(a - b).max() < 1e-4 * max(1.0, float(np.abs(b).max()))


@pytest.mark.parametrize("engine", runtime.engines())
@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_batch_equals_single_images(models_folder: Path, file: ModelFile, engine: str) -> None:
    network = session(models_folder, file, engine)
    blob = batch(5, 96, 160) if file.network in DETECTORS else batch(5, 112, 112)
    together = network.run(blob)
    for n in range(5):
        for whole, alone in zip(together, network.run(blob[n : n + 1]), strict=True):
            assert np.abs(whole[n] - alone[0]).max() < 1e-4 * max(1.0, float(np.abs(whole[n]).max()))
    assert np.abs(together[0][0] - together[0][1]).max() > 1e-3


def test_wrong_input_size_is_refused(models_folder: Path) -> None:
    detector = ModelFiles(models_folder).read(SFACE.detector)
    with pytest.raises(ValueError, match=r"1 x 3 x 640 x 640; expected one of N x 3 x 112 x 112"):
        onnx_prepare.prepare(detector, free_sides=False)
