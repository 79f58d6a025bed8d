"""Rewrites ONNX files that some runtimes refuse, so that they run everywhere with the same results.

OpenCV Zoo's `int8bq` files store their weights as blocks of int8. Block-wise DequantizeLinear is new (opset 21) and not
in every runtime; some of these files list initializers among the graph's inputs, as files of IR version 3 must, and all
fix the batch size to 1. PyTorch's exporters do so too: the older one writes shapes as Constant nodes, the current one
reshapes with `allowzero`, with which 0 does not copy the input's batch size.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.types import CROP_SIZE

MIN_IR_VERSION = 4
"""The first one that does not need initializers among the graph's inputs (onnx/docs/IR.md)."""

HOW_TO_EXPORT = "keep both in one folder, or export it with external_data=False"


def prepare(model: bytes, free_sides: bool, side: int = CROP_SIZE) -> bytes:
    """Returns the model with float32 weights, without initializers among its inputs, and with a dynamic batch.

    `free_sides` makes height and width dynamic too, for fully convolutional networks. Raises ValueError if the input is
    not one image of three channels (and of `side` x `side` without `free_sides`), or if the weights are elsewhere.
    """
    import onnx
    from onnx import numpy_helper

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    proto.ir_version = max(proto.ir_version, MIN_IR_VERSION)
    if any(i.data_location == onnx.TensorProto.EXTERNAL for i in graph.initializer):
        raise ValueError(f"its weights are in another file, which no hash covers; {HOW_TO_EXPORT}")
    constants: dict[str, NDArray[Any]] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    folded = {name for node in graph.node if node.op_type in ("Reshape", "DequantizeLinear") for name in node.input}
    nodes = [node for node in graph.node if not _fold(node, constants, folded)]
    used = _inputs_of(nodes)
    inputs = [i for i in graph.input if i.name in used and i.name not in constants]
    _check(inputs, None if free_sides else side)
    _check_type(inputs[0])
    fixed = inputs[0].type.tensor_type.shape.dim[0].dim_value or 1
    for node in nodes:
        if node.op_type == "Reshape":
            _free_batch(node, constants, fixed)
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
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        onnx.checker.check_model(model)  # names what is wrong in the file itself
        raise ValueError(f"it cannot be rewritten for batches of any size: {error}") from error
    return bytes(proto.SerializeToString())


def input_side(model: bytes) -> int | None:
    """Returns the side in pixels of the square that the model takes; None if it is not fixed."""
    import onnx

    graph = onnx.load_model_from_string(model).graph
    weights = {initializer.name for initializer in graph.initializer}
    (source, *_) = [value for value in graph.input if value.name not in weights]
    return [dim.dim_value for dim in source.type.tensor_type.shape.dim][-1] or None


def include_weights(model: bytes, folder: Path) -> bytes:
    """Returns the model with its weights, which PyTorch's current exporter writes to a file next to it in `folder`.

    Raises ValueError if that file is missing or shorter than it should be.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model, uses_external_data

    try:
        proto = onnx.load_model_from_string(model)
    except Exception:  # no ONNX model, which preparing it reports
        return model
    if not any(map(uses_external_data, proto.graph.initializer)):
        return model
    try:
        load_external_data_for_model(proto, str(folder))
    except Exception as error:  # onnx raises errors of several kinds
        raise ValueError(f"its weights are in another file, which cannot be read: {error}; {HOW_TO_EXPORT}") from error
    return bytes(proto.SerializeToString())


def remove_unused_inputs(model: bytes) -> tuple[bytes, str]:
    """Returns the model without inputs that no node uses, which runtimes require all the same, and the name of its
    image input. OpenCV Zoo's SFace lists the weights that it had before it was quantized."""
    import onnx

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    weights = {initializer.name for initializer in graph.initializer}
    used = _inputs_of(graph.node)
    _replace(graph.input, [value for value in graph.input if value.name in used])
    return bytes(proto.SerializeToString()), next(value.name for value in graph.input if value.name not in weights)


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


