"""Folders, files, ZIPs and manifests as rows."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from indexer.enrollment.manifests import parse_time
from indexer.enrollment.rows import Row
from indexer.enrollment.sources import identity_of_stem, rows_of
from indexer.errors import InvalidRequest, RejectedImage
from indexer.types import Person, Reason
from tests.indexer.cli.command import Command

LIMIT = 1000


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def pack(path: Path, files: Mapping[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def told(rows: Sequence[Row], root: Path) -> list[tuple[str, str, bytes | str]]:
    """Each row's image below `root`, identity, and content or reason."""
    return [(row.image.removeprefix(f"{root}/"), row.person.external_id, content(row)) for row in rows]


def content(row: Row, limit: int = LIMIT) -> bytes | str:
    try:
        return row.read(limit)
    except RejectedImage as rejection:
        return str(rejection.code)


def message(row: Row) -> str:
    try:  # and not `pytest.raises`, whose frames would keep the archive until it is collected, still open
        row.read(LIMIT)
    except RejectedImage as rejection:
        return rejection.message
    pytest.fail(f"{row.image} was read")


# Folders and files


@pytest.mark.parametrize(
    ("stem", "identity"),
    [
        ("ana", "ana"),
        ("ana_1", "ana"),
        ("ana_02", "ana"),
        ("ana_lee_3", "ana_lee"),
        ("ana_1_2", "ana_1"),
        ("ana1", "ana1"),
        ("ana-1", "ana-1"),
        ("ana_b1", "ana_b1"),
        ("1042", "1042"),
        ("1042_2", "1042"),
        ("_1", "_1"),
        ("Zoë_7", "Zoë"),
    ],
)
def test_identity_of_a_stem(stem: str, identity: str) -> None:
    assert identity_of_stem(stem) == identity


def test_folder_of_folders_nested_and_loose_files(tmp_path: Path) -> None:
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
    assert told(rows_of([root]), root) == [
        ("1042.heic", "1042", b"n"),
        ("ana/2019/two.PNG", "ana", b"a2"),
        ("ana/one.jpg", "ana", b"a1"),
        ("ben/x_1.webp", "ben", b"b1"),
        ("cleo_02.jpeg", "cleo", b"c2"),
        ("cleo_1.jpg", "cleo", b"c1"),
    ]


def test_hidden_files_and_what_is_no_photo_are_passed_over(tmp_path: Path) -> None:
    root = write(
        tmp_path / ".photos",  # the folder that was named may be hidden itself
        {
            "ana/1.jpg": "a",
            "ana/.2.jpg": "",
            "ana/._1.jpg": "",
            ".git/3.jpg": "",
            "__MACOSX/ana/1.jpg": "",
            "ana/notes.txt": "",
            "Thumbs.db": "",
            "jpg": "",
        },
    )
    (root / "folder.jpg").mkdir()
    assert told(rows_of([root]), root) == [("ana/1.jpg", "ana", b"a")]


def test_files_named_one_by_one_count_whatever_they_are_called(tmp_path: Path) -> None:
    write(tmp_path, {"ana_1.jpg": "a", "1042": "n", "ben/ignored.jpg": "b"})
    rows = rows_of([tmp_path / "ana_1.jpg", tmp_path / "1042", tmp_path / "ben"])
    assert told(rows, tmp_path) == [
        ("ana_1.jpg", "ana", b"a"),
        ("1042", "1042", b"n"),
        ("ben/ignored.jpg", "ignored", b"b"),
    ]


def test_a_file_over_the_limit_or_gone_is_rejected_when_its_turn_comes(tmp_path: Path) -> None:
    write(tmp_path, {"ana.jpg": b"x" * LIMIT, "ben.jpg": b"x" * (LIMIT + 1), "cleo.jpg": "c"})
    rows = rows_of([tmp_path])
    (tmp_path / "cleo.jpg").unlink()
    assert [content(row) for row in rows] == [b"x" * LIMIT, Reason.IMAGE_TOO_LARGE, Reason.UNREADABLE_IMAGE]


