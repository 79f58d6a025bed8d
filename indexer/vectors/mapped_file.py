"""The file in which a compressed index lies: half-precision vectors that are read where they lie, and product codes.

Vectors come first, so that they can be written as they arrive; what describes them comes last. Every row has checks of
its own, so that a million rows need not be read before the first answer, and one of them can be erased in place.
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

ALIVE, ERASED = 0xA5, 0
"""The byte of a row that is there, and of one that was erased: no flipped bit makes one of the other."""

Halves = NDArray[np.float16]
"""(N, D) embeddings in half precision: a score moves by 1e-4 at most (`tests/vectors/test_compressed.py`)."""

Codes = NDArray[np.uint8]
"""(N, B) product codes, two of 4 bits a byte."""


@dataclass(frozen=True, eq=False)
class _Mapped:
    """A file that may be written to where it lies, whatever its name is by now, and its parts."""

    opened: os.stat_result
    told: Mapping[str, Any]
    vectors: Halves
    checks: NDArray[np.uint64]
    face_ids: NDArray[np.int64]
    identity_ids: NDArray[np.int64]
    id_checks: NDArray[np.uint64]
    code_checks: NDArray[np.uint64]
    centroids: NDArray[np.float32]
    codes: Codes
    states: NDArray[np.uint8]

    def erase(self, rows: NDArray[np.int64]) -> None:
        """First the states: who meets half a vector finds it erased, not damaged."""
        self.states[rows] = ERASED
        self.vectors[rows] = 0
        self.codes[rows] = 0


@dataclass(frozen=True, eq=False)
class Resting:
    """The rows of a file, mapped, not read. `face_ids` ascend."""

    path: Path
    about: Mapping[str, Any]
    """What the writer said of the file."""
    face_ids: NDArray[np.int64]
    identity_ids: NDArray[np.int64]
    codes: Codes
    centroids: NDArray[np.float32]
    vectors: Halves
    checks: NDArray[np.uint64]
    """Of each vector."""
    sound: NDArray[np.bool_]
    """Which vectors were found to be what was written; the others are checked when they are first picked."""
    file: _Mapped | None = None

    def __len__(self) -> int:
        return len(self.face_ids)

    def pick(self, rows: NDArray[np.int64]) -> Halves:
        """The vectors of these rows. Raises DamagedIndex when one is neither what was written nor erased."""
        picked: Halves = self.vectors[rows]
        known = self.sound[rows]
        if not known.all():
            new = rows[~known]
            wrong = check(picked[~known]) != self.checks[new]
            if wrong.any() and self.file is not None:  # unless another process has erased them since
                wrong &= self.file.states[new] == ALIVE
            if wrong.any():
                raise DamagedIndex(f"{self.path} is damaged: the embedding of face {self.face_ids[new[wrong][0]]}")
            self.sound[new] = True
        return picked

    def erase(self, rows: NDArray[np.int64]) -> None:
        """Takes the embeddings off the disk."""
        if self.file is not None and len(rows):
            self.file.erase(rows)

    def erase_in_successor(self, face_ids: NDArray[np.int64]) -> None:
        """Takes the embeddings out of the file that has taken this one's place, where one has: whoever wrote it may
        have ended before these faces were removed. Raises OSError."""
        if self.file is None:
            return
        try:
            if os.path.samestat(self.path.stat(), self.file.opened):
                return
            there = _map(self.path)
        except FileNotFoundError:
            return
        except DamagedIndex:  # or an exact snapshot: of no use, or soon written again
            self.path.unlink(missing_ok=True)
            return
        there.erase(rows_of(there.face_ids, face_ids))

    def alive(self) -> NDArray[np.bool_]:
        """Which rows are there, and were not erased."""
        if self.file is None:
            return np.ones(len(self), np.bool_)
        return np.asarray(self.file.states == ALIVE)


def rows_of(ascending: NDArray[np.int64], face_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where these faces are among `ascending` ids, each once; those that are not are passed over."""
    if len(ascending) == 0:
        return np.empty(0, np.int64)
    rows = np.minimum(np.searchsorted(ascending, face_ids), len(ascending) - 1)
    return np.unique(rows[ascending[rows] == face_ids])


