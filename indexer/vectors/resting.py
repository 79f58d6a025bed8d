"""The file in which a compressed index lies: half-precision vectors that are read where they lie, and product codes.

Vectors come first, so that they can be written as they arrive; what describes them comes last. Every row has checks of
its own, so that a million rows need not be read before the first answer, and one of them can be erased in place.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.disk import sync_folder
from indexer.vectors.base import DamagedIndex

MAGIC = b"whosthere-faces-1\n"

ALIVE, ERASED = 0xA5, 0
"""The byte of a row that is there, and of one that was erased: no flipped bit makes one of the other."""

Halves = NDArray[np.float16]
"""(N, D) embeddings in half precision: a score moves by 1e-4 at most (`tests/vectors/test_indexes.py`)."""

Codes = NDArray[np.uint8]
"""(N, B) product codes, two of 4 bits a byte."""


@dataclass(frozen=True, eq=False)
class _Writable:
    """What is erased in the file itself, which may have another name or none by now."""

    vectors: Halves
    codes: Codes
    states: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Resting:
    """The rows of a file. `face_ids` ascend."""

    path: Path
    about: Mapping[str, Any]
    """What the writer said of the file."""
    face_ids: NDArray[np.int64]
    identity_ids: NDArray[np.int64]
    codes: Codes
    centroids: NDArray[np.float32]
    vectors: Halves
    """Mapped, not read."""
    checks: NDArray[np.uint64]
    """Mapped as well: of each vector."""
    sound: NDArray[np.bool_]
    """Which vectors were found to be what was written; the others are checked when they are first picked."""
    file: _Writable | None = None

    def __len__(self) -> int:
        return len(self.face_ids)

    def pick(self, rows: NDArray[np.int64]) -> Halves:
        """The vectors of these rows. Raises DamagedIndex when one is neither what was written nor erased."""
        picked: Halves = self.vectors[rows]
        if not self.sound[rows].all():
            new = ~self.sound[rows]
            wrong = check(picked[new]) != self.checks[rows[new]]
            if wrong.any() and self.file is not None:  # unless another process has erased them since
                wrong &= self.file.states[rows[new]] == ALIVE
            if wrong.any():
                raise DamagedIndex(
                    f"{self.path} is damaged: the embedding of face {self.face_ids[rows[new][wrong][0]]}"
                )
            self.sound[rows[new]] = True
        return picked

    def erase(self, rows: NDArray[np.int64]) -> None:
        """Takes the embeddings off the disk."""
        if self.file is not None:
            self.file.states[rows] = ERASED
            self.file.vectors[rows] = 0
            self.file.codes[rows] = 0

    def alive(self) -> NDArray[np.bool_]:
        """Which rows are there, and were not erased."""
        if self.file is None:
            return np.ones(len(self), np.bool_)
        return np.asarray(self.file.states == ALIVE)


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
    """Takes vectors as they come, then the rest; the file gets its name when it is whole."""

    def __init__(self, path: Path, dim: int) -> None:
        self._path = path
        self._dim = dim
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        self._file = os.fdopen(handle, "w+b")
        self._temporary = Path(name)
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
        """Writes the rest and puts the file in place."""
        centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        ids = np.stack([face_ids, identity_ids], axis=1)
        states = np.full(len(ids), ALIVE, np.uint8)
        self._file.write(bytes(-self._file.tell() % 8))
        for array in (np.concatenate(self._checks), ids, check(ids), check(codes), centroids, codes, states):
            self._file.write(np.ascontiguousarray(array).tobytes())
        foot = json.dumps(
            {
                "rows": self._rows,
                "dim": self._dim,
                "code_bytes": codes.shape[1],
                "centroids": list(centroids.shape),
                "centroids_sha256": hashlib.sha256(centroids.tobytes()).hexdigest(),
                "about": dict(about),
            }
        ).encode()
        self._file.write(foot + hashlib.sha256(foot).digest() + len(foot).to_bytes(4, "little") + MAGIC)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Leaves nothing of a file that was not finished."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, dim: int) -> Iterator[Writer]:
    """Raises OSError when the disk is full, and leaves nothing then."""
    writer = Writer(path, dim)
    try:
        yield writer
    finally:
        writer.close()


def read(path: Path) -> Resting:
    """Raises DamagedIndex unless it is whole and everything but the vectors is what was written or erased (those are
    checked when they are picked); FileNotFoundError where there is none."""
    with path.open("r+b") as file:
        try:
            whole = mmap.mmap(file.fileno(), 0)
        except ValueError as error:
            raise DamagedIndex(f"{path} is damaged") from error
    end = len(MAGIC) + 4 + 32
    tail = whole[-end:]
    length = int.from_bytes(tail[32:36], "little")
    foot = whole[-end - length : -end]
    if len(tail) < end or tail[36:] != MAGIC or hashlib.sha256(foot).digest() != tail[:32]:
        raise DamagedIndex(f"{path} is damaged")
    told = json.loads(foot)
    rows, dim, code_bytes, centroid_shape = told["rows"], told["dim"], told["code_bytes"], tuple(told["centroids"])
    at = _places(rows, dim, code_bytes, 4 * int(np.prod(centroid_shape)))
    if len(whole) != at["end"] + length + end:
        raise DamagedIndex(f"{path} has {len(whole)} bytes; expected {at['end'] + length + end}")

    def part(name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        return np.frombuffer(whole, dtype, int(np.prod(shape)), at[name]).reshape(shape)

    ids, codes, states = (
        part("ids", np.int64, rows, 2),
        part("codes", np.uint8, rows, code_bytes),
        part("states", np.uint8, rows),
    )
    centroids = part("centroids", np.float32, *centroid_shape).copy()
    if hashlib.sha256(centroids.tobytes()).hexdigest() != told["centroids_sha256"]:
        raise DamagedIndex(f"{path} is damaged: the centroids")
    wrong = (check(ids) != part("id_checks", np.uint64, rows)) | ((states != ALIVE) & (states != ERASED))
    wrong |= (check(codes) != part("code_checks", np.uint64, rows)) & (states != ERASED)
    if wrong.any():
        raise DamagedIndex(f"{path} is damaged: the ids or codes of {int(wrong.sum())} faces")
    vectors = part("vectors", np.float16, rows, dim)
    readable = vectors.view()
    readable.flags.writeable = False
    return Resting(
        path,
        told["about"],
        np.ascontiguousarray(ids[:, 0]),
        np.ascontiguousarray(ids[:, 1]),
        codes.copy(),
        centroids,
        readable,
        part("checks", np.uint64, rows),
        np.zeros(rows, np.bool_),
        _Writable(vectors, codes, states),
    )


def _places(rows: int, dim: int, code_bytes: int, centroid_bytes: int) -> dict[str, int]:
    """Where each part begins; `end` is where what is told of the file does."""
    sizes = {
        "vectors": rows * dim * 2 + -(rows * dim * 2) % 8,
        "checks": 8 * rows,
        "ids": 16 * rows,
        "id_checks": 8 * rows,
        "code_checks": 8 * rows,
        "centroids": centroid_bytes,
        "codes": rows * code_bytes,
        "states": rows,
    }
    places, at = {}, 0
    for name, size in sizes.items():
        places[name] = at
        at += size
    return places | {"end": at}
