"""Small embedders as users have them: quantized, of an old format, and exported by PyTorch, as ONNX files."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

INNER = 64
"""Length of the vector that quantized weights are multiplied with."""


def network(
    nodes: Sequence[Any],
    weights: dict[str, NDArray[Any]],
    *,
    dtype: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
    rank: int = 2,
    ir_version: int = 8,
    opset: int = 21,
) -> bytes:
    """Returns a network over crops `x` that nodes continue from `pooled`, (N, INNER) float32."""
    is_float = dtype == TensorProto.FLOAT
    source = "x" if is_float else "floats"
    first = [
        *([] if is_float else [helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT)]),
        helper.make_node("AveragePool", [source], ["means"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Flatten", ["means"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "first"], ["pooled"]),
    ]
    values = {"first": random_array(3 * 8 * 8, INNER), **weights}
    inputs = [helper.make_tensor_value_info("x", dtype, ["N", 3, 112, 112])]
    if ir_version < 4:  # weights are inputs with a default
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, v.shape) for name, v in values.items()]
    graph = helper.make_graph(
        [*first, *nodes],
        "embedder",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def random_array(*shape: int) -> NDArray[np.float32]:
    return (np.random.default_rng(len(shape)).standard_normal(shape) / 10).astype(np.float32)


def quantized(
    axis: int | None, columns: int = INNER, kind: type[np.integer[Any]] = np.int8, *, zero_point: bool = True
) -> bytes:
    """Returns a network with a quantized weight: per channel along `axis`, or with one scale where it is None."""
    rng = np.random.default_rng(1)
    limits = np.iinfo(kind)
    count = 1 if axis is None else (INNER, columns)[axis]
    shape = () if axis is None else (count,)
    weights = {
        "q": rng.integers(limits.min, limits.max, (INNER, columns), kind, endpoint=True),
        "scale": rng.uniform(0.001, 0.02, shape).astype(np.float32),
        "zero": rng.integers(limits.min // 2, limits.max // 2, shape, kind),
    }
    names = ["q", "scale", "zero"] if zero_point else ["q", "scale"]
    weights = {name: np.asarray(weights[name]) for name in names}
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("DequantizeLinear", names, ["w"], **attributes),
        helper.make_node("MatMul", ["pooled", "w"], ["y"]),
    ]
    return network(nodes, weights)


def quantized_convolution() -> bytes:
    """Returns a network with the weights of a convolution quantized per output channel, as most tools do."""
    rng = np.random.default_rng(2)
    weights = {
        "q": rng.integers(-127, 128, (32, INNER, 1, 1), np.int8),
        "scale": rng.uniform(0.001, 0.02, 32).astype(np.float32),
        "bias": rng.integers(-1000, 1000, 32, np.int32),
        "bias_scale": rng.uniform(0.001, 0.02, 32).astype(np.float32),
        "square": np.array([0, INNER, 1, 1]),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["b"], axis=0),
        helper.make_node("Reshape", ["pooled", "square"], ["map"]),
        helper.make_node("Conv", ["map", "w", "b"], ["features"]),
        helper.make_node("Flatten", ["features"], ["y"], axis=1),
    ]
    return network(nodes, weights)


def branching() -> bytes:
    """Returns a network with weights that only a branch of an If uses."""
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["pooled", name], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [None, None])],
        )
        for name in ("yes", "no")
    ]
    nodes = [helper.make_node("If", ["condition"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    weights = {name: random_array(INNER, 32) * sign for name, sign in (("yes", 1), ("no", -1))}
    return network(nodes, {**weights, "condition": np.array(True)})


class Backbone(nn.Module):
    """A network that ends in one of the ways in which authors of PyTorch networks flatten features."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 16, 14, 14)
        self.last = nn.Linear(16 * 8 * 8, 512)
        self._way = way

    def forward(self, crops: Tensor) -> Tensor:
        features = torch.relu(self.convolution(crops))
        if self._way == "fixed":
            flat = features.view(1, 16 * 8 * 8)
        elif self._way == "rest":
            flat = features.view(1, -1)
        elif self._way == "reshape":
            flat = features.reshape(features.shape[0], -1)
        else:
            flat = torch.flatten(features, 1)
        result: Tensor = self.last(flat)
        return result


def exported(way: str, *, current: bool, dynamic: bool = False, batch: int = 1) -> bytes:
    """Returns a Backbone as PyTorch's current exporter writes it, or the older one, for a batch of that size or any."""
    crops = torch.zeros(2 if dynamic else batch, 3, 112, 112)
    file: Any = io.BytesIO()  # the older exporter takes it
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if current:
                shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
                program = torch.onnx.export(
                    Backbone(way).eval(), (crops,), dynamo=True, dynamic_shapes=shapes, verbose=False
                )
                assert program is not None
                return bytes(program.model_proto.SerializeToString())
            axes = {"x": {0: "batch"}} if dynamic else None
            torch.onnx.export(Backbone(way).eval(), (crops,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
            return bytes(file.getvalue())
    finally:
        log.setLevel(level)
