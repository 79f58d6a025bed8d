"""Quantizing embedders to int8 with real networks and faces, and refusing bad results."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from indexer.errors import InvalidRequest, ModelUnavailable
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, ModelFile, Network, Pack
from indexer.types import Device, Pixels, Precision, sha256
from indexer.vision import quantize, runtime
from indexer.vision.embedders.base import Embedder
from indexer.vision.pipeline import FacePipeline, Options
from indexer.vision.quantize import MIN_COSINE, MIN_FACES, QuantizationReport, quantize_embedder
from indexer.vision.runtime import Preprocessing, Threads
from tests import photos
from tests.conftest import calibration_faces

ABOUT = f"{SFACE.embedder.name}.int8.json"
MODEL = f"{SFACE.embedder.name}.int8.onnx"


@pytest.fixture(scope="module")
def faces(pipeline: FacePipeline) -> NDArray[np.uint8]:
    return calibration_faces(pipeline)


@pytest.fixture(scope="module")
def made(faces: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFiles, QuantizationReport]:
    """SFace in int8 and the report about it."""
    files = ModelFiles(tmp_path_factory.mktemp("models"))
    reported: list[tuple[int, int]] = []
    report = quantize_embedder(SFACE, files, faces, lambda done, of: reported.append((done, of)))
    assert [done for done, _ in reported] == list(range(1, report.calibrated_on + 1))
    assert {of for _, of in reported} == {report.calibrated_on}
    return files, report


@pytest.fixture
def copied(made: tuple[ModelFiles, QuantizationReport], tmp_path: Path) -> ModelFiles:
    """A copy of the models folder that tests may damage."""
    files = ModelFiles(tmp_path)
    target = files.quantized_path(SFACE.embedder)
    target.parent.mkdir()
    for source in made[0].quantized_path(SFACE.embedder).parent.iterdir():
        (target.parent / source.name).write_bytes(source.read_bytes())
    return files


def test_int8_agrees_with_float32_as_reported(made: tuple[ModelFiles, QuantizationReport]) -> None:
    files, report = made
    assert report.pack == "sface"
    assert (report.calibrated_on, report.checked_on) == (47, 23)
    assert MIN_COSINE < report.cosine_min <= report.cosine_mean < 1
    assert min(report.float32_ms, report.native_ms, report.int8_ms) > 0
    assert report.times_as_fast == report.float32_ms / report.int8_ms > 1
    folder = files.quantized_path(SFACE.embedder).parent
    assert sorted(path.name for path in folder.iterdir()) == [ABOUT, MODEL]
    about = json.loads((folder / ABOUT).read_text())
    assert QuantizationReport(**about) == report
    assert about["sha256"] == sha256((folder / MODEL).read_bytes())
    assert about["source_sha256"] == SFACE.embedder.sha256
    assert set(about["versions"]) == {"nncf", "onnx", "onnxruntime", "openvino"}
    assert len((folder / MODEL).read_bytes()) < len(files.prepared_model(SFACE.embedder)) / 3


def test_cosines_are_of_stored_embeddings(
    made: tuple[ModelFiles, QuantizationReport], faces: NDArray[np.uint8]
) -> None:
    """Their center is subtracted."""
    files, report = made
    held = faces[2::3]
    exact, int8 = (
        FacePipeline(SFACE, files, Options(device=Device.CPU, precision=precision)).embed(held)
        for precision in (Precision.FLOAT32, Precision.INT8)
    )
    assert report.cosine_mean == pytest.approx((exact * int8).sum(1).mean(), abs=1e-4)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_both_engines_run_int8(
    engine: str, made: tuple[ModelFiles, QuantizationReport], faces: NDArray[np.uint8]
) -> None:
    files = made[0]
    exact, int8 = (
        Embedder(runtime.load(model, Preprocessing(), precision, Threads(), engine), SFACE.dim, SFACE.mirror).embed(
            faces[:20]
        )
        for model, precision in (
            (files.prepared_model(SFACE.embedder), Precision.FLOAT32),
            (files.quantized_model(SFACE.embedder), Precision.INT8),
        )
    )
    assert (exact * int8).sum(1).mean() > MIN_COSINE
    assert not np.allclose(exact, int8, atol=1e-3)


def test_pipeline_uses_int8(made: tuple[ModelFiles, QuantizationReport]) -> None:
    float32, int8 = (
        FacePipeline(SFACE, made[0], Options(precision=one)) for one in (Precision.FLOAT32, Precision.INT8)
    )
    images = [photos.astronaut(), photos.six_people()]
    for a, b in zip(int8.describe(images, None), float32.describe(images, None), strict=True):
        for x, y in zip(a.faces, b.faces, strict=True):
            assert MIN_COSINE < float(x.embedding @ y.embedding) < 0.99999


def test_missing_int8_model_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        FacePipeline(SFACE, ModelFiles(tmp_path), Options(precision=Precision.INT8)).load()
    assert caught.value.message == (
        f"{SFACE.embedder.name} has no int8 form here; `whosthere models quantize sface --calibrate FOLDER` makes it"
    )


def test_missing_int8_model_of_a_user_pack_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="`whosthere models quantize mine --calibrate FOLDER` makes it"):
        ModelFiles(tmp_path).quantized_model(ModelFile("mine+made.onnx", Network.ONNX, "MIT", "this test"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_model_is_refused(copied: ModelFiles, damage: str) -> None:
    target = copied.quantized_path(SFACE.embedder)
    good = target.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    target.write_bytes({"flip": bytes(flipped), "cut": good[:-1], "empty": b""}[damage])
    with pytest.raises(ModelUnavailable, match=rf"{MODEL} is damaged: expected SHA-256 {sha256(good)}"):
        copied.quantized_model(SFACE.embedder)
    target.write_bytes(good)
    assert copied.quantized_model(SFACE.embedder) == good


@pytest.mark.parametrize("about", [b"", b"{", b"[]", b'{"sha256": "0"}', b"\xff"])
def test_damaged_report_is_refused(copied: ModelFiles, about: bytes) -> None:
    (copied.folder / "int8" / ABOUT).write_bytes(about)
    with pytest.raises(ModelUnavailable, match=rf"{ABOUT} is damaged; `whosthere models quantize sface"):
        copied.quantized_model(SFACE.embedder)


def test_model_and_report_need_each_other(copied: ModelFiles) -> None:
    (copied.folder / "int8" / ABOUT).unlink()
    with pytest.raises(ModelUnavailable, match="has no int8 form here"):
        copied.quantized_model(SFACE.embedder)


def test_int8_model_of_another_file_is_refused(copied: ModelFiles) -> None:
    """The file of a pack may have been replaced."""
    other = replace(SFACE.embedder, sha256="0" * 64)
    with pytest.raises(ModelUnavailable, match=rf"made from another .* expected SHA-256 {'0' * 64}, found fb14"):
        copied.quantized_model(other)


@pytest.mark.parametrize("count", [0, 1, MIN_FACES - 1])
def test_too_few_faces_are_refused(count: int, tmp_path: Path) -> None:
    blank: Pixels = np.zeros((112, 112, 3), np.uint8)
    with pytest.raises(InvalidRequest, match=rf"quantizing needs {MIN_FACES} faces or more; found {count}"):
        quantize_embedder(SFACE, ModelFiles(tmp_path), [blank] * count)
    assert list(tmp_path.iterdir()) == []


def network(loud: float, opset: int = 11) -> bytes:
    """Returns a small embedder with 16 filters of 8 x 8 pixels and two more layers. The output of the first filter is
    `loud` times as large as those of the others, with the same effect: activation scales that cover it are too coarse
    for the others."""
    rng = np.random.default_rng(0)
    filters = rng.standard_normal((16, 3, 8, 8)).astype(np.float32)
    filters -= filters.mean((1, 2, 3), keepdims=True)
    mix = rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
    filters[0] *= loud
    mix[:, 0] /= loud
    weights = {
        "filters": filters,
        "mix": mix,
        "end": rng.standard_normal((16 * 14 * 14, 32)).astype(np.float32),
        "shape": np.array([-1, 16 * 14 * 14]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "filters"], ["a"], strides=[8, 8]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "mix"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Reshape", ["c", "shape"], ["d"]),
            helper.make_node("MatMul", ["d", "end"], ["output"]),
        ],
        "made",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 32])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def pack(folder: Path, model: bytes) -> Pack:
    """Returns a user's pack of unknown hash."""
    (folder / "made.onnx").write_bytes(model)
    embedder = ModelFile("made.onnx", Network.ONNX, "MIT", "this test")
    return replace(SFACE, name="made", embedder=embedder, dim=32, center=None)


