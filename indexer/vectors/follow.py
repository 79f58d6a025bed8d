"""Indexes that follow the change log of their galleries: loaded from a snapshot, or rebuilt, and caught up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from indexer.errors import NotFound, StorageUnavailable
from indexer.gallery.changes import Change, Kind, Position
from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors import snapshot
from indexer.vectors.base import MakeIndex, VectorIndex

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


@dataclass(frozen=True)
class Comparison:
    """An index beside SQL."""

    in_database: int
    in_index: int
    different: int
    """Faces that only one of them has, or that have another identity or vector there."""
    snapshot_problem: str | None
    """Why the snapshot on the disk was of no use."""


class FollowedIndex:
    """One gallery's index and the change it has reached. Thread-safe."""

    def __init__(self, store: Store, gallery: Gallery, folder: Path, make: MakeIndex) -> None:
        self._store = store
        self._gallery = gallery
        self._path = folder / f"{gallery.id}.index"
        self._make = make
        self._lock = threading.Lock()
        self._index: VectorIndex | None = None
        self._seq = 0
        self._mark = ""
        """Of change `_seq`: a restored backup may have another change of that number."""
        self._snapshot_seq: int | None = None
        self._snapshot_problem: str | None = None
        self._tried_seq = 0
        """The change at which a snapshot was last written or failed to be: a full disk is not asked at every search."""

    def caught_up(self) -> VectorIndex:
        """The index with every change in it that is committed now. Raises NotFound when the gallery is gone."""
        with self._lock:
            index = self._caught_up()
            if self._seq - self._tried_seq >= SNAPSHOT_EVERY:
                self._save(index)
            return index

    def rebuild(self) -> int:
        """Makes the index anew from SQL and writes it down; how many faces are in it. Raises NotFound."""
        with self._lock:
            index = self._build()
            self._save(index)
            return len(index)

    def save(self) -> None:
        """Writes down what is not in the snapshot yet, if anything, and nothing that was removed meanwhile."""
        with self._lock:
            if self._index is None:
                return
            try:
                index = self._caught_up()
            except NotFound:
                self._delete()
                return
            if self._seq != self._snapshot_seq:
                self._save(index)

    def state(self) -> IndexState:
        index = self.caught_up()
        return IndexState(index.kind, len(index), self._seq, self._snapshot_seq)

    def compare(self) -> Comparison:
        """Every face of the index beside SQL, bit by bit, in the memory of one more index. Writes no snapshot.

        What the change log tells of since the index caught up may differ: others may enrol and delete meanwhile.
        Raises NotFound when the gallery is gone.
        """
        with self._lock:
            face_ids, identity_ids, vectors = self._caught_up().contents()
            seq, problem = self._seq, self._snapshot_problem
        order = np.argsort(face_ids)
        ordered = face_ids[order]
        right = np.zeros(len(face_ids), dtype=np.bool_)
        different: set[int | None] = set()
        in_database = 0
        for part in self._store.all_vectors(self._gallery.id, self._gallery.dim)[1]:
            in_database += len(part.face_ids)
            there = np.isin(part.face_ids, ordered)
            different.update(part.face_ids[~there].tolist())
            rows = order[np.searchsorted(ordered, part.face_ids[there])]
            same_vector = (vectors[rows] == part.vectors[there]).all(axis=1)
            right[rows] = same_vector & (identity_ids[rows] == part.identity_ids[there])
        different.update(face_ids[~right].tolist())
        while different and (changes := self._store.changes_since(self._gallery.id, seq)):
            different.difference_update(c.entry.face_id for c in changes)
            seq = changes[-1].seq
        self._position(seq)
        return Comparison(in_database, len(face_ids), len(different), problem)

    def delete(self) -> None:
        with self._lock:
            self._delete()

    def _delete(self) -> None:
        self._index = None
        self._drop_snapshot()

    def _drop_snapshot(self) -> None:
        self._snapshot_seq = None
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("The snapshot of gallery %s could not be deleted: %s", self._gallery.name, error)

    def _position(self, seq: int | None = None) -> Position:
        position = self._store.position(self._gallery.id, seq)
        if position is None:
            raise NotFound(f"there is no gallery {self._gallery.name!r}", code="gallery_not_found")
        return position

    def _caught_up(self) -> VectorIndex:
        index = self._index
        if index is None:
            index = self._load()
        position = self._position(self._seq)
        if position.mark != self._mark:
            log.warning("The index of gallery %s is made anew: its database was restored", self._gallery.name)
            self._drop_snapshot()
            index = self._build()
        while self._seq < position.last:
            self._apply(index, self._store.changes_since(self._gallery.id, self._seq))
        return index

    def _load(self) -> VectorIndex:
        try:
            header, index = snapshot.read(self._path, self._make)
        except FileNotFoundError:
            return self._build()
        except (snapshot.DamagedSnapshot, OSError, ValueError) as error:
            return self._build_instead(str(error))
        of_this = self._header(header.seq, header.mark, header.faces)
        if header != of_this or header.mark != self._position(header.seq).mark:
            return self._build_instead(f"{self._path} is of another gallery, model or database")
        self._become(index, header.seq, header.mark)
        self._snapshot_seq = self._tried_seq = header.seq
        return index

    def _build_instead(self, problem: str) -> VectorIndex:
        log.warning("The index of gallery %s is made anew: %s", self._gallery.name, problem)
        self._snapshot_problem = problem
        return self._build()

    def _build(self) -> VectorIndex:
        position = self._position()
        index = self._make(self._gallery.dim)
        _, parts = self._store.all_vectors(self._gallery.id, self._gallery.dim)
        for part in parts:
            index.put(part.face_ids, part.identity_ids, part.vectors)
        self._become(index, position.last, position.mark)
        self._snapshot_seq, self._tried_seq = None, 0
        return index

    def _become(self, index: VectorIndex, seq: int, mark: str) -> None:
        self._index, self._seq, self._mark = index, seq, mark

    def _apply(self, index: VectorIndex, changes: Sequence[Change]) -> None:
        """Only the last thing that happened to a face counts: what came and went again is not fetched."""
        if not changes:
            self._position()
            raise StorageUnavailable("the change log has a gap; `whosthere gallery rebuild` makes the index anew")
        last = {c.entry.face_id: c.entry.kind for c in changes if c.entry.face_id is not None}
        removed = [face_id for face_id, kind in last.items() if kind is Kind.FACE_REMOVED]
        index.remove(removed)
        added = [face_id for face_id, kind in last.items() if kind is Kind.FACE_ADDED]
        if added:
            faces = self._store.vectors_of(self._gallery.id, self._gallery.dim, added)
            index.put(faces.face_ids, faces.identity_ids, faces.vectors)
        self._become(index, changes[-1].seq, changes[-1].mark)
        if removed:
            # A removed face must not stay on the disk until the next snapshot is due. Writing gigabytes at every
            # removal would hold up the searches; without a file, only a start after a crash takes longer: it reads SQL.
            self._drop_snapshot()

    def _save(self, index: VectorIndex) -> None:
        self._tried_seq = self._seq
        try:
            snapshot.write(self._path, self._header(self._seq, self._mark, len(index)), index)
            self._snapshot_seq, self._snapshot_problem = self._seq, None
        except OSError as error:  # a full disk costs the next start some time, nothing else
            log.warning("The index of gallery %s could not be written: %s", self._gallery.name, error)
        if self._store.last_change(self._gallery.id) is None:  # somebody deleted it, and its file, while we wrote ours
            self._delete()

    def _header(self, seq: int, mark: str, faces: int) -> snapshot.Header:
        g = self._gallery
        return snapshot.Header(g.id, g.created_at.isoformat(), g.fingerprint, g.dim, seq, mark, faces)


