"""Small liveness networks that need no trained weights, and homes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from indexer.models.liveness_catalogue import LivenessCatalogue, LivenessDescription, NetworkDescription
from indexer.models.liveness_packs import Border
from indexer.models.model_files import ModelFiles
from indexer.models.packs import Network
from indexer.vision.liveness.base import check_pack

SIDE, CELLS = 64, 8

CERTAIN, UNSURE, DARK = 1.0, 0.62, 0.35
"""Brightness of a photo at which `brightness_network` finds its face live, unsure but not live, and surely not live."""


def cell_network(weights: NDArray[np.float32], bias: NDArray[np.float32]) -> bytes:
    """Returns a network over (N, 3, SIDE, SIDE) whose logits (N, 2) are linear in the mean of each of 8 x 8 cells.

    `weights` is (3 * 8 * 8, 2) and `bias` (2,).
    """
    pool = SIDE // CELLS
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["x"], ["means"], kernel_shape=[pool, pool], strides=[pool, pool]),
            helper.make_node("Flatten", ["means"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["y"]),
        ],
        "liveness",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def brightness_network(limit: float = 80.0, steepness: float = 0.1) -> bytes:
    """Returns a network that takes faces for live whose surroundings have a mean of more than `limit`, 0..255."""
    weights = np.zeros((3 * CELLS * CELLS, 2), np.float32)
    weights[:, 1] = steepness / len(weights)
    return cell_network(weights, np.array([0, -steepness * limit], np.float32))


def upper_half_network() -> bytes:
    """Returns a network whose answer depends on which side of the photo is up."""
    weights = np.zeros((3, CELLS, CELLS, 2), np.float32)
    weights[:, : CELLS // 2, :, 1], weights[:, CELLS // 2 :, :, 1] = 0.001, -0.001
    return cell_network(weights.reshape(-1, 2), np.zeros(2, np.float32))


def add_pack(models: Path, network: bytes, name: str = "light") -> None:
    """Installs a pack of one network in a models folder."""
    path = models / "network.onnx"
    path.write_bytes(network)
    description = NetworkDescription(
        file=f"{name}+network.onnx",
        network=Network.ONNX,
        input_size=SIDE,
        crop_scale=1.5,
        border=Border.SHIFT,
        bgr=False,
        pixel_scale=1.0,
        live_class=1,
    )
    catalogue = LivenessCatalogue(ModelFiles(models), check_pack)
    catalogue.add(name, LivenessDescription(networks=(description,), threshold=0.5), [path])


def linked_models(folder: Path, models: Path) -> Path:
    """Returns a models folder of its own that shares the prepared networks of another one."""
    own = folder / "models"
    own.mkdir(parents=True)
    for name in ("prepared", "int8"):
        (models / name).mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(models / name)
    return own