def test_a_folder_whose_name_is_no_identity_rejects_its_photos_alone(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", {f"{'x' * 201}/1.jpg": "x", "ana/1.jpg": "a"})
    ana, long = rows_of([root])
    assert (content(ana), content(long)) == (b"a", Reason.INVALID_ROW)
    assert "1 to 200 printable characters" in message(long)


def test_links_are_followed_and_cycles_are_not(tmp_path: Path) -> None:
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
    assert told(rows_of([root]), root) == expected
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert told(rows_of([tmp_path / "link"]), tmp_path / "link") == expected


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_names_that_are_not_utf_8_can_be_told(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write(root, {"ana/1.jpg": "a"})
    for name in (b"ana/caf\xe9.jpg", b"caf\xe9_1.jpg"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"c")
    ana, cafe, loose = rows_of([root])
    assert (cafe.image, cafe.person.external_id, content(cafe)) == (f"{root}/ana/caf?.jpg", "ana", b"c")
    assert (loose.image, loose.person.external_id, content(loose)) == (f"{root}/caf?_1.jpg", "caf?", "invalid_row")
    assert content(ana) == b"a"


@pytest.mark.parametrize("name", ["nothing", "nothing.zip", "nothing.jpg"])
def test_a_path_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"there is no .*{name}; expected a folder, an image or a ZIP file"):
        rows_of([tmp_path / name])


@pytest.mark.parametrize("option", ["", "--manifest"])
def test_a_path_that_cannot_be_looked_up_is_wrong_usage(tmp_path: Path, option: str) -> None:
    path = tmp_path / f"{'x' * 300}.csv"
    ran = Command(tmp_path / "home")("enroll", *option.split(), path, "--gallery", "staff")
    assert ran.code == 2
    assert f"{path} cannot be read: File name too long" in ran.err
    assert "Traceback" not in ran.err


def test_a_manifest_that_is_no_file_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"the manifest {tmp_path} cannot be read: Is a directory"):
        rows_of([], tmp_path)


# Manifests


def manifest_rows(folder: Path, text: str | bytes, images: str = "ana.jpg ben.jpg cleo.jpg") -> list[Row]:
    write(folder, {name: name for name in images.split()} | {"m.csv": text})
    return rows_of([], folder / "m.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_manifest_in_the_dialects_of_spreadsheets(tmp_path: Path, delimiter: str, start: bytes) -> None:
    lines = [
        ["Image", "external_id", " Name ", "Department", "valid_until"],
        ["ana.jpg", "e-1", '"Ana ""A"", Lee"', " IT ", "2026-12-31"],
        ["ben.jpg", " e-2 ", "", "", ""],
        ["sub/cleo.jpg", "e-3", "Zoë"],
    ]
    write(tmp_path, {"sub/cleo.jpg": "sub"})
    ana, ben, cleo = manifest_rows(tmp_path, start + "\r\n".join(map(delimiter.join, lines)).encode())
    assert ana.person.external_id == "e-1"
    assert ana.person.name == 'Ana "A", Lee'
    assert ana.person.metadata == {"Department": "IT"}
    assert ana.person.valid_until == datetime(2027, 1, 1, tzinfo=UTC)
    assert content(ana) == b"ana.jpg"
    assert ben.person == Person("e-2")
    assert (cleo.person.name, content(cleo)) == ("Zoë", b"sub")


@pytest.mark.parametrize(
    ("value", "end", "time"),
    [
        ("2026-12-31", False, datetime(2026, 12, 31, tzinfo=UTC)),
        ("2026-12-31", True, datetime(2027, 1, 1, tzinfo=UTC)),
        ("20261231", True, datetime(2027, 1, 1, tzinfo=UTC)),
        ("2028-02-29", True, datetime(2028, 3, 1, tzinfo=UTC)),
        ("9999-12-31", True, datetime.max.replace(tzinfo=UTC)),
        ("9999-12-31", False, datetime(9999, 12, 31, tzinfo=UTC)),
        ("2026-12-31T18:00", True, datetime(2026, 12, 31, 18, tzinfo=UTC)),
        ("2026-12-31 18:00:30", False, datetime(2026, 12, 31, 18, 0, 30, tzinfo=UTC)),
        ("2026-12-31T18:00+02:00", True, datetime(2026, 12, 31, 16, tzinfo=UTC)),
        ("2026-12-31T23:30-01:00", False, datetime(2027, 1, 1, 0, 30, tzinfo=UTC)),
        ("2026-12-31T18:00Z", False, datetime(2026, 12, 31, 18, tzinfo=UTC)),
    ],
)
def test_dates_and_times(value: str, end: bool, time: datetime) -> None:
    found = parse_time("valid_until", value, end)
    assert found == time
    assert found is not None
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "value", ["31.12.2026", "12/31/2026", "2026-02-29", "2026-13-01", "soon", "2026", "0001-01-01T00:00+01:00"]
)
def test_bad_dates_say_what_was_expected(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_time("valid_from", value)
    assert caught.value.message.startswith(f"valid_from is {value!r}; expected a date like 2026-12-31")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"image,name\nana.jpg,Ana\n", "has no column 'external_id'; it has image, name"),
        (b"file,external_id\nana.jpg,ana\n", "has no column 'image'"),
        (b"image,external_id,Name,NAME\n", "has duplicate columns: image, external_id, name, name"),
        (b"image,external_id,Team,Team\n", "has duplicate columns"),
        (b"image,external_id\nana.jpg,Zo\xeb\n", "is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not UTF-8"),
        (b'image,external_id\nana.jpg,"ana\n', "is not CSV"),
        (b'image,external_id\nana.jpg,ana\nben.jpg,"b"en\n', "line 3, is not CSV"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_wrong_usage(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "staff.csv").write_bytes(text)
    ran = Command(tmp_path / "home")("enroll", "--manifest", tmp_path / "staff.csv", "--gallery", "staff")
    assert ran.code == 2
    assert ran.out == ""
    assert f"the manifest {tmp_path / 'staff.csv'}" in ran.err
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "home").exists(), "nothing is made before the question makes sense"


