"""Which index a gallery gets: exact while that is fast, compressed beyond, on the GPUs where that was asked for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from indexer.errors import InvalidSetting
from indexer.files import remove_leftovers
from indexer.types import Tier
from indexer.vectors import compressed, gpu, mapped_file, snapshot
from indexer.vectors.base import DamagedIndex, Faces, Header, VectorIndex
from indexer.vectors.flat import FaissIndex, in_memory

EXACT_NUMBERS = 5_000_000
"""Faces times dimension up to which every face is scored: 10,000 of 512 numbers or 39,000 of 128. Exact search takes
about 1 ms there, in 20 MB and without a build; the compressed one half of that (`benchmarks/results/vectors.csv`)."""


class FaissEngine:
    """The tiers that FAISS offers, in files."""

    def __init__(self, tier: Tier = Tier.AUTO) -> None:
        """Raises InvalidSetting for a tier that cannot be had here."""
        if tier is Tier.GPU and (problem := gpu.problem()):
            raise InvalidSetting(f"WHOSTHERE_VECTORS is gpu, which cannot be had here: {problem}")
        self._tier = tier

    def load(self, path: Path) -> tuple[Header, VectorIndex]:
        with suppress(OSError):  # a folder that cannot be written to
            remove_leftovers(path)
        with path.open("rb") as file:
            exact = file.read(len(snapshot.MAGIC)) == snapshot.MAGIC
        if self._tier not in (Tier.AUTO, Tier.EXACT) if exact else self._tier is Tier.EXACT:
            raise DamagedIndex(f"{path} is {'exact' if exact else 'compressed'}; WHOSTHERE_VECTORS is {self._tier}")
        if exact:
            header, face_ids, identity_ids, vectors = snapshot.read(path)
            index = FaissIndex(header.dim, self._most(header.dim))
            index.put(face_ids, identity_ids, vectors)
            return header, index
        base = mapped_file.read(path)
        try:
            header = Header(**base.about["header"])
        except (KeyError, TypeError) as error:
            raise DamagedIndex(f"{path} does not say what it is of") from error
        return header, self._over(base)

    def build(self, path: Path, header: Header, faces: Faces) -> tuple[VectorIndex, bool]:
        large = self._tier is Tier.AUTO and header.faces * header.dim > EXACT_NUMBERS
        if large or self._tier in (Tier.COMPRESSED, Tier.GPU):
            return self._over(compressed.build(path, header.dim, faces(), {"header": asdict(header)})), True
        return in_memory(header.dim, faces(), self._most(header.dim)), False

    def save(self, path: Path, header: Header, index: VectorIndex) -> bool:
        """Files of other tiers are written when they are built; what came since is in the change log. An exact index
        that is outgrown is not written: another process may have put the next one there."""
        if not isinstance(index, FaissIndex) or index.outgrown:
            return False
        snapshot.write(path, header, index)
        return True

    def close(self) -> None:
        """There are none."""

    def galleries(self) -> set[int]:
        return set()

    def delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        remove_leftovers(path)

    def _most(self, dim: int) -> int | None:
        """The faces that an exact index may have."""
        return EXACT_NUMBERS // dim if self._tier is Tier.AUTO else None

    def _over(self, base: mapped_file.Resting) -> VectorIndex:
        if self._tier is Tier.GPU:
            return compressed.over(base, "gpu", gpu.GpuScan)
        return compressed.over(base)
