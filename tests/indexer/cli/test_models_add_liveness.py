"""`whosthere models add NAME --liveness FILE...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.indexer.cli.command import Command
from tests.liveness_networks import SIDE, brightness_network, cell_network

OPTIONS = ("--rgb", "--crop-scale", "1.5")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "home")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "light.onnx"
    path.write_bytes(brightness_network())
    return path


def described(command: Command, name: str) -> dict[str, Any]:
    """Returns the pack's description in the models folder."""
    path = command.home / "models" / "liveness" / f"{name}.json"
    return dict(json.loads(path.read_bytes()))


def test_added_network_is_listed_and_verified(command: Command, network: Path) -> None:
    added = command.ok("models", "add", "light", "--liveness", network, *OPTIONS, "--threshold", "0.7", "--json").json
    assert (added["kind"], added["installed"], added["problem"], added["threshold"]) == ("liveness", True, None, 0.7)
    (listed,) = [one for one in command.ok("models", "list", "--json").json if one["name"] == "light"]
    assert listed == added
    states = [one for one in command.ok("models", "verify", "--json").json if one["model"] == "light"]
    assert [(one["file"], one["error"]) for one in states] == [("light+1-light.onnx", None)]
    (one,) = described(command, "light")["networks"]
    assert (one["input_size"], one["classes"], one["crop_scale"], one["bgr"]) == (SIDE, 2, 1.5, False)


def test_options_are_given_once_or_for_each_file(command: Command, network: Path) -> None:
    scales = ("--crop-scale", "1.5", "--crop-scale", "4")
    command.ok("models", "add", "two", "--liveness", network, network, *scales, "--border", "reflect", "--weight", "2")
    networks = described(command, "two")["networks"]
    columns = [[one[name] for one in networks] for name in ("crop_scale", "border", "weight")]
    assert columns == [[1.5, 4.0], ["reflect"] * 2, [2.0, 2.0]]
    ran = command("models", "add", "three", "--liveness", network, network, network, *scales)
    assert (ran.code, "--crop-scale is given 2 times" in ran.err) == (2, True)


def test_files_of_the_built_in_pack_need_no_options(command: Command, liveness_folder: Path) -> None:
    files = sorted(liveness_folder.glob("*.pth"))
    command.ok("models", "add", "mine", "--liveness", *files)
    networks = described(command, "mine")["networks"]
    scales = [(one["network"], one["crop_scale"], one["classes"]) for one in networks]
    assert scales == [("minifasnet_v2", 2.7, 3), ("minifasnet_v1se", 4.0, 3)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["light"], 2, "--liveness takes FILES"),
        (["sface", "light.onnx"], 2, "model pack 'sface' exists already"),
        (["minifasnet", "light.onnx"], 2, "liveness pack 'minifasnet' exists already"),
        (["UPPER", "light.onnx"], 2, "cannot name a model pack"),
        (["light", "light.onnx", "--live-class", "2"], 1, "with the live class 2"),
        (["light", "text.onnx"], 1, "is not an ONNX model"),
        (["light", "light.onnx", "--network", "minifasnet_v2"], 1, "light+1-light.onnx"),
        (["light", "light.onnx", "--input-size", "80"], 1, "expected one of N x 3 x 80 x 80"),
    ],
)
def test_wrong_networks_are_refused_and_nothing_is_kept(
    command: Command,
    network: Path,
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.onnx").write_text("not a network")
    name, *rest = arguments
    ran = command("models", "add", name, "--liveness", *rest)
    assert (ran.code, message in ran.err) == (code, True), ran
    kept = [path for path in (command.home / "models").rglob("*") if path.is_file()] if command.home.exists() else []
    assert kept == []


def test_network_with_one_output_is_refused(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "one.onnx"
    path.write_bytes(cell_network(np.ones((3 * 64, 1), np.float32), np.zeros(1, np.float32)))
    ran = command("models", "add", "one", "--liveness", path, "--live-class", "0")
    assert (ran.code, "a number for each of two or more classes" in ran.err) == (1, True)


def test_damaged_description_hides_no_other_pack(command: Command, network: Path) -> None:
    command.ok("models", "add", "light", "--liveness", network, *OPTIONS)
    (command.home / "models" / "liveness" / "bad.json").write_text("{}")
    listed = {one["name"]: one["problem"] for one in command.ok("models", "list", "--json").json}
    assert listed["light"] is None
    assert "does not describe a liveness pack" in listed["bad"]
