"""Embedders that users add compute what their files do, or are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from indexer.errors import ModelUnavailable
from indexer.files import write_atomically
from indexer.models.catalogue import Catalogue, FileDescription, PackDescription
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, Network, Pack
from indexer.types import Device, Pick, Precision, normalize, sha256
from indexer.vision import networks, pack_check
from indexer.vision.pipeline import FacePipeline
from indexer.vision.reference_crops import PATTERNS, PORTRAITS, reference_crops
from indexer.vision.runtime import Preprocessing, Threads, to_blob
from tests import photos
from tests.indexer.models.user_networks import (
    INNER,
    branching,
    exported,
    network,
    quantized,
    quantized_convolution,
    random_array,
)


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(tmp_path / "models")


@pytest.fixture
def packs(files: ModelFiles) -> Catalogue:
    return Catalogue(files, pack_check.check_pack)


@pytest.fixture
def add(packs: Catalogue, tmp_path: Path) -> Callable[[bytes], Pack]:
    """Adds a network as the embedder of the pack `mine`."""

    def added(model: bytes) -> Pack:
        path = tmp_path / "mine.onnx"
        path.write_bytes(model)
        embedder = FileDescription(file="mine+mine.onnx", network=Network.ONNX)
        return packs.add("mine", PackDescription(detector="sface", embedder=embedder, dim=1, mirror=False), None, path)

    return added


def original_embeddings(model: bytes) -> np.ndarray:
    """What ONNX Runtime computes of the file as it is, crop by crop: (N, dim) of unit length."""
    options = onnxruntime.SessionOptions()
    # Otherwise it multiplies with int8 weights in int8.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    blob = to_blob(reference_crops(), Preprocessing((127.5,) * 3, 1 / 127.5))
    count = source.shape[0] if isinstance(source.shape[0], int) else 1
    batches = (np.repeat(crop[None], count, axis=0) for crop in blob)
    return normalize(np.concatenate([session.run(None, {source.name: batch})[0][:1] for batch in batches]))


READABLE: dict[str, Callable[[], bytes]] = {
    "one scale": lambda: quantized(None),
    "one scale, no zero point": lambda: quantized(None, zero_point=False),
    "per row of a square": lambda: quantized(0),
    "per column of a square": lambda: quantized(1),
    "per column, counted from the end": lambda: quantized(-1),
    "per row": lambda: quantized(0, 32),
    "per row, no zero point": lambda: quantized(0, 32, zero_point=False),
    "per row of unsigned": lambda: quantized(0, 32, np.uint8),
    "per output channel of a convolution": quantized_convolution,
    "weights in a branch": branching,
    "weights as inputs": lambda: network(
        [helper.make_node("MatMul", ["pooled", "last"], ["y"])],
        {"last": random_array(INNER, 32)},
        ir_version=3,
        opset=8,
    ),
    **{
        f"{exporter}, {way}": lambda way=way, current=current: exported(way, current=current)  # type: ignore[misc]
        for exporter, current in (("current exporter", True), ("older exporter", False))
        for way in ("fixed", "rest", "reshape", "flatten")
    },
    "current exporter, a batch of 4": lambda: exported("reshape", current=True, batch=4),
    "older exporter, a batch of 4": lambda: exported("reshape", current=False, batch=4),
    "current exporter, any batch": lambda: exported("reshape", current=True, dynamic=True),
    "older exporter, any batch": lambda: exported("reshape", current=False, dynamic=True),
}


@pytest.mark.parametrize("make", READABLE.values(), ids=list(READABLE))
def test_an_added_embedder_computes_what_its_file_does(
    add: Callable[[bytes], Pack], files: ModelFiles, make: Callable[[], bytes]
) -> None:
    model = make()
    pack = add(model)
    expected = original_embeddings(model)
    assert pack.dim == expected.shape[1]
    _, embedder = networks.load(pack, files, Device.CPU, Precision.FLOAT32, Threads())
    for count in (1, 5):
        found = embedder.embed(reference_crops()[:count])
        assert np.abs(found - expected[:count]).max() < 1e-4


def test_weights_in_a_second_file_are_included(
    packs: Catalogue, files: ModelFiles, tmp_path: Path, add: Callable[[bytes], Pack]
) -> None:
    model = exported("flatten", current=True)
    onnx.save_model(
        onnx.load_model_from_string(model), tmp_path / "two.onnx", save_as_external_data=True, location="two.onnx.data"
    )
    assert (tmp_path / "two.onnx.data").stat().st_size > 10 * (tmp_path / "two.onnx").stat().st_size
    pack = add((tmp_path / "two.onnx").read_bytes())
    _, embedder = networks.load(pack, files, Device.CPU, Precision.FLOAT32, Threads())
    assert np.abs(embedder.embed(reference_crops()) - original_embeddings(model)).max() < 1e-4


@pytest.mark.parametrize("size", [None, 1000])
def test_a_file_without_its_weights_is_refused(
    packs: Catalogue, tmp_path: Path, add: Callable[[bytes], Pack], size: int | None
) -> None:
    onnx.save_model(
        onnx.load_model_from_string(exported("flatten", current=True)),
        tmp_path / "two.onnx",
        save_as_external_data=True,
        location="two.onnx.data",
    )
    (tmp_path / "two.onnx.data").unlink()
    if size is not None:
        (tmp_path / "two.onnx.data").write_bytes(bytes(size))
    with pytest.raises(ModelUnavailable, match=r"mine\.onnx is not complete: its weights are in another file"):
        add((tmp_path / "two.onnx").read_bytes())
    assert "mine" not in packs.names()


def test_the_files_are_those_that_exporters_write() -> None:
    def of(model: bytes) -> tuple[int, set[str], set[int]]:
        proto = onnx.load_model_from_string(model)
        reshapes = [node for node in proto.graph.node if node.op_type == "Reshape"]
        zeros = {attribute.i for node in reshapes for attribute in node.attribute if attribute.name == "allowzero"}
        return len(proto.graph.input), {node.op_type for node in proto.graph.node}, zeros

    assert of(READABLE["current exporter, fixed"]())[2] == {1}
    assert "Constant" in of(READABLE["older exporter, fixed"]())[1]
    assert of(READABLE["weights as inputs"]())[0] == 3


def _ending(*nodes: onnx.NodeProto, **weights: np.ndarray) -> bytes:
    return network(nodes, weights)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "uint8 input": (
        lambda: network([helper.make_node("Identity", ["pooled"], ["y"])], {}, dtype=TensorProto.UINT8),
        r"its input is uint8; expected float32",
    ),
    "half-precision input": (
        lambda: network([helper.make_node("Identity", ["pooled"], ["y"])], {}, dtype=TensorProto.FLOAT16),
        r"its input is float16; expected float32",
    ),
    "two rows for each crop": (
        lambda: _ending(helper.make_node("Reshape", ["pooled", "shape"], ["y"]), shape=np.array([-1, INNER // 2])),
        r"returns 2 x 32 numbers for 1 crops; expected one embedding per crop",
    ),
    "one row for all crops": (
        lambda: _ending(helper.make_node("ReduceMean", ["pooled", "axes"], ["y"], keepdims=1), axes=np.array([0])),
        r"returns 1 x 64 numbers for 2 crops; expected one embedding per crop",
    ),
    "a map for each crop": (
        lambda: network(
            [helper.make_node("Reshape", ["pooled", "shape"], ["y"])], {"shape": np.array([0, INNER, 1, 1])}, rank=4
        ),
        r"returns 1 x 64 x 1 x 1 numbers for 1 crops",
    ),
    "two outputs": (
        lambda: network(
            [helper.make_node("Identity", ["pooled"], ["y"]), helper.make_node("Neg", ["pooled"], ["z"])],
            {},
            outputs=("y", "z"),
        ),
        r"returns 1 x 64 and 1 x 64 numbers for 1 crops",
    ),
    "no numbers": (
        lambda: _ending(helper.make_node("Div", ["pooled", "nothing"], ["y"]), nothing=np.zeros(1, np.float32)),
        r"returns infinite numbers or NaN",
    ),
    "zeros only": (
        lambda: _ending(helper.make_node("Sub", ["pooled", "pooled"], ["y"])),
        r"returns zeros only, which are no embedding",
    ),
    "centered in each batch": (
        lambda: _ending(
            helper.make_node("ReduceMean", ["pooled", "axes"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["pooled", "mean"], ["centered"]),
            helper.make_node("Add", ["centered", "one"], ["y"]),
            axes=np.array([0]),
            one=np.ones(1, np.float32),
        ),
        r"returns another embedding of a crop where other crops are in its batch",
    ),
    "one embedding for all": (
        lambda: _ending(
            helper.make_node("Sub", ["pooled", "pooled"], ["nothing"]),
            helper.make_node("Add", ["nothing", "one"], ["y"]),
            one=np.ones(1, np.float32),
        ),
        r"returns the same embedding for different images",
    ),
    "no network": (lambda: b"text", r"is not an ONNX model that can be prepared"),
}


@pytest.mark.parametrize(("make", "problem"), REFUSED.values(), ids=list(REFUSED))
def test_a_network_that_is_no_embedder_is_refused_with_the_reason(
    add: Callable[[bytes], Pack], packs: Catalogue, files: ModelFiles, make: Callable[[], bytes], problem: str
) -> None:
    with pytest.raises(ModelUnavailable, match=problem) as caught:
        add(make())
    assert "mine+mine.onnx" in caught.value.message
    assert "mine" not in packs.names()
    assert list(files.folder.iterdir()) == []


def test_a_prepared_network_that_computes_something_else_is_refused(
    add: Callable[[bytes], Pack], packs: Catalogue, files: ModelFiles
) -> None:
    pack = add(quantized(0))
    path = files.prepared_path(pack.embedder)
    other = onnx.load_model_from_string(path.read_bytes())
    (weight,) = (i for i in other.graph.initializer if i.name == "w")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).T.copy(), "w"))
    wrong = other.SerializeToString()
    write_atomically(path, [wrong])
    write_atomically(files.folder / f"prepared/{path.name}.sha256", [f"{sha256(wrong)}  {path.name}\n".encode()])
    with pytest.raises(ModelUnavailable, match=r"mine\+mine.onnx does not compute the same.*ONNX Runtime \(cosine"):
        packs.check(packs.find("mine"))


def test_reference_crops_hold_aligned_faces_and_patterns(pipeline: FacePipeline) -> None:
    crops = reference_crops()
    assert crops.shape == (2 * len(PORTRAITS) + PATTERNS, 112, 112, 3)
    assert len(np.unique(crops.reshape(len(crops), -1), axis=0)) == len(crops)
    (seen,) = pipeline.detect([photos.astronaut()], Pick.LARGEST)
    found = seen.faces[0].crop
    assert found is not None
    assert np.abs(found.astype(int) - crops[0]).mean() < 8
    assert SFACE.detector.prepared_sha256  # which found the landmarks