def test_a_manifest_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    ran = Command(tmp_path / "home")("enroll", "--manifest", tmp_path / "no.csv", "--gallery", "staff")
    assert (ran.code, ran.err) == (2, f"Error: there is no manifest {tmp_path / 'no.csv'}\n")


@pytest.mark.parametrize(
    ("line", "reason", "says"),
    [
        ("gone.jpg,x,,", "unreadable_image", "the manifest names 'gone.jpg'"),
        (f"{'n' * 300}.jpg,x,,", "unreadable_image", "there is no such file"),
        (",x,,", "invalid_row", "line 3 of the manifest: it names no image"),
        ("ben.jpg,,,", "invalid_row", "line 3 of the manifest: an external_id must be"),
        (f"ben.jpg,{'x' * 201},,", "invalid_row", "line 3 of the manifest: an external_id must be"),
        ('ben.jpg,"x\ny",,', "invalid_row", "of the manifest: an external_id must be"),
        ("ben.jpg,x,,31.12.2026", "invalid_row", "line 3 of the manifest: valid_until is '31.12.2026'"),
        ("ben.jpg,x,,,IT", "invalid_row", "line 3 of the manifest: it has more cells than the header"),
        ("ben.jpg,ana,Bea,", "invalid_row", "duplicate external_id 'ana': its name is Bea here and Ana in line 2"),
        ("ben.jpg,ana,,2027-01-01", "invalid_row", "duplicate external_id 'ana': its valid_until is 2027-01-02"),
    ],
)
def test_what_is_wrong_with_one_row_stays_with_that_row(tmp_path: Path, line: str, reason: str, says: str) -> None:
    text = f"image,external_id,name,valid_until\nana.jpg,ana,Ana,2026-12-31\n{line}\ncleo.jpg,ana,,\n"
    ana, wrong, cleo = manifest_rows(tmp_path, text)
    assert (content(ana), content(cleo), cleo.person.external_id) == (b"ana.jpg", b"cleo.jpg", "ana")
    assert content(wrong) == reason
    assert says in message(wrong)