def check(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """A number a row of (N, ...) that changes with any bit of it, and with the order of its words.

    The sum of its 64-bit words, each weighted with an odd number of its place: a flipped bit moves the sum, whatever
    else is in the row.
    """
    row_bytes = int(np.prod(rows.shape[1:])) * rows.itemsize
    flat = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), row_bytes)
    if pad := -flat.shape[1] % 8:
        flat = np.pad(flat, ((0, 0), (0, pad)))
    words = flat.view(np.uint64)
    weights = np.arange(words.shape[1], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    return np.asarray((words * weights).sum(axis=1, dtype=np.uint64))


class Writer:
    """Takes vectors as they come, then the rest."""

    def __init__(self, file: BinaryIO, temporary: Path, dim: int) -> None:
        self._file = file
        self._temporary = temporary
        self._dim = dim
        self._checks: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        self._rows = 0

    def add(self, vectors: NDArray[np.float32]) -> None:
        halves = np.ascontiguousarray(vectors, dtype=np.float16)
        self._file.write(halves.tobytes())
        self._checks.append(check(halves))
        self._rows += len(halves)

    def vectors(self) -> Halves:
        """What was added, mapped."""
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
        about: Mapping[str, Any],
    ) -> None:
        """Writes the rest."""
        checks = np.concatenate(self._checks)
        centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        id_checks = check(np.stack([face_ids, identity_ids], axis=1))
        states = np.full(len(face_ids), ALIVE, np.uint8)
        self._file.write(bytes(-self._file.tell() % 8))
        for array in (checks, face_ids, identity_ids, id_checks, check(codes), centroids, codes, states):
            self._file.write(np.ascontiguousarray(array).tobytes())
        foot = json.dumps(
            {
                "rows": self._rows,
                "dim": self._dim,
                "code_bytes": codes.shape[1],
                "centroids": list(centroids.shape),
                "centroids_sha256": _sha256(centroids),
                "checks_sha256": _sha256(checks),
                "about": dict(about),
            }
        ).encode()
        self._file.write(foot + hashlib.sha256(foot).digest() + len(foot).to_bytes(4, "little") + MAGIC)


@contextmanager
def writing(path: Path, dim: int) -> Iterator[Writer]:
    """The file gets its name when the block ends, finished. What a killed process left goes first. Raises OSError when
    the disk is full, and leaves nothing then."""
    remove_leftovers(path)
    with atomic_file(path) as (file, temporary):
        yield Writer(file, temporary, dim)


def read(path: Path) -> Resting:
    """Raises DamagedIndex unless it is whole and everything but the vectors is what was written or erased (those are
    checked when they are picked); FileNotFoundError where there is none."""
    file = _map(path)
    centroids = file.centroids.copy()
    if _sha256(centroids) != file.told["centroids_sha256"] or _sha256(file.checks) != file.told["checks_sha256"]:
        raise DamagedIndex(f"{path} is damaged: the centroids or the checks")
    wrong = check(np.stack([file.face_ids, file.identity_ids], axis=1)) != file.id_checks
    wrong |= (check(file.codes) != file.code_checks) & (file.states != ERASED)
    wrong |= (file.states != ALIVE) & (file.states != ERASED)
    if wrong.any():
        raise DamagedIndex(f"{path} is damaged: the ids or codes of {int(wrong.sum())} faces")
    sound = np.zeros(len(wrong), np.bool_)
    vectors = file.vectors.view()
    vectors.flags.writeable = False
    about = file.told["about"]
    return Resting(
        path, about, file.face_ids, file.identity_ids, file.codes, centroids, vectors, file.checks, sound, file
    )


def _map(path: Path) -> _Mapped:
    """Raises DamagedIndex unless its length and its foot are right; FileNotFoundError."""
    with path.open("r+b") as file:
        opened = os.fstat(file.fileno())
        try:
            whole = mmap.mmap(file.fileno(), 0)
        except ValueError as error:
            raise DamagedIndex(f"{path} is damaged: it is empty") from error
    end = len(MAGIC) + 4 + 32
    tail = whole[-end:]
    length = int.from_bytes(tail[32:36], "little")
    foot = whole[-end - length : -end]
    if len(tail) < end or tail[36:] != MAGIC or hashlib.sha256(foot).digest() != tail[:32]:
        raise DamagedIndex(f"{path} is damaged")
    told = json.loads(foot)
    rows, dim, code_bytes = told["rows"], told["dim"], told["code_bytes"]
    parts: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "vectors": (np.float16, (rows, dim)),
        "checks": (np.uint64, (rows,)),
        "face_ids": (np.int64, (rows,)),
        "identity_ids": (np.int64, (rows,)),
        "id_checks": (np.uint64, (rows,)),
        "code_checks": (np.uint64, (rows,)),
        "centroids": (np.float32, tuple(told["centroids"])),
        "codes": (np.uint8, (rows, code_bytes)),
        "states": (np.uint8, (rows,)),
    }
    sizes = {name: int(np.prod(shape)) * np.dtype(kind).itemsize for name, (kind, shape) in parts.items()}
    sizes["vectors"] += -sizes["vectors"] % 8  # what follows lies at a multiple of 8
    if len(whole) != sum(sizes.values()) + length + end:
        raise DamagedIndex(f"{path} has {len(whole)} bytes; expected {sum(sizes.values()) + length + end}")
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for name, (kind, shape) in parts.items():
        arrays[name] = np.frombuffer(whole, kind, int(np.prod(shape)), at).reshape(shape)
        at += sizes[name]
    return _Mapped(opened, told, **arrays)


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
