"""Which index a gallery gets: exact while that is fast, compressed beyond, on the GPUs where that was asked for."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from indexer.errors import InvalidSetting
from indexer.types import Tier
from indexer.vectors import compressed, gpu, resting, snapshot
from indexer.vectors.base import DamagedIndex, Faces, Header, VectorIndex
from indexer.vectors.faiss_index import FaissIndex

log = logging.getLogger(__name__)

EXACT_NUMBERS = 10_000_000
"""Faces times dimension up to which every face is scored: 20,000 of 512 numbers or 78,000 of 128. Exact search takes
under 3 ms there, in 40 MB (`benchmarks/results/vectors.csv`)."""


class FaissEngine:
    """The tiers that FAISS offers, in files."""

    def __init__(self, tier: Tier = Tier.AUTO) -> None:
        """Raises InvalidSetting for a tier that cannot be had here."""
        if tier is Tier.GPU and (problem := gpu.problem()):
            raise InvalidSetting(f"WHOSTHERE_VECTORS is gpu, which cannot be had here: {problem}")
        self._tier = tier

    def load(self, path: Path) -> tuple[Header, VectorIndex]:
        with path.open("rb") as file:
            exact = file.read(len(snapshot.MAGIC)) == snapshot.MAGIC
        if exact:
            header, face_ids, identity_ids, vectors = snapshot.read(path)
            index = self._exact(header.dim)
            index.put(face_ids, identity_ids, vectors)
            return header, index
        base = resting.read(path)
        try:
            header = Header(**base.about["header"])
        except (KeyError, TypeError) as error:
            raise DamagedIndex(f"{path} does not say what it is of") from error
        return header, self._over(base)

    def build(self, path: Path, header: Header, faces: Faces) -> tuple[VectorIndex, bool]:
        large = self._tier is Tier.AUTO and header.faces * header.dim > EXACT_NUMBERS
        if large or self._tier in (Tier.COMPRESSED, Tier.GPU):
            try:
                return self._over(compressed.build(path, header.dim, faces(), {"header": asdict(header)})), True
            except OSError as error:
                log.warning("%s cannot be written, and every face is scored instead: %s", path, error)
        # Where a file could not be written it is not asked for again at every search.
        index = FaissIndex(header.dim) if large else self._exact(header.dim)
        for part in faces():
            index.put(part.face_ids, part.identity_ids, part.vectors)
        return index, False

    def save(self, path: Path, header: Header, index: VectorIndex) -> bool:
        """Files of other tiers are written when they are built; what came since is in the change log."""
        if not isinstance(index, FaissIndex):
            return False
        snapshot.write(path, header, index)
        return True

    def delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _exact(self, dim: int) -> FaissIndex:
        return FaissIndex(dim, EXACT_NUMBERS // dim if self._tier is Tier.AUTO else None)

    def _over(self, base: resting.Resting) -> VectorIndex:
        if self._tier is Tier.GPU:
            return compressed.over(base, "gpu", gpu.GpuScan)
        return compressed.over(base)
