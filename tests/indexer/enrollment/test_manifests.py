"""Rows of photos from manifests."""

from __future__ import annotations

import codecs
import tracemalloc
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from indexer.enrollment import manifest_files
from indexer.enrollment.manifests import parse_time
from indexer.enrollment.rows import Row
from indexer.enrollment.sources import rows_of
from indexer.errors import InvalidRequest
from indexer.types import Person
from tests.indexer.cli.command import Command
from tests.indexer.enrollment.photo_files import content, message, pack, write


def manifest_rows(folder: Path, text: str | bytes, images: str = "ana.jpg ben.jpg cleo.jpg") -> Sequence[Row]:
    write(folder, {name: name for name in images.split()} | {"m.csv": text})
    return rows_of([], folder / "m.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_manifest_may_use_any_spreadsheet_dialect(tmp_path: Path, delimiter: str, encoding: str) -> None:
    lines = [
        ["Image", "external_id", " Name ", "Department", "valid_until"],
        ["ana.jpg", "e-1", '"Ana ""A"", Lee"', " IT ", "2026-12-31"],
        ["ben.jpg", " e-2 ", "", "", ""],
        ["sub/cleo.jpg", "e-3", "Zoë"],
    ]
    write(tmp_path, {"sub/cleo.jpg": "sub"})
    ana, ben, cleo = manifest_rows(tmp_path, "\r\n".join(map(delimiter.join, lines)).encode(encoding))
    assert ana.person.external_id == "e-1"
    assert ana.person.name == 'Ana "A", Lee'
    assert ana.person.metadata == {"Department": "IT"}
    assert ana.person.valid_until == datetime(2027, 1, 1, tzinfo=UTC)
    assert content(ana) == b"ana.jpg"
    assert ben.person == Person("e-2")
    assert (cleo.person.name, content(cleo)) == ("Zoë", b"sub")


def test_manifest_may_end_lines_with_carriage_returns_alone(tmp_path: Path) -> None:
    ana, ben = manifest_rows(tmp_path, b"image,external_id,name\rana.jpg,ana,Ana\rben.jpg,ben,Ben\r")
    assert [(content(row), row.person.name) for row in (ana, ben)] == [(b"ana.jpg", "Ana"), (b"ben.jpg", "Ben")]


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
def test_dates_and_times_are_parsed_as_utc(value: str, end: bool, time: datetime) -> None:
    found = parse_time("valid_until", value, end)
    assert found == time
    assert found is not None
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "value", ["31.12.2026", "12/31/2026", "2026-02-29", "2026-13-01", "soon", "2026", "0001-01-01T00:00+01:00"]
)
def test_error_of_an_invalid_date_shows_an_example(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_time("valid_from", value)
    assert caught.value.message.startswith(f"valid_from is {value!r}; expected a date like 2026-12-31")


@pytest.mark.parametrize(
    ("text", "message_part"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"image,name\nana.jpg,Ana\n", "has no column 'external_id'; it has image, name"),
        (b"file,external_id\nana.jpg,ana\n", "has no column 'image'"),
        (b"image,external_id,Name,NAME\n", "has duplicate columns: image, external_id, name, name"),
        (b"image,external_id,Team,Team\n", "has duplicate columns"),
        (b"image,external_id\nana.jpg,Zo\xeb\n", "line 2, is not UTF-8 text: it has the byte 0xeb there"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 1, is not UTF-8 text"),
        (codecs.BOM_UTF16_LE + b"x", "line 1, is not UTF-16 text: its byte order mark announces that"),
        ("image,external_id\n".encode("utf-16-le"), "has NUL bytes, as in UTF-16 without a byte order mark; save it"),
        ("image,external_id\na.jpg,Zoë\n".encode("utf-16-be"), "has NUL bytes, as in UTF-16 without a byte order mark"),
        (b"PK\x03\x04\x14\0", "is a workbook (XLSX or ODS); save it in the spreadsheet program as 'CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a workbook of an old Excel (XLS); save it"),
        (b'image,external_id\nana.jpg,"ana\n', "is not CSV"),
        (b'image,external_id\nana.jpg,ana\nben.jpg,"b"en\n', "line 3, is not CSV"),
    ],
)
def test_invalid_manifest_is_wrong_usage(tmp_path: Path, text: bytes, message_part: str) -> None:
    (tmp_path / "staff.csv").write_bytes(text)
    ran = Command(tmp_path / "home")("enroll", "--manifest", tmp_path / "staff.csv", "--gallery", "staff")
    assert ran.code == 2
    assert ran.out == ""
    assert f"the manifest {tmp_path / 'staff.csv'}" in ran.err
    assert message_part in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "home").exists(), "invalid usage creates nothing"


def test_manifest_without_rows_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "staff.csv").write_text("image,external_id\n", encoding="utf-8")
    ran = Command(tmp_path / "home")("enroll", "--manifest", tmp_path / "staff.csv", "--gallery", "staff")
    assert ran.code == 2
    assert f"there are no images in {tmp_path / 'staff.csv'}" in ran.err


