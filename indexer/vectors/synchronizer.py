"""Keeps the index of a gallery synchronized with its change log: loads a snapshot or rebuilds, then catches up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from indexer.errors import Conflict, IndexBuilding, NotFound, StorageUnavailable, WhosthereError
from indexer.files import exclusive_lock
from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors.base import DamagedIndex, VectorEngine, VectorIndex
from indexer.vectors.builds import Build, Builds
from indexer.vectors.comparison import Contents, DatabaseComparison, differences
from indexer.vectors.flat import build_flat_index
from indexer.vectors.replica import Built, LogDiverged, Replica, ReplicaSource

log = logging.getLogger(__name__)

SNAPSHOT_EVERY = 10_000
"""Changes after which a new snapshot is written. Replaying that many from SQL takes less than a second."""

MAX_REPLAYED = SNAPSHOT_EVERY
"""Changes that are replayed while a caller waits; more are replayed in the background."""

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


class SynchronizedIndex:
    """The index of one gallery's embeddings by one pack, kept up to date with the change log. Thread-safe.

    It is loaded and built on a thread of its own; `builds` decides how long callers wait. The lock is held for short
    updates only, so that nobody waits for a build behind it.

    After the gallery is re-embedded, everything that needs the database raises Conflict: the index of the gallery as
    read afterwards replaces this one and its file.
    """

    def __init__(
        self, store: Store, gallery: Gallery, folder: Path, engine: VectorEngine, builds: Builds | None = None
    ) -> None:
        self._store = store
        self._gallery = gallery
        self._path = folder / f"{gallery.id}.index"
        self._engine = engine
        self._builds = builds or Builds()
        self._source = ReplicaSource(store, gallery, self._path, engine, self._builds)
        self._build: Build | None = None
        """The last build that was started."""
        self._lock = threading.Lock()
        self._current: Replica | None = None
        self._snapshot_seq: int | None = None
        self._snapshot_problem: str | None = None
        self._last_save_seq = 0
        """The change at which saving was last tried, so that a full disk does not slow down every search."""
        self._next_build_seq = 0
        """The change from which the next background build may start: failures are not retried at every search."""
        self._next_build_time = 0.0
        """The `time.monotonic` from which it may start."""

    def catch_up(self, seconds: float | None = None) -> VectorIndex:
        """Applies all committed changes and returns the index.

        Args:
            seconds: How long to wait for each build; by default to its end in a command, and briefly in a service.

        Raises:
            NotFound: The gallery was deleted.
            Conflict: The gallery was re-embedded.
            IndexBuilding: There is no index yet, and its build goes on.
        """
        while True:
            with self._lock:
                build = self._build
                if build is None or not (build.is_running and build.is_blocking):
                    work = self._pending_work()
                    if work is None:
                        current = self._required()
                        self._start_due_work(current)
                        return current.index
                    build = self._start(work)
            self._builds.wait(build, self._gallery, seconds)

    def check_ready(self) -> None:
        """Raises IndexBuilding where `catch_up` would do so at once, as far as that is known without the database."""
        build = self._build
        if build is not None and build.is_blocking:
            self._builds.check_wait(build, self._gallery)

    def update(self) -> None:
        """Applies all committed changes, and waits for a build that is running or due. For commands: a service goes on
        with the current index."""
        self.catch_up()
        if self._build is not None:
            self._build.wait()
        self.catch_up()

    @property
    def applied_seq(self) -> int | None:
        """The number of the last applied change; None before first use."""
        return None if self._current is None else self._current.seq

    def rebuild(self) -> int:
        """Rebuilds the index from SQL, stores it and returns its number of faces. For commands, as it waits.

        Raises NotFound, Conflict.
        """
        if self._build is not None:
            self._build.wait()
        self._build_now()
        self.catch_up()  # faces may have been enrolled and removed during the build
        current = self._required()
        self._save(current)
        return len(current.index)

    def save(self) -> None:
        """Stores the index if it has changed since its snapshot. Neither waits for a build nor starts one."""
        with self._lock:
            if self._current is None or (
                self._build is not None and self._build.is_running and self._build.is_blocking
            ):
                return
            try:
                if self._pending_work() is not None:
                    return
            except NotFound:
                self._delete()
                return
            except Conflict:  # the file now belongs to the index of another pack
                self._current = None
                return
            current = self._required()
        if current.seq != self._snapshot_seq and not current.index.is_outgrown:
            self._save(current)

    def state(self) -> IndexState:
        index, seq = self.catch_up(), self.applied_seq or 0
        checked = None if index.checked is None else asdict(index.checked)  # type: ignore[call-overload]
        return IndexState(index.kind, len(index), seq, self._snapshot_seq, checked)

    def compare_with_database(self) -> DatabaseComparison:
        """Compares every face of the index with SQL bit by bit, in the memory of one more index. Saves nothing.

        Ignores faces changed during the comparison. Raises NotFound, Conflict.
        """
        try:
            seq, contents = self._contents()
        except StorageUnavailable:
            index = self._current.index if self._current else None
            if index is None or not (index.is_damaged or index.is_replaced):
                raise
            seq, contents = self._contents()
        problem = self._snapshot_problem
        in_database, different = differences(self._source.face_pages(), *contents)
        while different and (changes := self._store.changes.since(self._gallery.id, seq)):
            different.difference_update(change.entry.face_id for change in changes)
            seq = changes[-1].seq
        self._source.position(seq)
        return DatabaseComparison(in_database, len(contents[0]), len(different), problem)

    def _contents(self) -> tuple[int, Contents]:
        """Returns the number of the last applied change, and what the index contains after it."""
        self.catch_up()
        with self._lock:
            current = self._required()
            return current.seq, current.index.contents()

    def delete(self) -> None:
        """Deletes the index and its snapshot after the gallery was deleted."""
        with self._lock:
            self._delete()

    def _delete(self) -> None:
        self._current = None
        self._drop_snapshot()

    def _drop_snapshot(self) -> None:
        self._snapshot_seq = None
        self._source.delete()

    def _required(self) -> Replica:
        """Returns the replica after a build. Raises NotFound if the gallery was deleted since."""
        if self._current is None:
            raise NotFound(f"there is no gallery {self._gallery.name!r}", code="gallery_not_found")
        return self._current

    def _pending_work(self) -> Callable[[], object] | None:
        """Applies the committed changes if they are few. Returns what else is needed before the index can be used.

        Raises NotFound, Conflict.
        """
        current = self._current
        if current is None or current.index.is_replaced:
            self._source.position()  # the index of another pack is not even read
            return self._load
        if current.index.is_damaged:
            self._source.position()
            return partial(self._build_instead, f"{self._path} is damaged")
        try:
            is_complete = self._replay(current, MAX_REPLAYED)
        except LogDiverged as error:
            return partial(self._build_after, error)
        return None if is_complete else partial(self._replay_all, current)

    def _replay(self, replica: Replica, most: int | None = None) -> bool:
        """Does what `ReplicaSource.replay` does, and deletes a snapshot that may hold a removed face.

        Writing gigabytes at every removal would delay searches; without a file, only a start after a crash takes
        longer: it reads SQL.
        """
        removals = replica.removals
        try:
            return self._source.replay(replica, most)
        finally:
            is_used = replica is self._current and not replica.index.erases_on_disk
            if is_used and replica.removals != removals:
                self._drop_snapshot()

    def _start(self, work: Callable[[], object], is_blocking: bool = True) -> Build:
        """Starts a build, and returns it or one that is running. Returns one that has just failed in a service."""
        last = self._build
        if last is not None:
            has_failed = self._builds.is_service and last.is_blocking and last.has_just_failed
            if last.is_running or has_failed:
                return last
        self._build = Build(work, is_blocking)
        return self._build

    def _start_due_work(self, current: Replica) -> None:
        """Starts building the next index, or storing this one, while this one is still searched."""
        if self._is_build_due(current):
            self._start(self._build_next, is_blocking=False)
        elif current.seq - self._last_save_seq >= SNAPSHOT_EVERY:
            self._start(partial(self._save, current), is_blocking=False)

    # What follows runs in the background, and takes the lock only to replace the index.

    def _replay_all(self, current: Replica) -> None:
        try:
            self._replay(current)
        except LogDiverged as error:
            self._build_after(error)

    def _build_after(self, error: LogDiverged) -> None:
        """Builds the index after its change log has diverged."""
        level = logging.INFO if error.code == "model_mismatch" else logging.WARNING
        log.log(level, "The index of gallery %s is rebuilt: %s", self._gallery.name, error.message)
        self._drop_snapshot()
        self._build_now()

    def _build_instead(self, problem: str) -> None:
        """Builds the index instead of the stored one, which has a `problem` and may hold deleted faces."""
        log.warning("The index of gallery %s is rebuilt: %s", self._gallery.name, problem)
        self._drop_snapshot()
        self._snapshot_problem = problem
        self._build_now()

    def _load(self) -> None:
        try:
            loaded = self._source.load()
        except FileNotFoundError:
            self._build_now()
        except (DamagedIndex, OSError, ValueError) as error:
            self._build_instead(error.message if isinstance(error, DamagedIndex) else str(error))
        else:
            with self._lock:
                self._snapshot_seq = self._last_save_seq = loaded.seq
                self._current = loaded

    def _build_now(self) -> None:
        """Builds the index from SQL."""
        try:
            built = self._source.build(self._engine.build)
        except OSError as error:
            log.warning("%s cannot be written; the gallery is searched exactly, in memory: %s", self._path, error)
            built = self._source.build(
                lambda _, header, faces: (build_flat_index(header.dim, faces(), max_faces=0), False)
            )
        seq = built.replica.seq
        with self._lock:
            self._snapshot_seq, self._last_save_seq = (seq, seq) if built.is_stored else (None, 0)
            self._use(built.replica)

    def _use(self, replica: Replica) -> None:
        """Makes a newly built index the current one.

        One that is outgrown from the start (on a full disk, for example) is not rebuilt at once.
        """
        self._current = replica
        self._next_build_seq = replica.seq + SNAPSHOT_EVERY if replica.index.is_outgrown else 0

    def _is_build_due(self, current: Replica) -> bool:
        is_allowed = current.seq >= self._next_build_seq and time.monotonic() >= self._next_build_time
        return current.index.is_outgrown and is_allowed

    def _build_next(self) -> None:
        """Builds and uses the next index. One process builds; the others load what it has stored."""
        try:
            with exclusive_lock(self._path.with_name(f"{self._path.name}.lock")) as is_locked:
                if not is_locked:
                    self._next_build_time = time.monotonic() + BUILD_RECHECK_S
                    return
                self._next_build_seq = (self.applied_seq or 0) + SNAPSHOT_EVERY  # if the build fails
                replica, is_stored = self._built_by_another() or self._source.build(self._engine.build)
            stored_seq = replica.seq
            self._replay(replica)
            with self._lock:
                self._replay(replica)
                if not replica.index.erases_on_disk and not (is_stored and replica.seq == stored_seq):
                    self._drop_snapshot()  # it may hold a removed face
                    is_stored = False
                self._snapshot_seq, self._last_save_seq = (stored_seq if is_stored else None), replica.seq
                self._use(replica)
        except IndexBuilding as error:
            log.info("The next index of gallery %s is not built: %s", self._gallery.name, error)
        except (WhosthereError, OSError) as error:
            log.warning("The next index of gallery %s could not be built: %s", self._gallery.name, error)
        except Exception:
            log.exception("The next index of gallery %s could not be built", self._gallery.name)

    def _built_by_another(self) -> Built | None:
        """Returns the index that another process has stored since the last look, unless it is outgrown as well."""
        try:
            replica = self._source.load()
        except (DamagedIndex, OSError, ValueError):
            return None
        is_newer = replica.seq > (self._snapshot_seq or 0)
        return Built(replica, True) if is_newer and not replica.index.is_outgrown else None

    def _save(self, current: Replica) -> None:
        """Stores the index. Is called without the lock, because writing gigabytes takes long."""
        with self._lock:
            self._last_save_seq = current.seq
            header, removals = self._source.header(current.seq, current.mark, len(current.index)), current.removals
        try:
            is_stored = self._engine.save(self._path, header, current.index)
            self._snapshot_problem = None
        except OSError as error:  # a full disk only makes the next start slower
            is_stored = False
            log.warning("The index of gallery %s could not be written: %s", self._gallery.name, error)
        is_deleted = self._store.changes.last(self._gallery.id) is None
        with self._lock:
            if is_stored:
                self._snapshot_seq = header.seq
            if is_deleted:
                self._delete()
            elif is_stored and current.removals != removals and not current.index.erases_on_disk:
                self._drop_snapshot()  # it may hold a face that was removed meanwhile