def _check_type(source: Any) -> None:
    import onnx

    found = source.type.tensor_type.elem_type
    if found != onnx.TensorProto.FLOAT:
        name = onnx.helper.tensor_dtype_to_np_dtype(found)
        raise ValueError(f"its input is {name}; expected float32, as images are fed as (x - mean) * scale")


def _free_batch(node: Any, constants: dict[str, NDArray[Any]], fixed: int) -> None:
    """Lets a Reshape to the batch size for which the file was exported keep the batch size of its input."""
    shape = constants.get(node.input[1])
    if shape is None or 0 in shape[1:] or len(shape) == 0 or shape[0] not in (0, 1, fixed):
        return
    constants[node.input[1]] = np.concatenate([[0], shape[1:]]).astype(np.int64)  # 0 copies the input's batch size
    for attribute in [one for one in node.attribute if one.name == "allowzero"]:
        node.attribute.remove(attribute)


def _inputs_of(nodes: Iterable[Any]) -> set[str]:
    """Returns the names of all inputs of the nodes and of the graphs within them, such as the branches of an If."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                names |= _inputs_of(graph.node)
    return names


def _put_batch_first(node: Any) -> None:
    """Moves the batch before the cells, so that the rows are ordered image by image.

    SCRFD's export moves it behind them before flattening both, which mixes the rows of several images.
    """
    for attribute in node.attribute:
        if node.op_type == "Transpose" and attribute.name == "perm" and list(attribute.ints) == [2, 3, 0, 1]:
            attribute.ints[:] = [0, 2, 3, 1]


def _fold(node: Any, constants: dict[str, NDArray[Any]], folded: set[str]) -> bool:
    """Computes a node whose inputs are constants. Returns whether the node is no longer needed.

    `folded` are the names for which Constant nodes are looked up.
    """
    from onnx import numpy_helper

    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Constant" and node.output[0] in folded:
        if "value" in attributes:
            constants[node.output[0]] = numpy_helper.to_array(attributes["value"].t)
        elif "value_ints" in attributes:
            constants[node.output[0]] = np.array(attributes["value_ints"].ints, np.int64)
        return node.output[0] in constants
    given = [name for name in node.input if name]
    if any(name not in constants for name in given):
        return False
    if node.op_type == "DequantizeLinear" and "output_dtype" not in attributes:
        axis = attributes["axis"].i if "axis" in attributes else 1
        block = attributes["block_size"].i if "block_size" in attributes else 0
        constants[node.output[0]] = _dequantize(*(constants[name] for name in given), axis=axis, block=block)
        return True
    if node.op_type == "Reshape":
        data, shape = (constants[name] for name in given)
        constants[node.output[0]] = data.reshape([int(n) for n in shape])
        return True
    return False


def _dequantize(
    quantized: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None = None, *, axis: int, block: int
) -> NDArray[Any]:
    """Returns what DequantizeLinear computes: (quantized - zero) * scale, in the type of `scale`.

    `scale` and `zero` hold one value, one for each index along `axis`, or one for each `block` of indexes along it.
    """
    arrays = [scale] if zero is None else [scale, zero]
    if block:
        length = range(quantized.shape[axis])
        arrays = [np.repeat(array, block, axis=axis).take(length, axis=axis) for array in arrays]
    elif scale.size > 1:
        sides = np.ones(quantized.ndim, int)
        sides[axis] = -1
        arrays = [array.reshape(sides) for array in arrays]
    else:
        arrays = [array.reshape(()) for array in arrays]
    offset = quantized.astype(np.float32) - arrays[1].astype(np.float32) if zero is not None else quantized
    return np.asarray(offset.astype(np.float32) * arrays[0], scale.dtype)


def _replace(field: Any, values: list[Any]) -> None:
    del field[:]
    field.extend(values)
