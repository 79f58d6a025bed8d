"""`whosthere search` and `whosthere compare`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageEnhance

from indexer.models.packs import SFACE
from search_service.demo import PEOPLE, PROBES
from search_service.matching.calibration import by_pack
from tests import photos
from tests.indexer.cli.command import Command
from tests.indexer.cli.conftest import Demo
from tests.nearly_equal import assert_nearly_equal

DETECTION_KEYS = ["box", "landmarks", "detection_score", "quality", "turn", "liveness"]
FACE_KEYS = [*DETECTION_KEYS, "decision", "reasons", "threshold", "fpir", "candidates", "event"]


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """The photo of six people, of whom five are enrolled in `staff`."""
    path = tmp_path / "group.jpg"
    path.write_bytes(photos.six_people())
    return path


def search(command: Command, *arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
    ran = command("search", *arguments, "--gallery", "staff", "--json")
    assert ran.code == code, ran
    assert ran.err == ""
    answers: list[dict[str, Any]] = ran.json
    return answers


def ids(face: dict[str, Any]) -> list[str]:
    return [candidate["external_id"] for candidate in face["candidates"]]


def test_json_answer_has_every_field(staff: Command, demo: Demo) -> None:
    probe = demo.probes / "left-2-large.png"
    (answer,) = search(staff, probe, "--top-k", "3")
    assert list(answer) == ["image", "gallery", "model", "faces", "error", "frames", "faces_not_searched"]
    assert answer["frames"] is None
    assert (answer["image"], answer["gallery"]) == (str(probe), "staff")
    assert (answer["model"], answer["error"]) == ("sface", None)
    (face,) = answer["faces"]
    assert list(face) == FACE_KEYS
    assert face["decision"] == "match"
    assert face["fpir"] == 0.01
    assert face["threshold"] == round(by_pack(0.01, 7, 7, SFACE.tail), 4)
    assert 0.9 < face["detection_score"] <= 1
    assert list(face["quality"]) == ["size", "sharpness", "yaw", "brightness", "contrast", "reasons"]
    assert [list(candidate) for candidate in face["candidates"]] == [
        ["rank", "identity_id", "external_id", "name", "metadata", "score", "face_id"]
    ] * 3
    assert [candidate["rank"] for candidate in face["candidates"]] == [1, 2, 3]
    scores = [candidate["score"] for candidate in face["candidates"]]
    assert scores == sorted(scores, reverse=True)
    best = face["candidates"][0]
    ((identity_id, face_id),) = staff.query(
        "SELECT identities.id, faces.id FROM identities JOIN faces ON identity_id = identities.id "
        "WHERE external_id = 'left-2'"
    )
    assert best == {
        "rank": 1,
        "identity_id": identity_id,
        "external_id": "left-2",
        "name": None,
        "metadata": {},
        "score": best["score"],
        "face_id": face_id,
    }
    assert best["score"] > 0.9


def test_boxes_are_in_pixels_of_the_original(staff: Command, demo: Demo) -> None:
    """The probe is the enrolled photo at three times its size."""
    (answer,) = search(staff, demo.probes / "left-2-large.png")
    box, landmarks = stored_detection(staff, "left-2")
    face = answer["faces"][0]
    assert len(face["candidates"]) == 5
    assert face["box"] == pytest.approx([3 * v for v in box], abs=30)
    flat = [v for point in face["landmarks"] for v in point]
    assert flat == pytest.approx([3 * v for point in landmarks for v in point], abs=15)


def stored_detection(command: Command, external_id: str) -> tuple[list[float], list[list[float]]]:
    """Returns the box and the landmarks of the identity's only face."""
    joined = "faces JOIN identities ON identities.id = identity_id"
    ((box, landmarks),) = command.query(f"SELECT box, landmarks FROM {joined} WHERE external_id = '{external_id}'")
    return json.loads(box), json.loads(landmarks)


def test_several_probes_are_answered_in_order(staff: Command, demo: Demo) -> None:
    answers = search(staff, *(demo.probes / probe.file for probe in PROBES), "--top-k", "1")
    assert [Path(answer["image"]).name for answer in answers] == [probe.file for probe in PROBES]
    for probe, answer in zip(PROBES, answers, strict=True):
        (face,) = answer["faces"]
        assert len(face["candidates"]) == 1
        if probe.expected is None:
            assert face["decision"] == "no_match"
            assert face["candidates"][0]["score"] < face["threshold"]
        else:
            assert (face["decision"], ids(face)) == ("match", [probe.expected])