def test_cells_that_are_too_much_metadata_stay_with_their_row(tmp_path: Path) -> None:
    text = f"image,external_id,note\nana.jpg,ana,short\nben.jpg,ben,{'é' * 9_000}\n"
    ana, wrong = manifest_rows(tmp_path, text)
    assert (content(ana), content(wrong)) == (b"ana.jpg", "invalid_row")
    assert message(wrong).startswith("line 3 of the manifest: the metadata of 'ben' would be 18,011 bytes of JSON")


def test_an_id_said_without_a_name_first_still_has_one_name(tmp_path: Path) -> None:
    text = "image,external_id,name\nana.jpg,ana,\nben.jpg,ana,Ana\ncleo.jpg,ana,Bea\n"
    rows = manifest_rows(tmp_path, text)
    assert [content(row) for row in rows] == [b"ana.jpg", b"ben.jpg", "invalid_row"]
    assert "its name is Bea here and Ana in line 3" in message(rows[2])


def test_dates_in_the_wrong_order_are_the_rows_error(tmp_path: Path) -> None:
    lines = "ana.jpg,ana,2026-05-02,2026-05-01\nben.jpg,ben,2026-05-01,2026-05-01\n"
    ana, ben = manifest_rows(tmp_path, "image,external_id,valid_from,valid_until\n" + lines)
    assert "valid_until" in message(ana)
    assert content(ben) == b"ben.jpg", "one day is a span: the last date is included"


def test_the_manifest_that_a_folder_brings_along_says_it_all(tmp_path: Path) -> None:
    root = write(
        tmp_path / "photos",
        {"manifest.csv": "image,external_id\nsub/x.jpg,e-1\n", "sub/x.jpg": "x", "ben/1.jpg": "not named"},
    )
    (row,) = rows_of([root])
    assert (row.image, row.person.external_id, content(row)) == ("sub/x.jpg", "e-1", b"x")


def test_images_are_looked_for_beside_the_manifest_and_then_in_the_paths(tmp_path: Path) -> None:
    write(tmp_path / "lists", {"m.csv": "image,external_id\na.jpg,ana\nb.jpg,ben\nx/c.jpg,cleo\n", "a.jpg": "beside"})
    folder = write(tmp_path / "photos", {"a.jpg": "not this one", "b.jpg": "in the folder"})
    archive = pack(tmp_path / "more.zip", {"x/c.jpg": "in the ZIP"})
    rows = rows_of([folder, archive], tmp_path / "lists" / "m.csv")
    assert [content(row) for row in rows] == [b"beside", b"in the folder", b"in the ZIP"]


@pytest.mark.parametrize("named", ["staff/ana/1.jpg", "ana/1.jpg"])
def test_a_manifest_beside_a_zip_may_say_the_folder_it_was_packed_from(tmp_path: Path, named: str) -> None:
    write(tmp_path, {"m.csv": f"image,external_id\n{named},ana\n"})
    archive = pack(tmp_path / "staff.zip", {"staff/ana/1.jpg": "a", "staff/ben/1.jpg": "b"})
    (row,) = rows_of([archive], tmp_path / "m.csv")
    assert content(row) == b"a"


# ZIPs


def test_zip_of_a_folder_of_folders(tmp_path: Path) -> None:
    archive = pack(
        tmp_path / "photos.zip",
        {
            "ana/": "",
            "ana/1.jpg": "a1",
            "ana/old/2.jpg": "a2",
            "ben/1.jpg": "b",
            "ben/readme.txt": "",
            "ana/.hidden.jpg": "",
            "__MACOSX/ana/._1.jpg": "",
            "cleo_1.jpg": "c",
        },
    )
    assert told(rows_of([archive]), archive) == [
        ("ana/1.jpg", "ana", b"a1"),
        ("ana/old/2.jpg", "ana", b"a2"),
        ("ben/1.jpg", "ben", b"b"),
        ("cleo_1.jpg", "cleo", b"c"),
    ]


