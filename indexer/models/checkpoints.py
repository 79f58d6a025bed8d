"""Loads PyTorch checkpoints and converts them to ONNX.

Checkpoints are read here only, and only as plain tensors, so that nothing in the file is executed.
"""

from __future__ import annotations

import io
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from indexer.errors import PYTORCH_MISSING, ModelUnavailable
from indexer.models.architectures import iresnet, minifasnet
from indexer.models.architectures.retinaface import RetinaFaceNetwork
from indexer.models.packs import LIVENESS, ModelFile, Network
from indexer.types import CROP_SIZE

NETWORKS: dict[Network, Callable[[], nn.Module]] = {
    Network.RETINAFACE: RetinaFaceNetwork,
    Network.IRESNET18: iresnet.iresnet18,
    Network.IRESNET34: iresnet.iresnet34,
    Network.IRESNET50: iresnet.iresnet50,
    Network.IRESNET100: iresnet.iresnet100,
    Network.MINIFASNET_V2: minifasnet.minifasnet_v2,
    Network.MINIFASNET_V1SE: minifasnet.minifasnet_v1se,
}

WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts store the state dict next to, for example, the optimizer's state."""
PREFIX = "module."
"""Added to every name by `DataParallel`."""
COUNTER = "num_batches_tracked"
"""Counter of batch normalization, used by training only; older versions of PyTorch did not write it."""
ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
MAX_LISTED = 3
"""How many names a message lists."""
STRIDE = 32
"""The detector's input sides are multiples of this."""


def load_network(data: bytes, file: ModelFile) -> nn.Module:
    """Returns the checkpoint's network in float32, in evaluation mode and without gradients.

    Raises ModelUnavailable if the file is damaged, holds more than tensors, or holds the tensors of another network.
    """
    state = _state(_load(data, file), file)
    network = _empty(file.network)
    expected = network.state_dict()
    _check_names(_parameter_names(state), _parameter_names(expected), file)
    weights = {name: state[name] for name in _parameter_names(expected)}
    _check_values(weights, expected, file)
    counters = {name: torch.zeros((), dtype=torch.int64) for name in expected if name not in weights}
    network.load_state_dict({name: _float32(tensor) for name, tensor in weights.items()} | counters, assign=True)
    return network.eval().requires_grad_(False)


