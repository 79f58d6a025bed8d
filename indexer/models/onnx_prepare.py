"""Rewrites ONNX files that some runtimes refuse, so that they run everywhere with the same results.

OpenCV Zoo's `int8bq` files store their weights as blocks of int8. Block-wise DequantizeLinear is new (opset 21) and not
in every runtime; some of these files list initializers among the graph's inputs, and all fix the batch size to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.types import CROP_SIZE


def prepare(model: bytes, free_sides: bool, side: int = CROP_SIZE) -> bytes:
    """Returns the model with float32 weights, without initializers among its inputs, and with a dynamic batch.

    `free_sides` makes height and width dynamic too, for fully convolutional networks. Raises ValueError if the input is
    not one image of three channels (and of `side` x `side` without `free_sides`), or if the weights are elsewhere.
    """
    import onnx
    from onnx import numpy_helper

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    if any(i.data_location == onnx.TensorProto.EXTERNAL for i in graph.initializer):
        raise ValueError("its weights are in another file, which no hash covers; save it as one file")
    constants: dict[str, NDArray[Any]] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    nodes = [node for node in graph.node if not _fold(node, constants)]
    for node in nodes:
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = constants[node.input[1]]
            if shape[0] == 1:  # a batch of one; 0 copies the input's batch size
                constants[node.input[1]] = np.concatenate([[0], shape[1:]]).astype(np.int64)
    used = {name for node in nodes for name in node.input}
    inputs = [i for i in graph.input if i.name in used and i.name not in constants]
    _check(inputs, None if free_sides else side)
    if free_sides:
        for node in nodes:
            _put_batch_first(node)
    _replace(graph.node, nodes)
    _replace(graph.initializer, [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used])
    _replace(graph.input, inputs)
    _replace(graph.value_info, [])
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        if free_sides:
            dims[2].dim_param, dims[3].dim_param = "height", "width"
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        if free_sides and len(dims) == 2:  # SCRFD: the cells of all images, image by image
            dims[0].dim_param = f"cells_{value.name}"
            continue
        dims[0].dim_param = "batch"
        if free_sides:
            dims[1].dim_param = f"cells_{value.name}"
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def extract_outputs(model: bytes, outputs: slice) -> bytes:
    """Returns the part of the network that computes some of its outputs."""
    import onnx
    from onnx.utils import Extractor

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    wanted = [value.name for value in graph.output][outputs]
    extracted = Extractor(proto).extract_model([value.name for value in graph.input], wanted)
    return bytes(extracted.SerializeToString())


def _check(inputs: list[Any], side: int | None) -> None:
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in inputs]
    expected = f"N x 3 x {side} x {side}" if side else "N x 3 x height x width"
    sides = (side, side) if side else ()
    if (
        len(shapes) != 1
        or len(shapes[0]) != 4
        or shapes[0][1] != 3
        or any(
            isinstance(found, int) and found not in (0, side) for found, side in zip(shapes[0][2:], sides, strict=False)
        )
    ):
        found = ", ".join(" x ".join(map(str, shape)) for shape in shapes) or "nothing"
        raise ValueError(f"its inputs are {found}; expected one of {expected}")


def _put_batch_first(node: Any) -> None:
    """Moves the batch before the cells, so that the rows are ordered image by image.

    SCRFD's export moves it behind them before flattening both, which mixes the rows of several images.
    """
    for attribute in node.attribute:
        if node.op_type == "Transpose" and attribute.name == "perm" and list(attribute.ints) == [2, 3, 0, 1]:
            attribute.ints[:] = [0, 2, 3, 1]


def _fold(node: Any, constants: dict[str, NDArray[Any]]) -> bool:
    """Computes a node whose inputs are constants. Returns whether the node is no longer needed."""
    if any(name not in constants for name in node.input):
        return False
    if node.op_type == "DequantizeLinear":
        quantized, scale, zero = (constants[name] for name in node.input)
        attributes = {a.name: a.i for a in node.attribute}
        axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
        if block:
            length = range(quantized.shape[axis])
            scale, zero = (np.repeat(v, block, axis=axis).take(length, axis=axis) for v in (scale, zero))
        weights = (quantized.astype(np.float32) - zero.astype(np.float32)) * scale
        constants[node.output[0]] = weights.astype(np.float32)
        return True
    if node.op_type == "Reshape":
        data, shape = (constants[name] for name in node.input)
        constants[node.output[0]] = data.reshape([int(n) for n in shape])
        return True
    return False


def _replace(field: Any, values: list[Any]) -> None:
    del field[:]
    field.extend(values)
