"""A snapshot is read as it was written or rejected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer.vectors import snapshot
from indexer.vectors.base import DamagedIndex, Header
from indexer.vectors.flat import FlatIndex

DIM = 8


def make(faces: int) -> tuple[Header, FlatIndex]:
    index = FlatIndex(DIM)
    vectors = np.random.default_rng(1).standard_normal((faces, DIM)).astype(np.float32)
    index.put(np.arange(faces)[::-1] + 2**40, np.arange(faces) % 3 + 1, vectors)
    return Header(4, "2026-03-01T12:00:00+00:00", "0123456789abcdef", DIM, 17, "mark", faces), index


@pytest.mark.parametrize("faces", [0, 1, 57])
def test_snapshot_is_read_as_it_was_written(tmp_path: Path, faces: int) -> None:
    header, index = make(faces)
    path = tmp_path / "new" / "4.index"
    snapshot.write(path, header, index)
    found, face_ids, owners, vectors = snapshot.read(path)
    assert found == header
    read = FlatIndex(DIM)
    read.put(face_ids, owners, vectors)
    assert len(read) == faces
    for was, now in zip(index.contents(), read.contents(), strict=True):
        assert np.asarray(was).dtype == np.asarray(now).dtype
        assert np.asarray(was).tolist() == np.asarray(now).tolist()
    query = np.ones((1, DIM), dtype=np.float32)
    assert read.nearest_identities(query, 3) == index.nearest_identities(query, 3)
    read.put(np.array([1]), np.array([1]), np.zeros((1, DIM), dtype=np.float32))
    assert len(read) == faces + 1
    assert [p.name for p in path.parent.iterdir()] == ["4.index"]


def test_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        snapshot.read(tmp_path / "4.index")


def test_every_truncation_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    snapshot.write(path, *make(2))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedIndex, match="damaged"):
            snapshot.read(path)


def test_every_flipped_bit_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    snapshot.write(path, *make(2))
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedIndex, match="damaged"):
            snapshot.read(path)


def test_appended_byte_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    snapshot.write(path, *make(2))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedIndex):
        snapshot.read(path)
