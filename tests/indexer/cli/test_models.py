"""`whosthere models pull` and `add`, and galleries of packs that were pulled or added."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from indexer.errors import ModelUnavailable
from indexer.models.liveness_packs import MINIFASNET
from indexer.models.model_files import ModelFiles
from indexer.models.packs import IR50, SFACE, ModelFile
from indexer.types import sha256
from indexer.vision import runtime
from tests.indexer.cli.command import Command
from tests.indexer.cli.conftest import Demo
from tests.indexer.models.web_server import WebServer, run_web_server
from tests.indexer.vision import golden
from tests.variants import PRECISION_SETTING


def shipped(file: ModelFile) -> Path:
    path = ModelFiles(Path("/nowhere")).path(file)
    assert path is not None
    return path


def checkpoint(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(golden.fill(module).state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command with an empty models folder and the precision that needs no quantized model."""
    monkeypatch.delenv(PRECISION_SETTING, raising=False)
    return Command(tmp_path / "home")


@pytest.fixture
def server() -> Iterator[WebServer]:
    with run_web_server() as running:
        yield running


def listed(command: Command, name: str) -> dict[str, Any]:
    """Returns the pack in the output of `models list --json`."""
    (pack,) = (pack for pack in command.ok("models", "list", "--json").json if pack["name"] == name)
    return dict(pack)


def add_pack(command: Command) -> Path:
    """Adds the pack `mine` with the networks of `sface`. Returns its description."""
    model = shipped(SFACE.embedder)
    command.ok("models", "add", "mine", "--embedder", model, "--detector", "sface", "--mean", "0", "--scale", "1")
    return command.home / "models" / "packs" / "mine.json"


