"""Photos on their side or upside down, without an EXIF orientation that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.indexer.cli.command import Command
from tests.indexer.cli.conftest import Demo

CLOCKWISE = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""Pillow turns counterclockwise: each picture has to be turned clockwise by so many degrees."""


def turned(photo: Path, turn: int, folder: Path) -> Path:
    """Saves a photo that has to be turned clockwise by `turn` degrees."""
    folder.mkdir(exist_ok=True)
    path = folder / f"turned-{turn}.png"
    with Image.open(photo) as opened:
        opened.convert("RGB").transpose(CLOCKWISE[turn]).save(path)
    return path


@pytest.mark.parametrize("turn", CLOCKWISE)
def test_search_finds_the_person_of_a_turned_photo_and_reports_the_turn(
    staff: Command, demo: Demo, tmp_path: Path, turn: int
) -> None:
    probe = turned(demo.photo("collins"), turn, tmp_path)
    answer = staff.ok("search", probe, "--gallery", "staff", "--json").json[0]
    (face,) = answer["faces"]
    assert (face["turn"], face["decision"]) == (turn, "match")
    assert face["candidates"][0]["external_id"] == "collins"
    assert f"turned by {turn} degrees" in " ".join(staff.ok("search", probe, "--gallery", "staff").out.split())


def test_turned_photo_is_enrolled_and_its_turn_reported(empty: Command, demo: Demo, tmp_path: Path) -> None:
    people = tmp_path / "people"
    for person, turn in (("collins", 90), ("hanks", 180)):
        (people / person).mkdir(parents=True)
        turned(demo.photo(person), turn, people / person)
    enrolled = empty.ok("enroll", people, "--gallery", "staff", "--report", tmp_path / "report.csv", "--json").json
    assert [result["details"] for result in enrolled["results"]] == [{"turn": 90}, {"turn": 180}]
    message = "the photo is not upright; it was turned clockwise by 90 degrees"
    assert enrolled["results"][0]["message"] == message
    assert message in (tmp_path / "report.csv").read_text()
    shown = empty.ok("enroll", people / "collins", "--gallery", "others").out
    assert message in " ".join(shown.split())
    for person in ("collins", "hanks"):
        (face,) = empty.ok("search", demo.photo(person), "--gallery", "staff", "--json").json[0]["faces"]
        assert (face["turn"], face["decision"], face["candidates"][0]["external_id"]) == (0, "match", person)


def test_compare_warns_of_a_turned_photo(empty: Command, demo: Demo, tmp_path: Path) -> None:
    photo = demo.photo("collins")
    upside_down = turned(photo, 180, tmp_path)
    compared = empty.ok("compare", photo, upside_down, "--json").json
    assert [face["turn"] for face in compared["faces"]] == [0, 180]
    assert compared["score"] > 0.9
    ran = empty.ok("compare", photo, upside_down)
    assert ran.out.startswith("the same person")
    assert ran.err == f"Warning: {upside_down} is not upright; it was turned clockwise by 180 degrees\n"
