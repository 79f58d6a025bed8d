"""ZIP files from clients: refused before any of their content is unpacked."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import pytest

from indexer.enrollment import archives
from indexer.enrollment.archives import check_archive
from indexer.enrollment.sources import rows_of_archive
from indexer.errors import InvalidRequest

PHOTO = bytes(range(256)) * 40


def packed(*names: str, change: Callable[[zipfile.ZipFile], None] = lambda archive: None) -> io.BytesIO:
    """Returns a ZIP of PHOTO under these names; `change` gets it before its directory is written."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, PHOTO)
        change(archive)
    return file


def refused(file: io.BytesIO, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        check_archive(file)
    assert caught.value.code == "invalid_archive"


def test_what_is_packed_as_usual() -> None:
    file = packed("staff/ana/1.jpg", "staff/ben/1.jpg", "staff/ben/2.jpg")
    check_archive(file)
    rows = rows_of_archive(file)
    assert [(row.image, row.person.external_id) for row in rows] == [
        ("ana/1.jpg", "ana"),
        ("ben/1.jpg", "ben"),
        ("ben/2.jpg", "ben"),
    ]
    assert {row.read(2**20) for row in rows} == {PHOTO}
    check_archive(packed())


def test_what_an_installer_is_prepended_to() -> None:
    check_archive(io.BytesIO(b"#!/bin/sh\n" * 1000 + packed("a.jpg", "b.jpg").getvalue()))


@pytest.mark.parametrize("data", [b"", b"no ZIP", PHOTO, packed("a.jpg").getvalue()[:-30]])
def test_no_zip(data: bytes) -> None:
    refused(io.BytesIO(data), "not a readable ZIP file")


def test_a_file_behind_a_password() -> None:
    def encrypt(archive: zipfile.ZipFile) -> None:
        archive.filelist[1].flag_bits |= 1

    refused(packed("a.jpg", "b.jpg", change=encrypt), "'b.jpg' is encrypted")


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "x/../../a.jpg", "..\\a.jpg", "C:\\a.jpg"])
def test_a_name_that_points_out_of_it(name: str) -> None:
    refused(packed("b.jpg", name), "points out of the archive")


def test_files_within_each_other() -> None:
    def overlap(archive: zipfile.ZipFile) -> None:
        archive.filelist[1].header_offset = archive.filelist[0].header_offset

    refused(packed("a.jpg", "b.jpg", "c.jpg", change=overlap), "overlaps the next one")


def test_a_file_that_reaches_into_the_list_of_files() -> None:
    def reach(archive: zipfile.ZipFile) -> None:
        archive.filelist[-1].compress_size += 100

    refused(packed("a.jpg", "b.jpg", change=reach), "'b.jpg' overlaps")


def test_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(3):
            archive.writestr(f"{n}.jpg", bytes(2**20))
    check_archive(file)
    monkeypatch.setattr(archives, "FREELY_UNPACKED", 2**20)
    refused(file, r"decompressed 3,145,728; 20 times its size are allowed")


def test_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 3)
    check_archive(packed(*"abc"))
    refused(packed(*"abcd"), "has 4 files; 3 are allowed")


def test_a_list_of_files_that_is_too_long_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed("a.jpg", "b.jpg")
    with zipfile.ZipFile(file) as archive:
        size = len(file.getvalue()) - archive.start_dir - 22  # but for the record after it
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", size)
    check_archive(file)
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", size - 1)
    refused(file, f"more than the {size - 1} bytes allowed")
