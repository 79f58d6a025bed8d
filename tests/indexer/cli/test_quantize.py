"""`whosthere models quantize`, and what comes of it: WHOSTHERE_PRECISION=int8."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, Pack
from indexer.types import Pixels
from indexer.vision import quantize
from indexer.vision.quantize import MIN_COSINE, QuantizationReport
from tests.indexer.cli.command import Command
from tests.indexer.cli.conftest import Demo
from tests.photos import encode

LIGHTS = (1.0, 0.9, 0.75, 0.6, 0.5)

INT8 = f"int8/{SFACE.embedder.name}.int8.onnx"


@pytest.fixture(scope="module")
def many(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 70 photos: the demo's seven people as they are and mirrored, in five lights."""
    folder = tmp_path_factory.mktemp("many")
    for photo in sorted(demo.photos.glob("*/*.jpg")):
        with Image.open(photo) as opened:
            for number, light in enumerate(LIGHTS):
                lit = ImageEnhance.Brightness(opened).enhance(light)
                (folder / f"{photo.parent.name}_{number}.jpg").write_bytes(encode(lit, "JPEG"))
                (folder / f"{photo.parent.name}_{number + 5}.jpg").write_bytes(encode(ImageOps.mirror(lit), "JPEG"))
    return folder


@pytest.fixture(scope="module")
def made(prepared_models: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A models folder with `sface` in int8, and what was told. To be copied, not used."""
    models = tmp_path_factory.mktemp("int8") / "home" / "models"
    (models / "prepared").mkdir(parents=True)
    for file in SFACE.files:
        name = f"prepared/{file.prepared_sha256}.onnx"
        (models / name).symlink_to(prepared_models / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHOSTHERE_PRECISION", "int8")  # asked for before it is there: quantizing makes it all the same
        patch.setattr(quantize, "MAX_FACES", 50)
        ran = Command(models.parent).ok("models", "quantize", "sface", "--calibrate", many, "--json")
    return models, ran.json


@pytest.fixture
def command(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> Command:
    """Over a home of its own, with the int8 form."""
    home = tmp_path / "home"
    shutil.copytree(made[0], home / "models", symlinks=True)
    return Command(home)


def test_the_report(made: tuple[Path, dict[str, Any]]) -> None:
    models, report = made
    assert (report["pack"], report["file"]) == ("sface", SFACE.embedder.name)
    assert (report["calibrated_on"], report["checked_on"]) == (34, 16)
    assert MIN_COSINE < report["cosine_min"] <= report["cosine_mean"] < 1
    assert min(report[f"{precision}_ms"] for precision in ("float32", "native", "int8")) > 0
    assert (models / INT8).is_file()


def test_enrolling_and_searching(command: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one pack with float32: what one has enrolled the other finds."""
    monkeypatch.setenv("WHOSTHERE_PRECISION", "int8")
    enrolled = command.ok("enroll", demo.photos, "--gallery", "staff", "--json").json
    assert (enrolled["model"], enrolled["enrolled"]) == ("sface", 7)
    scores = {}
    for precision in ("int8", "float32"):
        monkeypatch.setenv("WHOSTHERE_PRECISION", precision)
        [answer] = command.ok("search", demo.photo("left-3"), "--gallery", "staff", "--json").json
        best = answer["faces"][0]["candidates"][0]
        assert (best["external_id"], answer["faces"][0]["decision"]) == ("left-3", "match")
        scores[precision] = best["score"]
    assert scores["int8"] == pytest.approx(1, abs=1e-4)
    assert MIN_COSINE < scores["float32"] < 0.9999


def test_one_that_is_damaged_is_told_and_not_run(command: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    form = command.home / "models" / INT8
    verified = command.ok("models", "verify", "sface", "--json").json
    assert [(entry["file"], entry["error"]) for entry in verified][2:] == [(INT8, None)]
    form.write_bytes(form.read_bytes()[:-1])
    ran = command("models", "verify", "sface", "--json")
    assert ran.code == 1
    assert [entry["error"] is None for entry in ran.json] == [True, True, False]
    monkeypatch.setenv("WHOSTHERE_PRECISION", "int8")
    ran = command("enroll", demo.photos, "--gallery", "staff")
    assert ran.code == 1
    assert f"{form} is damaged" in ran.err
    assert "`whosthere models quantize sface --calibrate FOLDER` makes it" in ran.err


def test_without_it_the_error_says_what_to_do(empty: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSTHERE_PRECISION", "int8")
    ran = empty("enroll", demo.photos, "--gallery", "staff")
    assert ran.code == 1
    assert (
        f"{SFACE.embedder.name} has no int8 form here; `whosthere models quantize sface --calibrate FOLDER`" in ran.err
    )


def test_too_few_faces(empty: Command, demo: Demo, tmp_path: Path) -> None:
    for folder, found in ((demo.photos, 7), (tmp_path / "none", 0)):
        folder.mkdir(exist_ok=True)
        ran = empty("models", "quantize", "sface", "--calibrate", folder)
        assert (ran.code, ran.out) == (2, "")
        assert f"quantizing needs 50 faces or more; found {found}" in ran.err
    assert not (empty.home / "models" / "int8").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["sface"], 2, "Missing option '--calibrate'"),
        (["sface", "--calibrate", "nowhere"], 2, "there is no nowhere; expected a folder, an image or a ZIP file"),
        (["nope", "--calibrate", "."], 2, "there is no model pack 'nope'"),
        (["buffalo_l", "--calibrate", "."], 1, "`whosthere models pull buffalo_l` fetches it"),
    ],
)
def test_wrong_usage(empty: Command, arguments: list[str], code: int, says: str) -> None:
    ran = empty("models", "quantize", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err


def test_without_nncf(empty: Command, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before a photo is looked at."""
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr("indexer.cli.models._crops", lambda *_: pytest.fail("photos were looked at"))
    ran = empty("models", "quantize", "sface", "--calibrate", many)
    assert (ran.code, ran.out) == (1, "")
    assert "NNCF is not installed: pip install 'whosthere[quantize]'" in ran.err


def test_faces_are_spread_over_all_photos_and_the_figures_shown(
    empty: Command, many: Path, made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten photos a person in the order of their names, every person is seen before anybody's second light is; no
    more photos are looked at than are needed."""
    given: list[Pixels] = []
    report = replace(QuantizationReport(**made[1]), float32_ms=6.0, native_ms=3.0, int8_ms=1.5)

    def quantize_embedder(pack: Pack, files: ModelFiles, crops: list[Pixels], progress: object) -> QuantizationReport:
        assert pack.name == "sface"
        given.extend(crops)
        return report

    monkeypatch.setattr(quantize, "quantize_embedder", quantize_embedder)
    monkeypatch.setattr(quantize, "MAX_FACES", 7)
    monkeypatch.setattr("indexer.cli.models.PHOTOS_AT_ONCE", 4)
    told = empty.ok("models", "quantize", "sface", "--calibrate", many).out
    assert np.stack(given).shape == (7, 112, 112, 3)
    means = np.stack(given).mean((1, 2))
    assert min(abs(a - b).max() for i, a in enumerate(means) for b in means[:i]) > 1  # seven different faces
    assert [line.split() for line in told.splitlines()[1:4]] == [
        ["float32", "6.0", "1.0"],
        ["native", "3.0", "2.0"],
        ["int8", "1.5", "4.0"],
    ]
    assert "calibrated on 34 others. WHOSTHERE_PRECISION=int8 uses it." in told
