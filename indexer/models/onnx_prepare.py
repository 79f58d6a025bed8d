"""Makes ONNX files that most runtimes refuse into ones that run everywhere, with the same numbers.

OpenCV Zoo's `int8bq` files keep their weights as int8 in blocks. Block-wise DequantizeLinear is new (opset 21) and
not in every runtime; some of these files list initializers among the graph's inputs, and all fix the batch to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.types import CROP_SIZE


def prepare(model: bytes, free_sides: bool) -> bytes:
    """Dequantized weights become plain float32, inputs lose the initializers, the batch becomes free.

    `free_sides` frees height and width as well, for networks that are convolutions to the end. Raises ValueError
    where the input is not one picture: of three channels, and of CROP_SIZE x CROP_SIZE where the sides stay; and where
    the weights are not in the file.
    """
    import onnx
    from onnx import numpy_helper

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    if any(i.data_location == onnx.TensorProto.EXTERNAL for i in graph.initializer):
        raise ValueError("its weights are in another file, which no hash would cover; save it as one file")
    constants: dict[str, NDArray[Any]] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    nodes = [node for node in graph.node if not _fold(node, constants)]
    for node in nodes:
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = constants[node.input[1]]
            if shape[0] == 1:  # a batch of one; 0 copies the batch from the input
                constants[node.input[1]] = np.concatenate([[0], shape[1:]]).astype(np.int64)
    used = {name for node in nodes for name in node.input}
    inputs = [i for i in graph.input if i.name in used and i.name not in constants]
    _check(inputs, free_sides)
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
        if free_sides and len(dims) == 2:  # SCRFD's: the cells of all images, one image after the other
            dims[0].dim_param = f"cells_{value.name}"
            continue
        dims[0].dim_param = "batch"
        if free_sides:
            dims[1].dim_param = f"cells_{value.name}"
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def extract_outputs(model: bytes, outputs: slice) -> bytes:
    """What computes some of a network's outputs, without the rest."""
    import onnx
    from onnx.utils import Extractor

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    wanted = [value.name for value in graph.output][outputs]
    some = Extractor(proto).extract_model([value.name for value in graph.input], wanted)
    return bytes(some.SerializeToString())


def _check(inputs: list[Any], free_sides: bool) -> None:
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in inputs]
    expected = "N x 3 x height x width" if free_sides else f"N x 3 x {CROP_SIZE} x {CROP_SIZE}"
    sides = () if free_sides else (CROP_SIZE, CROP_SIZE)
    if (
        len(shapes) != 1
        or len(shapes[0]) != 4
        or shapes[0][1] != 3
        or any(
            isinstance(found, int) and found not in (0, side) for found, side in zip(shapes[0][2:], sides, strict=False)
        )
    ):
        told = ", ".join(" x ".join(map(str, shape)) for shape in shapes) or "nothing"
        raise ValueError(f"it takes {told}; expected one input of {expected}")


def _put_batch_first(node: Any) -> None:
    """SCRFD's export moves the batch behind the cells before it flattens both, which leaves the rows of several images
    mixed. Before the cells it gives the same rows for one image, and image after image for more."""
    for attribute in node.attribute:
        if node.op_type == "Transpose" and attribute.name == "perm" and list(attribute.ints) == [2, 3, 0, 1]:
            attribute.ints[:] = [0, 2, 3, 1]


def _fold(node: Any, constants: dict[str, NDArray[Any]]) -> bool:
    """Computes a node of constants now. True when that made it superfluous."""
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
