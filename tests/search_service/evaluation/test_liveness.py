"""`whosthere evaluate --liveness`: error rates by species, thresholds, and the report."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.synthetic_attacks import ATTACKS
from indexer.models.model_files import ModelFiles
from search_service.evaluation.liveness import Share, threshold_for_bpcer
from tests import photos
from tests.indexer.cli.command import Command

ATTACKS_OF_EACH_SPECIES = 4


@pytest.fixture
def live_command(tmp_path: Path, liveness_files: ModelFiles) -> Command:
    """Over a home with the liveness pack. Skips the test without the shared folder."""
    home = tmp_path / "home"
    shutil.copytree(liveness_files.folder, home / "models")
    return Command(home)


@pytest.fixture(scope="module")
def door(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos of live people, drawn attacks, and a picture without a face of each kind."""
    folder = tmp_path_factory.mktemp("door")
    rng = np.random.default_rng(0)
    people = [cv2.imread(str(path)) for path in sorted(labelled.rglob("1.jpg"))]
    for number, photo in enumerate(people):
        write(folder / "live" / f"{number}.jpg", photo)
    for species, draw in ATTACKS.items():
        for number in range(ATTACKS_OF_EACH_SPECIES):
            face, scene = people[number], people[number + 1]
            assert face is not None
            assert scene is not None
            write(folder / "attack" / species / f"{number}.jpg", draw(rgb(face), rgb(scene), rng)[:, :, ::-1])
    (folder / "live" / "cup.png").write_bytes(photos.no_faces()[4])
    (folder / "attack" / "print" / "cat.png").write_bytes(photos.no_faces()[5])
    return folder


def rgb(image: cv2.typing.MatLike) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return image[:, :, ::-1].astype(np.uint8)


def write(path: Path, image: cv2.typing.MatLike | None) -> None:
    assert image is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.ascontiguousarray(image))


def test_rates_are_measured_for_each_species(live_command: Command, door: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    result = live_command.ok("evaluate", "--liveness", door, "--json", "--out", out).json
    live = len(list((door / "live").glob("*.jpg")))
    assert (result["model"], result["threshold"], result["live"]) == ("minifasnet", 0.5, live)
    assert result["images"] == live + len(ATTACKS) * ATTACKS_OF_EACH_SPECIES + 2
    assert set(result["apcer"]) == set(ATTACKS)
    assert result["apcer_max"] == max(result["apcer"].values())
    scored = sum(result["attacks"].values())
    accepted = sum(result["apcer"][species] * count for species, count in result["attacks"].items())
    assert accepted <= scored / 2
    assert result["bpcer"] <= 0.5
    without = {one["image"]: one["reason"] for one in result["without_score"]}
    assert without["live/cup.png"] == without["attack/print/cat.png"] == "no_face"
    page = out.read_text()
    assert page.count("data:image/jpeg") == min(12, live) + min(12, scored)
    assert all(species in page for species in ATTACKS)
    assert "://" not in page


def test_threshold_is_chosen_for_a_bpcer(live_command: Command, door: Path) -> None:
    result = live_command.ok("evaluate", "--liveness", door, "--bpcer", "0", "--json").json
    assert (result["wanted_bpcer"], result["bpcer"]) == (0, 0)
    assert f"threshold {result['threshold']:.3f}" in live_command.ok("evaluate", "--liveness", door, "--bpcer", "0").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--liveness", "."], "--liveness takes one folder and no other photos"),
        (["photos", "--bpcer", "0.1"], "--bpcer needs --liveness"),
        (["--liveness", "nowhere"], "'nowhere' does not exist"),
    ],
)
def test_wrong_options_are_refused(command: Command, arguments: list[str], message: str) -> None:
    ran = command("evaluate", *arguments)
    assert ran.code == 2
    assert message in ran.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other/1.jpg", "has no photos of live people; expected live/*.jpg and attack/SPECIES/*.jpg"),
        ("attack/print/1.jpg", "has no photos of live people"),
        ("live/1.jpg", "has no photos of attacks"),
        ("attack/1.jpg", "has no photos of live people"),
    ],
)
def test_folder_without_labels_is_refused(live_command: Command, tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "door" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(photos.astronaut())
    ran = live_command("evaluate", "--liveness", tmp_path / "door")
    assert ran.code == 2
    assert message in ran.err


def test_missing_pack_is_reported(command: Command, door: Path) -> None:
    ran = command("evaluate", "--liveness", door)
    assert ran.code == 1
    assert "liveness pack minifasnet is not installed" in ran.err
    assert "`whosthere models pull minifasnet` fetches it" in ran.err


@pytest.mark.parametrize(("bpcer", "threshold"), [(0, 0.1), (0.09, 0.1), (0.1, 0.2), (0.3, 0.4), (0.999, 1.0)])
def test_at_most_the_wanted_share_of_live_faces_is_below_the_threshold(bpcer: float, threshold: float) -> None:
    scores = [0.3, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert threshold_for_bpcer(scores, bpcer) == threshold
    assert sum(score < threshold for score in scores) <= bpcer * len(scores) + 1e-9


def test_interval_is_wilsons() -> None:
    estimate = Share(10, 60).estimate  # as R's prop.test(10, 60, correct = FALSE) gives
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.0931, 0.2803)
    assert Share(0, 30).estimate.low == 0
    assert Share(30, 30).estimate.high == 1