def convert_to_onnx(data: bytes, file: ModelFile) -> bytes:
    """Returns the checkpoint's network as an ONNX model with a dynamic batch and, for a detector, dynamic height and
    width, multiples of STRIDE. Raises ModelUnavailable like `load_network`, and if the exporter is not installed."""
    network = load_network(data, file)
    detector, liveness = file.network is Network.RETINAFACE, file.network in LIVENESS
    batch = torch.export.Dim("batch")
    free: dict[int, Any] = {0: batch}
    if detector:
        free |= {2: STRIDE * torch.export.Dim("rows"), 3: STRIDE * torch.export.Dim("columns")}
    # The sides differ and none is 1, so that the exporter neither confuses them nor treats one as fixed.
    sides = (3 * STRIDE, 4 * STRIDE) if detector else (minifasnet.INPUT_SIZE if liveness else CROP_SIZE,) * 2
    outputs = ["boxes", "probabilities", "landmarks"] if detector else ["logits" if liveness else "embedding"]
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, *sides),),
                dynamo=True,
                external_data=False,
                input_names=["input"],
                output_names=outputs,
                dynamic_shapes=(free,),
                verbose=False,
            )
    except ImportError as error:
        raise ModelUnavailable(
            f"{file.name} cannot be converted to ONNX: {error}; pip install 'whosthere[torch]'", code=PYTORCH_MISSING
        ) from error
    assert program is not None  # noqa: S101 - it is for dynamo=True
    return _without_metadata(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's warnings about PyTorch's own deprecations and about missing torchvision."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _without_metadata(model: Any) -> bytes:
    """Returns the model without the exporter's metadata, which contains paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    return bytes(model.SerializeToString())


def _load(data: bytes, file: ModelFile) -> object:
    """Loads tensors in plain containers, on the CPU."""
    if data.startswith(ZIP):
        _check_archive(data, file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats that torch.load still reads
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None and ("truncated" in str(error) or not data.startswith((ZIP, PICKLE))):
            raise _damaged(file) from error
        what = foreign[1] if foreign else "a pickle that PyTorch does not write"
        raise ModelUnavailable(
            f"{file.name} holds more than plain tensors ({what}), which is not executed; expected a state dict "
            f"of {file.network}"
        ) from error
    except Exception as error:  # bytes that are not a checkpoint raise nearly anything
        raise _damaged(file) from error


def _damaged(file: ModelFile) -> ModelUnavailable:
    return ModelUnavailable(
        f"{file.name} is truncated or damaged, or is not a PyTorch checkpoint; expected a state dict of {file.network}"
    )


def _check_archive(data: bytes, file: ModelFile) -> None:
    """Verifies the checksums of the ZIP that `torch.save` writes since 2020, which `torch.load` ignores."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # `torch.jit.save` adds code to the tensors.
            is_program = any(name.endswith("/constants.pkl") for name in archive.namelist())
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive raises nearly anything
        raise _damaged(file) from error
    if is_program:
        raise ModelUnavailable(
            f"{file.name} is a TorchScript archive, a program rather than tensors; expected a state dict of "
            f"{file.network}, as torch.save(model.state_dict()) writes it"
        )
    if damaged is not None:
        raise _damaged(file)


def _state(loaded: object, file: ModelFile) -> dict[str, Tensor]:
    """Returns the state dict without its wrappers and the prefix of its names."""
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise _no_state(file, f"it holds a {type(loaded).__name__}")
    if not loaded:
        raise _no_state(file, "it is empty")
    for name, value in loaded.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise _no_state(file, f"{name!r} is a {type(value).__name__}")
    cut = len(PREFIX) if all(name.startswith(PREFIX) for name in loaded) else 0
    return {name[cut:]: tensor for name, tensor in loaded.items()}


def _no_state(file: ModelFile, found: str) -> ModelUnavailable:
    return ModelUnavailable(f"{file.name} is not a state dict: {found}; expected names with tensors, of {file.network}")


def _empty(network: Network) -> nn.Module:
    """Returns the network without weights: names and shapes only."""
    with torch.device("meta"):
        return NETWORKS[network]()


def _parameter_names(state: Mapping[str, Tensor]) -> list[str]:
    return [name for name in state if not name.endswith(COUNTER)]


def _check_names(found: Collection[str], expected: Collection[str], file: ModelFile) -> None:
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if not missing and not unknown:
        return
    other = next((n for n in NETWORKS if set(_parameter_names(_empty(n).state_dict())) == set(found)), None)
    if other is not None:
        raise ModelUnavailable(f"{file.name}: expected {file.network}, but its layers are those of {other}")
    problems = [f"lacks {_list(missing)}"] if missing else []
    problems += [f"also has {_list(unknown)}"] if unknown else []
    raise ModelUnavailable(
        f"{file.name}: expected the {len(expected)} parameters of {file.network}; it {' and '.join(problems)}"
    )


def _list(names: list[str]) -> str:
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _check_values(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: ModelFile) -> None:
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ModelUnavailable(
                f"{file.name}: {name} has shape {tuple(tensor.shape)}; expected {tuple(expected[name].shape)}, as in "
                f"{file.network}"
            )
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise ModelUnavailable(
                f"{file.name}: {name} is {tensor.dtype}, {tensor.layout} on {tensor.device.type}; expected plain "
                "floating-point numbers"
            )
        if not torch.isfinite(_float32(tensor)).all():
            raise ModelUnavailable(f"{file.name}: {name} holds NaN or infinity; expected finite float32 numbers")


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32).contiguous()
