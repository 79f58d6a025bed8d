"""`whosthere enroll` with photos of every kind: which are rejected, for which reason, and which face counts."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from tests import photos
from tests.indexer.cli.command import Command, encode_jpeg, reasons
from tests.indexer.cli.conftest import Demo


def png_of_claimed_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animation(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "GIF", save_all=True, append_images=[picture.rotate(5)])
    return buffer.getvalue()


def on_plain_background(face: Image.Image, pixels: float, size: float) -> bytes:
    """Returns the photo, scaled so that its face of `size` pixels has `pixels`, in the middle of a plain image."""
    small = face.resize((round(face.width * pixels / size),) * 2, Image.Resampling.LANCZOS)
    wall = Image.new("RGB", (300, 300), (120, 130, 140))
    wall.paste(small, (120, 120))
    return photos.encode(wall, "PNG")


def test_each_bad_photo_is_rejected_with_a_reason_and_the_others_are_enrolled(
    empty: Command, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHOSTHERE_LOOKALIKES", "off")  # the valid photos show the same person
    with Image.open(demo.photo("collins")) as opened:  # its face is 102 pixels across
        collins = opened.convert("RGB")
    good = encode_jpeg(collins, 90)
    inputs: dict[str, tuple[bytes, set[str], str]] = {
        "ana.jpg": (good, set(), ""),
        "empty.jpg": (b"", {"unreadable_image"}, "the file is empty"),
        "text.jpg": (b"Dear sir or madam", {"unreadable_image"}, "expected JPEG, PNG"),
        "truncated.jpg": (good[: len(good) // 2], {"unreadable_image"}, "the file is incomplete"),
        "animation.gif": (animation(collins), {"unreadable_image"}, "GIF"),
        "huge.png": (png_of_claimed_size(30_000, 30_000), {"image_too_large"}, "30000 x 30000"),
        "cup.png": (photos.no_faces()[4], {"no_face"}, "no face was found"),
        "six.jpg": (photos.six_people(), {"several_faces"}, "6 faces of similar size"),
        "tiny.png": (on_plain_background(collins, 12, 102), {"no_face", "face_too_small", "detection_unsure"}, "face"),
        "blurred.jpg": (
            encode_jpeg(collins.filter(ImageFilter.GaussianBlur(5))),
            {"face_too_blurry", "detection_unsure"},
            "expected",
        ),
        "dark.jpg": (
            encode_jpeg(ImageEnhance.Brightness(collins).enhance(0.06)),
            {"face_badly_lit", "detection_unsure"},
            "expected",
        ),
        "zoe.png": (photos.astronaut(), set(), ""),
    }
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, (data, _, _) in inputs.items():
        (folder / name).write_bytes(data)
    ran = empty("enroll", folder, "--gallery", "staff", "--json")
    assert ran.code == 3
    assert ran.err == ""
    summary = ran.json
    assert [Path(row["image"]).name for row in summary["results"]] == sorted(inputs)
    assert (summary["images"], summary["enrolled"], summary["rejected"], summary["faces"]) == (12, 2, 10, 2)
    for row in summary["results"]:
        _, expected, message_part = inputs[Path(row["image"]).name]
        if expected:
            assert (row["outcome"], row["face_id"]) == ("rejected", None)
            assert row["reason"] in expected, row
            assert message_part in row["message"]
        else:
            assert (row["outcome"], row["reason"], row["message"]) == ("enrolled", None, None)
    assert [name for (name,) in empty.query("SELECT external_id FROM identities ORDER BY 1")] == ["ana", "zoe"]


@pytest.mark.parametrize("is_packed", [False, True])
def test_photo_without_end_marker_is_enrolled_and_half_a_photo_refused_in_words(
    empty: Command, demo: Demo, tmp_path: Path, is_packed: bool
) -> None:
    with Image.open(demo.photo("collins")) as opened:
        collins = encode_jpeg(opened.convert("RGB"), 90)
    files = {"ana/1.jpg": collins[:-2], "bea/1.jpg": collins[: len(collins) // 2]}
    source = tmp_path / ("photos.zip" if is_packed else "photos")
    if is_packed:
        with zipfile.ZipFile(source, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (source / name).parent.mkdir(parents=True)
            (source / name).write_bytes(data)
    ana, bea = empty("enroll", source, "--gallery", "staff", "--json").json["results"]
    assert (ana["external_id"], ana["outcome"]) == ("ana", "enrolled")
    assert (bea["outcome"], bea["reason"]) == ("rejected", "unreadable_image")
    assert bea["message"] == "the file is incomplete, its end is missing; copy or send it again"


def test_only_photos_above_the_size_limit_are_rejected(
    empty: Command, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = demo.photo("hanks").stat().st_size
    monkeypatch.setenv("WHOSTHERE_MAX_IMAGE_BYTES", str(size))
    summary = empty("enroll", demo.photos, "--gallery", "staff", "--json").json
    too_large = [path.parent.name for path in demo.photos.glob("*/1.jpg") if path.stat().st_size > size]
    assert 0 < len(too_large) < 7
    assert [row["external_id"] for row in summary["results"] if row["reason"] == "image_too_large"] == sorted(too_large)


@pytest.mark.parametrize(("pick", "left"), [("largest", 0), ("center", 300)])
def test_pick_selects_one_of_several_faces(empty: Command, tmp_path: Path, pick: str, left: int) -> None:
    """The left face has full size, the one in the middle 80 % of it."""
    face = Image.fromarray(photos.pixels(photos.astronaut())).crop((100, 0, 340, 240))
    both = Image.new("RGB", (792, 240), (120, 130, 140))
    both.paste(face, (0, 0))
    both.paste(face.resize((192, 192)), (300, 24))
    path = tmp_path / "both.png"
    path.write_bytes(photos.encode(both, "PNG"))
    only = empty("enroll", path, "--gallery", "staff", "--json")
    assert (only.code, reasons(only.json)) == (3, {"both.png": "several_faces"})
    empty.ok("enroll", path, "--gallery", "staff", "--pick", pick)
    ((box,),) = empty.query("SELECT box FROM faces")
    x, _, w, _ = json.loads(box)
    assert left < x < x + w < left + 240


def test_image_enrolled_for_another_identity_is_rejected(
    staff: Command, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHOSTHERE_LOOKALIKES", "off")
    for name in ("ana", "ben"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        with Image.open(demo.photo("collins")) as picture:
            (tmp_path / "photos" / name / "1.jpg").write_bytes(encode_jpeg(picture.convert("RGB"), 71))
    (tmp_path / "photos" / "ben" / "2.jpg").write_bytes(demo.photo("hanks").read_bytes())
    ran = staff("enroll", tmp_path / "photos", "--gallery", "staff", "--json")
    assert ran.code == 3
    ana, ben, also_ben = ran.json["results"]
    assert ana["outcome"] == "enrolled"
    assert (ben["outcome"], ben["reason"]) == ("rejected", "looks_like_another_identity")
    assert "the same image is enrolled for identity 'ana'" in ben["message"]
    assert also_ben["reason"] == "looks_like_another_identity"
    assert "'hanks'" in also_ben["message"]
    assert staff("identity", "show", "ben", "--gallery", "staff").code == 1, "no identity is created without a face"


def test_photos_in_a_zip_are_enrolled(empty: Command, demo: Demo, tmp_path: Path) -> None:
    archive = tmp_path / "staff.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(demo.photo("collins"), "staff/collins/1.jpg")
        packed.write(demo.photo("hanks"), "staff/hanks/1.jpg")
        packed.write(demo.photo("left-1"), "../left-1.jpg")
    ran = empty("enroll", archive, "--gallery", "staff", "--json")
    assert ran.code == 3
    assert [(row["image"], row["outcome"], row["reason"]) for row in ran.json["results"]] == [
        ("../left-1.jpg", "rejected", "invalid_row"),
        (f"{archive}/collins/1.jpg", "enrolled", None),
        (f"{archive}/hanks/1.jpg", "enrolled", None),
    ]
    assert [name for (name,) in empty.query("SELECT external_id FROM identities ORDER BY 1")] == ["collins", "hanks"]


@pytest.mark.numeric
def test_exif_orientation_does_not_change_the_result(empty: Command, tmp_path: Path) -> None:
    upright = photos.pixels(photos.astronaut())
    paths = []
    for orientation in range(1, 9):
        picture = Image.fromarray(photos.stored(upright, orientation))
        paths.append(tmp_path / f"collins_{orientation}.jpg")
        paths[-1].write_bytes(photos.encode(picture, "JPEG", exif=photos.exif(orientation)))
    empty.ok("enroll", paths[0], "--gallery", "staff")
    answers = empty.ok("search", *paths, "--gallery", "staff", "--json").json
    boxes = np.array([answer["faces"][0]["box"] for answer in answers])
    scores = [answer["faces"][0]["candidates"][0]["score"] for answer in answers]
    assert scores[0] == pytest.approx(1, abs=2e-3)
    assert min(scores) > 0.99
    assert np.abs(boxes - boxes[0]).max() < 2, boxes
    empty.ok("enroll", *paths[1:], "--gallery", "staff")
    kept = np.array([json.loads(box) for (box,) in empty.query("SELECT box FROM faces")])
    assert kept.shape == (8, 4)
    assert np.abs(kept - boxes[0]).max() < 2, kept
