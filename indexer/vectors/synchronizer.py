"""Indexes that follow the change log of their galleries: loaded from a snapshot, or rebuilt, and caught up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import Conflict, NotFound, StorageUnavailable, WhosthereError
from indexer.files import exclusive_lock
from indexer.gallery.change_log import Change, ChangeKind, LogPosition, check_pack_unchanged
from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors.base import DamagedIndex, Engine, Erased, Faces, Header, VectorIndex
from indexer.vectors.flat import in_memory

log = logging.getLogger(__name__)

SNAPSHOT_EVERY = 10_000
"""Changes after which a snapshot is written anew. Replaying that many from SQL takes less than a second."""

LOOK_AGAIN_S = 1.0
"""How long after finding that another process builds the next index."""

SWEEP_FROM = 16
"""Galleries followed before those that are gone are looked for again; then twice as many as there were after that."""


@dataclass(frozen=True)
class IndexState:
    """What people are told of an index."""

    kind: str
    faces: int
    seq: int
    snapshot_seq: int | None
    checked: dict[str, Any] | None = None
    """What it found out about itself when it was built; None where it is exact."""


@dataclass(frozen=True)
class Comparison:
    """An index beside SQL."""

    in_database: int
    in_index: int
    different: int
    """Faces that only one of them has, or that have another identity or vector there."""
    snapshot_problem: str | None
    """Why the snapshot on the disk was of no use."""


_Kept = tuple[Header, VectorIndex, bool]
"""An index, what it is of, and whether it is kept already."""


class SynchronizedIndex:
    """The index of one gallery's embeddings by one pack, and the change it has reached. Thread-safe.

    Once the gallery was re-embedded, what needs the database raises Conflict: the index of the gallery as it is read
    from then on takes its place, and its file.
    """

    def __init__(self, store: Store, gallery: Gallery, folder: Path, engine: Engine) -> None:
        self._store = store
        self._gallery = gallery
        self._path = folder / f"{gallery.id}.index"
        self._engine = engine
        self._lock = threading.Lock()
        self._index: VectorIndex | None = None
        self._seq = 0
        self._mark = ""
        """Of change `_seq`: a restored backup may have another change of that number."""
        self._snapshot_seq: int | None = None
        self._snapshot_problem: str | None = None
        self._renewing: threading.Thread | None = None
        """Builds the next index beside this one."""
        self._renew_from = 0
        """The change from which on it may: whatever goes wrong is not tried at every search."""
        self._renew_after = 0.0
        """The time of `time.monotonic` as well."""
        self._tried_seq = 0
        """The change at which a snapshot was last written or failed to be: a full disk is not asked at every search."""

    def caught_up(self) -> VectorIndex:
        """The index with every change in it that is committed now. Raises NotFound when the gallery is gone, Conflict
        when it was re-embedded."""
        with self._lock:
            index = self._caught_up()
            if self._due(index):
                self._renew()
            elif self._seq - self._tried_seq >= SNAPSHOT_EVERY:
                self._save(index)
            return index

    @property
    def reached(self) -> int | None:
        """The last change in it; None before it is first used."""
        return None if self._index is None else self._seq

    def rebuild(self) -> int:
        """Makes the index anew from SQL and keeps it; how many faces are in it. Raises NotFound, Conflict."""
        with self._lock:
            self._build()
            index = self._caught_up()  # what was enrolled meanwhile may be in it, and what was removed
            self._save(index)
            return len(index)

    def save(self) -> None:
        """Keeps what is not kept yet, if anything, and nothing that was removed meanwhile. Waits for an index that is
        being built beside this one, and builds one where it is due."""
        renewing = self._renewing
        if renewing is not None:
            renewing.join()
        with self._lock:
            if self._index is None:
                return
            try:
                index = self._caught_up()
            except NotFound:
                self._delete()
                return
            except Conflict:  # the file is no longer this index's to write
                self._index = None
                return
            due = self._due(index)
            if self._seq != self._snapshot_seq and not due:
                self._save(index)
        if due:
            self._build_aside()

    def state(self) -> IndexState:
        index = self.caught_up()
        checked = None if index.checked is None else asdict(index.checked)  # type: ignore[call-overload]
        return IndexState(index.kind, len(index), self._seq, self._snapshot_seq, checked)

    def compare(self) -> Comparison:
        """Every face of the index beside SQL, bit by bit, in the memory of one more index. Writes no snapshot.

        What the change log tells of since the index caught up may differ: others may enrol and delete meanwhile.
        Raises NotFound when the gallery is gone, Conflict when it was re-embedded.
        """
        with self._lock:
            try:
                face_ids, identity_ids, vectors = self._caught_up().contents()
            except StorageUnavailable:
                if self._index is None or not (self._index.damaged or self._index.replaced):
                    raise
                face_ids, identity_ids, vectors = self._caught_up().contents()
            seq, problem = self._seq, self._snapshot_problem
        order = np.argsort(face_ids)
        ordered = face_ids[order]
        right = np.zeros(len(face_ids), dtype=np.bool_)
        different: set[int | None] = set()
        in_database = 0
        for part in self._store.embeddings.pages(self._gallery):
            in_database += len(part.face_ids)
            there = np.isin(part.face_ids, ordered)
            different.update(part.face_ids[~there].tolist())
            rows = order[np.searchsorted(ordered, part.face_ids[there])]
            same_vector = (vectors[rows] == part.vectors[there].astype(vectors.dtype)).all(axis=1)
            right[rows] = same_vector & (identity_ids[rows] == part.identity_ids[there])
        different.update(face_ids[~right].tolist())
        while different and (changes := self._store.changes.since(self._gallery.id, seq)):
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
            self._engine.delete(self._path)
        except (OSError, StorageUnavailable) as error:
            log.warning("The snapshot of gallery %s could not be deleted: %s", self._gallery.name, error)

    def _position(self, seq: int | None = None) -> LogPosition:
        position = self._store.changes.position(self._gallery.id, seq)
        if position is None:
            raise NotFound(f"there is no gallery {self._gallery.name!r}", code="gallery_not_found")
        check_pack_unchanged(self._gallery, position.fingerprint)
        return position

    def _caught_up(self) -> VectorIndex:
        if self._index is not None and self._index.replaced:
            self._index = None
        index = self._index
        if index is not None and index.damaged:
            self._drop_snapshot()
            index = self._build_instead(f"{self._path} is damaged")
        if index is None:
            index = self._load()
        position = self._position(self._seq)
        if position.mark != self._mark:
            log.warning("The index of gallery %s is made anew: its database was restored", self._gallery.name)
            self._drop_snapshot()
            index = self._build()
        while self._seq < position.last:
            changes = self._store.changes.since(self._gallery.id, self._seq)
            if any(change.entry.kind is ChangeKind.REEMBEDDED for change in changes):  # to another pack and back
                log.info("The index of gallery %s is made anew: it was re-embedded", self._gallery.name)
                self._drop_snapshot()
                index = self._build()
            else:
                self._apply(index, changes)
        return index

    def _load(self) -> VectorIndex:
        self._position()  # that of another pack is not even read
        try:
            header, index = self._kept()
        except FileNotFoundError:
            return self._build()
        except (DamagedIndex, OSError, ValueError) as error:
            self._drop_snapshot()  # whatever it is of, it may hold faces that are deleted
            return self._build_instead(error.message if isinstance(error, DamagedIndex) else str(error))
        self._become(index, header.seq, header.mark)
        self._snapshot_seq = self._tried_seq = header.seq
        return index

    def _kept(self) -> tuple[Header, VectorIndex]:
        """What was kept, when it is of this gallery and this database. Raises as `Engine.load`."""
        header, index = self._engine.load(self._path)
        of_this = self._header(header.seq, header.mark, header.faces)
        if header != of_this or header.mark != self._position(header.seq).mark or self._never_told(header.seq, index):
            raise DamagedIndex(f"{self._path} is of another gallery, model or database")
        return header, index

    def _never_told(self, seq: int, index: VectorIndex) -> bool:
        """Whether a face was taken out of what was kept, and the log after change `seq` does not tell of it: it is
        there again in a backup that was restored."""
        erased = set(index.erased.tolist()) if isinstance(index, Erased) else set()
        while erased and (changes := self._store.changes.since(self._gallery.id, seq)):
            erased.difference_update(change.entry.face_id for change in changes)
            seq = changes[-1].seq
        return bool(erased)

    def _build_instead(self, problem: str) -> VectorIndex:
        log.warning("The index of gallery %s is made anew: %s", self._gallery.name, problem)
        self._snapshot_problem = problem
        return self._build()

    def _build(self) -> VectorIndex:
        try:
            header, index, kept = self._built(self._engine.build)
        except OSError as error:
            log.warning("%s cannot be written, and every face is scored instead: %s", self._path, error)
            header, index, kept = self._built(lambda _, header, faces: (in_memory(header.dim, faces(), most=0), False))
        self._become(index, header.seq, header.mark)
        self._snapshot_seq, self._tried_seq = (header.seq, header.seq) if kept else (None, 0)
        self._renew_from = self._next_try(index)
        return index

    def _built(self, build: Callable[[Path, Header, Faces], tuple[VectorIndex, bool]]) -> _Kept:
        """What `build` makes of what is in SQL now. Raises as `Engine.build`."""
        position = self._position()
        header = self._header(position.last, position.mark, self._store.galleries.counts(self._gallery.id)[1])
        index, kept = build(self._path, header, self._faces)
        try:
            self._position()  # what was re-embedded meanwhile is no index of this pack
        except (NotFound, Conflict):
            if kept:
                self._drop_snapshot()
            raise
        return header, index, kept

    def _next_try(self, index: VectorIndex) -> int:
        """The change from which on another index may be built beside one that was built at change `_seq`: one that is
        outgrown from the start could not be made better, on a full disk for example."""
        return self._seq + SNAPSHOT_EVERY if index.outgrown else 0

    def _faces(self) -> Iterator[FaceVectors]:
        return self._store.embeddings.pages(self._gallery)

    def _due(self, index: VectorIndex) -> bool:
        """Whether the next index is to be built now."""
        return index.outgrown and self._seq >= self._renew_from and time.monotonic() >= self._renew_after

    def _renew(self) -> None:
        """Lets the next index be built beside this one, which goes on answering."""
        if self._renewing is None or not self._renewing.is_alive():
            self._renewing = threading.Thread(target=self._build_aside, name="next index", daemon=True)
            self._renewing.start()

    def _build_aside(self) -> None:
        """One process builds; the others take what it has built."""
        path = self._path.with_name(f"{self._path.name}.lock")
        try:
            with exclusive_lock(path) as builds:
                if not builds:
                    self._renew_after = time.monotonic() + LOOK_AGAIN_S
                    return
                self._renew_from = self._seq + SNAPSHOT_EVERY  # unless it ends well
                header, index, kept = self._built_by_another() or self._built(self._engine.build)
            seq, mark = self._replayed(index, header.seq, header.mark)
            with self._lock:
                seq, mark = self._replayed(index, seq, mark)
                self._become(index, seq, mark)
                if not index.erases and not (kept and seq == header.seq):  # a removed face may be in what is kept
                    self._drop_snapshot()
                    kept = False
                self._snapshot_seq, self._tried_seq = (header.seq if kept else None), seq
                self._renew_from = self._next_try(index)
        except (WhosthereError, OSError) as error:
            log.warning("The next index of gallery %s could not be built: %s", self._gallery.name, error)
        except Exception:
            log.exception("The next index of gallery %s could not be built", self._gallery.name)

    def _built_by_another(self) -> _Kept | None:
        """What another process has kept since this one looked, unless it is due for another one as well."""
        try:
            header, index = self._kept()
        except (DamagedIndex, OSError, ValueError):
            return None
        return None if header.seq <= (self._snapshot_seq or 0) or index.outgrown else (header, index, True)

    def _become(self, index: VectorIndex, seq: int, mark: str) -> None:
        self._index, self._seq, self._mark = index, seq, mark

    def _replayed(self, index: VectorIndex, seq: int, mark: str) -> tuple[int, str]:
        """Applies all changes after number `seq` to an index that is not in use yet; which is the last one, and its
        mark. Raises Conflict where the gallery was re-embedded or its database restored meanwhile."""
        while True:
            position = self._position(seq)
            if position.mark != mark:
                raise Conflict(f"the database of gallery {self._gallery.name!r} was restored meanwhile")
            if seq >= position.last:
                return seq, mark
            changes = self._store.changes.since(self._gallery.id, seq)
            if any(change.entry.kind is ChangeKind.REEMBEDDED for change in changes):
                raise Conflict(f"gallery {self._gallery.name!r} was re-embedded meanwhile", code="model_mismatch")
            self._put(index, changes)
            seq, mark = changes[-1].seq, changes[-1].mark

    def _apply(self, index: VectorIndex, changes: Sequence[Change]) -> None:
        removed = self._put(index, changes)
        self._become(index, changes[-1].seq, changes[-1].mark)
        if removed and not index.erases:
            # A removed face must not stay on the disk until the next snapshot is due. Writing gigabytes at every
            # removal would hold up the searches; without a file, only a start after a crash takes longer: it reads SQL.
            self._drop_snapshot()

    def _put(self, index: VectorIndex, changes: Sequence[Change]) -> bool:
        """Only the last thing that happened to a face counts: what came and went again is not fetched. Whether any
        face was removed."""
        if not changes:
            self._position()
            raise StorageUnavailable("the change log has a gap; `whosthere gallery rebuild` makes the index anew")
        last = {c.entry.face_id: c.entry.kind for c in changes if c.entry.face_id is not None}
        removed = [face_id for face_id, kind in last.items() if kind is ChangeKind.FACE_REMOVED]
        index.remove(removed)
        added = [face_id for face_id, kind in last.items() if kind is ChangeKind.FACE_ADDED]
        if added:
            faces = self._store.embeddings.of_faces(self._gallery, added)
            index.put(faces.face_ids, faces.identity_ids, faces.vectors)
        return bool(removed)

    def _save(self, index: VectorIndex) -> None:
        self._tried_seq = self._seq
        try:
            if self._engine.save(self._path, self._header(self._seq, self._mark, len(index)), index):
                self._snapshot_seq = self._seq
            self._snapshot_problem = None
        except OSError as error:  # a full disk costs the next start some time, nothing else
            log.warning("The index of gallery %s could not be written: %s", self._gallery.name, error)
        if self._store.changes.last(self._gallery.id) is None:  # somebody deleted it, and its file, while we wrote ours
            self._delete()

    def _header(self, seq: int, mark: str, faces: int) -> Header:
        g = self._gallery
        return Header(g.id, g.created_at.isoformat(), g.fingerprint, g.dim, seq, mark, faces)


class Indexes:
    """The indexes of all galleries of one store, each made by `engine` when it is first asked for."""

    def __init__(self, store: Store, folder: Path, engine: Engine) -> None:
        self._store = store
        self._folder = folder
        self._engine = engine
        self._lock = threading.Lock()
        self._followed: dict[tuple[int, datetime, str], SynchronizedIndex] = {}
        self._sweep_from = 0
        """How many are followed when those that are gone are looked for again."""

    def of(self, gallery: Gallery) -> SynchronizedIndex:
        key = _key(gallery)
        with self._lock:
            another = any(gallery_id == gallery.id for gallery_id, _, _ in self._followed)  # it was re-embedded
            due = key not in self._followed and (another or len(self._followed) >= self._sweep_from)
        if due:
            self._forget_gone()  # whoever makes galleries and deletes them elsewhere fills neither memory nor disk
        with self._lock:
            if key not in self._followed:
                self._followed[key] = SynchronizedIndex(self._store, gallery, self._folder, self._engine)
            return self._followed[key]

    def forget(self, gallery: Gallery) -> None:
        """After the gallery was deleted."""
        self.of(gallery).delete()
        with self._lock:
            self._followed.pop(_key(gallery), None)

    def save(self) -> None:
        """Writes down every index that has changed since its snapshot; what is left of deleted galleries, and of former
        packs, goes.

        Where the database does not answer nothing is written: it may be of people who are deleted.
        """
        try:
            self._forget_gone(self._kept_elsewhere())
            with self._lock:
                followed = list(self._followed.values())
            for index in followed:
                index.save()
        except StorageUnavailable as error:
            log.warning("The indexes are not written: %s", error)

    def _kept_elsewhere(self) -> set[int]:
        try:
            return self._engine.galleries()
        except (OSError, StorageUnavailable) as error:
            log.warning("What is left of deleted galleries is not looked for: %s", error)
            return set()

    def _forget_gone(self, elsewhere: Set[int] = frozenset()) -> None:
        """First what is here, and kept `elsewhere`, then who is there: a gallery that is made this moment loses
        nothing."""
        files = [path for path in self._folder.glob("*.index*") if path.name.split(".")[0].isdecimal()]
        with self._lock:
            followed = dict(self._followed)
        there = {_key(gallery) for gallery in self._store.galleries.list()}
        galleries = {key[:2] for key in there}
        for key in followed.keys() - there:
            if key[:2] not in galleries:  # else it was re-embedded, and the file is for the index of now to replace
                followed[key].delete()
            with self._lock:
                self._followed.pop(key, None)
        ids = {gallery_id for gallery_id, _ in galleries}
        for path in files:
            if int(path.name.split(".")[0]) not in ids:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("%s, of a deleted gallery, could not be deleted: %s", path, error)
        for gallery_id in elsewhere - ids:
            try:
                self._engine.delete(self._folder / f"{gallery_id}.index")
            except (OSError, StorageUnavailable) as error:
                log.warning("What is kept of gallery %d, which was deleted, is left over: %s", gallery_id, error)
        with self._lock:
            self._sweep_from = max(SWEEP_FROM, 2 * len(self._followed))


def _key(gallery: Gallery) -> tuple[int, datetime, str]:
    """A restored backup may give a number to another gallery; a gallery may be re-embedded."""
    return gallery.id, gallery.created_at, gallery.fingerprint
