"""`whosthere enroll`: whom the names of files and folders mean, with real faces."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests import photos
from tests.indexer.cli.command import Command
from tests.indexer.cli.conftest import Demo

LIGHTS = (1.0, 0.9, 0.8, 0.7, 0.6)


def in_lights(folder: Path, *names: str) -> Path:
    """Writes a photo of Eileen Collins under each name, each in another light."""
    folder.mkdir(parents=True)
    pixels = photos.pixels(photos.astronaut())
    for name, light in zip(names, LIGHTS, strict=False):
        (folder / name).write_bytes(photos.encode((pixels * light).astype(np.uint8), "PNG"))
    return folder


def strangers(folder: Path, demo: Demo, *names: str) -> Path:
    """Writes a photo of another person under each name."""
    folder.mkdir(parents=True)
    for name, person in zip(names, ("hanks", "left-1", "left-2", "left-3", "left-4"), strict=False):
        (folder / name).write_bytes(demo.photo(person).read_bytes())
    return folder


def identities(command: Command) -> dict[str, int]:
    shown = command.ok("identity", "list", "--gallery", "staff", "--json").json
    return {one["external_id"]: one["faces"] for one in shown}


def test_folders_given_by_name_are_people(empty: Command, demo: Demo, tmp_path: Path) -> None:
    laura = in_lights(tmp_path / "laura", "IMG_2041.png", "IMG_2042.png")
    hans = strangers(tmp_path / "hans", demo, "IMG_3001.jpg")
    for folder in (laura, hans):
        empty.ok("enroll", folder, "--gallery", "staff")
    assert identities(empty) == {"laura": 2, "hans": 1}


def test_numbered_files_of_different_people_are_refused(empty: Command, demo: Demo, tmp_path: Path) -> None:
    folder = strangers(tmp_path / "people", demo, *(f"emp_{number}.jpg" for number in range(1042, 1047)))
    ran = empty("enroll", folder, "--gallery", "staff", "--json")
    assert (ran.code, ran.json["rejected"], ran.json["identities"]) == (3, 5, 0)
    assert {row["reason"] for row in ran.json["results"]} == {"unlike_own_identity"}
    message = ran.json["results"][0]["message"]
    assert all(f"emp_{number}.jpg" in message for number in range(1043, 1047))
    assert "manifest" in message


def test_every_way_to_number_photos_joins_those_of_one_person(empty: Command, tmp_path: Path) -> None:
    names = ["ana.png", "ana (1).png", "ana-1.png", "ana 1.png", "ana_2.png"]
    empty.ok("enroll", in_lights(tmp_path / "people", *names), "--gallery", "staff")
    assert identities(empty) == {"ana": 5}


def test_files_of_a_camera_are_not_joined(empty: Command, demo: Demo, tmp_path: Path) -> None:
    folder = strangers(tmp_path / "people", demo, "20261124_101502.jpg", "20261124_101733.jpg", "zoe.jpg")
    empty.ok("enroll", folder, "--gallery", "staff")
    assert identities(empty) == {"20261124_101502": 1, "20261124_101733": 1, "zoe": 1}


@pytest.mark.numeric
def test_photo_of_another_person_is_held(staff: Command, demo: Demo, tmp_path: Path) -> None:
    """Tom Hanks is not enrolled otherwise, so his photo looks like nobody else."""
    staff.ok("identity", "delete", "hanks", "--gallery", "staff")
    strangers(tmp_path / "wrong" / "collins", demo, "2.jpg")
    ran = staff("enroll", tmp_path / "wrong", "--gallery", "staff", "--json")
    [row] = ran.json["results"]
    assert (ran.code, row["outcome"], row["reason"]) == (3, "rejected", "unlike_own_identity")
    assert row["details"]["external_id"] == "collins"
    in_lights(tmp_path / "right" / "collins", "2.png", "3.png")
    staff.ok("enroll", tmp_path / "right", "--gallery", "staff")
    assert identities(staff)["collins"] == 3


def test_report_with_formulas_is_protected_and_is_read_as_a_manifest(
    empty: Command, demo: Demo, tmp_path: Path
) -> None:
    photo = "=1+1;@A1.jpg"
    (tmp_path / photo).write_bytes(demo.photo("collins").read_bytes())
    (tmp_path / "staff.csv").write_text(f'image,external_id,name\n"{photo}",-7,+1\n=no.jpg,@ben,\n')
    report = tmp_path / "report.csv"
    ran = empty("enroll", "--manifest", tmp_path / "staff.csv", "--gallery", "staff", "--report", report)
    assert ran.code == 3
    with report.open(newline="", encoding="utf-8") as file:
        (_, *rows) = list(csv.reader(file))
    assert [row[:4] for row in rows] == [
        ["'=1+1;'@A1.jpg", "'-7", "enrolled", ""],
        ["'=no.jpg", "'@ben", "rejected", "unreadable_image"],
    ]
    again = empty("enroll", "--manifest", report, "--gallery", "staff", "--json")
    assert [(row["image"], row["external_id"], row["outcome"]) for row in again.json["results"]] == [
        (photo, "-7", "unchanged"),
        ("=no.jpg", "@ben", "rejected"),
    ]
