"""Reads and writes the file of a compressed index: memory-mapped float16 vectors, product codes and checksums.

Vectors come first, so that they can be written as they arrive; their description is the footer. Every row has its own
checksums, so that opening does not read a million vectors and one row can be erased in place.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from indexer.files import atomic_file, remove_leftovers
from indexer.vectors.base import DamagedIndex

MAGIC = b"whosthere-faces-2\n"

PRESENT, ERASED = 0xA5, 0
"""State byte of a row. They differ in several bits, so that one flipped bit does not turn one into the other."""

TRAILER_BYTES = 32 + 4 + len(MAGIC)
"""After the footer: its SHA-256, its length (4 bytes, little-endian) and MAGIC."""

Float16Vectors = NDArray[np.float16]
"""(N, D) embeddings in half precision, which moves a score by at most 1e-4 (`test_compressed.py`)."""

Codes = NDArray[np.uint8]
"""(N, B) product codes, two of 4 bits per byte."""


@dataclass(frozen=True, eq=False)
class MappedFile:
    """The N rows of a file, by ascending face id. Vectors are read when needed."""

    path: Path
    metadata: Mapping[str, Any]
    """What the caller of `Writer.finish` stored with the file."""
    face_ids: NDArray[np.int64]
    identity_ids: NDArray[np.int64]
    codes: Codes
    centroids: NDArray[np.float32]
    vectors: Float16Vectors
    checksums: NDArray[np.uint64]
    """(N,) checksums of the vectors."""
    states: NDArray[np.uint8]
    """(N,) PRESENT or ERASED."""
    is_verified: NDArray[np.bool_]
    """(N,) whether the checksum of a vector was compared; this happens when it is first read."""
    opened: os.stat_result | None = None
    """Identifies the mapped file, whose name may be given to a successor; None while the file is being written."""

    def __len__(self) -> int:
        return len(self.face_ids)

    def read_vectors(self, rows: NDArray[np.int64]) -> Float16Vectors:
        """Returns copies of the vectors of these rows. Raises DamagedIndex if one is neither intact nor erased."""
        vectors: Float16Vectors = self.vectors[rows]
        is_verified = self.is_verified[rows]
        if not is_verified.all():
            new = rows[~is_verified]
            is_wrong = row_checksums(vectors[~is_verified]) != self.checksums[new]
            is_wrong &= self.states[new] == PRESENT  # another process may have erased them
            if is_wrong.any():
                raise DamagedIndex(f"{self.path} is damaged: the embedding of face {self.face_ids[new[is_wrong][0]]}")
            self.is_verified[new] = True
        return vectors

    def erase(self, rows: NDArray[np.int64]) -> None:
        """Overwrites embeddings and codes on the disk with zeros.

        The state comes first, so that concurrent readers see an erased, not a damaged row.
        """
        if self.opened is None or not len(rows):
            return
        vectors = self.vectors.view()
        vectors.flags.writeable = True
        self.states[rows] = ERASED
        vectors[rows] = 0
        self.codes[rows] = 0

    def erase_in_successor(self, face_ids: NDArray[np.int64]) -> None:
        """Erases faces in the file that has replaced this one, if any: its writer may have ended. Raises OSError."""
        if self.opened is None:
            return
        try:
            if os.path.samestat(self.path.stat(), self.opened):
                return
            successor, _, _ = _map(self.path)
        except FileNotFoundError:
            return
        except DamagedIndex:  # damaged, or an exact snapshot that is soon written again
            self.path.unlink(missing_ok=True)
            return
        successor.erase(rows_of(successor.face_ids, face_ids))

    def is_present(self) -> NDArray[np.bool_]:
        """Returns which rows were not erased, (N,)."""
        return np.asarray(self.states == PRESENT)


def rows_of(ascending: NDArray[np.int64], face_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the rows of these faces among `ascending` ids, without duplicates and without unknown faces."""
    if len(ascending) == 0:
        return np.empty(0, np.int64)
    rows = np.minimum(np.searchsorted(ascending, face_ids), len(ascending) - 1)
    return np.unique(rows[ascending[rows] == face_ids])


