"""Networks with reproducible weights, and the outputs of the upstream networks with the same weights."""

from __future__ import annotations

import json
import zlib
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn, no_grad, tensor

from tests import photos

M = TypeVar("M", bound=nn.Module)


def fill(module: M) -> M:
    """Sets each parameter by its name (`golden/README.md` of the shared folder) and returns the network."""
    with no_grad():
        for name, value in module.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(tensor(_values(name, tuple(value.shape))))
    return module.eval().requires_grad_(False)


def outputs(name: str) -> dict[str, NDArray[np.float32]]:
    """Returns the outputs of upstream. Skips the test without the shared folder."""
    with np.load(photos.shared(f"golden/{name}.npz")) as arrays:
        return dict(arrays)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Returns the parameter shapes of the published checkpoint. Skips the test without the shared folder."""
    listed = json.loads(photos.shared(f"golden/{name}_state_dict.json").read_text())
    return {name: tuple(shape) for name, shape in listed.items()}


def _values(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        values = z * np.sqrt(0.5 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(z)
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * z
    elif "prelu" in name:
        values = 0.25 + 0.05 * z
    else:
        values = 1 + 0.1 * z
    return np.asarray(values, dtype=np.float32)