def test_user_pack_with_an_old_opset_is_quantized(faces: NDArray[np.uint8], tmp_path: Path) -> None:
    files = ModelFiles(tmp_path)
    own = pack(tmp_path, network(loud=1))
    report = quantize_embedder(own, files, list(faces))
    assert report.source_sha256 == sha256((tmp_path / "made.onnx").read_bytes())
    (opset,) = onnx.load_model_from_string(files.quantized_model(own.embedder)).opset_import
    assert opset.version == quantize.PER_CHANNEL_OPSET
    (tmp_path / "made.onnx.sha256").unlink()
    (tmp_path / "made.onnx").write_bytes(network(loud=2))
    with pytest.raises(ModelUnavailable, match=r"made from another made\.onnx.*quantize PACK"):
        files.quantized_model(own.embedder)


@pytest.mark.parametrize(
    ("loud", "message"),
    [
        (200, r"made\.onnx in int8 .* mean cosine 0\.\d{4} over 23 faces, expected 0\.99 or more; nothing was stored"),
        (10_000, r"made\.onnx has no valid embeddings in int8: .* length zero .*; nothing was stored"),
    ],
)
def test_result_that_differs_from_float32_is_refused(
    loud: float, message: str, faces: NDArray[np.uint8], tmp_path: Path
) -> None:
    files = ModelFiles(tmp_path)
    own = pack(tmp_path, network(loud))
    with pytest.raises(ModelUnavailable, match=message):
        quantize_embedder(own, files, faces)
    assert not files.quantized_path(own.embedder).parent.exists()
    with pytest.raises(ModelUnavailable, match="has no int8 form here"):
        files.quantized_model(own.embedder)


