"""`whosthere enroll`: results, reports, manifests and failures."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indexer.enrollment import reading
from indexer.errors import InvalidVector, ModelUnavailable, StorageUnavailable, WhosthereError
from indexer.types import vectors_from_bytes
from indexer.vision.pipeline import FacePipeline, ImageResult
from tests import photos
from tests.indexer.cli.command import Command, encode_jpeg
from tests.indexer.cli.conftest import Demo

KEYS = ["gallery", "model", "images", "enrolled", "unchanged", "rejected", "identities", "faces", "seconds", "results"]
ROW_KEYS = ["image", "external_id", "outcome", "reason", "face_id", "message", "details"]


def hashes(folder: Path) -> list[str]:
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.jpg"))


def test_json_summary_lists_every_photo(empty: Command, demo: Demo) -> None:
    ran = empty.ok("enroll", demo.photos, "--gallery", "staff", "--json")
    summary = ran.json
    people = sorted(path.name for path in demo.photos.iterdir())
    assert list(summary) == KEYS
    assert {key: summary[key] for key in KEYS[:8]} == {
        "gallery": "staff",
        "model": "sface",
        "images": 7,
        "enrolled": 7,
        "unchanged": 0,
        "rejected": 0,
        "identities": 7,
        "faces": 7,
    }
    assert isinstance(summary["seconds"], float)
    assert 0 < summary["seconds"] < 60
    assert [list(row) for row in summary["results"]] == [ROW_KEYS] * 7
    assert [(row["image"], row["external_id"]) for row in summary["results"]] == [
        (str(demo.photo(person)), person) for person in people
    ]
    assert {(row["outcome"], row["reason"], row["message"]) for row in summary["results"]} == {("enrolled", None, None)}
    reported = {row["face_id"]: row["external_id"] for row in summary["results"]}
    kept = empty.query("SELECT faces.id, external_id FROM faces JOIN identities ON identities.id = identity_id")
    assert reported == dict(kept)
    assert empty.images() == hashes(demo.photos)


@pytest.mark.numeric
def test_stored_face_has_box_landmarks_quality_and_embedding(empty: Command, demo: Demo) -> None:
    empty.ok("enroll", demo.photo("collins"), "--gallery", "staff")
    ((box, landmarks, score, quality, embedding),) = empty.query(
        "SELECT box, landmarks, detection_score, quality, embedding FROM faces JOIN embeddings ON face_id = id"
    )
    x, y, w, h = json.loads(box)
    assert 0 <= x < x + w <= 240
    assert 0 <= y < y + h <= 240
    assert all(x < px < x + w and y < py < y + h for px, py in json.loads(landmarks))
    assert 0.9 < score <= 1
    assert set(json.loads(quality)) == {"size", "sharpness", "yaw", "brightness", "contrast", "reasons"}
    assert json.loads(quality)["reasons"] == []
    assert np.linalg.norm(vectors_from_bytes([embedding], 128)) == pytest.approx(1, abs=1e-5)


def test_report_has_a_row_for_each_photo(empty: Command, demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "ana_1.jpg").write_bytes(demo.photo("collins").read_bytes())
    (folder / "cup.png").write_bytes(photos.no_faces()[4])
    report = tmp_path / "report.csv"
    ran = empty("enroll", folder, "--gallery", "staff", "--report", report)
    assert ran.code == 3
    with report.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ((face_id,),) = empty.query("SELECT id FROM faces")
    assert [list(row.values()) for row in rows] == [
        [str(folder / "ana_1.jpg"), "ana", "enrolled", "", str(face_id), ""],
        [str(folder / "cup.png"), "cup", "rejected", "no_face", "", "no face was found"],
    ]
    assert [*rows[0], "details"] == ROW_KEYS, "only the JSON output has details"
    assert "2 images: 1 enrolled, 0 unchanged, 1 rejected" in ran.out
    assert "Gallery staff (sface) holds 1 identities with 1 faces." in ran.out
    assert "cup.png" in ran.out
    assert "no_face" in ran.out


def test_report_with_letters_beyond_ascii_has_the_mark_that_excel_needs(
    empty: Command, demo: Demo, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "Zoë").mkdir(parents=True)
    (tmp_path / "photos" / "Zoë" / "1.jpg").write_bytes(demo.photo("collins").read_bytes())
    report = tmp_path / "report.csv"
    empty.ok("enroll", tmp_path / "photos", "--gallery", "staff", "--report", report)
    assert report.read_bytes().startswith(codecs.BOM_UTF8)
    with report.open(newline="", encoding="utf-8-sig") as file:
        assert [row["external_id"] for row in csv.DictReader(file)] == ["Zoë"]


def test_second_run_changes_nothing(staff: Command, demo: Demo) -> None:
    everything = "SELECT * FROM galleries", "SELECT * FROM identities", "SELECT * FROM faces", "SELECT * FROM changes"
    before = [staff.query(sql) for sql in everything]
    snapshot = (staff.home / "indexes" / "1.index").read_bytes()
    summary = staff.ok("enroll", demo.photos, "--gallery", "staff", "--json").json
    assert (summary["enrolled"], summary["unchanged"], summary["faces"]) == (0, 7, 7)
    assert [row["face_id"] for row in summary["results"]] == [row[0] for row in before[2]]
    assert [staff.query(sql) for sql in everything] == before
    assert (staff.home / "indexes" / "1.index").read_bytes() == snapshot


def test_manifest_sets_names_and_metadata_and_a_later_one_adds_to_them(
    empty: Command, demo: Demo, tmp_path: Path
) -> None:
    manifest = tmp_path / "staff.csv"
    manifest.write_text(
        "image;external_id;name;valid_until;Department\n"
        f"{demo.photo('collins')};e-1;Eileen Collins;2099-12-31;NASA\n"
        f"{demo.photo('hanks')};e-2;;;\n"
        f"{demo.photo('hanks')};e-2;;;\n"
    )
    first = empty.ok("enroll", "--manifest", manifest, "--gallery", "staff", "--json").json
    assert [row["outcome"] for row in first["results"]] == ["enrolled", "enrolled", "unchanged"]
    collins = empty.ok("identity", "show", "e-1", "--gallery", "staff", "--json").json
    assert (collins["name"], collins["metadata"]) == ("Eileen Collins", {"Department": "NASA"})
    assert (collins["valid_from"], collins["valid_until"]) == (None, "2100-01-01T00:00:00+00:00")
    manifest.write_text(f"image,external_id,name,Floor\n{demo.photo('hanks')},e-2,Tom Hanks,3\n")
    second = empty.ok("enroll", "--manifest", manifest, "--gallery", "staff", "--json").json
    assert (second["unchanged"], second["faces"]) == (1, 2)
    hanks = empty.ok("identity", "show", "e-2", "--gallery", "staff", "--json").json
    assert (hanks["name"], hanks["metadata"], len(hanks["faces"])) == ("Tom Hanks", {"Floor": "3"}, 1)


def test_manifest_clears_values_and_changes_are_reported(empty: Command, demo: Demo, tmp_path: Path) -> None:
    manifest, photo = tmp_path / "staff.csv", demo.photo("collins")
    manifest.write_text(f"image,external_id,name,valid_until,Floor,Room\n{photo},e-1,Ana,2099-12-31,3,12\n")
    empty.ok("enroll", "--manifest", manifest, "--gallery", "staff")
    for line, updated, stored in (
        ("Anna,,,", ["name"], ("Anna", "2100-01-01T00:00:00+00:00", {"Floor": "3", "Room": "12"})),
        ("\\N,\\N,\\N,", ["name", "valid_until", "metadata"], (None, None, {"Room": "12"})),
        (",,,", None, (None, None, {"Room": "12"})),
    ):
        manifest.write_text(f"image,external_id,name,valid_until,Floor,Room\n{photo},e-1,{line}\n")
        [row] = empty.ok("enroll", "--manifest", manifest, "--gallery", "staff", "--json").json["results"]
        assert row["outcome"] == "unchanged"
        assert row["details"] == ({} if updated is None else {"updated": updated})
        assert row["message"] == (None if updated is None else f"the identity's {', '.join(updated)} changed")
        shown = empty.ok("identity", "show", "e-1", "--gallery", "staff", "--json").json
        assert (shown["name"], shown["valid_until"], shown["metadata"]) == stored
    manifest.write_text(f"image,external_id,name\n{photo},e-1,Ana\n")
    ran = empty.ok("enroll", "--manifest", manifest, "--gallery", "staff")
    assert "1 of them changed the name, dates or metadata of an enrolled identity." in ran.out


def test_last_row_of_an_identity_sets_its_metadata(empty: Command, demo: Demo, tmp_path: Path) -> None:
    manifest = tmp_path / "staff.csv"
    manifest.write_text(f"image,external_id,Floor\n{demo.photo('hanks')},e-2,1\n")
    empty.ok("enroll", "--manifest", manifest, "--gallery", "staff")
    with Image.open(demo.photo("hanks")) as picture:
        (tmp_path / "new.jpg").write_bytes(encode_jpeg(picture.convert("RGB"), 71))
    manifest.write_text(f"image,external_id,Floor\nnew.jpg,e-2,2\n{demo.photo('hanks')},e-2,3\n")
    summary = empty.ok("enroll", "--manifest", manifest, "--gallery", "staff", "--json").json
    assert [row["outcome"] for row in summary["results"]] == ["enrolled", "unchanged"]
    assert empty.ok("identity", "show", "e-2", "--gallery", "staff", "--json").json["metadata"] == {"Floor": "3"}


def test_row_whose_dates_contradict_the_stored_ones_is_rejected(empty: Command, demo: Demo, tmp_path: Path) -> None:
    manifest = tmp_path / "staff.csv"
    manifest.write_text(f"image,external_id,valid_from\n{demo.photo('collins')},e-1,2030-01-01\n")
    empty.ok("enroll", "--manifest", manifest, "--gallery", "staff")
    with Image.open(demo.photo("collins")) as picture:
        (tmp_path / "new.jpg").write_bytes(encode_jpeg(picture.convert("RGB"), 71))
    manifest.write_text(
        "image,external_id,valid_until\n"
        f"new.jpg,e-1,2029-12-30\n{demo.photo('collins')},e-1,2029-12-30\n{demo.photo('hanks')},e-2,2029-12-30\n"
    )
    ran = empty("enroll", "--manifest", manifest, "--gallery", "staff", "--json")
    assert ran.code == 3
    new, known, hanks = ran.json["results"]
    for row in (new, known):
        assert (row["outcome"], row["reason"], row["face_id"]) == ("rejected", "invalid_row", None)
        assert "2029-12-31" in row["message"]
        assert "2030-01-01" in row["message"]
    assert hanks["outcome"] == "enrolled"
    assert ran.json["faces"] == 2
    collins = empty.ok("identity", "show", "e-1", "--gallery", "staff", "--json").json
    assert (collins["valid_until"], len(collins["faces"])) == (None, 1)


def test_names_are_printed_without_markup(empty: Command, demo: Demo, tmp_path: Path) -> None:
    manifest = tmp_path / "staff.csv"
    manifest.write_text(f"image,external_id,name\n{demo.photo('collins')},e[old]1,Ana [/IT] :x:\nno [/x].jpg,e-2,\n")
    ran = empty("enroll", "--manifest", manifest, "--gallery", "staff")
    assert ran.code == 3
    assert "no [/x].jpg" in ran.out
    shown = empty.ok("identity", "list", "--gallery", "staff").out
    assert "e[old]1" in shown
    assert "Ana [/IT] :x:" in shown


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has file names of arbitrary bytes")
def test_file_names_that_are_not_utf_8_are_printed_with_replacements(
    empty: Command, demo: Demo, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "ana").mkdir(parents=True)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/photos/ana/caf\xe9.jpg"))
    path.write_bytes(demo.photo("collins").read_bytes())
    report = tmp_path / "report.csv"
    empty.ok("enroll", tmp_path / "photos", "--gallery", "staff", "--report", report, "--json")
    assert "caf?.jpg,ana,enrolled" in report.read_text()
    environment = {"PYTHONIOENCODING": "utf-8:strict"}
    ran = empty.script("search", path, "--gallery", "staff", "--json", **environment)
    assert ran.code == 0, ran.err
    assert ran.json[0]["faces"][0]["candidates"][0]["external_id"] == "ana"
    assert empty.script("search", path, "--gallery", "staff", **environment).code == 0


@pytest.mark.parametrize(
    ("arguments", "message_part"),
    [
        (["--gallery", "staff"], "name folders, images, a ZIP, or a --manifest"),
        (["FOLDER", "--gallery", "staff"], "there are no images in"),
        (["FOLDER"], "Missing option '--gallery'"),
        (["FOLDER", "--gallery", "staff", "--model", "unknown"], "no model pack 'unknown'; expected one of"),
        (["FOLDER", "--gallery", "staff", "--pick", "first"], "'first' is not one of"),
        (["FOLDER", "--gallery", "staff", "--fast"], "No such option"),
        (["nowhere", "--gallery", "staff"], "there is no nowhere; expected a folder, an image or a ZIP file"),
        (["PHOTO", "--gallery", "a/b"], "must not contain a slash"),
        (["PHOTO", "--gallery", "staff", "--report", "FOLDER/no/report.csv"], "cannot be written"),
    ],
)
def test_wrong_usage_is_refused(
    empty: Command, demo: Demo, tmp_path: Path, arguments: list[str], message_part: str
) -> None:
    (tmp_path / "nothing").mkdir()
    places = {"FOLDER": str(tmp_path / "nothing"), "PHOTO": str(demo.photo("collins"))}
    for word, place in places.items():
        arguments = [argument.replace(word, place) for argument in arguments]
    ran = empty("enroll", *arguments)
    assert ran.code == 2
    assert message_part in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_gallery_of_another_pack_is_refused(staff: Command, demo: Demo) -> None:
    with staff.database() as database:
        database.execute("UPDATE galleries SET fingerprint = '0123456789abcdef'")
    for arguments in (["enroll", str(demo.photos)], ["search", str(demo.photo("hanks"))]):
        ran = staff(*arguments, "--gallery", "staff", "--json")
        assert ran.code == 1
        assert ran.out == ""
        assert "Error: gallery 'staff' was created with sface 0123456789abcdef" in ran.err
    assert staff.query("SELECT count(*) FROM faces") == [(7,)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_full_disk_ends_the_report_but_not_the_run(empty: Command, demo: Demo) -> None:
    ran = empty("enroll", demo.photos, "--gallery", "staff", "--report", "/dev/full", "--json")
    assert ran.code == 0, ran
    assert ran.json["enrolled"] == 7
    assert ran.err == ("Warning: the report /dev/full ends early, enrollment continues: No space left on device\n")


def test_gallery_delete_prints_json(staff: Command) -> None:
    deleted = staff.ok("gallery", "delete", "staff", "--yes", "--json").json
    assert deleted == {"gallery": "staff", "identities": 7, "faces": 7}
    assert staff("gallery", "show", "staff").code == 1


Describe = Callable[[Sequence[bytes]], None]


def watch_describe(monkeypatch: pytest.MonkeyPatch, before: Describe) -> None:
    """Calls `before` with the images of each call of the real `describe`."""
    describe = FacePipeline.describe

    def watched(self: FacePipeline, images: Sequence[bytes], *arguments: Any) -> list[ImageResult]:
        before(images)
        return describe(self, images, *arguments)

    monkeypatch.setattr(FacePipeline, "describe", watched)


def test_bytes_of_photos_in_memory_are_limited(empty: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [path.stat().st_size for path in sorted(demo.photos.glob("*/1.jpg"))]
    at_once = 3 * max(sizes)
    given: list[list[int]] = []
    watch_describe(monkeypatch, lambda images: given.append([len(image) for image in images]))
    monkeypatch.setattr(reading, "MAX_CHUNK_BYTES", at_once)
    monkeypatch.setenv("WHOSTHERE_MAX_IMAGE_BYTES", str(max(sizes)))
    summary = empty.ok("enroll", demo.photos, "--gallery", "staff", "--json").json
    assert [row["external_id"] for row in summary["results"]] == sorted(p.name for p in demo.photos.iterdir())
    assert summary["enrolled"] == 7
    assert [size for sizes in given for size in sizes] == sizes
    assert max(map(sum, given)) <= at_once
    assert max(map(len, given)) > 1


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), InvalidVector("it has no direction")])
def test_only_the_photo_that_the_pipeline_fails_on_is_rejected(
    empty: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    culprit = demo.photo("hanks").read_bytes()

    def fail(images: Sequence[bytes]) -> None:
        if culprit in images:
            raise error

    watch_describe(monkeypatch, fail)
    for photos_of_it, enrolled in ((demo.photos, 6), (demo.photo("hanks"), 0)):
        ran = empty("enroll", photos_of_it, "--gallery", "staff", "--json")
        assert ran.code == 3, ran
        assert ran.json["enrolled"] == enrolled
        (rejected,) = (row for row in ran.json["results"] if row["outcome"] == "rejected")
        assert (Path(rejected["image"]), rejected["reason"]) == (demo.photo("hanks"), "unreadable_image")
        assert rejected["message"] == f"the image cannot be processed: {type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [ModelUnavailable("the model is missing"), StorageUnavailable("the disk failed")])
def test_error_not_caused_by_a_photo_ends_the_run(
    empty: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch, error: WhosthereError
) -> None:
    calls: list[int] = []

    def fail(images: Sequence[bytes]) -> None:
        calls.append(len(images))
        raise error

    watch_describe(monkeypatch, fail)
    ran = empty("enroll", demo.photos, "--gallery", "staff", "--json")
    assert (ran.code, ran.out, ran.err) == (1, "", f"Error: {error.message}\n")
    assert calls == [7]
