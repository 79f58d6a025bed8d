"""Listing model packs, and adding them after a test run of their networks."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from indexer.errors import InvalidRequest, ModelUnavailable, NotFound
from indexer.files import write_atomically
from indexer.models.catalogue import Catalogue, FileDescription, PackDescription
from indexer.models.model_files import ModelFiles
from indexer.models.packs import BUFFALO_L, IR50, SFACE, ModelFile, Network, describe
from indexer.types import Precision, sha256
from indexer.vision import pack_check


def shipped(file: ModelFile) -> Path:
    path = ModelFiles(Path("/nowhere")).path(file)
    assert path is not None
    return path


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(tmp_path / "models")


@pytest.fixture
def packs(files: ModelFiles) -> Catalogue:
    return Catalogue(files, pack_check.check_pack)


def described(name: str = "mine", detector: str | FileDescription = "sface") -> PackDescription:
    """Returns SFace under another name, with the same input."""
    embedder = FileDescription(file=f"{name}+sface.onnx", network=Network.ONNX, licence="Apache-2.0")
    return PackDescription(detector=detector, embedder=embedder, dim=1, mean=0.0, scale=1.0)


def test_the_best_installed_pack_is_the_default(packs: Catalogue, files: ModelFiles) -> None:
    assert packs.names() == ["ir50", "buffalo_l", "sface"]
    assert packs.best_installed() == SFACE
    for better in (BUFFALO_L, IR50):
        files.folder.mkdir(exist_ok=True)
        (files.folder / better.detector.name).write_bytes(b"a detector")
        assert packs.best_installed().name != better.name  # half a pack is none
        (files.folder / better.embedder.name).write_bytes(b"an embedder")
        assert packs.best_installed().name == better.name


def test_pack_without_files_is_not_installed(packs: Catalogue) -> None:
    pack = packs.find("ir50")
    assert not pack.has_known_hashes
    assert not packs.is_installed(pack)
    with pytest.raises(ModelUnavailable, match="model pack ir50 is not installed; `whosthere models pull ir50`"):
        _ = pack.fingerprint
    with pytest.raises(
        ModelUnavailable, match=r"not installed: cv_resnet50.* and cv_ir50.* `whosthere models pull ir50`"
    ):
        packs.find_installed("ir50")
    with pytest.raises(ModelUnavailable, match=r"not installed: det_10g\.onnx and w600k_r50\.onnx"):
        packs.find_installed("buffalo_l")
    with pytest.raises(NotFound, match=r"no model pack '../up'; expected one of ir50, buffalo_l, sface"):
        packs.find("../up")


def test_problem_names_what_is_missing(packs: Catalogue, files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packs.problem(packs.find("ir50"), Precision.NATIVE) == "not installed"
    assert packs.problem(SFACE, Precision.NATIVE) is None
    assert packs.problem(SFACE, Precision.INT8) == "no int8 form (whosthere models quantize sface)"
    files.folder.mkdir()
    for file in IR50.files:
        (files.folder / file.name).write_bytes(file.name.encode())
    pack = packs.find("ir50")
    assert packs.problem(pack, Precision.NATIVE) is None  # it is prepared when it is used
    monkeypatch.setitem(sys.modules, "torch", None)
    assert packs.problem(pack, Precision.NATIVE) == "PyTorch is not installed (pip install 'whosthere[torch]')"
    for file in pack.files:
        write_atomically(files.prepared_path(file), [b"a network"])
    assert packs.problem(pack, Precision.NATIVE) is None


def test_unreadable_pack_is_listed_with_its_problem(packs: Catalogue, files: ModelFiles) -> None:
    write_atomically(files.folder / "packs" / "bad.json", [b"{"])
    told = packs.describe("bad")
    assert set(told) == {"name", "installed", "problem"}
    assert (told["name"], told["installed"]) == ("bad", False)
    assert "does not describe a model pack" in str(told["problem"])
    assert packs.describe("sface") == describe(SFACE) | {"installed": True}


def test_hash_of_a_file_copied_by_hand_is_recorded_once(packs: Catalogue, files: ModelFiles) -> None:
    files.folder.mkdir()
    for file in IR50.files:
        (files.folder / file.name).write_bytes(file.name.encode())
    pack = packs.find("ir50")
    assert [file.sha256 for file in pack.files] == [sha256(file.name.encode()) for file in IR50.files]
    fingerprint = pack.fingerprint
    (files.folder / IR50.embedder.name).write_bytes(b"other weights")
    assert packs.find("ir50").fingerprint == fingerprint
    with pytest.raises(ModelUnavailable, match=r"is not cv_ir50.*expected SHA-256"):
        files.read(packs.find("ir50").embedder)


def test_fingerprints_of_built_in_packs_do_not_change() -> None:
    """Galleries record them, and another one makes every gallery of the pack unusable."""
    assert SFACE.fingerprint == "44c08bcce43f7bb9"
    assert BUFFALO_L.fingerprint == "831cf6ad77119c50"
    assert SFACE.center is not None
    other = replace(SFACE, center=replace(SFACE.center, sha256=64 * "0"))
    nearer = replace(SFACE, zooms=(1.1,))
    assert len({pack.fingerprint for pack in (SFACE, other, nearer, replace(SFACE, center=None))}) == 4


def test_pack_with_a_shared_detector_is_added(packs: Catalogue, files: ModelFiles) -> None:
    added = packs.add("mine", described(), None, shipped(SFACE.embedder))
    assert added == packs.find("mine")
    assert (added.dim, added.detector, added.measured) == (128, SFACE.detector, False)
    assert (added.embedder.sha256, added.embedder.size) == (SFACE.embedder.sha256, SFACE.embedder.size)
    # The same networks, fed in the same way, make the same embeddings, as the fingerprint says; center and zooms apart.
    assert added.fingerprint == replace(SFACE, center=None, zooms=(1.0,)).fingerprint != SFACE.fingerprint
    assert packs.names() == ["ir50", "buffalo_l", "sface", "mine"]
    assert packs.is_installed(added)
    assert packs.best_installed() == SFACE
    written = json.loads((files.folder / "packs" / "mine.json").read_text())
    assert (written["dim"], written["detector"], written["embedder"]["file"]) == (128, "sface", "mine+sface.onnx")
    with pytest.raises(InvalidRequest, match="model pack 'mine' exists already"):
        packs.add("mine", described(), None, shipped(SFACE.embedder))


def test_pack_with_both_files_is_added(packs: Catalogue, files: ModelFiles) -> None:
    detector = FileDescription(file="two+yunet.onnx", network=Network.YUNET, licence="MIT", origin="OpenCV Zoo")
    added = packs.add("two", described("two", detector), shipped(SFACE.detector), shipped(SFACE.embedder))
    assert (added.detector.name, added.detector.licence, added.detector.origin) == (
        "two+yunet.onnx",
        "MIT",
        "OpenCV Zoo",
    )
    assert (files.folder / "two+yunet.onnx").read_bytes() == shipped(SFACE.detector).read_bytes()


@pytest.mark.parametrize(
    ("network", "path", "says"),
    [
        (Network.SCRFD, SFACE.detector, "do not work as scrfd and onnx"),
        (Network.YUNET, SFACE.embedder, "do not work as yunet and onnx"),
        (Network.RETINAFACE, SFACE.detector, r"wrong\+detector\.onnx"),
        (Network.ONNX, SFACE.detector, "is a onnx; expected a detector: yunet, scrfd, retinaface_r50"),
    ],
)
def test_file_of_another_network_is_not_kept(
    packs: Catalogue, files: ModelFiles, network: Network, path: ModelFile, says: str
) -> None:
    detector = FileDescription(file="wrong+detector.onnx", network=network)
    with pytest.raises(ModelUnavailable, match=says):
        packs.add("wrong", described("wrong", detector), shipped(path), shipped(SFACE.embedder))
    assert packs.names() == ["ir50", "buffalo_l", "sface"]
    assert list(files.folder.iterdir()) == []


def test_embedder_with_another_input_size_is_refused(packs: Catalogue) -> None:
    with pytest.raises(ModelUnavailable, match=r"mine\+sface\.onnx.* 1 x 3 x 640 x 640; expected .*3 x 112 x 112"):
        packs.add("mine", described(), None, shipped(SFACE.detector))


def test_wrong_file_for_a_built_in_pack_is_not_kept(packs: Catalogue, files: ModelFiles, tmp_path: Path) -> None:
    """Its hash is unknown and must not be recorded."""
    (tmp_path / "weights.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ModelUnavailable, match="cv_resnet50"):
        packs.install("ir50", tmp_path / "weights.pt", tmp_path / "weights.pt")
    assert list(files.folder.iterdir()) == []
    assert packs.best_installed() == SFACE


def test_pack_cannot_use_the_files_of_another(packs: Catalogue, files: ModelFiles) -> None:
    (files.folder / "packs").mkdir(parents=True)
    said = {"detector": "sface", "embedder": {"file": IR50.embedder.name, "network": "onnx"}, "dim": 512}
    (files.folder / "packs" / "sly.json").write_text(json.dumps(said))
    with pytest.raises(ModelUnavailable, match=r"has the file cv_ir50.*expected a name like sly\+"):
        packs.find("sly")


def test_circular_detectors_are_refused(packs: Catalogue, files: ModelFiles) -> None:
    (files.folder / "packs").mkdir(parents=True)
    for name, other in (("one", "two"), ("two", "one")):
        said = {"detector": other, "embedder": {"file": f"{name}+e.onnx", "network": "onnx"}, "dim": 512}
        (files.folder / "packs" / f"{name}.json").write_text(json.dumps(said))
    with pytest.raises(ModelUnavailable, match="uses the detector of two, which has no detector of its own"):
        packs.find("one")


@pytest.mark.parametrize("name", ["", "a/b", "Mine", ".hidden", "x" * 65, "sface"])
def test_invalid_and_used_names_are_refused(packs: Catalogue, name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot name a model pack|exists already"):
        packs.add(name, described(), None, shipped(SFACE.embedder))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "content"),
        ("[]", "content"),
        ('{"detector": "sface"}', "embedder"),
        ('{"detector": "sface", "embedder": {"file": "a/b", "network": "onnx"}, "dim": 5}', "embedder.file"),
        ('{"detector": "sface", "embedder": {"file": "bad+b", "network": "vit"}, "dim": 5}', "embedder.network"),
        ('{"detector": "sface", "embedder": {"file": "bad+b", "network": "onnx"}, "dim": 0}', "dim"),
        ('{"detector": "sface", "embedder": {"file": "bad+b", "network": "onnx"}, "dim": 5, "fast": 1}', "fast"),
        (
            '{"detector": "bad", "embedder": {"file": "bad+b", "network": "onnx"}, "dim": 5}',
            "has no detector of its own",
        ),
    ],
)
def test_invalid_description_is_refused(packs: Catalogue, files: ModelFiles, text: str, problem: str) -> None:
    (files.folder / "packs").mkdir(parents=True)
    (files.folder / "packs" / "bad.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=rf"bad.*{problem}"):
        packs.find("bad")


def test_local_files_are_installed_as_a_built_in_pack(packs: Catalogue, files: ModelFiles, tmp_path: Path) -> None:
    taken = packs.install("sface", shipped(SFACE.detector), shipped(SFACE.embedder))
    assert taken == SFACE
    assert sorted(path.name for path in files.folder.glob("face_*.onnx")) == sorted(file.name for file in SFACE.files)
    with pytest.raises(ModelUnavailable, match=r"is not det_10g\.onnx: expected 16923827 bytes with SHA-256 5838f7fe"):
        packs.install("buffalo_l", shipped(SFACE.detector), shipped(SFACE.embedder))
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        packs.install("sface", tmp_path / "nothing.onnx", shipped(SFACE.embedder))


def test_description_may_have_thresholds(packs: Catalogue, files: ModelFiles) -> None:
    packs.add("mine", described(), None, shipped(SFACE.embedder))
    path = files.folder / "packs" / "mine.json"
    said = json.loads(path.read_text()) | {
        "same_threshold": 0.25,
        "tail": {"start": 0.25, "rate": 0.001, "scale": 0.02, "before": [[0.01, 0.2]]},
    }
    path.write_text(json.dumps(said))
    pack = packs.find("mine")
    assert (pack.same_threshold, pack.tail.rate, pack.tail.before, pack.measured) == (0.25, 0.001, ((0.01, 0.2),), True)
    assert replace(pack, measured=False).fingerprint == pack.fingerprint
