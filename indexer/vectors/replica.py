"""Loads and builds the indexes of a gallery, and applies its change log to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from indexer.errors import Conflict, NotFound, StorageUnavailable
from indexer.gallery.change_log import Change, ChangeKind, LogPosition, check_pack_unchanged
from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors.base import DamagedIndex, FacePages, Header, VectorEngine, VectorIndex, header_of
from indexer.vectors.builds import Builds
from indexer.vectors.prepared import prepared_path

log = logging.getLogger(__name__)


@dataclass
class Replica:
    """An index and the last change applied to it. `mark` distinguishes changes of one number after a restore."""

    index: VectorIndex
    seq: int
    mark: str
    removals: int = 0
    """Number of times that faces were removed since it was loaded or built."""
    switches: int = 0
    """Number of times that the gallery was bound to another pack since the index was built."""


class Built(NamedTuple):
    replica: Replica
    is_stored: bool


class LogDiverged(Conflict):
    """The change log no longer continues the one that an index has followed, so that it must be rebuilt."""


class ReplicaSource:
    """Loads and builds replicas of one gallery's embeddings by one pack. Holds no state.

    Everything that needs the database raises NotFound after the gallery was deleted, and Conflict after it was
    re-embedded.
    """

    def __init__(self, store: Store, gallery: Gallery, path: Path, engine: VectorEngine, builds: Builds) -> None:
        self._store = store
        self._gallery = gallery
        self._path = path
        self._engine = engine
        self._builds = builds

    def position(self, seq: int | None = None) -> LogPosition:
        position = self._store.changes.position(self._gallery.id, seq)
        if position is None:
            raise NotFound(f"there is no gallery {self._gallery.name!r}", code="gallery_not_found")
        check_pack_unchanged(self._gallery, position.fingerprint)
        return position

    def load(self) -> Replica:
        """Loads the stored index if it belongs to this gallery and database. Raises as `VectorEngine.load`.

        One that was prepared for the gallery's pack replaces the stored one first.
        """
        with suppress(OSError):  # the folder may be read-only
            self._engine.adopt(prepared_path(self._path.parent, self._gallery), self._path)
        header, index = self._engine.load(self._path)
        is_same = header == self.header(header.seq, header.mark, header.faces)
        if not is_same or header.mark != self.position(header.seq).mark or self._has_lost_erasures(header.seq, index):
            raise DamagedIndex(f"{self._path} is of another gallery, model or database")
        return Replica(index, header.seq, header.mark)

    def _has_lost_erasures(self, seq: int, index: VectorIndex) -> bool:
        """Returns whether a face was erased from the stored index without an entry in the log after change `seq`.

        A restored backup contains such a face again.
        """
        erased = set(index.erased_face_ids().tolist())
        while erased and (changes := self._store.changes.since(self._gallery.id, seq)):
            erased.difference_update(change.entry.face_id for change in changes)
            seq = changes[-1].seq
        return bool(erased)

    def build(self, build: Callable[[Path, Header, FacePages], tuple[VectorIndex, bool]]) -> Built:
        """Builds an index of the current contents of SQL. Raises as `VectorEngine.build`."""
        position = self.position()
        header = self.header(position.last, position.mark, self._store.galleries.counts(self._gallery.id)[1])
        index, is_stored = build(self._path, header, self.face_pages)
        try:
            self.position()  # if the gallery was re-embedded meanwhile, this is not an index of its pack
        except (NotFound, Conflict):
            if is_stored:
                self.delete()
            raise
        return Built(Replica(index, header.seq, header.mark), is_stored)

    def delete(self) -> None:
        """Deletes the stored index."""
        try:
            self._engine.delete(self._path)
        except (OSError, StorageUnavailable) as error:
            log.warning("The snapshot of gallery %s could not be deleted: %s", self._gallery.name, error)

    def face_pages(self) -> Iterator[FaceVectors]:
        return self._builds.until_closed(self._store.embeddings.pages(self._gallery))

    def replay(self, replica: Replica, most: int | None = None) -> bool:
        """Applies the changes after `replica.seq`, up to the last one that is committed when it starts.

        Returns False, without a change, if there are more than `most`.

        Raises LogDiverged if the database was restored from a backup or the gallery re-embedded and back. One switch
        is that to the pack of a prepared index: no other index sees a single one while the gallery is bound to its
        pack.
        """
        position = self.position(replica.seq)
        name = self._gallery.name
        if position.mark != replica.mark:
            raise LogDiverged(f"the database of gallery {name!r} was restored meanwhile")
        if most is not None and position.last - replica.seq > most:
            return False
        while replica.seq < position.last:
            changes = self._store.changes.since(self._gallery.id, replica.seq)
            replica.switches += sum(change.entry.kind is ChangeKind.REEMBEDDED for change in changes)
            if replica.switches > 1:
                raise LogDiverged(f"gallery {name!r} was re-embedded meanwhile", code="model_mismatch")
            removed = self._apply(replica.index, changes)
            replica.seq, replica.mark = changes[-1].seq, changes[-1].mark
            replica.removals += removed
        return True

    def _apply(self, index: VectorIndex, changes: Sequence[Change]) -> bool:
        """Applies the last change of each face and returns whether any face was removed."""
        if not changes:
            self.position()
            raise StorageUnavailable("the change log has a gap; `whosthere gallery rebuild` rebuilds the index")
        last = {change.entry.face_id: change.entry.kind for change in changes if change.entry.face_id is not None}
        removed = [face_id for face_id, kind in last.items() if kind is ChangeKind.FACE_REMOVED]
        index.remove(removed)
        added = [face_id for face_id, kind in last.items() if kind is ChangeKind.FACE_ADDED]
        if added:
            faces = self._store.embeddings.of_faces(self._gallery, added)
            index.put(faces.face_ids, faces.identity_ids, faces.vectors)
        return bool(removed)

    def header(self, seq: int, mark: str, faces: int) -> Header:
        return header_of(self._gallery, seq, mark, faces)