def test_zip_with_the_folder_that_it_was_packed_from(tmp_path: Path) -> None:
    files = {"staff/ana/1.jpg": "a", "staff/ben/1.jpg": "b", "__MACOSX/staff/ana/._1.jpg": "", "staff/cleo_1.jpg": "c"}
    archive = pack(tmp_path / "photos.ZIP", files)
    assert told(rows_of([archive]), archive) == [
        ("ana/1.jpg", "ana", b"a"),
        ("ben/1.jpg", "ben", b"b"),
        ("cleo_1.jpg", "cleo", b"c"),
    ]


def test_zip_of_one_persons_folder_and_of_loose_files(tmp_path: Path) -> None:
    one = pack(tmp_path / "one.zip", {"ana/1.jpg": "1", "ana/2.jpg": "2"})
    loose = pack(tmp_path / "loose.zip", {"ana_1.jpg": "1", "ana_02.jpg": "2", "1042.jpg": "n"})
    assert [row.person.external_id for row in rows_of([one])] == ["ana", "ana"]
    assert told(rows_of([loose]), loose) == [
        ("1042.jpg", "1042", b"n"),
        ("ana_02.jpg", "ana", b"2"),
        ("ana_1.jpg", "ana", b"1"),
    ]


@pytest.mark.parametrize("top", ["", "staff/"])
def test_zip_with_a_manifest(tmp_path: Path, top: str) -> None:
    manifest = "image;external_id;name\nx/1.jpg;e-1;Ana\n../1.jpg;e-2;\n/etc/passwd;e-3;\nC:\\x.jpg;e-4;\nno.jpg;e-5;\n"
    files = {f"{top}manifest.csv": manifest, f"{top}x/1.jpg": "a", f"{top}ben/1.jpg": "not named"}
    archive = pack(tmp_path / "photos.zip", files)
    rows = rows_of([archive])
    assert told(rows, archive) == [
        ("x/1.jpg", "e-1", b"a"),
        ("../1.jpg", "e-2", "invalid_row"),
        ("/etc/passwd", "e-3", "invalid_row"),
        ("C:\\x.jpg", "e-4", "invalid_row"),
        ("no.jpg", "e-5", "unreadable_image"),
    ]
    assert rows[0].person.name == "Ana"
    assert message(rows[1]) == "line 3 of the manifest: its image '../1.jpg' points out of the archive"


@pytest.mark.parametrize(
    "name", ["../ana.jpg", "ana/../../x.jpg", "/ana.jpg", "C:/ana.jpg", "c:ana.jpg", "..\\ana.jpg", "\\\\host\\ana.jpg"]
)
def test_names_that_point_out_of_the_archive_are_never_read(tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / "photos.zip", {name: "evil", "ana/1.jpg": "a", "ben/1.jpg": "b"})
    before = sorted(tmp_path.rglob("*"))
    evil, ana, ben = rows_of([archive])
    assert content(evil) == "invalid_row"
    assert evil.image == name.replace("\\", "/")
    assert "points out of the archive" in message(evil)
    assert (content(ana), ana.person.external_id, content(ben)) == (b"a", "ana", b"b")
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_with_the_backslashes_of_old_windows_programs(tmp_path: Path) -> None:
    archive = pack(tmp_path / "photos.zip", {"staff\\ana\\1.jpg": "a", "staff\\ben\\1.jpg": "b"})
    assert told(rows_of([archive]), archive) == [("ana/1.jpg", "ana", b"a"), ("ben/1.jpg", "ben", b"b")]


