"""PyTorch checkpoints -> networks, and those -> ONNX. The one place that reads a checkpoint, and only as plain tensors:
nothing in the file is executed."""

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
from indexer.models.architectures import iresnet
from indexer.models.architectures.retinaface import RetinaFaceNetwork
from indexer.models.packs import ModelFile, Network
from indexer.types import CROP_SIZE

NETWORKS: dict[Network, Callable[[], nn.Module]] = {
    Network.RETINAFACE: RetinaFaceNetwork,
    Network.IRESNET18: iresnet.iresnet18,
    Network.IRESNET34: iresnet.iresnet34,
    Network.IRESNET50: iresnet.iresnet50,
    Network.IRESNET100: iresnet.iresnet100,
}

WRAPPERS = ("state_dict", "model")
"""Where training scripts put the state dict beside other things, as an optimiser's state."""
PREFIX = "module."
"""What `DataParallel` puts before every name."""
COUNTER = "num_batches_tracked"
"""Of batch normalisation; older versions of PyTorch did not write it, and only training reads it."""
ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
TOLD = 3
"""Names that a message lists."""
STRIDE = 32
"""Sides of the detector's canvases are multiples of this."""


def load_network(data: bytes, file: ModelFile) -> nn.Module:
    """The network of checkpoint `data`, in float32, ready to run: evaluation mode, no gradients.

    Raises ModelUnavailable, which says what was expected: a damaged file, one that holds more than tensors, or the
    tensors of another network.
    """
    state = _state(_load(data, file), file)
    network = _empty(file.network)
    expected = network.state_dict()
    _check_names(_named(state), _named(expected), file)
    weights = {name: state[name] for name in _named(expected)}
    _check_values(weights, expected, file)
    counters = {name: torch.zeros((), dtype=torch.int64) for name in expected if name not in weights}
    network.load_state_dict({name: _float32(tensor) for name, tensor in weights.items()} | counters, assign=True)
    return network.eval().requires_grad_(False)


def convert_to_onnx(data: bytes, file: ModelFile) -> bytes:
    """The checkpoint's network as an ONNX model. Its batch is free, and a detector's height and width are too, in steps
    of STRIDE. Raises ModelUnavailable, as `load_network` does, and where what PyTorch exports with is not installed."""
    network = load_network(data, file)
    detector = file.network is Network.RETINAFACE
    batch = torch.export.Dim("batch")
    free: dict[int, Any] = {0: batch}
    if detector:
        free |= {2: STRIDE * torch.export.Dim("rows"), 3: STRIDE * torch.export.Dim("columns")}
    # Sides that differ, and none of them 1, so that the exporter takes none for another or for fixed.
    sides = (3 * STRIDE, 4 * STRIDE) if detector else (CROP_SIZE, CROP_SIZE)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, *sides),),
                dynamo=True,
                external_data=False,
                input_names=["input"],
                output_names=["boxes", "probabilities", "landmarks"] if detector else ["embedding"],
                dynamic_shapes=(free,),
                verbose=False,
            )
    except ImportError as error:
        raise ModelUnavailable(
            f"{file.name} cannot be made into ONNX: {error}; pip install 'whosthere[torch]'", code=PYTORCH_MISSING
        ) from error
    assert program is not None  # noqa: S101 - it is for dynamo=True
    return _stripped(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter uses what PyTorch itself has deprecated, and tells that torchvision is not installed."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _stripped(model: Any) -> bytes:
    """The model without the exporter's notes, which hold the paths of the source files on this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    return bytes(model.SerializeToString())


def _load(data: bytes, file: ModelFile) -> object:
    """What the file holds: tensors in plain containers, on the CPU."""
    if data.startswith(ZIP):
        _check_archive(data, file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that torch.load still reads
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
    except Exception as error:  # bytes that are no checkpoint raise nearly anything
        raise _damaged(file) from error


def _damaged(file: ModelFile) -> ModelUnavailable:
    return ModelUnavailable(
        f"{file.name} is cut off or damaged, or is no PyTorch checkpoint; expected a state dict of {file.network}"
    )


def _check_archive(data: bytes, file: ModelFile) -> None:
    """Of the ZIP that `torch.save` writes since 2020: `torch.load` does not look at its checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # `torch.jit.save` writes code beside the tensors.
            program = any(name.endswith("/constants.pkl") for name in archive.namelist())
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive raises nearly anything
        raise _damaged(file) from error
    if program:
        raise ModelUnavailable(
            f"{file.name} is a TorchScript archive, a program rather than tensors; expected a state dict of "
            f"{file.network}, as torch.save(model.state_dict()) writes it"
        )
    if damaged is not None:
        raise _damaged(file)


def _state(loaded: object, file: ModelFile) -> dict[str, Tensor]:
    """The state dict, unwrapped, its names without the prefix."""
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
    """The network without weights: names and shapes only."""
    with torch.device("meta"):
        return NETWORKS[network]()


def _named(state: Mapping[str, Tensor]) -> list[str]:
    return [name for name in state if not name.endswith(COUNTER)]


def _check_names(found: Collection[str], expected: Collection[str], file: ModelFile) -> None:
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if not missing and not unknown:
        return
    other = next((n for n in NETWORKS if set(_named(_empty(n).state_dict())) == set(found)), None)
    if other is not None:
        raise ModelUnavailable(f"{file.name}: expected {file.network}; its layers are those of {other}")
    told = [f"lacks {_listed(missing)}"] if missing else []
    told += [f"has {_listed(unknown)} beside"] if unknown else []
    raise ModelUnavailable(
        f"{file.name}: expected the {len(expected)} parameters of {file.network}; it {' and '.join(told)}"
    )


def _listed(names: list[str]) -> str:
    rest = len(names) - TOLD
    return ", ".join(names[:TOLD]) + (f" and {rest} more" if rest > 0 else "")


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
