"""Presentation attacks on the command line, found by a network that takes dark photos for attacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

from indexer.models.model_files import ModelFiles
from tests.indexer.cli.command import Command
from tests.indexer.cli.conftest import Demo
from tests.liveness_networks import DARK, add_pack, brightness_network, linked_models

SETTING = "WHOSTHERE_LIVENESS"
ENROLLED = "collins"


@pytest.fixture(scope="module")
def guarded_home(tmp_path_factory: pytest.TempPathFactory, staffed_home: Path) -> Path:
    """A home with the gallery `staff` and a liveness pack."""
    home = tmp_path_factory.mktemp("guarded") / "home"
    shutil.copytree(staffed_home, home, ignore=shutil.ignore_patterns("models"))
    add_pack(linked_models(home, staffed_home / "models"), brightness_network())
    return home


@pytest.fixture
def guarded(guarded_home: Path, tmp_path: Path) -> Command:
    return Command(Path(shutil.copytree(guarded_home, tmp_path / "home", symlinks=True)))


@pytest.fixture(scope="module")
def attack(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of the same person that the network takes for an attack."""
    path = tmp_path_factory.mktemp("attack") / "attack.png"
    with Image.open(demo.photo(ENROLLED)) as opened:
        ImageEnhance.Brightness(opened.convert("RGB")).enhance(DARK).save(path)
    return path


def flat(text: str) -> str:
    """Returns the text without the line breaks of a table."""
    return " ".join(text.split())


def test_search_refuses_a_face_that_is_not_live(guarded: Command, demo: Demo, attack: Path) -> None:
    live = demo.photo(ENROLLED)
    answers = guarded.ok("search", live, attack, "--gallery", "staff", "--liveness", "require", "--json").json
    faces = [answer["faces"][0] for answer in answers]
    assert [(face["decision"], face["liveness"]["live"]) for face in faces] == [("match", True), ("no_match", False)]
    assert (faces[1]["reasons"], faces[1]["candidates"]) == (["not_live"], [])
    shown = flat(guarded.ok("search", live, attack, "--gallery", "staff", "--liveness", "require").out)
    assert f", live: {faces[0]['liveness']['score']:.2f})" in shown
    assert f", not_live, not live: {faces[1]['liveness']['score']:.2f})" in shown


def test_search_may_only_be_stricter_than_the_setting(
    guarded: Command, attack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decision(*arguments: str) -> str:
        face = guarded.ok("search", attack, "--gallery", "staff", *arguments, "--json").json[0]["faces"][0]
        return str(face["decision"])

    monkeypatch.setenv(SETTING, "require")
    assert [decision(), decision("--liveness", "off")] == ["no_match"] * 2
    monkeypatch.setenv(SETTING, "off")
    assert [decision(), decision("--liveness", "require")] == ["match", "no_match"]


def test_threshold_of_the_site_replaces_that_of_the_pack(
    guarded: Command, attack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHOSTHERE_LIVENESS_THRESHOLD", "0.0001")
    found = guarded.ok("search", attack, "--gallery", "staff", "--liveness", "require", "--json").json[0]["faces"][0]
    assert (found["decision"], found["liveness"]["live"]) == ("match", True)


def test_compare_refuses_a_face_that_is_not_live(guarded: Command, demo: Demo, attack: Path) -> None:
    ran = guarded.ok("compare", demo.photo(ENROLLED), attack, "--liveness", "require")
    assert ran.out.startswith("not_live: cosine ")
    assert f"{attack}: not live: " in ran.out
    assert guarded.ok("compare", demo.photo(ENROLLED), attack).out.startswith("the same person: ")


def test_enroll_rejects_a_face_that_is_not_live(guarded: Command, demo: Demo, attack: Path, tmp_path: Path) -> None:
    people = tmp_path / "people"
    for name, path in (("collins", demo.photo(ENROLLED)), ("other", attack)):
        (people / name).mkdir(parents=True)
        shutil.copy(path, people / name)
    ran = guarded("enroll", people, "--gallery", "door", "--liveness", "require", "--json")
    assert ran.code == 3
    assert [(one["outcome"], one["reason"]) for one in ran.json["results"]] == [
        ("enrolled", None),
        ("rejected", "not_live"),
    ]
    shutil.rmtree(people / "collins")
    (one,) = guarded.ok("enroll", people, "--gallery", "gate", "--liveness", "report", "--json").json["results"]
    assert (one["outcome"], one["details"]["liveness"]["live"]) == ("enrolled", False)
    assert one["message"] == "the face does not seem to be live"
    assert "remark" not in guarded.ok("enroll", demo.photo(ENROLLED), "--gallery", "hall", "--liveness", "report").out
    shown = guarded.ok("enroll", people, "--gallery", "yard", "--liveness", "report").out
    assert f"{people / 'other/attack.png'} other the face does not seem to be live" in flat(shown)


@pytest.mark.parametrize("mode", ["report", "require"])
def test_missing_pack_is_reported(staff: Command, demo: Demo, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "liveness pack minifasnet is not installed"
    ran = staff("search", demo.photo(ENROLLED), "--gallery", "staff", "--liveness", mode)
    assert (ran.code, message in ran.err, "`whosthere models pull minifasnet`" in ran.err) == (1, True, True)
    monkeypatch.setenv(SETTING, mode)
    ran = staff("doctor")
    assert (ran.code, message in flat(ran.out)) == (1, True)


def test_unknown_pack_is_wrong_usage(staff: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSTHERE_LIVENESS_MODEL", "none")
    ran = staff("models", "list")
    assert (ran.code, "WHOSTHERE_LIVENESS_MODEL: there is no liveness pack 'none'" in ran.err) == (2, True)


def test_pulled_pack_refuses_the_attack_of_upstream(
    staff: Command, liveness_folder: Path, liveness_files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    (staff.home / "models").unlink()
    shutil.copytree(liveness_files.folder, staff.home / "models")
    samples = [liveness_folder / name for name in ("image_T1.jpg", "image_F1.jpg")]
    monkeypatch.setenv(SETTING, "require")
    answers = staff.ok("search", *samples, "--gallery", "staff", "--json").json
    assert [answer["faces"][0]["liveness"]["live"] for answer in answers] == [True, False]
    assert {answer["faces"][0]["liveness"]["model"] for answer in answers} == {"minifasnet"}
    assert answers[1]["faces"][0]["reasons"] == ["not_live"]