class Indexes:
    """The indexes of all galleries of one store, each made by `make` when it is first asked for."""

    def __init__(self, store: Store, folder: Path, make: MakeIndex) -> None:
        self._store = store
        self._folder = folder
        self._make = make
        self._lock = threading.Lock()
        self._followed: dict[tuple[int, datetime], FollowedIndex] = {}

    def of(self, gallery: Gallery) -> FollowedIndex:
        key = _key(gallery)
        if key not in self._followed:
            self._forget_deleted()  # whoever makes galleries and deletes them elsewhere fills neither memory nor disk
        with self._lock:
            if key not in self._followed:
                self._followed[key] = FollowedIndex(self._store, gallery, self._folder, self._make)
            return self._followed[key]

    def forget(self, gallery: Gallery) -> None:
        """After the gallery was deleted."""
        self.of(gallery).delete()
        with self._lock:
            self._followed.pop(_key(gallery), None)

    def save(self) -> None:
        """Writes down every index that has changed since its snapshot; what is left of deleted galleries goes.

        Where the database does not answer nothing is written: it may be of people who are deleted.
        """
        try:
            self._forget_deleted()
            with self._lock:
                followed = list(self._followed.values())
            for index in followed:
                index.save()
        except StorageUnavailable as error:
            log.warning("The indexes are not written: %s", error)

    def _forget_deleted(self) -> None:
        """First what is here, then who is there: a gallery that is made this moment loses nothing."""
        files = [path for path in self._folder.glob("*.index*") if path.name.split(".")[0].isdecimal()]
        with self._lock:
            followed = dict(self._followed)
        there = {_key(gallery) for gallery in self._store.galleries()}
        for key in followed.keys() - there:
            followed[key].delete()
            with self._lock:
                self._followed.pop(key, None)
        ids = {gallery_id for gallery_id, _ in there}
        for path in files:
            if int(path.name.split(".")[0]) not in ids:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("%s, of a deleted gallery, could not be deleted: %s", path, error)


def _key(gallery: Gallery) -> tuple[int, datetime]:
    """A restored backup may give a number to another gallery."""
    return gallery.id, gallery.created_at
