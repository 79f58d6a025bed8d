"""Finding, verifying and preparing model files."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from indexer.errors import ModelUnavailable
from indexer.files import write_atomically
from indexer.models import onnx_prepare
from indexer.models.model_files import ModelFiles
from indexer.models.packs import DETECTORS, SFACE, ModelFile, Network
from indexer.vision.pipeline import FacePipeline

CONTENT = b"a model of no size to speak of" * 100


def model(content: bytes = CONTENT, package: str = "") -> ModelFile:
    return ModelFile(
        name="some.onnx",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        package=package,
        package_path="models/some.onnx",
        network=Network.ONNX,
        licence="MIT",
        origin="this test",
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the name of an installed package that contains the model."""
    name = "ships_a_model"
    folder = tmp_path / "site-packages" / name
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (folder / "models" / "some.onnx").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(folder.parent)
    return name


def test_models_folder_has_priority_over_a_package(tmp_path: Path, package: str) -> None:
    folder = tmp_path / "models"
    files = ModelFiles(folder)
    file = model(package=package)
    assert files.read(file) == CONTENT
    assert files.location(file) == str(tmp_path / "site-packages" / package / "models" / "some.onnx")
    assert not folder.exists()

    write_atomically(folder / "some.onnx", [CONTENT])
    assert files.location(file) == str(folder / "some.onnx")
    (folder / "some.onnx").write_bytes(b"other")
    with pytest.raises(ModelUnavailable):  # what the owner put there is not passed over silently
        files.read(file)


def test_missing_file_is_reported(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path / "models")
    file = model(package="no_such_package_here")
    assert files.path(file) is None
    for ask in (files.read, files.location, files.prepared_model):
        with pytest.raises(ModelUnavailable, match=r"some\.onnx is not in .*models; `whosthere models pull`"):
            ask(file)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("place", ["folder", "package"])
def test_wrong_content_is_refused_with_both_hashes(tmp_path: Path, package: str, place: str) -> None:
    expected, wrong = b"what the pack asks for", CONTENT
    file = model(expected, package=package if place == "package" else "")
    if place == "folder":
        write_atomically(tmp_path / "models" / "some.onnx", [wrong])
    files = ModelFiles(tmp_path / "models")
    with pytest.raises(ModelUnavailable) as caught:
        files.read(file)
    assert caught.value.code == "model_unavailable"
    assert hashlib.sha256(expected).hexdigest() in caught.value.message
    assert hashlib.sha256(wrong).hexdigest() in caught.value.message
    with pytest.raises(ModelUnavailable, match="expected 22 bytes"):
        files.location(file)


def test_first_use_records_an_unknown_hash(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path)
    file = replace(model(), sha256="", size=0)
    assert files.with_known_hash(file).sha256 == ""
    (tmp_path / "some.onnx").write_bytes(CONTENT)
    assert files.read(file) == CONTENT
    assert files.with_known_hash(file).sha256 == hashlib.sha256(CONTENT).hexdigest()
    line = (tmp_path / "some.onnx.sha256").read_text()  # as `sha256sum` writes it
    assert line == f"{hashlib.sha256(CONTENT).hexdigest()}  some.onnx\n"
    (tmp_path / "some.onnx").write_bytes(CONTENT[:-1])
    with pytest.raises(ModelUnavailable, match=r"is not some\.onnx: expected SHA-256"):
        files.read(file)
    with pytest.raises(ModelUnavailable, match=r"some\.onnx"):
        ModelFiles(tmp_path).prepared_model(file)


def test_unwritable_hash_record_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "some.onnx").write_bytes(CONTENT)
    (tmp_path / "some.onnx.sha256").mkdir()
    with pytest.raises(ModelUnavailable, match=r"sha256 cannot be read"):
        ModelFiles(tmp_path).read(replace(model(), sha256=""))


@pytest.mark.parametrize("record", [b"", b"\xff\xfe", b"0123  some.onnx", b"Z" * 64])
def test_damaged_hash_record_is_not_replaced(tmp_path: Path, record: bytes) -> None:
    (tmp_path / "some.onnx").write_bytes(CONTENT)
    (tmp_path / "some.onnx.sha256").write_bytes(record)
    with pytest.raises(ModelUnavailable, match=r"some\.onnx\.sha256 is damaged: expected a SHA-256"):
        ModelFiles(tmp_path).read(replace(model(), sha256=""))
    assert (tmp_path / "some.onnx.sha256").read_bytes() == record


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "w")
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 112, 112]) for n, c in (("x", 3), ("y", 8))]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    made = helper.make_model(helper.make_graph([node], "g", shapes[:1], shapes[1:], [weights]))
    save_model(made, tmp_path / "some.onnx", save_as_external_data=True, location="some.data", size_threshold=0)
    data = (tmp_path / "some.onnx").read_bytes()
    with pytest.raises(ModelUnavailable, match=r"some\.onnx.*its weights are in another file"):
        ModelFiles(tmp_path).prepared_model(model(data))


def test_model_is_prepared_once(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path / "models")
    first = files.prepared_model(SFACE.detector)
    assert first == onnx_prepare.prepare(files.read(SFACE.detector), free_sides=True)
    (kept,) = (tmp_path / "models" / "prepared").iterdir()
    assert kept.name == f"{SFACE.detector.prepared_sha256}.onnx"
    assert kept.read_bytes() == first
    before = kept.stat().st_mtime_ns
    nowhere = replace(SFACE.detector, package="")
    assert files.prepared_model(nowhere) == first  # without reading the original
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("file", SFACE.files, ids=lambda file: file.name)
def test_packs_name_the_hash_of_the_prepared_model(file: ModelFile, tmp_path: Path) -> None:
    prepared = onnx_prepare.prepare(ModelFiles(tmp_path).read(file), file.network in DETECTORS)
    assert hashlib.sha256(prepared).hexdigest() == file.prepared_sha256


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damaged_prepared_model_is_replaced(tmp_path: Path, damage: str) -> None:
    files = ModelFiles(tmp_path / "models")
    good = files.prepared_model(SFACE.detector)
    (target,) = (tmp_path / "models" / "prepared").iterdir()
    flipped = bytearray(good)
    flipped[5000] ^= 1
    match damage:
        case "flip":
            target.write_bytes(flipped)
        case "cut":
            target.write_bytes(good[:-1])
        case "empty":
            target.write_bytes(b"")
        case _:
            target.unlink()
    assert files.prepared_model(SFACE.detector) == good
    assert target.read_bytes() == good


def test_prepared_model_with_another_hash_is_used_but_not_stored(tmp_path: Path) -> None:
    other = replace(SFACE.detector, prepared_sha256="0" * 64)
    assert ModelFiles(tmp_path).prepared_model(other) == ModelFiles(tmp_path).prepared_model(SFACE.detector)
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [f"{SFACE.detector.prepared_sha256}.onnx"]


def test_unwritable_folder_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    files = ModelFiles(tmp_path / "file" / "models")
    assert files.prepared_model(SFACE.detector) == onnx_prepare.prepare(files.read(SFACE.detector), free_sides=True)
    FacePipeline(SFACE, files).load()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    write_atomically(tmp_path / "some.onnx", [CONTENT])
    with pytest.raises(ModelUnavailable, match=r"some\.onnx"):
        ModelFiles(tmp_path).prepared_model(model())


def test_concurrent_calls_prepare_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = set(pool.map(lambda _: ModelFiles(tmp_path).prepared_model(SFACE.detector), range(6)))
    assert len(answers) == 1
    assert len(list((tmp_path / "prepared").iterdir())) == 1