def row_checksums(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Returns a checksum of each row of (N, ...), (N,) uint64.

    It is the sum of the row's 64-bit words, each multiplied by an odd number that depends on its position: it changes
    with every single bit and with the order of the words.
    """
    row_bytes = int(np.prod(rows.shape[1:])) * rows.itemsize
    flat = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), row_bytes)
    if pad := -flat.shape[1] % 8:
        flat = np.pad(flat, ((0, 0), (0, pad)))
    words = flat.view(np.uint64)
    weights = np.arange(words.shape[1], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    return np.asarray((words * weights).sum(axis=1, dtype=np.uint64))


class Writer:
    """Writes vectors as they arrive, then everything else."""

    def __init__(self, file: BinaryIO, temporary: Path, dim: int) -> None:
        self._file = file
        self._temporary = temporary
        self._dim = dim
        self._checksums: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        self._rows = 0

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Writes (N, D) vectors in half precision."""
        halves = np.ascontiguousarray(vectors, dtype=np.float16)
        self._file.write(halves.tobytes())
        self._checksums.append(row_checksums(halves))
        self._rows += len(halves)

    def vectors(self) -> Float16Vectors:
        """Returns the vectors written so far, memory-mapped."""
        self._file.flush()
        if self._rows == 0:
            return np.empty((0, self._dim), np.float16)
        return np.memmap(self._temporary, np.float16, "r", shape=(self._rows, self._dim))

    def finish(
        self,
        face_ids: NDArray[np.int64],
        identity_ids: NDArray[np.int64],
        codes: Codes,
        centroids: NDArray[np.float32],
        metadata: Mapping[str, Any],
    ) -> None:
        """Writes everything else. `metadata` is stored as JSON."""
        checksums = np.concatenate(self._checksums)
        centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        id_checksums = row_checksums(np.stack([face_ids, identity_ids], axis=1))
        states = np.full(len(face_ids), PRESENT, np.uint8)
        self._file.write(bytes(-self._file.tell() % 8))
        for array in (checksums, face_ids, identity_ids, id_checksums, row_checksums(codes), centroids, codes, states):
            self._file.write(np.ascontiguousarray(array).tobytes())
        footer = json.dumps(
            {
                "rows": self._rows,
                "dim": self._dim,
                "code_bytes": codes.shape[1],
                "centroids": list(centroids.shape),
                "centroids_sha256": _sha256(centroids),
                "checks_sha256": _sha256(checksums),
                "about": dict(metadata),
            }
        ).encode()
        self._file.write(footer + hashlib.sha256(footer).digest() + len(footer).to_bytes(4, "little") + MAGIC)


@contextmanager
def writing(path: Path, dim: int) -> Iterator[Writer]:
    """Writes a file that replaces `path` when the block ends, and deletes temporary files of killed processes.

    Raises OSError if the disk is full, and leaves the previous file then.
    """
    remove_leftovers(path)
    with atomic_file(path) as (file, temporary):
        yield Writer(file, temporary, dim)


def read(path: Path) -> MappedFile:
    """Maps a file and verifies everything but the vectors, which are verified when they are first read.

    Raises:
        FileNotFoundError: There is no file.
        DamagedIndex: It is incomplete or differs from what was written.
    """
    file, footer, arrays = _map(path)
    digests = {"centroids_sha256": _sha256(file.centroids), "checks_sha256": _sha256(file.checksums)}
    if any(footer[name] != digest for name, digest in digests.items()):
        raise DamagedIndex(f"{path} is damaged: the centroids or the checksums")
    is_wrong = row_checksums(np.stack([file.face_ids, file.identity_ids], axis=1)) != arrays["id_checksums"]
    is_wrong |= (row_checksums(file.codes) != arrays["code_checksums"]) & (file.states != ERASED)
    is_wrong |= (file.states != PRESENT) & (file.states != ERASED)
    if is_wrong.any():
        raise DamagedIndex(f"{path} is damaged: the ids or codes of {int(is_wrong.sum())} faces")
    return file


def _map(path: Path) -> tuple[MappedFile, dict[str, Any], dict[str, NDArray[Any]]]:
    """Maps a file and verifies its footer and length; returns the footer and all arrays as well.

    Raises DamagedIndex, FileNotFoundError.
    """
    with path.open("r+b") as file:
        opened = os.fstat(file.fileno())
        try:
            data = mmap.mmap(file.fileno(), 0)
        except ValueError as error:
            raise DamagedIndex(f"{path} is damaged: it is empty") from error
    trailer = data[-TRAILER_BYTES:]
    length = int.from_bytes(trailer[32:36], "little")
    foot = data[-TRAILER_BYTES - length : -TRAILER_BYTES]
    if len(trailer) < TRAILER_BYTES or trailer[36:] != MAGIC or hashlib.sha256(foot).digest() != trailer[:32]:
        raise DamagedIndex(f"{path} is damaged")
    footer = json.loads(foot)
    rows, dim, code_bytes = footer["rows"], footer["dim"], footer["code_bytes"]
    layout: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "vectors": (np.float16, (rows, dim)),
        "checksums": (np.uint64, (rows,)),
        "face_ids": (np.int64, (rows,)),
        "identity_ids": (np.int64, (rows,)),
        "id_checksums": (np.uint64, (rows,)),
        "code_checksums": (np.uint64, (rows,)),
        "centroids": (np.float32, tuple(footer["centroids"])),
        "codes": (np.uint8, (rows, code_bytes)),
        "states": (np.uint8, (rows,)),
    }
    sizes = {name: int(np.prod(shape)) * np.dtype(dtype).itemsize for name, (dtype, shape) in layout.items()}
    sizes["vectors"] += -sizes["vectors"] % 8  # padding: what follows is aligned to 8 bytes
    expected = sum(sizes.values()) + length + TRAILER_BYTES
    if len(data) != expected:
        raise DamagedIndex(f"{path} has {len(data)} bytes; expected {expected}")
    arrays: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, (dtype, shape) in layout.items():
        arrays[name] = np.frombuffer(data, dtype, int(np.prod(shape)), offset).reshape(shape)
        offset += sizes[name]
    vectors = arrays["vectors"].view()
    vectors.flags.writeable = False
    mapped = MappedFile(
        path,
        footer["about"],
        arrays["face_ids"],
        arrays["identity_ids"],
        arrays["codes"],
        arrays["centroids"].copy(),
        vectors,
        arrays["checksums"],
        arrays["states"],
        np.zeros(rows, np.bool_),
        opened,
    )
    return mapped, footer, arrays


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
