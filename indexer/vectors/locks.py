"""Many readers or one writer; and files that are written beside the one whose place they take."""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from indexer.disk import sync_folder, try_lock, unlock


class SharedLock:
    """Readers hold it together, a writer alone. Who comes first goes first, so that nobody waits for ever: readers
    that come after a waiting writer wait as well. It must not be taken twice by one thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._readers = 0
        self._writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            self._wait(lambda: not self._writing)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._changed:
            self._wait(lambda: not self._writing and not self._readers)
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool]) -> None:
        if not self._waiting and free():
            return
        me = object()
        self._waiting.append(me)
        try:
            self._changed.wait_for(lambda: self._waiting[0] is me and free())
        finally:
            self._waiting.remove(me)
            self._changed.notify_all()  # the next one may be free to go as well


@contextmanager
def replacing(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file, and the name it has for now: it takes the place of `path`, whole, when the block ends.

    Nothing is left of it when the block raises. What a killed process left goes first. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear(path)
    lock, temporary = _new_file(path)
    file = os.fdopen(lock, "w+b")
    try:
        temporary.chmod(0o600)
        yield file, temporary
        file.flush()
        os.fsync(file.fileno())
        if os.name != "posix":
            file.close()  # Windows renames no open file
        temporary.replace(path)  # still locked, elsewhere: nobody takes it for left over
    except BaseException:
        with suppress(OSError):  # what is still buffered meets the same full disk
            file.close()
        temporary.unlink(missing_ok=True)
        raise
    file.close()
    sync_folder(path.parent)


def clear(path: Path) -> None:
    """Deletes what killed processes left of files that were to replace `path`: those that nobody holds a lock on.

    Raises OSError.
    """
    for leftover in path.parent.glob(f"{path.name}*.tmp"):
        if leftover.is_file() and (lock := try_lock(leftover)) is not None:
            unlock(leftover, lock)


def _new_file(path: Path) -> tuple[int, Path]:
    while True:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        if (lock := try_lock(temporary)) is not None:
            return lock, temporary
