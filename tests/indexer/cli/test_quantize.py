"""`whosthere models quantize`, and commands with WHOSTHERE_PRECISION=int8."""

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

BRIGHTNESS = (1.0, 0.9, 0.75, 0.6, 0.5)

INT8 = f"int8/{SFACE.embedder.name}.int8.onnx"


@pytest.fixture(scope="module")
def photo_folder(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 70 photos: the demo's seven people, unchanged and mirrored, at five brightness levels."""
    folder = tmp_path_factory.mktemp("photos")
    for photo in sorted(demo.photos.glob("*/*.jpg")):
        with Image.open(photo) as opened:
            for number, light in enumerate(BRIGHTNESS):
                lit = ImageEnhance.Brightness(opened).enhance(light)
                (folder / f"{photo.parent.name}_{number}.jpg").write_bytes(encode(lit, "JPEG"))
                (folder / f"{photo.parent.name}_{number + 5}.jpg").write_bytes(encode(ImageOps.mirror(lit), "JPEG"))
    return folder


def link_prepared_models(prepared_models: Path, models: Path) -> None:
    """Links the prepared networks of `sface`, without the int8 form that the prepared folder may have."""
    (models / "prepared").mkdir(parents=True)
    for file in SFACE.files:
        name = f"prepared/{file.prepared_sha256}.onnx"
        (models / name).symlink_to(prepared_models / name)


@pytest.fixture
def empty(tmp_path: Path, prepared_models: Path) -> Command:
    """The command over an empty home whose networks are prepared, but not quantized."""
    home = tmp_path / "home"
    link_prepared_models(prepared_models, home / "models")
    return Command(home)


@pytest.fixture(scope="module")
def quantized(
    prepared_models: Path, photo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A models folder with `sface` in int8, and the report of quantizing it. Tests use copies of the folder."""
    models = tmp_path_factory.mktemp("int8") / "home" / "models"
    link_prepared_models(prepared_models, models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHOSTHERE_PRECISION", "int8")  # quantizing works although the int8 form does not exist yet
        patch.setattr(quantize, "MAX_FACES", 50)
        ran = Command(models.parent).ok("models", "quantize", "sface", "--calibrate", photo_folder, "--json")
    return models, ran.json


@pytest.fixture
def command(quantized: tuple[Path, dict[str, Any]], tmp_path: Path) -> Command:
    """The command over a home of its own that has the int8 form."""
    home = tmp_path / "home"
    shutil.copytree(quantized[0], home / "models", symlinks=True)
    return Command(home)


def test_report_has_the_figures_of_the_int8_form(quantized: tuple[Path, dict[str, Any]]) -> None:
    models, report = quantized
    assert (report["pack"], report["file"]) == ("sface", SFACE.embedder.name)
    assert (report["calibrated_on"], report["checked_on"]) == (34, 16)
    assert MIN_COSINE < report["cosine_min"] <= report["cosine_mean"] < 1
    assert min(report[f"{precision}_ms"] for precision in ("float32", "native", "int8")) > 0
    assert (models / INT8).is_file()


def test_int8_and_float32_find_faces_of_one_another(
    command: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are the same pack: float32 finds what int8 has enrolled."""
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


def test_damaged_int8_form_is_reported_and_not_run(
    command: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_error_without_int8_form_names_the_command(empty: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSTHERE_PRECISION", "int8")
    ran = empty("enroll", demo.photos, "--gallery", "staff")
    assert ran.code == 1
    assert (
        f"{SFACE.embedder.name} has no int8 form here; `whosthere models quantize sface --calibrate FOLDER`" in ran.err
    )


def test_too_few_faces_are_wrong_usage(empty: Command, demo: Demo, tmp_path: Path) -> None:
    for folder, found in ((demo.photos, 7), (tmp_path / "none", 0)):
        folder.mkdir(exist_ok=True)
        ran = empty("models", "quantize", "sface", "--calibrate", folder)
        assert (ran.code, ran.out) == (2, "")
        assert f"quantizing needs 50 faces or more; found {found}" in ran.err
    assert not (empty.home / "models" / "int8").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sface"], 2, "Missing option '--calibrate'"),
        (["sface", "--calibrate", "nowhere"], 2, "there is no nowhere; expected a folder, an image or a ZIP file"),
        (["nope", "--calibrate", "."], 2, "there is no model pack 'nope'"),
        (["buffalo_l", "--calibrate", "."], 1, "`whosthere models pull buffalo_l` fetches it"),
    ],
)
def test_wrong_usage_is_refused(empty: Command, arguments: list[str], code: int, message: str) -> None:
    ran = empty("models", "quantize", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err


def test_missing_nncf_is_reported(empty: Command, photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports it before any photo is read."""
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr("indexer.cli.models._crops", lambda *_: pytest.fail("photos were read"))
    ran = empty("models", "quantize", "sface", "--calibrate", photo_folder)
    assert (ran.code, ran.out) == (1, "")
    assert "NNCF is not installed: pip install 'whosthere[quantize]'" in ran.err


def test_calibration_faces_are_spread_over_all_people(
    empty: Command, photo_folder: Path, quantized: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten photos of each person in the order of their names, every person is read once before anyone's second
    photo; no more photos are read than needed. The text shows the figures."""
    given: list[Pixels] = []
    report = replace(QuantizationReport(**quantized[1]), float32_ms=6.0, native_ms=3.0, int8_ms=1.5)

    def quantize_embedder(pack: Pack, files: ModelFiles, crops: list[Pixels], progress: object) -> QuantizationReport:
        assert pack.name == "sface"
        given.extend(crops)
        return report

    monkeypatch.setattr(quantize, "quantize_embedder", quantize_embedder)
    monkeypatch.setattr(quantize, "MAX_FACES", 7)
    monkeypatch.setattr("indexer.cli.models.PHOTOS_AT_ONCE", 4)
    out = empty.ok("models", "quantize", "sface", "--calibrate", photo_folder).out
    assert np.stack(given).shape == (7, 112, 112, 3)
    means = np.stack(given).mean((1, 2))
    assert min(abs(a - b).max() for i, a in enumerate(means) for b in means[:i]) > 1  # seven different faces
    assert [line.split() for line in out.splitlines()[1:4]] == [
        ["float32", "6.0", "1.0"],
        ["native", "3.0", "2.0"],
        ["int8", "1.5", "4.0"],
    ]
    assert "calibrated on 34 others. WHOSTHERE_PRECISION=int8 uses it." in out
