"""Rows of photos from folders and files."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from indexer.enrollment.file_names import identity_of_stem
from indexer.enrollment.sources import rows_of
from indexer.errors import InvalidRequest
from indexer.types import Reason
from tests.indexer.cli.command import Command
from tests.indexer.enrollment.photo_files import LIMIT, content, message, pack, summarize, write


@pytest.mark.parametrize(
    ("stem", "identity"),
    [
        ("ana", "ana"),
        ("ana_1", "ana"),
        ("ana_02", "ana"),
        ("ana_lee_3", "ana_lee"),
        ("ana_1_2", "ana_1"),
        ("ana1", "ana1"),
        ("ana-1", "ana"),
        ("ana 1", "ana"),
        ("ana (1)", "ana"),
        ("ana(1)", "ana"),
        ("ana - 02", "ana"),
        ("emp_1042", "emp"),
        ("sam_1", "sam"),
        ("ana_b1", "ana_b1"),
        ("1042", "1042"),
        ("1042_2", "1042"),
        ("_1", "_1"),
        ("Zoë_7", "Zoë"),
        ("(1)", "(1)"),
        (f"ana{' ' * 70_000}1", "ana"),
        ("IMG_2041", "IMG_2041"),
        ("IMG_2041 (1)", "IMG_2041 (1)"),
        ("IMG_E2041", "IMG_E2041"),
        ("IMG-20261124-WA0003", "IMG-20261124-WA0003"),
        ("_MG_1234", "_MG_1234"),
        ("dsc_0001", "dsc_0001"),
        ("100_0001", "100_0001"),
        ("PXL_20261124_101502123", "PXL_20261124_101502123"),
        ("20261124_101502", "20261124_101502"),
        ("20261124_101502 (2)", "20261124_101502 (2)"),
        ("2026-11-24 10.15.02", "2026-11-24 10.15.02"),
        ("2026-11-24", "2026-11-24"),
        ("photo_2026-11-24_10-15-02", "photo_2026-11-24_10-15-02"),
        ("WhatsApp Image 2026-11-24 at 10.15.02", "WhatsApp Image 2026-11-24 at 10.15.02"),
        ("Screenshot_20261124-101502", "Screenshot_20261124-101502"),
        ("image_1", "image_1"),
    ],
)
def test_identity_is_taken_from_the_stem(stem: str, identity: str) -> None:
    assert identity_of_stem(stem) == identity


def test_folders_are_identities_and_loose_files_are_grouped_by_stem(tmp_path: Path) -> None:
    root = write(
        tmp_path / "photos",
        {
            "ana/one.jpg": "a1",
            "ana/2019/two.PNG": "a2",
            "ben/x_1.webp": "b1",
            "cleo_1.jpg": "c1",
            "cleo_02.jpeg": "c2",
            "1042.heic": "n",
        },
    )
    assert summarize(rows_of([root]), root) == [
        ("1042.heic", "1042", b"n"),
        ("ana/2019/two.PNG", "ana", b"a2"),
        ("ana/one.jpg", "ana", b"a1"),
        ("ben/x_1.webp", "ben", b"b1"),
        ("cleo_02.jpeg", "cleo", b"c2"),
        ("cleo_1.jpg", "cleo", b"c1"),
    ]


SYSTEM_FILES = {
    "ana/.2.jpg": "hidden",
    "ana/._1.jpg": "resource fork",
    ".git/3.jpg": "",
    ".Trash/1.jpg": "",
    ".Trash-1000/files/1.jpg": "",
    "__MACOSX/ana/1.jpg": "",
    "ana/@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg": "",
    "@eaDir/1.jpg": "",
    "#recycle/ben/1.jpg": "",
    "#snapshot/1.jpg": "",
    "@Recycle/1.jpg": "",
    "@Recently-Snapshot/1.jpg": "",
    "$RECYCLE.BIN/S-1-5-21/1.jpg": "",
    "$Recycle.Bin/2.jpg": "",
    "RECYCLER/1.jpg": "",
    "System Volume Information/1.jpg": "",
    "lost+found/1.jpg": "",
    "found.000/1.jpg": "",
    "~snapshot/1.jpg": "",
    "trashbox/1.jpg": "",
    "Network Recycle Bin/1.jpg": "",
    "Thumbs.db": "",
    "desktop.ini": "",
    "ana/Thumbs.db/1.jpg": "",
}
"""What file systems, network storage and file managers leave in folders of photos."""


def test_files_of_systems_and_other_types_are_ignored(tmp_path: Path) -> None:
    others = {"ana/notes.txt": "", "jpg": "", "ana/1.jpg": "a", "@ben/1.jpg": "b"}
    root = write(tmp_path / ".photos", SYSTEM_FILES | others)  # a folder given by name may be hidden
    (root / "folder.jpg").mkdir()
    expected = [("@ben/1.jpg", "@ben", b"b"), ("ana/1.jpg", "ana", b"a")]
    assert summarize(rows_of([root]), root) == expected
    archive = pack(tmp_path / "photos.zip", SYSTEM_FILES | others)
    assert summarize(rows_of([archive]), archive) == expected


ZOE = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")


def test_identity_of_a_name_is_independent_of_its_normalization_form(tmp_path: Path) -> None:
    composed, decomposed = ZOE
    assert composed != decomposed
    files = {f"{name}/{i}.jpg": name for i, name in enumerate(ZOE)} | {f"{name}_1.jpg": name for name in ZOE}
    root = write(tmp_path / "photos", files)
    archive = pack(tmp_path / "photos.zip", files)
    for rows in (rows_of([root]), rows_of([archive]), rows_of([root / f"{decomposed}_1.jpg"])):
        assert {row.person.external_id for row in rows} == {composed}
    assert len(rows_of([root])) == len(rows_of([archive])) == 4


@pytest.mark.parametrize(
    ("names", "is_person"),
    [
        (["IMG_2041", "IMG_2042"], True),
        (["20261124_101502"], True),
        (["1", "2", "3"], True),
        (["0001", "IMG_2041"], True),
        (["front_1", "IMG_2041"], False),
        (["ana_1", "ana_2"], False),
        (["1042", "1043"], False),
        (["ana"], False),
    ],
)
def test_folder_given_by_name_is_a_person_unless_its_photos_have_names(
    tmp_path: Path, names: list[str], is_person: bool
) -> None:
    root = write(tmp_path / "laura", {f"{name}.jpg": name for name in names})
    identities = {row.person.external_id for row in rows_of([root])}
    assert identities == ({"laura"} if is_person else {identity_of_stem(name) for name in names})


def test_current_folder_is_a_person_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "laura", {"IMG_2041.jpg": "1"}))
    assert [row.person.external_id for row in rows_of([Path()])] == ["laura"]


def test_camera_names_beside_folders_are_identities_of_their_own(tmp_path: Path) -> None:
    files = {"ana/1.jpg": "a", "IMG_2041.jpg": "b", "IMG_2042.jpg": "c"}
    expected = [
        ("IMG_2041.jpg", "IMG_2041", b"b"),
        ("IMG_2042.jpg", "IMG_2042", b"c"),
        ("ana/1.jpg", "ana", b"a"),
    ]
    root, archive = write(tmp_path / "photos", files), pack(tmp_path / "photos.zip", files)
    assert summarize(rows_of([root]), root) == summarize(rows_of([archive]), archive) == expected


def test_photos_of_an_identity_follow_one_another(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", dict.fromkeys(["ana (1).jpg", "ana-lee.jpg", "ana.jpg", "ana_1.jpg"], "a"))
    rows = rows_of([root])
    assert [(row.person.external_id, row.stem) for row in rows] == [
        ("ana", "ana (1)"),
        ("ana", None),
        ("ana", "ana_1"),
        ("ana-lee", None),
    ]


def test_files_given_by_name_may_have_any_extension(tmp_path: Path) -> None:
    write(tmp_path, {"ana_1.jpg": "a", "1042": "n", "ben/ignored.jpg": "b"})
    rows = rows_of([tmp_path / "ana_1.jpg", tmp_path / "1042", tmp_path / "ben"])
    assert summarize(rows, tmp_path) == [
        ("ana_1.jpg", "ana", b"a"),
        ("1042", "1042", b"n"),
        ("ben/ignored.jpg", "ignored", b"b"),
    ]


def test_too_large_or_deleted_file_is_rejected_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"ana.jpg": b"x" * LIMIT, "ben.jpg": b"x" * (LIMIT + 1), "cleo.jpg": "c"})
    rows = rows_of([tmp_path])
    (tmp_path / "cleo.jpg").unlink()
    assert [content(row) for row in rows] == [b"x" * LIMIT, Reason.IMAGE_TOO_LARGE, Reason.UNREADABLE_IMAGE]


def test_only_photos_of_a_folder_with_an_invalid_name_are_rejected(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", {f"{'x' * 201}/1.jpg": "x", "ana/1.jpg": "a"})
    ana, long = rows_of([root])
    assert (content(ana), content(long)) == (b"a", Reason.INVALID_ROW)
    assert "1 to 200 printable characters" in message(long)


def test_links_are_followed_without_cycles(tmp_path: Path) -> None:
    away = write(tmp_path / "away", {"1.jpg": "a", "old/2.jpg": "o"})
    root = write(tmp_path / "photos", {"ben/1.jpg": "b", "ben/old/2.jpg": "c"})
    (root / "ana").symlink_to(away, target_is_directory=True)
    (root / "also-ben").symlink_to(root / "ben", target_is_directory=True)
    (root / "cleo.jpg").symlink_to(away / "1.jpg")
    (root / "gone.jpg").symlink_to(away / "gone.jpg")
    (root / "ben" / "old" / "all").symlink_to(root, target_is_directory=True)
    (root / "ben" / "self").symlink_to(root / "ben", target_is_directory=True)
    (away / "back").symlink_to(away, target_is_directory=True)
    expected = [
        ("also-ben/1.jpg", "also-ben", b"b"),
        ("also-ben/old/2.jpg", "also-ben", b"c"),
        ("ana/1.jpg", "ana", b"a"),
        ("ana/old/2.jpg", "ana", b"o"),
        ("ben/1.jpg", "ben", b"b"),
        ("ben/old/2.jpg", "ben", b"c"),
        ("cleo.jpg", "cleo", b"a"),
    ]
    assert summarize(rows_of([root]), root) == expected
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert summarize(rows_of([tmp_path / "link"]), tmp_path / "link") == expected


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has file names of arbitrary bytes")
def test_names_that_are_not_utf_8_are_replaced(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write(root, {"ana/1.jpg": "a"})
    for name in (b"ana/caf\xe9.jpg", b"caf\xe9_1.jpg"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"c")
    ana, cafe, loose = rows_of([root])
    assert (cafe.image, cafe.person.external_id, content(cafe)) == (f"{root}/ana/caf?.jpg", "ana", b"c")
    assert (loose.image, loose.person.external_id, content(loose)) == (f"{root}/caf?_1.jpg", "caf?", "invalid_row")
    assert content(ana) == b"a"


@pytest.mark.parametrize("name", ["nothing", "nothing.zip", "nothing.jpg"])
def test_missing_path_is_named_in_the_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"there is no .*{name}; expected a folder, an image or a ZIP file"):
        rows_of([tmp_path / name])


@pytest.mark.parametrize("option", ["", "--manifest"])
def test_path_that_is_too_long_is_wrong_usage(tmp_path: Path, option: str) -> None:
    path = tmp_path / f"{'x' * 300}.csv"
    ran = Command(tmp_path / "home")("enroll", *option.split(), path, "--gallery", "staff")
    assert ran.code == 2
    assert f"{path} cannot be read: File name too long" in ran.err
    assert "Traceback" not in ran.err


def test_folder_as_manifest_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"the manifest {tmp_path} cannot be read: Is a directory"):
        rows_of([], tmp_path)
