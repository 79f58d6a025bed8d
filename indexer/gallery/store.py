"""The galleries of one database: the source of truth, from which the indexes are derived."""

from __future__ import annotations

from sqlalchemy import Engine

from indexer.gallery.calibrations import CalibrationRepository
from indexer.gallery.change_log import ChangeLog
from indexer.gallery.embeddings import EmbeddingRepository
from indexer.gallery.faces import FaceRepository
from indexer.gallery.galleries import GalleryRepository
from indexer.gallery.identities import IdentityRepository
from indexer.gallery.reembeddings import ReembeddingRepository


class Store:
    """One repository for each kind of row. Thread-safe.

    Usage:
        gallery = store.galleries.get("staff")
        store.faces.enroll(gallery, [new_face])
        people = store.identities.list(gallery.id)
    """

    def __init__(self, engine: Engine) -> None:
        """Uses a database whose tables exist: see `database.migrate`."""
        self.engine = engine
        self.galleries = GalleryRepository(engine)
        self.identities = IdentityRepository(engine)
        self.faces = FaceRepository(engine)
        self.embeddings = EmbeddingRepository(engine)
        self.reembeddings = ReembeddingRepository(engine)
        self.calibrations = CalibrationRepository(engine)
        self.changes = ChangeLog(engine)
