"""Loading checkpoints, refusing wrong ones, and running the exported networks."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.errors import PYTORCH_MISSING, ModelUnavailable
from indexer.models import checkpoints
from indexer.models.architectures.iresnet import iresnet18, iresnet34, iresnet50, iresnet100
from indexer.models.packs import IR50, ModelFile, Network
from indexer.types import Precision, normalize
from indexer.vision import runtime
from indexer.vision.runtime import Preprocessing, Threads
from tests.indexer.vision import golden

SMALL = replace(IR50.embedder, name="small.pt", network=Network.IRESNET18)
FEED = Preprocessing((IR50.mean,) * 3, IR50.scale)

State = dict[str, Tensor]


def saved(content: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def empty(build: Callable[[], nn.Module]) -> State:
    """Returns a state dict with the network's names and shapes; its values share one number, so files are small."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build().state_dict().items()}
    return {name: torch.tensor(1.0).expand(shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return golden.fill(iresnet18())


@pytest.fixture(scope="module")
def state(network: nn.Module) -> State:
    return dict(network.state_dict())


@pytest.fixture
def bare() -> State:
    return empty(iresnet18)


@pytest.fixture(scope="module")
def deep() -> nn.Module:
    return golden.fill(iresnet50())


@pytest.fixture(scope="module")
def exported(deep: nn.Module) -> bytes:
    return checkpoints.convert_to_onnx(saved(deep.state_dict()), IR50.embedder)


def crops(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, 112, 112, 3), np.uint8)


def embed(network: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    blob = torch.tensor((pixels / 255 - 0.5) / 0.5, dtype=torch.float32).permute(0, 3, 1, 2)
    answer: Tensor = network(blob)
    return answer.numpy()


def refusal(data: bytes, file: ModelFile = SMALL) -> str:
    """Returns the error message for a checkpoint that does not load."""
    with pytest.raises(ModelUnavailable) as caught:
        checkpoints.load_network(data, file)
    assert file.name in caught.value.message
    assert "expected" in caught.value.message
    return caught.value.message


FORMS: dict[str, Callable[[State], object]] = {
    "plain": lambda state: state,
    "in-state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "in-model": lambda state: {"model": state, "args": [1, "two", None]},
    "data-parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "data-parallel-in-state_dict": lambda state: {"state_dict": {f"module.{n}": value for n, value in state.items()}},
    "no-counters": lambda state: {n: value for n, value in state.items() if not n.endswith("num_batches_tracked")},
    "odd-counter": lambda state: state | {"fc.num_batches_tracked": torch.zeros(3)},
    "parameters": lambda state: {n: nn.Parameter(v) if v.is_floating_point() else v for n, v in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_common_forms_of_a_state_dict_load(form: str, state: State) -> None:
    loaded = checkpoints.load_network(saved(FORMS[form](state)), SMALL)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    found = loaded.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_file_format_before_2020_loads(network: nn.Module, state: State) -> None:
    data = saved(state, _use_new_zipfile_serialization=False)
    assert not data.startswith(checkpoints.ZIP)
    assert np.allclose(embed(checkpoints.load_network(data, SMALL), crops(1)), embed(network, crops(1)), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, bare: State) -> None:
    bias = torch.linspace(-1, 1, 512).to(dtype)
    loaded = checkpoints.load_network(saved(bare | {"fc.bias": bias}), SMALL)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.state_dict()["fc.bias"], bias.to(torch.float32))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9, 1.0])
def test_truncated_file_is_refused(share: float, legacy: bool, state: State) -> None:
    small = {"fc.bias": state["fc.bias"], "conv1.weight": state["conv1.weight"]}
    data = saved(small, _use_new_zipfile_serialization=not legacy)
    assert "is truncated or damaged" in refusal(data[: int(share * (len(data) - 1))])


def test_damaged_values_are_refused_by_checksum(state: State) -> None:
    data = bytearray(saved({"fc.bias": state["fc.bias"]}))
    place = data.index(state["fc.bias"].numpy().tobytes())
    data[place + 100 : place + 140] = bytes(40)
    assert len(torch.load(io.BytesIO(data), weights_only=True)) == 1  # accepts the damage
    assert "is truncated or damaged" in refusal(bytes(data))


@pytest.mark.parametrize(
    "data", [b"<!DOCTYPE html><html>" * 50, bytes(1000), b"PK\x03\x04" + bytes(100), b"\x80\x02"], ids=range(4)
)
def test_other_file_types_are_refused(data: bytes) -> None:
    assert "is not a PyTorch checkpoint; expected a state dict of iresnet18" in refusal(data)


class Payload:
    """Creates a folder when Python's own unpickler loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("written", ["zip", "legacy", "pickle"])
def test_nothing_in_a_checkpoint_is_executed(written: str, tmp_path: Path) -> None:
    created = tmp_path / "created"
    content = {"state_dict": {"conv1.weight": Payload(created)}}
    data = {
        "zip": lambda: saved(content),
        "legacy": lambda: saved(content, _use_new_zipfile_serialization=False),
        "pickle": lambda: pickle.dumps(content, protocol=2),
    }[written]()
    assert "holds more than plain tensors (posix.mkdir), which is not executed" in refusal(data)
    assert not created.exists()
    if written == "pickle":
        pickle.loads(data)
        assert created.exists()


def test_pickled_module_is_refused() -> None:
    message = refusal(saved(nn.Linear(2, 2)))
    assert "holds more than plain tensors (torch.nn.modules.linear.Linear)" in message


def test_torchscript_archive_is_refused() -> None:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated by PyTorch, but such files exist
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), stream)
    assert "is a TorchScript archive, a program rather than tensors" in refusal(stream.getvalue())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([torch.zeros(2)], "it holds a list"),
        (torch.zeros(2), "it holds a Tensor"),
        (3.5, "it holds a float"),
        ({}, "it is empty"),
        ({"state_dict": {}}, "it is empty"),
        (None, "it holds a NoneType"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({0: torch.zeros(1)}, "0 is a Tensor"),
        ({"net": {"fc.bias": torch.zeros(1)}}, "'net' is a dict"),
    ],
)
def test_other_content_than_a_state_dict_is_refused(content: object, problem: str) -> None:
    message = refusal(saved(content))
    assert f"small.pt is not a state dict: {problem}; expected names with tensors, of iresnet18" in message


@pytest.mark.parametrize(
    ("build", "name"), [(iresnet18, "iresnet18"), (iresnet34, "iresnet34"), (iresnet100, "iresnet100")]
)
def test_another_depth_is_named(build: Callable[[], nn.Module], name: str) -> None:
    message = refusal(saved(empty(build)), IR50.embedder)
    assert f"expected iresnet50, but its layers are those of {name}" in message


def test_another_depth_from_data_parallel_is_named() -> None:
    wrapped = {f"module.{name}": value for name, value in empty(iresnet34).items()}
    assert "expected iresnet50, but its layers are those of iresnet34" in refusal(saved(wrapped), IR50.embedder)


def test_embedder_as_detector_is_refused() -> None:
    message = refusal(saved(empty(iresnet50)), IR50.detector)
    assert "expected retinaface_r50, but its layers are those of iresnet50" in message


def test_missing_and_unknown_parameters_are_listed(bare: State) -> None:
    bare.pop("fc.bias")
    assert "it lacks fc.bias" in refusal(saved(bare))
    for name in [name for name in bare if name.startswith("layer4.1.")]:
        del bare[name]
    assert "it lacks layer4.1.bn1.weight, layer4.1.bn1.bias, layer4.1.bn1.running_mean and 13 more" in refusal(
        saved(bare)
    )
    more = empty(iresnet18) | {f"extra.{n}": torch.zeros(1) for n in range(5)}
    assert "it also has extra.0, extra.1, extra.2 and 2 more" in refusal(saved(more))
    message = refusal(saved(bare | {"head.weight": torch.zeros(1)}))
    assert "expected the 156 parameters of iresnet18; it lacks" in message
    assert "and 13 more and also has head.weight" in message


def test_wrong_shape_is_refused(bare: State) -> None:
    bare["fc.weight"] = torch.tensor(1.0).expand(256, 25088)
    bare["features.weight"] = torch.ones(256)
    assert "fc.weight has shape (256, 25088); expected (512, 25088)" in refusal(saved(bare))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_infinite_values_are_refused(value: float, bare: State) -> None:
    bias = torch.zeros(512, dtype=torch.float64)
    bias[7] = value
    bare["fc.bias"] = bias
    assert "fc.bias holds NaN or infinity; expected finite float32" in refusal(saved(bare))


@pytest.mark.parametrize(
    "odd", [torch.zeros(512, dtype=torch.int8), torch.zeros(512).to_sparse(), torch.zeros(512, device="meta")]
)
def test_integer_sparse_and_meta_tensors_are_refused(odd: Tensor, bare: State) -> None:
    bare["fc.bias"] = odd
    assert "expected plain floating-point numbers" in refusal(saved(bare))


@pytest.mark.parametrize("engine", runtime.ENGINES)
@pytest.mark.parametrize(("precision", "least"), [(Precision.FLOAT32, 0.99999), (Precision.NATIVE, 0.999)])
def test_export_agrees_with_pytorch(
    engine: str, precision: Precision, least: float, exported: bytes, deep: nn.Module
) -> None:
    session = runtime.load(exported, FEED, precision, Threads(), engine)
    expected = normalize(embed(deep, crops(4)))
    (together,) = session.run(crops(4))
    (alone,) = session.run(crops(1))
    assert together.shape == (4, 512)
    assert (normalize(together) * expected).sum(1).mean() >= least
    assert float((normalize(alone) * expected[:1]).sum()) >= least


def test_export_is_self_contained_and_quiet(
    exported: bytes, state: State, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It needs no other file, contains no path of this machine, and prints, warns and logs nothing."""
    assert len(exported) > 4 * 43_590_848
    assert str(Path(__file__).parents[3]).encode() not in exported
    caplog.clear()
    again = checkpoints.convert_to_onnx(saved(state), SMALL)
    assert len(again) > 4 * 24_025_600
    assert capfd.readouterr() == ("", "")
    assert [record.message for record in caplog.records if record.levelname != "DEBUG"] == []


def test_missing_exporter_is_reported(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'")

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(
        ModelUnavailable, match=r"small\.pt cannot be converted to ONNX: .*'whosthere\[torch\]'"
    ) as caught:
        checkpoints.convert_to_onnx(saved(state), SMALL)
    assert caught.value.code == PYTORCH_MISSING


def test_export_of_a_damaged_file_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match=r"small\.pt is truncated or damaged"):
        checkpoints.convert_to_onnx(b"", SMALL)
