"""Writing files so that readers, and whoever looks after a crash, see the old one or the new one, whole; and locks."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def write_atomically(target: Path, parts: Iterable[bytes | memoryview], shared: bool = False) -> None:
    """Replaces `target`, as `atomic_file` does."""
    with atomic_file(target, shared) as (file, _):
        for part in parts:
            file.write(part)


@contextmanager
def atomic_file(path: Path, shared: bool = False) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file, and the name it has for now: it takes the place of `path`, whole, when the block ends.

    Nothing is left of it when the block raises. Only its owner may read it; with `shared`, whoever the umask lets.
    Makes the folder where needed. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, temporary = _new_file(path, 0o666 if shared else 0o600)
    file = os.fdopen(lock, "w+b")
    try:
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


def remove_leftovers(path: Path) -> None:
    """Deletes what killed processes left of files that were to replace `path`: those that nobody holds a lock on.

    Raises OSError.
    """
    for leftover in path.parent.glob(f"{path.name}*.tmp"):
        if leftover.is_file() and (lock := try_lock(leftover)) is not None:
            unlock(leftover, lock)


def _new_file(path: Path, mode: int) -> tuple[int, Path]:
    while True:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        if (lock := try_lock(temporary, mode)) is not None:
            return lock, temporary


def sync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut, where the system offers that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock on the file of that name, which is held then. Makes its folder where needed.
    Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = try_lock(path)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            unlock(path, lock)


def try_lock(path: Path, mode: int = 0o666) -> int | None:
    """Locks the file, making it with `mode` where needed: a descriptor, to be given to `unlock`; None while someone
    else holds it. The system lets go of it when a process ends, in whatever way. Raises OSError."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, mode)
    try:
        if sys.platform == "win32":
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except (BlockingIOError, PermissionError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def unlock(path: Path, lock: int) -> None:
    with suppress(OSError):  # Windows removes no open file
        path.unlink()  # while it is held: who waits for it sees that it is gone, and makes another
    os.close(lock)