def test_all_faces_of_a_group_are_searched(staff: Command, group: Path) -> None:
    (answer,) = search(staff, group, "--all-faces", "--top-k", "1", "--fpir", "0.0001")
    assert len(answer["faces"]) == 6
    areas = [face["box"][2] * face["box"][3] for face in answer["faces"]]
    assert areas == sorted(areas, reverse=True)
    found = {ids(face)[0]: face for face in answer["faces"] if face["decision"] == "match"}
    assert set(found) == set(PEOPLE)
    for person, (left, top, right, bottom) in PEOPLE.items():
        x, y, w, h = found[person]["box"]
        assert left <= x < x + w <= right
        assert top <= y < y + h <= bottom
    (stranger,) = (face for face in answer["faces"] if face["decision"] != "match")
    assert stranger["decision"] == "no_match"


@pytest.mark.numeric
def test_pick_chooses_the_largest_or_the_central_face(staff: Command, group: Path) -> None:
    by_default, largest, center, everyone = (
        search(staff, group, *more)[0]["faces"]
        for more in ([], ["--pick", "largest"], ["--pick", "center"], ["--all-faces"])
    )
    assert by_default == largest
    areas = [face["box"][2] * face["box"][3] for face in everyone]
    assert largest[0]["box"][2] * largest[0]["box"][3] > 0.9 * max(areas), "sizes are those of the second pass"
    (face,) = center
    middles = [(f["box"][0] + f["box"][2] / 2 - 640, f["box"][1] + f["box"][3] / 2 - 443) for f in everyone]
    nearest = min(range(6), key=lambda i: middles[i][0] ** 2 + middles[i][1] ** 2)
    assert_nearly_equal(face, everyone[nearest], abs_tol=0.002, rel_tol=0.001)
    assert ids(face) != ids(largest[0])
    assert_nearly_equal(
        largest[0], next(one for one in everyone if ids(one) == ids(largest[0])), abs_tol=0.002, rel_tol=0.001
    )


@pytest.mark.numeric
def test_threshold_follows_from_fpir_or_is_given(staff: Command, demo: Demo) -> None:
    probe = demo.probes / "left-6-poor.jpg"  # scores 0.76
    by_fpir = search(staff, probe, "--fpir", "0.001")[0]["faces"][0]
    assert by_fpir["fpir"] == 0.001
    assert by_fpir["threshold"] == round(by_pack(0.001, 7, 7, SFACE.tail), 4)
    score = by_fpir["candidates"][0]["score"]
    for threshold, decision in ((score - 0.01, "match"), (score + 0.01, "no_match")):
        face = search(staff, probe, "--threshold", str(threshold))[0]["faces"][0]
        assert (face["fpir"], face["threshold"], face["decision"]) == (None, threshold, decision)