def damaged(path: Path, compression: int, how: str) -> Path:
    """A ZIP of ana/1.jpg, ben/1.jpg, cleo/1.jpg, the second of which is wrong."""
    body = os.urandom(300)
    pack(path, {"ana/1.jpg": "a", "ben/1.jpg": body, "cleo/1.jpg": "c"}, compression)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("ben/1.jpg")
    start = entry.header_offset + 30 + len(entry.filename)
    central = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    if how == "bytes":
        data[start : start + 200] = bytes(0xFF - b for b in data[start : start + 200])
    elif how == "crc":
        data[central + 16] ^= 0xFF
    elif how == "encrypted":
        data[entry.header_offset + 6] |= 1
        data[central + 8] |= 1
    elif how == "method":
        data[entry.header_offset + 8 : entry.header_offset + 10] = struct.pack("<H", 99)
        data[central + 10 : central + 12] = struct.pack("<H", 99)
    elif how == "offset":
        # Within the entry itself: Pythons that guard against overlapping entries read neither of two that do.
        data[central + 42 : central + 46] = struct.pack("<I", entry.header_offset + 3)
    elif how == "claims less":
        data[central + 24 : central + 28] = struct.pack("<I", 10)
    else:
        assert how == "claims more"
        data[central + 24 : central + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("how", ["bytes", "crc", "encrypted", "method", "offset", "claims less"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_or_encrypted_entry_is_rejected_alone(tmp_path: Path, compression: int, how: str) -> None:
    ana, ben, cleo = rows_of([damaged(tmp_path / "photos.zip", compression, how)])
    assert (content(ana), content(cleo)) == (b"a", b"c")
    assert content(ben) == "unreadable_image"
    assert message(ben).startswith("the archive entry ")
    assert ("is compressed by method 99; expected" in message(ben)) == (how == "method")
    assert (b"password" in message(ben).encode()) == (how == "encrypted")


def test_an_entry_that_claims_more_than_the_limit_is_not_unpacked(tmp_path: Path) -> None:
    _, ben, _ = rows_of([damaged(tmp_path / "photos.zip", zipfile.ZIP_STORED, "claims more")])
    assert content(ben) == "image_too_large"


def test_a_zip_bomb_is_refused_by_what_it_unpacks_to(tmp_path: Path) -> None:
    archive = pack(tmp_path / "bomb.zip", {"ana/1.jpg": b"\0" * 50_000_000, "ben/1.jpg": b"\0" * LIMIT})
    assert archive.stat().st_size < 100_000
    bomb, exact = rows_of([archive])
    assert content(bomb) == "image_too_large"
    assert "decompresses to more than the 1,000 bytes allowed" in message(bomb)
    assert content(exact) == b"\0" * LIMIT


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_cannot_be_unpacked_piece_by_piece_is_not_unpacked(tmp_path: Path, compression: int) -> None:
    """Python unpacks such an entry whole, whatever size it claims."""
    path = pack(tmp_path / "bomb.zip", {"ana.jpg": b"\0" * 50_000_000}, compression)
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    tracemalloc.start()
    (bomb,) = rows_of([path])
    assert content(bomb) == "unreadable_image"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    assert (
        message(bomb) == f"the archive entry is compressed by method {compression}; expected 0 (stored) or 8 (deflated)"
    )
    manifest = pack(tmp_path / "manifest.zip", {"manifest.csv": "image,external_id\n"}, compression)
    with pytest.raises(
        InvalidRequest, match=rf"manifest\.csv: the archive entry is compressed by method {compression}; expected"
    ):
        rows_of([manifest])


def with_bad_name() -> bytes:
    """A ZIP whose only entry says that its name is UTF-8, which it is not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("é.jpg", b"")
    return buffer.getvalue().replace("é".encode(), b"\xff\xff")


@pytest.mark.parametrize("data", [b"", b"no ZIP", b"PK\x03\x04 cut short", with_bad_name()])
def test_what_is_no_zip_is_wrong_usage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "photos.zip").write_bytes(data)
    ran = Command(tmp_path / "home")("enroll", tmp_path / "photos.zip", "--gallery", "staff")
    assert ran.code == 2
    assert ran.err.startswith(f"Error: {tmp_path / 'photos.zip'} is not a readable ZIP file: ")


def test_a_zip_whose_manifest_cannot_be_read_is_wrong_usage(tmp_path: Path) -> None:
    path = pack(tmp_path / "photos.zip", {"manifest.csv": "image,external_id\n" + "x.jpg,x\n" * 9, "x.jpg": "x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 16] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match=r"photos\.zip/manifest\.csv: the archive entry cannot be read: Bad CRC"):
        rows_of([path])
