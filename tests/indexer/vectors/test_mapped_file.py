"""The file of a compressed index is read as it was written or rejected, and contains no erased faces."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.vectors import mapped_file
from indexer.vectors.base import DamagedIndex
from indexer.vectors.mapped_file import ERASED, PRESENT, MappedFile
from tests.indexer.vectors.disks import limited_file_size
from tests.waiting import DEADLINE

DIM, PARTS = 8, 16


def all_rows(base: MappedFile) -> NDArray[np.int64]:
    return np.arange(len(base))


def write(path: Path, faces: int, seed: int = 1) -> NDArray[np.float32]:
    """Writes faces 10, 20, ... of identities 7, 6, 5, ..., two at a time, and returns their vectors."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((faces, DIM)).astype(np.float32)
    codes = rng.integers(1, 255, (faces, PARTS), dtype=np.uint8)
    with mapped_file.writing(path, DIM) as writer:
        for start in range(0, faces, 2):
            writer.add(vectors[start : start + 2])
        assert np.asarray(writer.vectors()).tolist() == vectors.astype(np.float16).tolist()
        centroids = rng.standard_normal((PARTS, 2, 2)).astype(np.float32)
        writer.finish(10 * np.arange(1, faces + 1), 7 - np.arange(faces), codes, centroids, {"of": "a test"})
    return vectors


@pytest.mark.parametrize("faces", [0, 1, 5])
def test_file_is_read_as_it_was_written(tmp_path: Path, faces: int) -> None:
    path = tmp_path / "new" / "4.index"
    vectors = write(path, faces)
    base = mapped_file.read(path)
    assert len(base) == faces
    assert base.metadata == {"of": "a test"}
    assert base.face_ids.tolist() == [10 * n for n in range(1, faces + 1)]
    assert base.identity_ids.tolist() == [7 - n for n in range(faces)]
    assert base.is_present().tolist() == [True] * faces
    picked = base.read_vectors(all_rows(base)[::-1])
    assert picked.tolist() == vectors.astype(np.float16)[::-1].tolist()
    assert base.is_verified.all()
    assert not base.vectors.flags.writeable
    assert [p.name for p in path.parent.iterdir()] == ["4.index"]


def test_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mapped_file.read(tmp_path / "4.index")


def test_every_truncation_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    write(path, 3)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedIndex):
            mapped_file.read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedIndex):
        mapped_file.read(path)
    path.write_bytes(whole[:16] + whole)
    with pytest.raises(DamagedIndex, match=f"has {len(whole) + 16} bytes; expected {len(whole)}"):
        mapped_file.read(path)


def test_every_flipped_bit_is_detected(tmp_path: Path) -> None:
    """When the file is opened, or for a vector when it is read."""
    path = tmp_path / "4.index"
    write(path, 3)
    whole = path.read_bytes()
    vector_bytes = 3 * DIM * 2
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        if position >= vector_bytes:
            with pytest.raises(DamagedIndex):
                mapped_file.read(path)
            continue
        base, row = mapped_file.read(path), position // (DIM * 2)
        with pytest.raises(DamagedIndex, match=f"the embedding of face {10 * (row + 1)}"):
            base.read_vectors(all_rows(base))
        base.read_vectors(np.array([other for other in range(3) if other != row]))


def test_checksum_changes_with_every_bit_and_the_order_of_words() -> None:
    rows = np.random.default_rng(2).integers(0, 255, (1, 5, 7), dtype=np.uint8)  # 35 bytes: the last word is incomplete
    checksum = mapped_file.row_checksums(rows)
    for place in np.ndindex(rows.shape):
        for bit in range(8):
            other = rows.copy()
            other[place] ^= np.uint8(1 << bit)
            assert mapped_file.row_checksums(other) != checksum
    words = np.array([[1, 2, 3]], dtype=np.uint64)
    assert mapped_file.row_checksums(words) != mapped_file.row_checksums(words[:, [1, 0, 2]])


def test_erased_row_is_zero_at_once_for_every_reader(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    vectors = write(path, 5)
    base, other = mapped_file.read(path), mapped_file.read(path)
    code = base.codes[2].tobytes()
    assert path.read_bytes().count(code) == 1
    base.erase(np.array([2]))
    data = path.read_bytes()
    assert vectors[2].astype(np.float16).tobytes() not in data
    assert data[2 * DIM * 2 : 3 * DIM * 2] == bytes(DIM * 2)
    assert code not in data
    assert other.is_present().tolist() == [True, True, False, True, True]  # the same file, mapped before
    assert other.read_vectors(np.array([2])).tolist() == [[0] * DIM]  # erased, not damaged
    again = mapped_file.read(path)
    assert again.is_present().tolist() == [True, True, False, True, True]
    assert again.read_vectors(np.array([1, 3])).tolist() == vectors.astype(np.float16)[[1, 3]].tolist()


def test_states_differ_in_several_bits() -> None:
    assert (PRESENT ^ ERASED).bit_count() > 1


def test_faces_are_erased_in_the_successor(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    write(path, 5)
    base = mapped_file.read(path)
    newer = write(path, 7, seed=2)
    base.erase(np.array([0]))
    assert mapped_file.read(path).is_present().all()
    base.erase_in_successor(np.array([70, 20, 11, 999, 20]))
    now = mapped_file.read(path)
    assert now.face_ids[~now.is_present()].tolist() == [20, 70]
    data = path.read_bytes()
    for row in (1, 6):
        assert newer[row].astype(np.float16).tobytes() not in data


def test_missing_or_unusable_successor_is_handled(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    write(path, 2)
    base = mapped_file.read(path)
    base.erase_in_successor(np.array([10]))  # the same file
    assert base.is_present().all()
    path.unlink()
    base.erase_in_successor(np.array([10]))
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"something else, which may hold the face")
    base.erase_in_successor(np.array([10]))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    write(path, 3)
    before = path.read_bytes()
    for size in (0, 100, len(before) - 1):
        with pytest.raises(OSError, match="too large"), limited_file_size(size):
            write(path, 4)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def _erase(path: str) -> None:
    base = mapped_file.read(Path(path))
    base.erase(np.array([1]))


def test_erasure_is_visible_to_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    write(path, 3)
    base = mapped_file.read(path)
    process = multiprocessing.get_context("spawn").Process(target=_erase, args=(str(path),))
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == 0
    assert base.read_vectors(all_rows(base))[1].tolist() == [0] * DIM
    assert base.is_present().tolist() == [True, False, True]


def test_footer_is_json_that_describes_the_file(tmp_path: Path) -> None:
    """Later versions of the program must be able to recognize the file."""
    path = tmp_path / "4.index"
    write(path, 3)
    data = path.read_bytes()
    assert data.endswith(mapped_file.MAGIC)
    length = int.from_bytes(data[-len(mapped_file.MAGIC) - 4 : -len(mapped_file.MAGIC)], "little")
    end = len(data) - len(mapped_file.MAGIC) - 4 - 32
    footer = json.loads(data[end - length : end])
    assert (footer["rows"], footer["dim"], footer["code_bytes"], footer["about"]) == (3, DIM, PARTS, {"of": "a test"})


def test_copied_file_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "4.index", 3)
    shutil.copy(tmp_path / "4.index", tmp_path / "5.index")
    assert mapped_file.read(tmp_path / "5.index").face_ids.tolist() == [10, 20, 30]
