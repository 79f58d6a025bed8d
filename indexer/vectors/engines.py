"""Chooses between FAISS indexes: exact for small galleries, compressed for large ones, GPU where configured."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from indexer.errors import InvalidSetting
from indexer.files import remove_leftovers
from indexer.types import Tier
from indexer.vectors import compressed, gpu, mapped_file, snapshot
from indexer.vectors.base import DamagedIndex, FacePages, Header, VectorEngine, VectorIndex
from indexer.vectors.flat import FlatIndex, build_flat_index

MAX_EXACT_NUMBERS = 5_000_000
"""Faces times dimension up to which search is exact: 10,000 faces of 512 numbers or 39,000 of 128. Exact search takes
about 1 ms there, in 20 MB and without a build; compressed search takes half of that (`benchmarks/results/vectors.csv`).
"""


class FaissEngine(VectorEngine):
    """Builds exact, compressed and GPU indexes with FAISS and stores them in files."""

    can_prepare = True

    def __init__(self, tier: Tier = Tier.AUTO) -> None:
        """Raises InvalidSetting if this machine does not support the tier."""
        if tier is Tier.GPU and (reason := gpu.unavailable_reason()):
            raise InvalidSetting(f"WHOSTHERE_VECTORS is gpu, which is not available: {reason}")
        self._tier = tier

    def load(self, path: Path) -> tuple[Header, VectorIndex]:
        with suppress(OSError):  # the folder may be read-only
            remove_leftovers(path)
        with path.open("rb") as file:
            is_exact = file.read(len(snapshot.MAGIC)) == snapshot.MAGIC
        if self._tier not in (Tier.AUTO, Tier.EXACT) if is_exact else self._tier is Tier.EXACT:
            raise DamagedIndex(f"{path} is {'exact' if is_exact else 'compressed'}; WHOSTHERE_VECTORS is {self._tier}")
        if is_exact:
            header, face_ids, identity_ids, vectors = snapshot.read(path)
            index = FlatIndex(header.dim, self._max_exact_faces(header.dim))
            index.put(face_ids, identity_ids, vectors)
            return header, index
        base = mapped_file.read(path)
        try:
            header = Header(**base.metadata["header"])
        except (KeyError, TypeError) as error:
            raise DamagedIndex(f"{path} has no valid header") from error
        return header, self._open(base)

    def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
        is_large = self._tier is Tier.AUTO and header.faces * header.dim > MAX_EXACT_NUMBERS
        if is_large or self._tier in (Tier.COMPRESSED, Tier.GPU):
            return self._open(compressed.build(path, header.dim, faces(), {"header": asdict(header)})), True
        return build_flat_index(header.dim, faces(), self._max_exact_faces(header.dim)), False

    def save(self, path: Path, header: Header, index: VectorIndex) -> bool:
        """Stores an exact index. Compressed ones are stored by `build`; later changes are in the change log.

        An outgrown exact index is not stored, because another process may have stored its successor there.
        """
        if not isinstance(index, FlatIndex) or index.is_outgrown:
            return False
        snapshot.write(path, header, index)
        return True

    def adopt(self, prepared: Path, path: Path) -> None:
        with suppress(FileNotFoundError):
            prepared.replace(path)

    def delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        remove_leftovers(path)

    def _max_exact_faces(self, dim: int) -> int | None:
        return MAX_EXACT_NUMBERS // dim if self._tier is Tier.AUTO else None

    def _open(self, base: mapped_file.MappedFile) -> VectorIndex:
        if self._tier is Tier.GPU:
            return compressed.open_index(base, "gpu", gpu.GpuScan)
        return compressed.open_index(base)