def test_unwritable_folder_is_reported(faces: NDArray[np.uint8], tmp_path: Path) -> None:
    own = pack(tmp_path, network(loud=1))
    (tmp_path / "int8").write_text("not a folder")
    with pytest.raises(ModelUnavailable, match=r"made\.onnx\.int8\.onnx cannot be written"):
        quantize_embedder(own, ModelFiles(tmp_path), faces)


def test_missing_nncf_is_reported(faces: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ModelUnavailable, match=r"NNCF is not installed .*: pip install 'whosthere\[quantize\]'"):
        quantize_embedder(pack(tmp_path, network(loud=1)), ModelFiles(tmp_path), faces)


def test_quantizing_leaves_the_levels_of_log_handlers(faces: NDArray[np.uint8], tmp_path: Path) -> None:
    quantize_embedder(pack(tmp_path, network(loud=1)), ModelFiles(tmp_path), faces)
    shared = logging.NullHandler()
    logger = logging.getLogger("nncf")
    before = logger.level
    logger.addHandler(shared)
    try:
        quantize_embedder(pack(tmp_path, network(loud=1)), ModelFiles(tmp_path), faces)
    finally:
        logger.removeHandler(shared)
    assert (shared.level, logger.level) == (logging.NOTSET, before)


def test_quantizing_is_quiet_and_sends_no_telemetry(
    faces: NDArray[np.uint8], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize_embedder(pack(tmp_path, network(loud=1)), ModelFiles(tmp_path), faces)
    assert capfd.readouterr() == ("", "")