def test_missing_manifest_is_wrong_usage(tmp_path: Path) -> None:
    ran = Command(tmp_path / "home")("enroll", "--manifest", tmp_path / "no.csv", "--gallery", "staff")
    assert (ran.code, ran.err) == (2, f"Error: there is no manifest {tmp_path / 'no.csv'}\n")


@pytest.mark.parametrize(
    ("line", "reason", "message_part"),
    [
        ("gone.jpg,x,,", "unreadable_image", "the manifest names 'gone.jpg'"),
        (f"{'n' * 300}.jpg,x,,", "unreadable_image", "there is no such file"),
        (",x,,", "invalid_row", "line 3 of the manifest: it names no image"),
        ("\\N,x,,", "invalid_row", "line 3 of the manifest: it names no image"),
        ("ben.jpg,,,", "invalid_row", "line 3 of the manifest: an external_id must be"),
        ("ben.jpg,\\N,,", "invalid_row", "line 3 of the manifest: an external_id must be"),
        (f"ben.jpg,{'x' * 201},,", "invalid_row", "line 3 of the manifest: an external_id must be"),
        ('ben.jpg,"x\ny",,', "invalid_row", "of the manifest: an external_id must be"),
        ("ben.jpg,x,,31.12.2026", "invalid_row", "line 3 of the manifest: valid_until is '31.12.2026'"),
        ("ben.jpg,x,,,IT", "invalid_row", "line 3 of the manifest: it has more cells than the header"),
        ("ben.jpg,ana,Bea,", "invalid_row", "duplicate external_id 'ana': its name is Bea here and Ana in line 2"),
        ("ben.jpg,ana,,2027-01-01", "invalid_row", "duplicate external_id 'ana': its valid_until is 2027-01-02"),
    ],
)
def test_only_the_invalid_row_is_rejected(tmp_path: Path, line: str, reason: str, message_part: str) -> None:
    text = f"image,external_id,name,valid_until\nana.jpg,ana,Ana,2026-12-31\n{line}\ncleo.jpg,ana,,\n"
    ana, wrong, cleo = manifest_rows(tmp_path, text)
    assert (content(ana), content(cleo), cleo.person.external_id) == (b"ana.jpg", b"cleo.jpg", "ana")
    assert content(wrong) == reason
    assert message_part in message(wrong)


def test_only_the_row_with_too_much_metadata_is_rejected(tmp_path: Path) -> None:
    text = f"image,external_id,note\nana.jpg,ana,short\nben.jpg,ben,{'é' * 9_000}\n"
    ana, wrong = manifest_rows(tmp_path, text)
    assert (content(ana), content(wrong)) == (b"ana.jpg", "invalid_row")
    assert message(wrong).startswith("line 3 of the manifest: the metadata of 'ben' would be 18,011 bytes of JSON")


def test_cell_with_the_clear_mark_removes_what_an_empty_cell_keeps(tmp_path: Path) -> None:
    text = "image,external_id,name,valid_until,Floor\nana.jpg,ana,\\N,,\\N\nben.jpg,ana,Ana,,\n"
    ana, ben = manifest_rows(tmp_path, text)
    assert ana.person == Person("ana", cleared=frozenset({"name", "Floor"}))
    assert "its name is Ana here and \\N in line 2" in message(ben)


def test_identity_without_a_name_in_its_first_row_still_has_one_name(tmp_path: Path) -> None:
    text = "image,external_id,name\nana.jpg,ana,\nben.jpg,ana,Ana\ncleo.jpg,ana,Bea\n"
    rows = manifest_rows(tmp_path, text)
    assert [content(row) for row in rows] == [b"ana.jpg", b"ben.jpg", "invalid_row"]
    assert "its name is Bea here and Ana in line 3" in message(rows[2])


@pytest.mark.parametrize("name", ["manifest.xlsx", "Manifest.XLS", "manifest.ods"])
def test_workbook_in_place_of_a_manifest_is_refused(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "photos", {name: "", "ana/1.jpg": "a"})
    with pytest.raises(InvalidRequest, match=f"photos/{name} is a workbook; save it in the spreadsheet program as"):
        rows_of([root])
    write(root, {"manifest.csv": "image,external_id\nana/1.jpg,e-1\n"})
    assert [row.person.external_id for row in rows_of([root])] == ["e-1"]


def test_row_with_dates_in_the_wrong_order_is_rejected(tmp_path: Path) -> None:
    lines = "ana.jpg,ana,2026-05-02,2026-05-01\nben.jpg,ben,2026-05-01,2026-05-01\n"
    ana, ben = manifest_rows(tmp_path, "image,external_id,valid_from,valid_until\n" + lines)
    assert "valid_until" in message(ana)
    assert content(ben) == b"ben.jpg", "one day is a valid period: the last date is included"


def test_manifest_in_a_folder_replaces_its_structure(tmp_path: Path) -> None:
    root = write(
        tmp_path / "photos",
        {"manifest.csv": "image,external_id\nsub/x.jpg,e-1\n", "sub/x.jpg": "x", "ben/1.jpg": "not named"},
    )
    (row,) = rows_of([root])
    assert (row.image, row.person.external_id, content(row)) == ("sub/x.jpg", "e-1", b"x")


