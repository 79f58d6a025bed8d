"""Rows of photos from ZIP files."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from indexer.enrollment.sources import rows_of
from indexer.errors import InvalidRequest
from tests.indexer.cli.command import Command
from tests.indexer.enrollment.photo_files import LIMIT, content, message, pack, summarize


def test_zip_of_folders_has_an_identity_for_each_folder(tmp_path: Path) -> None:
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
    assert summarize(rows_of([archive]), archive) == [
        ("ana/1.jpg", "ana", b"a1"),
        ("ana/old/2.jpg", "ana", b"a2"),
        ("ben/1.jpg", "ben", b"b"),
        ("cleo_1.jpg", "cleo", b"c"),
    ]


def test_top_folder_of_a_zip_is_ignored(tmp_path: Path) -> None:
    files = {"staff/ana/1.jpg": "a", "staff/ben/1.jpg": "b", "__MACOSX/staff/ana/._1.jpg": "", "staff/cleo_1.jpg": "c"}
    archive = pack(tmp_path / "photos.ZIP", files)
    assert summarize(rows_of([archive]), archive) == [
        ("ana/1.jpg", "ana", b"a"),
        ("ben/1.jpg", "ben", b"b"),
        ("cleo_1.jpg", "cleo", b"c"),
    ]


def test_other_files_do_not_hide_the_top_folder_of_a_zip(tmp_path: Path) -> None:
    photos = {"staff/ana/1.jpg": "a", "staff/ben/1.jpg": "b"}
    expected = [("ana/1.jpg", "ana", b"a"), ("ben/1.jpg", "ben", b"b")]
    for other in ("Thumbs.db", "readme.txt", "@eaDir/x.jpg", "staff/desktop.ini"):
        archive = pack(tmp_path / "photos.zip", {other: "", **photos})
        assert summarize(rows_of([archive]), archive) == expected


def test_leading_dot_in_the_names_of_a_zip_is_ignored(tmp_path: Path) -> None:
    archive = pack(tmp_path / "photos.zip", {"./staff/ana/1.jpg": "a", ".\\staff\\ben//1.jpg": "b"})
    assert summarize(rows_of([archive]), archive) == [("ana/1.jpg", "ana", b"a"), ("ben/1.jpg", "ben", b"b")]


def test_entries_whose_names_become_equal_are_both_read(tmp_path: Path) -> None:
    archive = pack(tmp_path / "photos.zip", {"ana/1.jpg": "a", "./ana/1.jpg": "b", "ben/1.jpg": "c"})
    assert [(row.person.external_id, content(row)) for row in rows_of([archive])] == [
        ("ana", b"a"),
        ("ana", b"b"),
        ("ben", b"c"),
    ]


def test_zip_may_hold_one_folder_or_loose_files(tmp_path: Path) -> None:
    one = pack(tmp_path / "one.zip", {"ana/1.jpg": "1", "ana/2.jpg": "2"})
    loose = pack(tmp_path / "loose.zip", {"ana_1.jpg": "1", "ana_02.jpg": "2", "1042.jpg": "n"})
    assert [row.person.external_id for row in rows_of([one])] == ["ana", "ana"]
    assert summarize(rows_of([loose]), loose) == [
        ("1042.jpg", "1042", b"n"),
        ("ana_02.jpg", "ana", b"2"),
        ("ana_1.jpg", "ana", b"1"),
    ]


@pytest.mark.parametrize("top", ["", "staff/"])
def test_manifest_in_a_zip_names_its_images(tmp_path: Path, top: str) -> None:
    manifest = "image;external_id;name\nx/1.jpg;e-1;Ana\n../1.jpg;e-2;\n/etc/passwd;e-3;\nC:\\x.jpg;e-4;\nno.jpg;e-5;\n"
    files = {f"{top}manifest.csv": manifest, f"{top}x/1.jpg": "a", f"{top}ben/1.jpg": "not named"}
    archive = pack(tmp_path / "photos.zip", files)
    rows = rows_of([archive])
    assert summarize(rows, archive) == [
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
def test_entries_that_point_out_of_the_archive_are_rejected(tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / "photos.zip", {name: "evil", "ana/1.jpg": "a", "ben/1.jpg": "b"})
    before = sorted(tmp_path.rglob("*"))
    evil, ana, ben = rows_of([archive])
    assert content(evil) == "invalid_row"
    assert evil.image == name.replace("\\", "/")
    assert "points out of the archive" in message(evil)
    assert (content(ana), ana.person.external_id, content(ben)) == (b"a", "ana", b"b")
    assert sorted(tmp_path.rglob("*")) == before


def test_backslashes_in_a_zip_separate_folders(tmp_path: Path) -> None:
    archive = pack(tmp_path / "photos.zip", {"staff\\ana\\1.jpg": "a", "staff\\ben\\1.jpg": "b"})
    assert summarize(rows_of([archive]), archive) == [("ana/1.jpg", "ana", b"a"), ("ben/1.jpg", "ben", b"b")]


def damaged(path: Path, compression: int, how: str) -> Path:
    """Writes a ZIP of ana/1.jpg, ben/1.jpg and cleo/1.jpg, of which the second is damaged."""
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
def test_only_the_damaged_or_encrypted_entry_is_rejected(tmp_path: Path, compression: int, how: str) -> None:
    ana, ben, cleo = rows_of([damaged(tmp_path / "photos.zip", compression, how)])
    assert (content(ana), content(cleo)) == (b"a", b"c")
    assert content(ben) == "unreadable_image"
    assert message(ben).startswith("the archive entry ")
    assert ("is compressed by method 99; expected" in message(ben)) == (how == "method")
    assert (b"password" in message(ben).encode()) == (how == "encrypted")


def test_entry_larger_than_the_limit_is_not_unpacked(tmp_path: Path) -> None:
    _, ben, _ = rows_of([damaged(tmp_path / "photos.zip", zipfile.ZIP_STORED, "claims more")])
    assert content(ben) == "image_too_large"


def test_zip_bomb_is_rejected_by_its_decompressed_size(tmp_path: Path) -> None:
    archive = pack(tmp_path / "bomb.zip", {"ana/1.jpg": b"\0" * 50_000_000, "ben/1.jpg": b"\0" * LIMIT})
    assert archive.stat().st_size < 100_000
    bomb, exact = rows_of([archive])
    assert content(bomb) == "image_too_large"
    assert "decompresses to more than the 1,000 bytes allowed" in message(bomb)
    assert content(exact) == b"\0" * LIMIT


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_cannot_be_streamed_is_rejected(tmp_path: Path, compression: int) -> None:
    """Python decompresses such an entry as a whole, regardless of the size in its header."""
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
    """Returns a ZIP whose only entry has a name that is marked as UTF-8 but is not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("é.jpg", b"")
    return buffer.getvalue().replace("é".encode(), b"\xff\xff")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "File is not a zip file"),
        (b"no ZIP", "File is not a zip file"),
        (b"PK\x03\x04 cut short", "it is incomplete, its end is missing; copy or send it again"),
        (with_bad_name(), "'utf-8' codec"),
    ],
)
def test_invalid_zip_is_wrong_usage(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "photos.zip").write_bytes(data)
    ran = Command(tmp_path / "home")("enroll", tmp_path / "photos.zip", "--gallery", "staff")
    assert ran.code == 2
    assert ran.err.startswith(f"Error: {tmp_path / 'photos.zip'} is not a readable ZIP file: {why}")


def test_zip_with_an_unreadable_manifest_is_wrong_usage(tmp_path: Path) -> None:
    path = pack(tmp_path / "photos.zip", {"manifest.csv": "image,external_id\n" + "x.jpg,x\n" * 9, "x.jpg": "x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 16] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(
        InvalidRequest, match=r"photos\.zip/manifest\.csv: the archive entry cannot be read: Bad CRC.* damaged"
    ):
        rows_of([path])