def test_default_fpir_is_a_setting(staff: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSTHERE_FPIR", "0.0001")
    face = search(staff, demo.photo("hanks"))[0]["faces"][0]
    assert (face["fpir"], face["threshold"]) == (0.0001, round(by_pack(0.0001, 7, 7, SFACE.tail), 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fpir", "0.01", "--threshold", "0.4"], "give fpir or threshold, not both"),
        (["--pick", "center", "--all-faces"], "give --pick or --all-faces, not both"),
        (["--pick", "only"], "'only' is not one of"),
        (["--top-k", "0"], "top_k is 0; expected 1 to 100"),
        (["--top-k", "101"], "top_k is 101; expected 1 to 100"),
        (["--fpir", "0"], "fpir is 0.0; expected 1e-09 or more"),
        (["--fpir", "1"], "fpir is 1.0"),
        (["--fpir", "nan"], "fpir is nan"),
        (["--threshold", "1.5"], "threshold is 1.5; expected a cosine"),
        (["--threshold", "high"], "'high' is not a valid float"),
    ],
)
def test_wrong_usage_is_rejected(staff: Command, demo: Demo, arguments: list[str], message: str) -> None:
    ran = staff("search", demo.photo("hanks"), "--gallery", "staff", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_unknown_gallery_fails(staff: Command, demo: Demo) -> None:
    ran = staff("search", demo.photo("hanks"), "--gallery", "guests", "--json")
    assert (ran.code, ran.out, ran.err) == (1, "", "Error: there is no gallery 'guests'\n")


def test_empty_gallery_has_no_match(empty: Command, demo: Demo) -> None:
    empty.ok("gallery", "create", "staff")
    (face,) = search(empty, demo.photo("hanks"))[0]["faces"]
    assert (face["decision"], face["candidates"]) == ("no_match", [])
    assert "no_match" in empty.ok("search", demo.photo("hanks"), "--gallery", "staff").out


def test_error_of_one_image_is_in_its_object(staff: Command, demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "cup.png").write_bytes(photos.no_faces()[4])
    (tmp_path / "text.jpg").write_text("Dear sir or madam")
    names = [tmp_path / "missing.jpg", tmp_path / "cup.png", demo.photo("hanks"), tmp_path / "text.jpg", tmp_path]
    answers = search(staff, *names, code=3)
    assert [answer["image"] for answer in answers] == [str(name) for name in names]
    codes = [answer["error"] and answer["error"]["code"] for answer in answers]
    assert codes == ["unreadable_image", "no_face", None, "unreadable_image", "unreadable_image"]
    assert [bool(answer["faces"]) for answer in answers] == [False, False, True, False, False]
    assert list(answers[0]["error"]) == ["code", "message", "details"]
    assert answers[0]["error"]["message"] == "No such file or directory"
    ran = staff("search", *names, "--gallery", "staff")
    assert ran.code == 3
    assert "unreadable_image: No such file or directory" in ran.out
    assert "hanks" in ran.out


def test_poor_probe_is_for_review(staff: Command, demo: Demo, tmp_path: Path) -> None:
    with Image.open(demo.photo("collins")) as opened:
        dark = ImageEnhance.Brightness(opened).enhance(0.05)
    dark.save(tmp_path / "dark.png")
    (face,) = search(staff, tmp_path / "dark.png")[0]["faces"]
    assert face["quality"]["reasons"][0] == "face_badly_lit"
    assert (face["decision"], ids(face)[0]) == ("review", "collins")
    assert face["candidates"][0]["score"] > face["threshold"]


@pytest.mark.numeric
def test_close_runner_up_is_for_review_even_if_it_is_not_shown(
    staff: Command, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHOSTHERE_LOOKALIKES", "report")
    with Image.open(demo.photo("collins")) as opened:
        other = io.BytesIO()
        opened.save(other, "JPEG", quality=80)
    (tmp_path / "twin.jpg").write_bytes(other.getvalue())
    staff.ok("enroll", tmp_path / "twin.jpg", "--gallery", "staff")
    (face,) = search(staff, demo.photo("collins"), "--top-k", "1")[0]["faces"]
    assert (face["decision"], ids(face)) == ("review", ["collins"])
    (face,) = search(staff, demo.photo("collins"))[0]["faces"]
    assert (face["decision"], ids(face)[:2]) == ("review", ["collins", "twin"])
    assert face["candidates"][0]["score"] - face["candidates"][1]["score"] < 0.05


def test_several_photos_of_one_person_are_one_candidate(staff: Command, demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "hanks_2.webp").write_bytes((demo.probes / "hanks-wide.webp").read_bytes())
    staff.ok("enroll", tmp_path / "hanks_2.webp", "--gallery", "staff")
    (face,) = search(staff, demo.probes / "hanks-wide.webp")[0]["faces"]
    assert ids(face).count("hanks") == 1
    score = face["candidates"][0]["score"]
    assert face["decision"] == "match"
    assert 0.95 < score < 0.999  # the probe itself is enrolled, but the other photo counts as well


def test_identity_outside_its_dates_is_never_returned(empty: Command, demo: Demo, tmp_path: Path) -> None:
    manifest = tmp_path / "staff.csv"
    manifest.write_text(
        "image,external_id,valid_from,valid_until\n"
        f"{demo.photo('hanks')},expired,,2020-12-31\n"
        f"{demo.photo('collins')},not yet,2999-01-01,\n"
        f"{demo.photo('left-1')},valid,2020-01-01,2998-12-31\n"
    )
    empty.ok("enroll", "--manifest", manifest, "--gallery", "staff")
    probes = [demo.photo(person) for person in ("hanks", "collins", "left-1")]
    expired, not_yet, valid = (answer["faces"][0] for answer in search(empty, *probes, "--top-k", "100"))
    assert [ids(face) for face in (expired, not_yet, valid)] == [["valid"], ["valid"], ["valid"]]
    assert [face["decision"] for face in (expired, not_yet, valid)] == ["no_match", "no_match", "match"]
    reasons = [face["reasons"] for face in (expired, not_yet, valid)]
    assert reasons == [["identity_expired"], ["identity_not_yet_valid"], []]
    later = f"image,external_id,valid_until\n{demo.photo('hanks')},expired,2998-12-31\n"
    manifest.write_text(later)
    empty.ok("enroll", "--manifest", manifest, "--gallery", "staff")
    assert ids(search(empty, probes[0])[0]["faces"][0]) == ["expired", "valid"]


def test_deleted_identity_is_never_returned_even_by_an_old_snapshot(staff: Command, demo: Demo) -> None:
    snapshot = staff.home / "indexes" / "1.index"
    old = snapshot.read_bytes()
    staff.ok("identity", "delete", "hanks", "--gallery", "staff")
    assert snapshot.read_bytes() != old
    snapshot.write_bytes(old)
    ran = staff.script("search", demo.photo("hanks"), "--gallery", "staff", "--top-k", "100", "--json")
    assert ran.code == 0, ran.err
    (face,) = ran.json[0]["faces"]
    assert face["decision"] == "no_match"
    assert set(ids(face)) == {"collins", *PEOPLE}


def test_identity_missing_in_the_database_is_never_returned(staff: Command, demo: Demo) -> None:
    """The row is deleted without an entry in the change log, so the index keeps the face."""
    with staff.database() as database:
        database.execute("DELETE FROM identities WHERE external_id = 'hanks'")
    (face,) = search(staff, demo.photo("hanks"), "--top-k", "100")[0]["faces"]
    assert face["decision"] == "no_match"
    assert set(ids(face)) == {"collins", *PEOPLE}
    assert staff.ok("gallery", "show", "staff", "--json").json["index"]["faces"] == 7


# compare


@pytest.mark.numeric
def test_compare_decides_whether_two_photos_show_one_person(empty: Command, demo: Demo) -> None:
    same = empty.ok("compare", demo.photo("hanks"), demo.probes / "hanks-wide.webp", "--json").json
    assert list(same) == ["score", "threshold", "same", "faces", "reasons"]
    assert same["threshold"] == SFACE.same_threshold
    assert (same["same"], len(same["faces"])) == (True, 2)
    assert same["score"] > 0.8
    assert [list(face) for face in same["faces"]] == [DETECTION_KEYS] * 2
    widths = [face["box"][2] for face in same["faces"]]
    assert 1.5 * widths[0] < widths[1], "the second photo is twice the size"
    other = empty.ok("compare", demo.photo("hanks"), demo.photo("collins"), "--json").json
    assert other["same"] is False
    assert -1 <= other["score"] < other["threshold"]
    printed = empty.ok("compare", demo.photo("hanks"), demo.photo("collins")).out
    assert printed == f"different people: cosine {other['score']:.3f}, threshold {SFACE.same_threshold:.3f}\n"


def test_compare_names_the_image_that_is_rejected(empty: Command, demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "cup.png").write_bytes(photos.no_faces()[4])
    ran = empty("compare", demo.photo("hanks"), tmp_path / "cup.png", "--json")
    assert (ran.code, ran.out, ran.err) == (1, "", "Error: image b: no face was found\n")
    ran = empty("compare", tmp_path / "missing.jpg", demo.photo("hanks"))
    assert (ran.code, ran.err) == (1, f"Error: {tmp_path / 'missing.jpg'}: No such file or directory\n")
    ran = empty("compare", demo.photo("hanks"), demo.photo("hanks"), "--model", "unknown")
    assert ran.code == 2
    assert "there is no model pack 'unknown'; expected one of ir50, buffalo_l, sface" in ran.err
