"""Damaged files and full disks cost time, never a wrong answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import StorageUnavailable
from indexer.types import Tier
from indexer.vectors import self_check, synchronizer
from indexer.vectors.base import VectorIndex
from indexer.vectors.engines import FaissEngine
from tests.indexer.gallery.faces import DIM, new_face, vector
from tests.indexer.gallery.together import in_processes
from tests.indexer.vectors.disks import limited_file_size
from tests.indexer.vectors.indexed_gallery import (
    CHANGES,
    FACES,
    ON_SQLITE,
    IndexedGallery,
)
from tests.postgres import Database, opened


def truncated(data: bytes) -> Iterator[bytes]:
    for share in range(20):
        yield data[: len(data) * share // 20]
    yield data[:-1]


def flipped(data: bytes, positions: Iterator[int] | range) -> Iterator[bytes]:
    for position in positions:
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        yield bytes(damaged)


def replaced(data: bytes) -> Iterator[bytes]:
    yield b""
    yield b"whosthere-index-1\n"
    yield b"\0" * len(data)
    yield b"whosthere-index-9\n" + data[18:]
    yield data + data
    yield np.random.default_rng(3).bytes(len(data))


@pytest.mark.parametrize(
    "damage", [truncated, lambda data: flipped(data, range(0, len(data), len(data) // 40)), replaced]
)
def test_damaged_snapshot_is_rebuilt(
    indexed: IndexedGallery, damage: Callable[[bytes], Iterator[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    indexed.open().rebuild()
    for damaged in damage(indexed.path.read_bytes()):
        caplog.clear()
        indexed.path.write_bytes(damaged)
        synchronized = indexed.open()
        indexed.check(synchronized.catch_up())
        assert "is rebuilt" in caplog.text
        assert synchronized.state().snapshot_seq is None
    synchronized.save()
    caplog.clear()
    indexed.check_reopened()
    assert caplog.text == ""


@ON_SQLITE
@pytest.mark.parametrize("part", ["truncated", "vectors", "others"])
def test_damaged_compressed_file_is_rebuilt(
    indexed: IndexedGallery, part: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage to vectors is noticed when they are read, all other damage when the file is opened."""
    monkeypatch.setattr(self_check, "MATED_PROBES", 10)
    monkeypatch.setattr(self_check, "NON_MATED_PROBES", 10)
    indexed.open(Tier.COMPRESSED).rebuild()
    data, vector_bytes = indexed.path.read_bytes(), FACES * DIM * 2
    damages = {
        "truncated": (data[: len(data) * share // 12] for share in range(12)),
        "vectors": flipped(data, range(0, vector_bytes, vector_bytes // 4)),
        "others": flipped(data, range(vector_bytes, len(data), len(data) // 30)),
    }
    for damaged in damages[part]:
        caplog.clear()
        indexed.path.write_bytes(damaged)
        synchronized = indexed.open(Tier.COMPRESSED)
        index = synchronized.catch_up()
        if part == "vectors":
            with pytest.raises(StorageUnavailable, match="the index is being rebuilt, try again"):
                index.nearest_identities(vector(0)[None], FACES)
            index = synchronized.catch_up()
        indexed.check(index)
        assert "is rebuilt" in caplog.text
        assert synchronized.state().kind == "compressed"
        assert indexed.present_rows() == FACES


# Disks and folders


def test_folder_in_place_of_the_snapshot_is_ignored(indexed: IndexedGallery, caplog: pytest.LogCaptureFixture) -> None:
    indexed.path.mkdir(parents=True)
    synchronized = indexed.open()
    indexed.check(synchronized.catch_up())
    synchronized.save()
    assert "could not be written" in caplog.text
    assert indexed.files == [indexed.path.name]


def test_deleted_folder_is_created_again(indexed: IndexedGallery) -> None:
    synchronized = indexed.open()
    synchronized.catch_up()
    synchronized.save()
    shutil.rmtree(indexed.folder)
    indexed.check_reopened()
    assert synchronized.rebuild() == FACES
    assert indexed.path.is_file()


def test_full_disk_costs_only_the_snapshot(
    indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 20)
    synchronized = indexed.open(Tier.EXACT)
    synchronized.catch_up()
    synchronized.save()
    before = indexed.path.read_bytes()
    indexed.store.faces.enroll(indexed.gallery, [new_face(f"r{i}", 1000 + i) for i in range(40)])
    with limited_file_size(2048):
        indexed.check(synchronized.catch_up())
        synchronized.save()
    assert caplog.text.count("could not be written") == 2
    assert indexed.path.read_bytes() == before
    assert indexed.files == [indexed.path.name]
    assert synchronized.state().snapshot_seq == CHANGES

    caplog.clear()
    indexed.check_reopened(Tier.EXACT)
    synchronized.save()
    assert FaissEngine().load(indexed.path)[0].seq == indexed.last_change()
    assert caplog.text == ""


def test_failed_save_is_not_retried_at_every_search(
    indexed: IndexedGallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synchronizer, "SNAPSHOT_EVERY", 10)
    indexed.folder.write_text("not a folder")
    synchronized = indexed.open(Tier.EXACT)
    for _ in range(5):
        indexed.check(synchronized.catch_up())
        synchronized.update()
    assert caplog.text.count("could not be written") == 1
    indexed.enroll(range(300, 310))
    synchronized.update()
    assert caplog.text.count("could not be written") == 2


@ON_SQLITE
def test_without_a_folder_a_large_gallery_is_searched_exactly(
    indexed: IndexedGallery, caplog: pytest.LogCaptureFixture
) -> None:
    indexed.folder.write_text("not a folder")
    synchronized = indexed.open(Tier.COMPRESSED)
    for _ in range(3):
        indexed.check(synchronized.catch_up())
        synchronized.save()
    assert caplog.text.count("is searched exactly, in memory") == 1
    assert indexed.folder.read_text() == "not a folder"


def _search_as_nobody(url: str, folder: str) -> tuple[str, int]:
    os.seteuid(65534)  # a user without root's rights
    with opened(url) as store:
        indexed = IndexedGallery(store, Path(folder), store.galleries.get("staff"))
        synchronized = indexed.open(Tier.COMPRESSED)
        indexed.check(synchronized.catch_up())
        synchronized.save()
        index: VectorIndex = synchronized.catch_up()
        return index.kind, len(index)


@ON_SQLITE
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
def test_read_only_folder_is_left_alone(indexed: IndexedGallery, database: Database, tmp_path: Path) -> None:
    indexed.open(Tier.COMPRESSED).rebuild()
    before = indexed.path.read_bytes()
    changed = [path for path in (tmp_path, *tmp_path.parents) if path.stat().st_mode & 0o005 != 0o005]
    modes = [(path, path.stat().st_mode) for path in changed]
    try:
        for path in changed:
            path.chmod(0o755)
        for path in [*tmp_path.glob("*.db*"), tmp_path]:
            path.chmod(0o777)
        indexed.folder.chmod(0o555)
        [answer] = in_processes(_search_as_nobody, [(database.url, str(indexed.folder))])
    finally:
        for path, mode in modes:
            path.chmod(mode)
    assert answer == ("exact", FACES)
    assert indexed.path.read_bytes() == before
