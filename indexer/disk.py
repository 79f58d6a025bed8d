"""Writing files so that readers, and whoever looks after a crash, see the old one or the new one, whole; and locks."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def write_atomically(target: Path, parts: Iterable[bytes | memoryview], shared: bool = False) -> None:
    """Replaces `target`, making its folder where needed. Raises OSError, and leaves nothing, when that fails.

    Only its owner may read it; with `shared`, whoever the umask lets.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
    temporary = Path(name)
    if shared:  # a new file of the same name has the mode that the umask gives
        os.close(handle)
        temporary.unlink()
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut, where the system offers that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Locks the file, making it where needed: a descriptor, to be given to `unlock`; None while someone else holds it.
    The system lets go of it when a process ends, in whatever way. Raises OSError."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
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
