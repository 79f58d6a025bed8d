"""`whosthere enroll --sync`: enrolled faces whose photos are no longer there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import photos
from tests.indexer.cli.command import Command
from tests.indexer.cli.conftest import Demo


@pytest.fixture
def folder(staff: Command, demo: Demo, tmp_path: Path) -> Path:
    """The photos of everybody in the gallery `staff`, and a second one of Eileen Collins, enrolled too."""
    copy = Path(shutil.copytree(demo.photos, tmp_path / "photos"))
    write_collins(copy / "collins" / "2.png", 0.8)
    staff.ok("enroll", copy, "--gallery", "staff")
    return copy


def write_collins(path: Path, light: float) -> None:
    pixels = photos.pixels(photos.astronaut())
    path.write_bytes(photos.encode((pixels * light).astype(np.uint8), "PNG"))


def faces_of(command: Command, external_id: str) -> list[int]:
    shown = command.ok("identity", "show", external_id, "--gallery", "staff", "--json").json
    return [face["face_id"] for face in shown["faces"]]


def test_missing_photos_are_listed_and_removed_when_asked(staff: Command, folder: Path) -> None:
    first, second = faces_of(staff, "collins")
    [hanks] = faces_of(staff, "hanks")
    (folder / "collins" / "2.png").unlink()
    shutil.rmtree(folder / "hanks")
    listed = staff.ok("enroll", folder, "--gallery", "staff", "--sync", "--json").json
    expected = [("collins", second, None), ("hanks", hanks, None)]
    assert sorted((face["external_id"], face["face_id"], face["kept"]) for face in listed["missing"]) == expected
    assert (listed["removed"], listed["faces"]) == (0, 8)
    shown = staff.ok("enroll", folder, "--gallery", "staff", "--sync").out
    assert "2 enrolled faces are of photos that are not among these; 0 were deleted." in shown
    removed = staff.ok("enroll", folder, "--gallery", "staff", "--sync", "--remove", "--json").json
    assert (removed["removed"], removed["faces"]) == (2, 6)
    assert (faces_of(staff, "collins"), faces_of(staff, "hanks")) == ([first], [])
    again = staff.ok("enroll", folder, "--gallery", "staff", "--sync", "--json").json
    assert (again["missing"], again["removed"]) == ([], 0)


def test_replaced_photo_is_enrolled_and_the_old_face_is_missing(staff: Command, folder: Path) -> None:
    _, old = faces_of(staff, "collins")
    write_collins(folder / "collins" / "2.png", 0.7)
    ran = staff.ok("enroll", folder, "--gallery", "staff", "--sync", "--json").json
    assert ran["enrolled"] == 1
    assert [face["face_id"] for face in ran["missing"]] == [old]
    assert len(faces_of(staff, "collins")) == 3


def test_faces_stay_while_a_photo_of_their_identity_is_rejected(staff: Command, folder: Path) -> None:
    before = faces_of(staff, "collins")
    (folder / "collins" / "2.png").write_bytes(b"cut short")
    ran = staff("enroll", folder, "--gallery", "staff", "--sync", "--remove", "--json")
    assert ran.code == 3
    [face] = ran.json["missing"]
    assert face["kept"] == f"{folder}/collins/2.png was rejected"
    assert (ran.json["removed"], faces_of(staff, "collins")) == (0, before)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every folder")
def test_folder_that_cannot_be_read_is_rejected_and_its_faces_stay(staff: Command, folder: Path) -> None:
    (folder / "hanks").chmod(0)
    try:
        ran = staff("enroll", folder, "--gallery", "staff", "--sync", "--remove", "--json")
    finally:
        (folder / "hanks").chmod(0o700)
    assert (ran.code, ran.json["removed"]) == (3, 0)
    assert [face["kept"] for face in ran.json["missing"]] == [f"{folder}/hanks/* was rejected"]


def test_removing_needs_sync(staff: Command, folder: Path) -> None:
    ran = staff("enroll", folder, "--gallery", "staff", "--remove")
    assert (ran.code, ran.out) == (2, "")
    assert "--remove needs --sync" in ran.err
