"""Indexes that follow the change log of their galleries: loaded from a snapshot, or rebuilt, and caught up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import NotFound, StorageUnavailable
from indexer.gallery.changes import Change, Kind
from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors import snapshot
from indexer.vectors.base import VectorIndex
from indexer.vectors.faiss_index import FaissIndex

log = logging.getLogger(__name__)

SNAPSHOT_EVERY = 10_000
"""Changes after which a snapshot is written anew. Replaying that many from SQL takes less than a second."""


@dataclass(frozen=True)
class IndexState:
    """What people are told of an index."""

    kind: str
    faces: int
    seq: int
    snapshot_seq: int | None


class FollowedIndex:
    """One gallery's index and the change it has reached. Thread-safe."""

    def __init__(self, store: Store, gallery: Gallery, folder: Path) -> None:
        self._store = store
        self._gallery = gallery
        self._path = folder / f"{gallery.id}.index"
        self._lock = threading.Lock()
        self._index: FaissIndex | None = None
        self._seq = 0
        self._snapshot_seq: int | None = None
        self._tried_seq = 0
        """The change at which a snapshot was last written or failed to be: a full disk is not asked at every search."""

    def caught_up(self) -> VectorIndex:
        """The index with every change in it that is committed now. Raises NotFound when the gallery is gone."""
        with self._lock:
            last = self._last_change()
            index = self._load(last) if self._index is None else self._index
            while self._seq < last:
                self._apply(index, self._store.changes_since(self._gallery.id, self._seq))
            if self._seq - self._tried_seq >= SNAPSHOT_EVERY:
                self._save(index)
            return index

    def rebuild(self) -> int:
        """Makes the index anew from SQL and writes it down; how many faces are in it. Raises NotFound."""
        with self._lock:
            self._last_change()
            index = self._build()
            self._save(index)
            return len(index)

    def save(self) -> None:
        """Writes down what is not in the snapshot yet, if anything."""
        with self._lock:
            if self._index is not None and self._seq != self._snapshot_seq:
                self._save(self._index)

    def state(self) -> IndexState:
        index = self.caught_up()
        return IndexState("exact", len(index), self._seq, self._snapshot_seq)

    def delete(self) -> None:
        with self._lock:
            self._index = None
            self._path.unlink(missing_ok=True)

    def _last_change(self) -> int:
        last = self._store.last_change(self._gallery.id)
        if last is None:
            raise NotFound(f"there is no gallery {self._gallery.name!r}", code="gallery_not_found")
        return last

    def _load(self, last: int) -> FaissIndex:
        try:
            header, index = snapshot.read(self._path)
        except FileNotFoundError:
            return self._build()
        except (snapshot.DamagedSnapshot, OSError, ValueError) as error:
            log.warning("The index of gallery %s is made anew: %s", self._gallery.name, error)
            return self._build()
        if self._header(header.seq, header.faces) != header or header.seq > last:
            log.warning("The index of gallery %s is made anew: its snapshot is of another state", self._gallery.name)
            return self._build()
        self._index, self._seq, self._snapshot_seq, self._tried_seq = index, header.seq, header.seq, header.seq
        return index

    def _build(self) -> FaissIndex:
        index = FaissIndex(self._gallery.dim)
        seq, parts = self._store.all_vectors(self._gallery.id, self._gallery.dim)
        for part in parts:
            index.put(part.face_ids, part.identity_ids, part.vectors)
        self._index, self._seq, self._snapshot_seq, self._tried_seq = index, seq, None, 0
        return index

    def _apply(self, index: FaissIndex, changes: Sequence[Change]) -> None:
        """Only the last thing that happened to a face counts: what came and went again is not fetched."""
        if not changes:
            self._last_change()
            raise StorageUnavailable("the change log has a gap; `whosthere gallery rebuild` makes the index anew")
        last = {c.entry.face_id: c.entry.kind for c in changes if c.entry.face_id is not None}
        index.remove([face_id for face_id, kind in last.items() if kind is Kind.FACE_REMOVED])
        added = [face_id for face_id, kind in last.items() if kind is Kind.FACE_ADDED]
        if added:
            faces = self._store.vectors_of(self._gallery.id, self._gallery.dim, added)
            index.put(faces.face_ids, faces.identity_ids, faces.vectors)
        self._seq = changes[-1].seq

    def _save(self, index: FaissIndex) -> None:
        self._tried_seq = self._seq
        try:
            snapshot.write(self._path, self._header(self._seq, len(index)), index)
            self._snapshot_seq = self._seq
        except OSError as error:  # a full disk costs the next start some time, nothing else
            log.warning("The index of gallery %s could not be written: %s", self._gallery.name, error)

    def _header(self, seq: int, faces: int) -> snapshot.Header:
        g = self._gallery
        return snapshot.Header(g.id, g.created_at.isoformat(), g.fingerprint, g.dim, seq, faces)


class Indexes:
    """The indexes of all galleries of one store, each made when it is first asked for."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._lock = threading.Lock()
        self._followed: dict[int, FollowedIndex] = {}

    def of(self, gallery: Gallery) -> FollowedIndex:
        with self._lock:
            if gallery.id not in self._followed:
                self._followed[gallery.id] = FollowedIndex(self._store, gallery, self._folder)
            return self._followed[gallery.id]

    def forget(self, gallery: Gallery) -> None:
        """After the gallery was deleted."""
        self.of(gallery).delete()
        with self._lock:
            self._followed.pop(gallery.id, None)

    def save(self) -> None:
        """Writes down every index that has changed since its snapshot."""
        with self._lock:
            followed = list(self._followed.values())
        for index in followed:
            index.save()

    @contextmanager
    def saved_at_end(self) -> Iterator[Indexes]:
        try:
            yield self
        finally:
            self.save()