def test_pull_requires_acceptance_of_the_terms(
    command: Command, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for typed in ("n\n", ""):  # the second is the end of standard input
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        ran = command("models", "pull", "ir50", "--from", server.url)
        assert ran.code == 1
        assert "for non-commercial use" in ran.err
        assert "Do you accept these terms?" in ran.err
        assert "nothing was downloaded: the terms were not accepted (--accept-license accepts them)" in ran.err
    assert server.paths == []
    ran = command("models", "pull", "ir50", "--from", server.url, "--accept-license")
    assert ran.code == 1
    assert f"{server.url}/{IR50.detector.name}" in ran.err


def test_pull_of_installed_files_downloads_nothing(command: Command) -> None:
    ran = command.ok("models", "pull", "sface", "--json")
    assert ran.json["fingerprint"] == SFACE.fingerprint
    assert [(file["file"], file["from"]) for file in ran.json["files"]] == [(file.name, "") for file in SFACE.files]


def test_liveness_pack_is_pulled_and_verified(command: Command, liveness_folder: Path) -> None:
    ran = command.ok("models", "pull", "minifasnet", "--from", str(liveness_folder), "--json")
    assert [file["file"] for file in ran.json["files"]] == [file.name for file in MINIFASNET.files]
    assert all(file["from"] for file in ran.json["files"])
    pack = listed(command, "minifasnet")
    assert (pack["kind"], pack["problem"]) == ("liveness", None)
    checked = command.ok("models", "verify", "--json").json
    assert [one["error"] for one in checked if one["model"] == "minifasnet"] == [None] * 3
    (command.home / "models" / "liveness.onnx").write_bytes(b"damaged")
    ran = command("models", "verify", "minifasnet")
    assert ran.code == 1
    assert "is not liveness.onnx" in ran.out


def test_list_shows_why_packs_cannot_be_used(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def problems() -> dict[str, str | None]:
        return {pack["name"]: pack["problem"] for pack in command.ok("models", "list", "--json").json}

    not_installed = dict.fromkeys(("ir50", "buffalo_l", "minifasnet"), "not installed")
    assert problems() == not_installed | {"sface": None}
    monkeypatch.setenv("WHOSTHERE_PRECISION", "int8")
    assert problems()["sface"] == "no int8 form (whosthere models quantize sface)"
    assert "no: no int8 form" in command.ok("models", "list").out


def test_invalid_description_hides_no_other_pack(command: Command) -> None:
    packs = command.home / "models" / "packs"
    packs.mkdir(parents=True)
    (packs / "mine.json").write_text('{"detector": "sface"}')
    *_, sface, mine = command.ok("models", "list", "--json").json
    assert (sface["name"], sface["problem"]) == ("sface", None)
    assert (mine["name"], mine["installed"]) == ("mine", False)
    assert "mine.json does not describe a model pack: embedder: Field required" in mine["problem"]
    assert "does not describe a model pack" in command.ok("models", "list").out
    assert command("models", "verify").code == 1
    for names in ([], ["sface", "mine"]):
        ran = command("models", "verify", *names, "--json")
        assert ran.code == 1
        *intact, invalid = ran.json
        assert [(row["file"], row["error"]) for row in intact] == [(file.name, None) for file in SFACE.files]
        assert invalid == {"model": "mine", "file": None, "sha256": None, "error": mine["problem"]}
    assert "does not describe a model pack" in command("models", "verify", "mine").out


def test_added_pack_is_pulled_from_the_url_in_its_description(command: Command, server: WebServer, demo: Demo) -> None:
    """The download continues after a lost connection."""
    description, model, folder = add_pack(command), shipped(SFACE.embedder), command.home / "models"
    url = server.serve_file("/sface.onnx", model.read_bytes(), cuts=[1_000_000])
    description.write_text(description.read_text().replace('"url": ""', f'"url": "{url}"'))
    (folder / f"mine+embedder-{model.name}").unlink()
    assert [(p["name"], p["installed"]) for p in command.ok("models", "list", "--json").json][-1] == ("mine", False)
    refused = command("enroll", demo.photos, "--gallery", "staff", "--model", "mine")
    assert refused.code == 1
    assert "`whosthere models pull mine` fetches it" in refused.err
    assert command.ok("gallery", "list", "--json").json == []

    pulled = command.ok("models", "pull", "mine", "--json")
    assert [file["from"] for file in pulled.json["files"]] == ["", url]
    assert server.headers[1]["Range"] == "bytes=1000000-"
    enrolled = command.ok("enroll", demo.photos, "--gallery", "staff", "--model", "mine", "--json").json
    assert (enrolled["model"], enrolled["enrolled"]) == ("mine", 7)
    refused = command("enroll", demo.photos, "--gallery", "staff", "--model", "sface")
    assert refused.code == 1
    assert "is bound to model pack 'mine', but 'sface' was requested; a gallery never mixes packs" in refused.err


def test_pulled_file_that_does_not_run_is_deleted(command: Command, server: WebServer) -> None:
    """Otherwise its hash would become the expected one, and new galleries would be bound to it."""
    for file in IR50.files:
        server.serve_file(f"/{file.name}", b"no checkpoint")
    ran = command("models", "pull", "ir50", "--accept-license", "--from", server.url)
    assert ran.code == 1
    assert IR50.detector.name in ran.err
    assert listed(command, "ir50")["problem"] == "not installed"
    assert not list((command.home / "models").glob("cv_*"))
    assert command.ok("gallery", "create", "staff", "--json").json["model"] == "sface"


def test_pulled_file_is_kept_if_only_the_exporter_is_missing(
    command: Command, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer.models.architectures.retinaface import RetinaFaceNetwork

    def export(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'")

    data = checkpoint(RetinaFaceNetwork())
    for file in IR50.files:
        server.serve_file(f"/{file.name}", data)
    monkeypatch.setattr(torch.onnx, "export", export)
    ran = command("models", "pull", "ir50", "--accept-license", "--from", server.url)
    assert ran.code == 1
    assert "pip install 'whosthere[torch]'" in ran.err
    assert {path.name for path in (command.home / "models").glob("cv_*.pt")} == {file.name for file in IR50.files}


def test_pulled_file_with_the_expected_hash_is_kept(command: Command, server: WebServer) -> None:
    """It does not run, but its bytes are those of the description."""
    description = add_pack(command)
    pack = json.loads(description.read_text())
    pack["embedder"] |= {"url": server.serve_file("/other.onnx", shipped(SFACE.detector).read_bytes())}
    pack["embedder"] |= {"sha256": SFACE.detector.sha256, "size": SFACE.detector.size}
    description.write_text(json.dumps(pack))
    path = command.home / "models" / pack["embedder"]["file"]
    path.unlink()
    ran = command("models", "pull", "mine")
    assert ran.code == 1
    assert "640 x 640" in ran.err
    assert path.read_bytes() == shipped(SFACE.detector).read_bytes()


def test_ir50_from_a_mirror_becomes_the_default(
    command: Command, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses random weights and includes the conversion."""
    from indexer.models.architectures.iresnet import iresnet50
    from indexer.models.architectures.retinaface import RetinaFaceNetwork

    data = {IR50.detector: checkpoint(RetinaFaceNetwork()), IR50.embedder: checkpoint(iresnet50())}
    for file, content in data.items():
        server.serve_file(f"/faces/{file.name}", content)
    command.ok("gallery", "create", "before")
    pulled = command.ok("models", "pull", "ir50", "--accept-license", "--from", f"{server.url}/faces", "--json").json
    assert [file["sha256"] for file in pulled["files"]] == [sha256(content) for content in data.values()]
    assert command.ok("gallery", "create", "after", "--json").json["model"] == "ir50"
    assert [g["model"] for g in command.ok("gallery", "list", "--json").json] == ["sface", "ir50"]
    pack = listed(command, "ir50")
    assert (pack["installed"], pack["fingerprint"]) == (True, pulled["fingerprint"])
    assert pack["thresholds_measured"] is False

    # PyTorch is needed for the conversion only.
    assert pack["problem"] is None
    monkeypatch.setitem(sys.modules, "torch", None)
    assert listed(command, "ir50")["problem"] is None
    shutil.rmtree(command.home / "models" / "prepared")
    printed = command.ok("models", "list").out
    assert "no: PyTorch is not installed (pip install 'whosthere[torch]')" in printed
    assert listed(command, "ir50")["installed"] is True

    # Different bytes under the same name are reported.
    path = command.home / "models" / IR50.embedder.name
    path.write_bytes(path.read_bytes() + b"x")
    verified = command("models", "verify", "ir50", "--json")
    assert verified.code == 1
    assert [entry["error"] is None for entry in verified.json] == [True, False]


def test_checkpoint_can_be_added(command: Command, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSTHERE_LOOKALIKES", "off")  # with random weights all people look alike
    from indexer.models.architectures.iresnet import iresnet18

    path = tmp_path / "backbone.pth"
    path.write_bytes(checkpoint(iresnet18()))
    options = ("--embedder", path, "--detector", "sface")
    wrong = command("models", "add", "deep", *options, "--embedder-network", "iresnet50")
    assert wrong.code == 1
    assert "deep+embedder-backbone.pth" in wrong.err
    assert "iresnet50" in wrong.err
    added = command.ok("models", "add", "small", *options, "--embedder-network", "iresnet18", "--json").json
    assert (added["name"], added["dim"], added["installed"]) == ("small", 512, True)
    enrolled = command.ok("enroll", demo.photos, "--gallery", "staff", "--model", "small", "--json").json
    assert (enrolled["model"], enrolled["enrolled"]) == ("small", 7)
    found = command.ok("search", demo.photo("left-3"), "--gallery", "staff", "--json").json
    best = found[0]["faces"][0]["candidates"][0]
    assert (best["external_id"], round(best["score"], 2)) == ("left-3", 1.0)
    compared = command.ok("compare", demo.photo("left-3"), demo.photo("left-3"), "--model", "small", "--json").json
    assert compared["score"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine", "--embedder", "NOTHING", "--detector", "sface"], "does not exist"),
        (
            ["mine", "--embedder", "MODEL", "--detector", "NOTHING"],
            "is not a file; expected a file or one of ir50, buffalo_l, sface",
        ),
        (["sface", "--embedder", "MODEL", "--detector", "sface"], "sface has its own detector"),
        (["Mine", "--embedder", "MODEL", "--detector", "sface"], "cannot name a model pack"),
        (["mine", "--embedder", "MODEL", "--detector", "sface", "--scale", "0"], "scale"),
    ],
)
def test_wrong_usage_is_rejected(command: Command, arguments: list[str], message: str) -> None:
    places = {"NOTHING": "nowhere.onnx", "MODEL": str(shipped(SFACE.embedder))}
    ran = command("models", "add", *(places.get(argument, argument) for argument in arguments))
    assert ran.code == 2, ran
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_missing_cuda_is_reported(empty: Command, demo: Demo) -> None:
    ran = empty("enroll", demo.photos, "--gallery", "staff", "--device", "cuda")
    if ran.code == 0:
        pytest.skip("there is a GPU, and an onnxruntime that uses it")
    assert ran.code == 1
    assert "pack sface cannot run on CUDA here: this onnxruntime is built without CUDA" in ran.err
    assert empty("search", demo.photo("left-3"), "--gallery", "staff", "--device", "tpu").code == 2
    assert empty("enroll", demo.photos, "--gallery", "staff", "--device", "cpu").code == 0


def test_doctor_reports_a_pack_that_is_not_installed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSTHERE_MODEL", "buffalo_l")
    ran = command("doctor", "--json")
    assert ran.code == 1
    wrong = [finding for finding in ran.json if not finding["ok"]]
    assert [finding["check"] for finding in wrong] == ["models"]
    assert "`whosthere models pull buffalo_l`" in wrong[0]["found"]


def test_doctor_reports_why_the_pack_cannot_be_used(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSTHERE_PRECISION", "int8")
    monkeypatch.setenv("WHOSTHERE_DEVICE", "cuda")
    monkeypatch.setattr(runtime, "find_cuda_problem", lambda: "there is no GPU")
    ran = command("doctor", "--json")
    assert ran.code == 1
    wrong = {finding["check"]: finding["found"] for finding in ran.json if not finding["ok"]}
    assert wrong == {
        "model pack sface": "no int8 form (whosthere models quantize sface)",
        "device": "pack sface cannot run on CUDA here: there is no GPU",
    }
    monkeypatch.setattr(runtime, "find_cuda_problem", lambda: None)
    monkeypatch.delenv("WHOSTHERE_PRECISION")
    wrong = {finding["check"]: finding["found"] for finding in command("doctor", "--json").json if not finding["ok"]}
    assert wrong.keys() <= {"networks"}, "they need a GPU that is really there"


def test_unwritable_models_folder_is_reported(command: Command, tmp_path: Path) -> None:
    (command.home / "models").mkdir(parents=True)
    shutil.rmtree(command.home / "models")
    (command.home / "models").write_text("a file")
    ran = command("models", "add", "mine", "--embedder", shipped(SFACE.embedder), "--detector", "sface")
    assert ran.code == 1
    assert "nothing can be written to" in ran.err


def test_packs_have_their_terms() -> None:
    assert IR50.terms
    assert SFACE.terms == ""
    with pytest.raises(ModelUnavailable):
        _ = IR50.fingerprint
