"""Keeps the index of a gallery synchronized with its change log: loads a snapshot or rebuilds, then catches up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.errors import Conflict, NotFound, StorageUnavailable, WhosthereError
from indexer.files import exclusive_lock
from indexer.gallery.change_log import Change, ChangeKind, LogPosition, check_pack_unchanged
from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors.base import DamagedIndex, FacePages, Header, VectorEngine, VectorIndex
from indexer.vectors.flat import build_flat_index

log = logging.getLogger(__name__)

SNAPSHOT_EVERY = 10_000
"""Changes after which a new snapshot is written. Replaying that many from SQL takes less than a second."""

BUILD_RECHECK_S = 1.0
"""Seconds after which a background build is tried again when another process is building."""


@dataclass(frozen=True)
class IndexState:
    """What users see of an index."""

    kind: str
    faces: int
    seq: int
    snapshot_seq: int | None
    checked: dict[str, Any] | None = None
    """The self-check report of the build; None for exact indexes."""


@dataclass(frozen=True)
class DatabaseComparison:
    """How an index differs from SQL."""

    in_database: int
    in_index: int
    different: int
    """Number of faces that only one of them has, or whose identity or vector differs."""
    snapshot_problem: str | None
    """Why the stored snapshot could not be used."""


@dataclass
class _Replica:
    """An index and the last change applied to it. `mark` distinguishes changes of one number after a restore."""

    index: VectorIndex
    seq: int
    mark: str


class _Built(NamedTuple):
    replica: _Replica
    is_stored: bool


class _LogDiverged(Conflict):
    """The change log no longer continues the one that an index has followed, so that it must be rebuilt."""


class SynchronizedIndex:
    """The index of one gallery's embeddings by one pack, kept up to date with the change log. Thread-safe.

    After the gallery is re-embedded, everything that needs the database raises Conflict: the index of the gallery as
    read afterwards replaces this one and its file.
    """

    def __init__(self, store: Store, gallery: Gallery, folder: Path, engine: VectorEngine) -> None:
        self._store = store
        self._gallery = gallery
        self._path = folder / f"{gallery.id}.index"
        self._engine = engine
        self._lock = threading.Lock()
        self._current: _Replica | None = None
        self._snapshot_seq: int | None = None
        self._snapshot_problem: str | None = None
        self._last_save_seq = 0
        """The change at which saving was last tried, so that a full disk does not slow down every search."""
        self._builder: threading.Thread | None = None
        """Builds the next index in the background."""
        self._next_build_seq = 0
        """The change from which the next background build may start: failures are not retried at every search."""
        self._next_build_time = 0.0
        """The `time.monotonic` from which it may start."""

    def catch_up(self) -> VectorIndex:
        """Applies all committed changes and returns the index.

        Raises:
            NotFound: The gallery was deleted.
            Conflict: The gallery was re-embedded.
        """
        with self._lock:
            current = self._catch_up()
            if self._is_build_due(current):
                self._start_builder()
            elif current.seq - self._last_save_seq >= SNAPSHOT_EVERY:
                self._save(current)
            return current.index

    @property
    def applied_seq(self) -> int | None:
        """The number of the last applied change; None before first use."""
        return None if self._current is None else self._current.seq

    def rebuild(self) -> int:
        """Rebuilds the index from SQL, stores it and returns its number of faces. Raises NotFound, Conflict."""
        with self._lock:
            self._build()
            current = self._catch_up()  # faces may have been enrolled and removed during the build
            self._save(current)
            return len(current.index)

    def save(self) -> None:
        """Stores the index if it has changed since its snapshot. Waits for a background build, and does one if due."""
        if self._builder is not None:
            self._builder.join()
        with self._lock:
            if self._current is None:
                return
            try:
                current = self._catch_up()
            except NotFound:
                self._delete()
                return
            except Conflict:  # the file now belongs to the index of another pack
                self._current = None
                return
            is_due = self._is_build_due(current)
            if current.seq != self._snapshot_seq and not is_due:
                self._save(current)
        if is_due:
            self._build_in_background()

    def state(self) -> IndexState:
        index, seq = self.catch_up(), self.applied_seq or 0
        checked = None if index.checked is None else asdict(index.checked)  # type: ignore[call-overload]
        return IndexState(index.kind, len(index), seq, self._snapshot_seq, checked)

    def compare_with_database(self) -> DatabaseComparison:
        """Compares every face of the index with SQL bit by bit, in the memory of one more index. Saves nothing.

        Ignores faces changed during the comparison. Raises NotFound, Conflict.
        """
        with self._lock:
            try:
                face_ids, identity_ids, vectors = self._catch_up().index.contents()
            except StorageUnavailable:
                index = self._current.index if self._current else None
                if index is None or not (index.is_damaged or index.is_replaced):
                    raise
                face_ids, identity_ids, vectors = self._catch_up().index.contents()
            seq, problem = self.applied_seq or 0, self._snapshot_problem
        in_database, different = self._differences(face_ids, identity_ids, vectors)
        while different and (changes := self._store.changes.since(self._gallery.id, seq)):
            different.difference_update(change.entry.face_id for change in changes)
            seq = changes[-1].seq
        self._position(seq)
        return DatabaseComparison(in_database, len(face_ids), len(different), problem)

    def delete(self) -> None:
        """Deletes the index and its snapshot after the gallery was deleted."""
        with self._lock:
            self._delete()

    def _differences(
        self, face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: NDArray[Any]
    ) -> tuple[int, set[int | None]]:
        """Returns the number of faces in SQL, and the ids of those that differ from the contents of the index."""
        order = np.argsort(face_ids)
        ordered = face_ids[order]
        is_equal = np.zeros(len(face_ids), dtype=np.bool_)
        different: set[int | None] = set()
        in_database = 0
        for page in self._face_pages():
            in_database += len(page.face_ids)
            is_known = np.isin(page.face_ids, ordered)
            different.update(page.face_ids[~is_known].tolist())
            rows = order[np.searchsorted(ordered, page.face_ids[is_known])]
            same_vector = (vectors[rows] == page.vectors[is_known].astype(vectors.dtype)).all(axis=1)
            is_equal[rows] = same_vector & (identity_ids[rows] == page.identity_ids[is_known])
        different.update(face_ids[~is_equal].tolist())
        return in_database, different

    def _delete(self) -> None:
        self._current = None
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

    def _catch_up(self) -> _Replica:
        current = self._current
        if current is None or current.index.is_replaced:
            current = self._load()
        elif current.index.is_damaged:
            self._drop_snapshot()
            current = self._build(problem=f"{self._path} is damaged")
        try:
            self._replay(current)
        except _LogDiverged as error:
            level = logging.INFO if error.code == "model_mismatch" else logging.WARNING
            log.log(level, "The index of gallery %s is rebuilt: %s", self._gallery.name, error.message)
            self._drop_snapshot()
            current = self._build()
        return current

    def _load(self) -> _Replica:
        self._position()  # the index of another pack is not even read
        try:
            loaded = self._load_stored()
        except FileNotFoundError:
            return self._build()
        except (DamagedIndex, OSError, ValueError) as error:
            self._drop_snapshot()  # it may hold deleted faces
            return self._build(problem=error.message if isinstance(error, DamagedIndex) else str(error))
        self._snapshot_seq = self._last_save_seq = loaded.seq
        self._current = loaded
        return loaded

    def _load_stored(self) -> _Replica:
        """Loads the stored index if it belongs to this gallery and database. Raises as `VectorEngine.load`."""
        header, index = self._engine.load(self._path)
        is_same = header == self._header(header.seq, header.mark, header.faces)
        if not is_same or header.mark != self._position(header.seq).mark or self._has_lost_erasures(header.seq, index):
            raise DamagedIndex(f"{self._path} is of another gallery, model or database")
        return _Replica(index, header.seq, header.mark)

    def _has_lost_erasures(self, seq: int, index: VectorIndex) -> bool:
        """Returns whether a face was erased from the stored index without an entry in the log after change `seq`.

        A restored backup contains such a face again.
        """
        erased = set(index.erased_face_ids().tolist())
        while erased and (changes := self._store.changes.since(self._gallery.id, seq)):
            erased.difference_update(change.entry.face_id for change in changes)
            seq = changes[-1].seq
        return bool(erased)

    def _build(self, problem: str | None = None) -> _Replica:
        """Builds the index from SQL; `problem` says why the stored one could not be used."""
        if problem is not None:
            log.warning("The index of gallery %s is rebuilt: %s", self._gallery.name, problem)
            self._snapshot_problem = problem
        try:
            built = self._build_with(self._engine.build)
        except OSError as error:
            log.warning("%s cannot be written; the gallery is searched exactly, in memory: %s", self._path, error)
            built = self._build_with(
                lambda _, header, faces: (build_flat_index(header.dim, faces(), max_faces=0), False)
            )
        seq = built.replica.seq
        self._snapshot_seq, self._last_save_seq = (seq, seq) if built.is_stored else (None, 0)
        self._use(built.replica)
        return built.replica

    def _build_with(self, build: Callable[[Path, Header, FacePages], tuple[VectorIndex, bool]]) -> _Built:
        """Builds an index of the current contents of SQL. Raises as `VectorEngine.build`."""
        position = self._position()
        header = self._header(position.last, position.mark, self._store.galleries.counts(self._gallery.id)[1])
        index, is_stored = build(self._path, header, self._face_pages)
        try:
            self._position()  # if the gallery was re-embedded meanwhile, this is not an index of its pack
        except (NotFound, Conflict):
            if is_stored:
                self._drop_snapshot()
            raise
        return _Built(_Replica(index, header.seq, header.mark), is_stored)

    def _use(self, replica: _Replica) -> None:
        """Makes a newly built index the current one.

        One that is outgrown from the start (on a full disk, for example) is not rebuilt at once.
        """
        self._current = replica
        self._next_build_seq = replica.seq + SNAPSHOT_EVERY if replica.index.is_outgrown else 0

    def _face_pages(self) -> Iterator[FaceVectors]:
        return self._store.embeddings.pages(self._gallery)

    def _is_build_due(self, current: _Replica) -> bool:
        is_allowed = current.seq >= self._next_build_seq and time.monotonic() >= self._next_build_time
        return current.index.is_outgrown and is_allowed

    def _start_builder(self) -> None:
        """Starts building the next index in the background, while this one is still searched."""
        if self._builder is None or not self._builder.is_alive():
            self._builder = threading.Thread(target=self._build_in_background, name="index builder", daemon=True)
            self._builder.start()

    def _build_in_background(self) -> None:
        """Builds and uses the next index. One process builds; the others load what it has stored."""
        try:
            with exclusive_lock(self._path.with_name(f"{self._path.name}.lock")) as is_locked:
                if not is_locked:
                    self._next_build_time = time.monotonic() + BUILD_RECHECK_S
                    return
                self._next_build_seq = (self.applied_seq or 0) + SNAPSHOT_EVERY  # if the build fails
                replica, is_stored = self._built_by_another() or self._build_with(self._engine.build)
            stored_seq = replica.seq
            self._replay(replica)
            with self._lock:
                self._replay(replica)
                if not replica.index.erases_on_disk and not (is_stored and replica.seq == stored_seq):
                    self._drop_snapshot()  # it may hold a removed face
                    is_stored = False
                self._snapshot_seq, self._last_save_seq = (stored_seq if is_stored else None), replica.seq
                self._use(replica)
        except (WhosthereError, OSError) as error:
            log.warning("The next index of gallery %s could not be built: %s", self._gallery.name, error)
        except Exception:
            log.exception("The next index of gallery %s could not be built", self._gallery.name)

    def _built_by_another(self) -> _Built | None:
        """Returns the index that another process has stored since the last look, unless it is outgrown as well."""
        try:
            replica = self._load_stored()
        except (DamagedIndex, OSError, ValueError):
            return None
        is_newer = replica.seq > (self._snapshot_seq or 0)
        return _Built(replica, True) if is_newer and not replica.index.is_outgrown else None

    def _replay(self, replica: _Replica) -> None:
        """Applies the changes after `replica.seq`, up to the last one that is committed when it starts.

        Raises _LogDiverged if the database was restored from a backup or the gallery re-embedded and back.
        """
        position = self._position(replica.seq)
        name = self._gallery.name
        if position.mark != replica.mark:
            raise _LogDiverged(f"the database of gallery {name!r} was restored meanwhile")
        while replica.seq < position.last:
            changes = self._store.changes.since(self._gallery.id, replica.seq)
            if any(change.entry.kind is ChangeKind.REEMBEDDED for change in changes):
                raise _LogDiverged(f"gallery {name!r} was re-embedded meanwhile", code="model_mismatch")
            removed = self._apply(replica.index, changes)
            replica.seq, replica.mark = changes[-1].seq, changes[-1].mark
            if removed and replica is self._current and not replica.index.erases_on_disk:
                # A removed face must not stay on the disk until the next snapshot. Writing gigabytes at every removal
                # would delay searches; without a file, only a start after a crash takes longer: it reads SQL.
                self._drop_snapshot()

    def _apply(self, index: VectorIndex, changes: Sequence[Change]) -> bool:
        """Applies the last change of each face and returns whether any face was removed."""
        if not changes:
            self._position()
            raise StorageUnavailable("the change log has a gap; `whosthere gallery rebuild` rebuilds the index")
        last = {change.entry.face_id: change.entry.kind for change in changes if change.entry.face_id is not None}
        removed = [face_id for face_id, kind in last.items() if kind is ChangeKind.FACE_REMOVED]
        index.remove(removed)
        added = [face_id for face_id, kind in last.items() if kind is ChangeKind.FACE_ADDED]
        if added:
            faces = self._store.embeddings.of_faces(self._gallery, added)
            index.put(faces.face_ids, faces.identity_ids, faces.vectors)
        return bool(removed)

    def _save(self, current: _Replica) -> None:
        self._last_save_seq = current.seq
        try:
            header = self._header(current.seq, current.mark, len(current.index))
            if self._engine.save(self._path, header, current.index):
                self._snapshot_seq = current.seq
            self._snapshot_problem = None
        except OSError as error:  # a full disk only makes the next start slower
            log.warning("The index of gallery %s could not be written: %s", self._gallery.name, error)
        if self._store.changes.last(self._gallery.id) is None:  # the gallery and its file were deleted meanwhile
            self._delete()

    def _header(self, seq: int, mark: str, faces: int) -> Header:
        gallery = self._gallery
        return Header(gallery.id, gallery.created_at.isoformat(), gallery.fingerprint, gallery.dim, seq, mark, faces)
