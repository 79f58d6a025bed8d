"""Atomic replacement of files, which also holds after a crash, file locks, and files that only their owner can read."""

from __future__ import annotations

import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def write_atomically(target: Path, parts: Iterable[bytes | memoryview], shared: bool = False) -> None:
    """Replaces `target` by the concatenated parts, as `atomic_file` does."""
    with atomic_file(target, shared) as (file, _):
        for part in parts:
            file.write(part)


@contextmanager
def atomic_file(path: Path, shared: bool = False) -> Iterator[tuple[BinaryIO, Path]]:
    """Opens a temporary file that replaces `path` when the block ends, and is deleted if the block raises.

    Creates the folder if needed. Readers see the old file or the complete new one, also after a crash.

    Args:
        path: The file to replace.
        shared: Whether the umask decides who can read the file; otherwise only its owner can.

    Yields:
        The open file, and its temporary path.

    Raises:
        OSError: The file cannot be written.
    """
    make_private_folder(path.parent)
    lock, temporary = _new_file(path, 0o666 if shared else 0o600)
    file = os.fdopen(lock, "w+b")
    try:
        yield file, temporary
        file.flush()
        os.fsync(file.fileno())
        if os.name != "posix":
            file.close()  # Windows cannot rename an open file
        temporary.replace(path)  # on POSIX still locked, so that it is no leftover
    except BaseException:
        with suppress(OSError):  # flushing buffered data fails on a full disk
            file.close()
        temporary.unlink(missing_ok=True)
        raise
    file.close()
    sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Deletes temporary files of killed processes that were to replace `path`: those that are not locked.

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


def make_private_folder(folder: Path) -> None:
    """Creates a folder with its missing parents, which only their owner can read. Raises OSError."""
    if not folder.is_dir():
        make_private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Creates an empty file that only its owner can read, unless the file is there.

    The file is never opened under its name: closing a file releases all locks that the process has on it, and SQLite
    relies on them (https://www.sqlite.org/howtocorrupt.html, 2.2). Raises OSError.
    """
    if not path.exists():
        descriptor, temporary = tempfile.mkstemp(".tmp", f"{path.name}.", path.parent)
        os.close(descriptor)
        with suppress(FileExistsError):
            os.link(temporary, path)
        Path(temporary).unlink()


def exposed_paths(folder: Path, without: Path) -> Iterator[Path]:
    """Yields the folder and what is in it, except `without`, as far as others than its owner can open it. Links are not
    followed."""
    if folder != without and not folder.is_symlink():
        with suppress(FileNotFoundError, PermissionError):
            if is_exposed(folder.stat(), os.geteuid()):
                yield folder
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                yield from exposed_paths(path, without)


def is_exposed(status: os.stat_result, user: int) -> bool:
    """Returns whether others can open the file. Of another owner's file, such as a volume of a container, the group may
    be how this user reaches it."""
    return bool(status.st_mode & (0o077 if status.st_uid == user else 0o007))


def make_private(path: Path) -> None:
    """Removes all permissions of others. Raises OSError."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)


def sync_folder(folder: Path) -> None:
    """Makes renamed files survive a power failure, on systems that support it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[bool]:
    """Tries to lock a file for the block and yields whether it succeeded.

    Creates the file's folder if needed. Raises OSError.
    """
    make_private_folder(path.parent)
    lock = try_lock(path)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            unlock(path, lock)


def try_lock(path: Path, mode: int = 0o600) -> int | None:
    """Locks the file, creating it with `mode` if needed. The system releases the lock when the process ends.

    Returns:
        A descriptor for `unlock`; None if the file is locked already.

    Raises:
        OSError: The file cannot be opened.
    """
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
    """Deletes a locked file and releases the lock."""
    with suppress(OSError):  # Windows cannot delete an open file
        path.unlink()  # while locked: `try_lock` notices that its file was deleted
    os.close(lock)
