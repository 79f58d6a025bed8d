"""Reads and writes the file of an exact index: replaced atomically and protected by a SHA-256 checksum.

Format: MAGIC, the length of the header (4 bytes, little-endian), the header as JSON, face ids and identity ids (int64),
vectors (float32), SHA-256 of everything before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.files import atomic_file, remove_leftovers
from indexer.types import Vectors
from indexer.vectors.base import DamagedIndex, Header, VectorIndex

MAGIC = b"whosthere-index-2\n"

DIGEST_BYTES = hashlib.sha256().digest_size


def write(path: Path, header: Header, index: VectorIndex) -> None:
    """Replaces the file and deletes temporary files of killed processes. Raises OSError if the disk is full.

    The index may change meanwhile: the file holds at least the changes up to `header.seq`.
    """
    contents = index.contents()
    head = json.dumps(asdict(replace(header, faces=len(contents[0])))).encode()
    arrays = [memoryview(array.tobytes()) for array in contents if len(array)]
    parts: list[bytes | memoryview] = [MAGIC, len(head).to_bytes(4, "little"), head, *arrays]
    digest = hashlib.sha256()
    remove_leftovers(path)
    with atomic_file(path) as (file, _):
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def read(path: Path) -> tuple[Header, NDArray[np.int64], NDArray[np.int64], Vectors]:
    """Returns the header, face ids (N,), identity ids (N,) and vectors (N, D).

    Raises:
        FileNotFoundError: There is no file.
        DamagedIndex: Any byte differs from what was written.
    """
    data = path.read_bytes()
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        raise DamagedIndex(f"{path} is damaged")
    start = len(MAGIC) + 4
    length = int.from_bytes(body[len(MAGIC) : start], "little")
    header = Header(**json.loads(body[start : start + length]))
    n, offset = header.faces, start + length
    face_ids = np.frombuffer(body, np.int64, n, offset)
    identity_ids = np.frombuffer(body, np.int64, n, offset + 8 * n)
    vectors = np.frombuffer(body, np.float32, n * header.dim, offset + 16 * n).reshape(n, header.dim)
    return header, face_ids, identity_ids, vectors