@pytest.mark.parametrize("is_zip", [False, True], ids=["folder", "ZIP"])
@pytest.mark.parametrize("name", ["manifest.csv", "Manifest.CSV"])
def test_manifest_names_images_as_people_would(tmp_path: Path, is_zip: bool, name: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    named = ["photos\\1.jpg", "./photos/1.jpg", "photos//1.JPG", "PHOTOS/1.jpg", f"{composed}/{composed}.JPG", "x.jpg"]
    lines = "".join(f"{image},{decomposed}\n" for image in named)
    files = {
        name: f"image,external_id\n{lines}",
        "photos/1.jpg": "one",
        f"{decomposed}/{decomposed}.jpg": "zoe",
        "x.JPG": "",
        "x.Jpg": "",
    }
    source = pack(tmp_path / "p.zip", files) if is_zip else write(tmp_path / "p", files)
    rows = rows_of([source])
    assert [row.image for row in rows] == named
    assert {row.person.external_id for row in rows} == {composed}
    found = [content(row) for row in rows]
    assert found == [b"one", b"one", b"one", "unreadable_image", b"zoe", "invalid_row"]
    assert message(rows[-1]) == "line 7 of the manifest: its image 'x.jpg' fits 2 files: 'x.JPG', 'x.Jpg'"


def test_images_are_searched_next_to_the_manifest_and_then_in_the_paths(tmp_path: Path) -> None:
    write(
        tmp_path / "lists", {"m.csv": "image,external_id\na.jpg,ana\nb.jpg,ben\nx/c.jpg,cleo\n", "a.jpg": "next to it"}
    )
    folder = write(tmp_path / "photos", {"a.jpg": "not this one", "b.jpg": "in the folder"})
    archive = pack(tmp_path / "more.zip", {"x/c.jpg": "in the ZIP"})
    rows = rows_of([folder, archive], tmp_path / "lists" / "m.csv")
    assert [content(row) for row in rows] == [b"next to it", b"in the folder", b"in the ZIP"]


@pytest.mark.parametrize("named", ["staff/ana/1.jpg", "ana/1.jpg"])
def test_manifest_next_to_a_zip_may_name_its_top_folder(tmp_path: Path, named: str) -> None:
    write(tmp_path, {"m.csv": f"image,external_id\n{named},ana\n"})
    archive = pack(tmp_path / "staff.zip", {"staff/ana/1.jpg": "a", "staff/ben/1.jpg": "b"})
    (row,) = rows_of([archive], tmp_path / "m.csv")
    assert content(row) == b"a"


@pytest.mark.parametrize(
    ("bound", "text", "message_part"),
    [
        ("MAX_ROWS", "a.jpg,ana\n\n,\nb.jpg,ben\nc.jpg,cleo\n", None),
        ("MAX_ROWS", "a.jpg,ana\n" * 4, "has more than the 3 rows allowed; split it into several"),
        ("MAX_LINES", "a.jpg,ana\n\n", None),
        ("MAX_LINES", "\n\n\n", "has more than the 3 lines allowed"),
        ("MAX_RECORD_BYTES", "a.jpg,ana\n" * 9, None),
        ("MAX_RECORD_BYTES", 'a.jpg,"ana\nlee\nis long"\n', "line 4: the row has more than the 20 bytes allowed"),
    ],
)
def test_manifest_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, text: str, message_part: str | None
) -> None:
    monkeypatch.setattr(manifest_files, bound, 20 if bound == "MAX_RECORD_BYTES" else 3)
    write(tmp_path, {"m.csv": f"image,external_id\n{text}"})
    if message_part is None:
        assert len(rows_of([], tmp_path / "m.csv")) == text.count(".jpg")
    else:
        with pytest.raises(InvalidRequest, match=f"m.csv,? {message_part}"):
            rows_of([], tmp_path / "m.csv")


def test_many_rows_need_little_memory(tmp_path: Path) -> None:
    rows, first_name = 5_000, "x" * 150
    lines = "".join(f"{i}.jpg,e-{i // 2},{first_name} {i // 2},{i}\n" for i in range(rows))
    write(tmp_path, {"m.csv": f"image,external_id,name,desk\n{lines}", f"{rows - 1}.jpg": "last"})
    tracemalloc.start()
    try:
        found = rows_of([], tmp_path / "m.csv")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < (tmp_path / "m.csv").stat().st_size + 200 * rows
    assert found[rows - 1].person.metadata == {"desk": str(rows - 1)}
    assert [row.person.external_id for row in found[2:5]] == ["e-1", "e-1", "e-2"]


def test_rows_of_an_identity_are_together_in_an_archive(tmp_path: Path) -> None:
    manifest = "image,external_id\na.jpg,ana\nb.jpg,ben\nc.jpg,ana\n"
    rows = rows_of([pack(tmp_path / "p.zip", {"manifest.csv": manifest, "a.jpg": "a", "b.jpg": "b", "c.jpg": "c"})])
    assert [content(row) for row in rows] == [b"a", b"c", b"b"]
