"""An engine whose builds a test holds open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.gallery.embeddings import FaceVectors
from indexer.types import Gallery, Tier
from indexer.vectors.base import FacePages, Header, VectorIndex
from indexer.vectors.engines import FaissEngine
from tests.waiting import DEADLINE


class HeldEngine(FaissEngine):
    """Holds the builds of some galleries before the first page of faces is read."""

    def __init__(self, tier: Tier = Tier.AUTO) -> None:
        super().__init__(tier)
        self.begun = threading.Event()
        """Set while a build is held, or was."""
        self.builds = 0
        self._held: set[int] = set()
        self._go_on = threading.Event()

    @contextmanager
    def holding(self, gallery: Gallery) -> Iterator[None]:
        """Holds builds of the gallery's index that start in the block until the block ends."""
        self._held.add(gallery.id)
        self._go_on.clear()
        self.begun.clear()
        try:
            yield
        finally:
            self._held.discard(gallery.id)
            self._go_on.set()

    def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
        self.builds += 1
        if header.gallery_id not in self._held:
            return super().build(path, header, faces)

        def held() -> Iterator[FaceVectors]:
            self.begun.set()
            assert self._go_on.wait(DEADLINE)
            yield from faces()

        return super().build(path, header, held)
