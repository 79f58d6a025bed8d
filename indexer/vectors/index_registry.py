"""Keeps the synchronized index of every gallery of one database."""

from __future__ import annotations

import logging
import threading
from collections.abc import Set
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from indexer.errors import StorageUnavailable
from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors.base import VectorEngine
from indexer.vectors.builds import Builds
from indexer.vectors.prepared import delete_unused, prepared
from indexer.vectors.synchronizer import SynchronizedIndex

log = logging.getLogger(__name__)

SWEEP_FROM = 16
"""Number of indexes at which deleted galleries are first looked for; then at twice the number left by the last look."""


class IndexRegistry:
    """Creates the index of each gallery on first use, with `engine`, and deletes those of deleted galleries."""

    def __init__(self, store: Store, folder: Path, engine: VectorEngine) -> None:
        self._store = store
        self._folder = folder
        self._engine = engine
        self._builds = Builds()
        self._lock = threading.Lock()
        self._indexes: dict[tuple[int, datetime, str], SynchronizedIndex] = {}
        self._next_sweep = 0
        """Number of indexes at which deleted galleries are looked for again."""

    def serve(self) -> None:
        """From now on, callers get IndexBuilding instead of waiting for the end of a build."""
        self._builds.is_service = True

    def get(self, gallery: Gallery) -> SynchronizedIndex:
        """Returns the index of the gallery as it was read: after re-embedding, another one."""
        key = _key(gallery)
        with self._lock:
            was_reembedded = any(gallery_id == gallery.id for gallery_id, _, _ in self._indexes)
            is_sweep_due = key not in self._indexes and (was_reembedded or len(self._indexes) >= self._next_sweep)
        if is_sweep_due:  # galleries deleted by other processes must fill neither memory nor disk
            self._delete_orphans()
        with self._lock:
            if key not in self._indexes:
                self._indexes[key] = SynchronizedIndex(self._store, gallery, self._folder, self._engine, self._builds)
            return self._indexes[key]

    def check_ready(self, gallery: Gallery) -> None:
        """Raises IndexBuilding if the index is being built and callers no longer wait for that. Needs no database, so
        that nothing is computed for a request that cannot be answered."""
        with self._lock:
            index = self._indexes.get(_key(gallery))
        if index is not None:
            index.check_ready()

    def prepared(self, gallery: Gallery, future: Gallery) -> AbstractContextManager[None]:
        """Builds the index of `future`, which is `gallery` bound to another pack, for a block that binds it."""
        return prepared(self._store, self._folder, self._engine, gallery, future)

    def delete(self, gallery: Gallery) -> None:
        """Deletes the index of a gallery that was deleted."""
        self.get(gallery).delete()
        with self._lock:
            self._indexes.pop(_key(gallery), None)

    def close(self) -> None:
        """Saves the indexes, and ends running builds as soon as they read the next page. Waits for none of them."""
        self._builds.close()
        self.save()

    def save(self) -> None:
        """Stores every index that has changed since its snapshot and deletes those of deleted galleries and packs.

        Stores nothing if the database is unavailable, because the people in an index may have been deleted.
        """
        try:
            self._delete_orphans(self._galleries_stored_by_engine())
            with self._lock:
                indexes = list(self._indexes.values())
            for index in indexes:
                index.save()
        except StorageUnavailable as error:
            log.warning("The indexes are not saved: %s", error)

    def _galleries_stored_by_engine(self) -> set[int]:
        try:
            return self._engine.stored_galleries()
        except (OSError, StorageUnavailable) as error:
            log.warning("Indexes of deleted galleries cannot be looked for: %s", error)
            return set()

    def _delete_orphans(self, stored: Set[int] = frozenset()) -> None:
        """Deletes indexes whose gallery no longer exists: in memory, in files and those `stored` by the engine.

        Lists the indexes before the galleries, so that a gallery created meanwhile loses nothing.
        """
        files = [path for path in self._folder.glob("*.index*") if path.name.split(".")[0].isdecimal()]
        with self._lock:
            indexes = dict(self._indexes)
        current = {_key(gallery) for gallery in self._store.galleries.list()}
        galleries = {key[:2] for key in current}
        for key in indexes.keys() - current:
            if key[:2] not in galleries:  # otherwise it was re-embedded, and the new index replaces the file
                indexes[key].delete()
            with self._lock:
                self._indexes.pop(key, None)
        ids = {gallery_id for gallery_id, _ in galleries}
        for path in files:
            if int(path.name.split(".")[0]) not in ids:
                _delete_file(path)
        delete_unused(self._folder, files, {key[0]: key[2] for key in current})
        for gallery_id in stored - ids:
            try:
                self._engine.delete(self._folder / f"{gallery_id}.index")
            except (OSError, StorageUnavailable) as error:
                log.warning("The index of the deleted gallery %d could not be deleted: %s", gallery_id, error)
        with self._lock:
            self._next_sweep = max(SWEEP_FROM, 2 * len(self._indexes))


def _delete_file(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s of a deleted gallery could not be deleted: %s", path, error)


def _key(gallery: Gallery) -> tuple[int, datetime, str]:
    """Returns what identifies an index: ids can be reused after a restore, and galleries can be re-embedded."""
    return gallery.id, gallery.created_at, gallery.fingerprint
