"""The folder in which the workers of one service count together, by prometheus_client's multiprocess mode.

The library maps files of the folder into memory. When the disk is full as a page of a mapped file is written for the
first time, the system ends the process (SIGBUS). So each worker writes its files in full before the library opens them,
and `Metrics` adds no more labels than they have room for. A worker that cannot write them counts in memory alone.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from types import MappingProxyType

from indexer.files import try_lock

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder. prometheus_client reads it when it is first imported."""

PREFIX = "whosthere-metrics-"

LOCK = "lock"
"""The file in the folder that is locked while its service runs."""

LABEL_BYTES = 3 * 2**20
"""Room for labels that callers choose."""

FILE_BYTES: Mapping[str, int] = MappingProxyType(
    {"counter": LABEL_BYTES + 2**20, "histogram": 2**20, "gauge_livesum": 2**16}
)
"""A worker's files by the library's names for them. Labels of routes, methods and statuses take a quarter of a megabyte
at most in each; an entry is about 150 bytes."""

log = logging.getLogger(__name__)


@contextmanager
def shared_folder() -> Iterator[Path | None]:
    """Creates a folder for as long as the block runs, and deletes those of services that were killed.

    Returns None, and logs why, if there is no place for it.
    """
    try:
        for abandoned in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with suppress(OSError):  # another user's
                _delete_if_abandoned(abandoned)
        created = _create_folder()
    except OSError as error:
        _warn(tempfile.tempdir or "the temporary folder", error)
        created = None
    if created is None:
        yield None
        return
    folder, lock = created
    try:
        yield folder
    finally:
        rmtree(folder, ignore_errors=True)
        os.close(lock)


def prepare() -> None:
    """Writes this process's files before prometheus_client is imported. If it fails, the process counts in memory."""
    if FOLDER_VARIABLE not in os.environ:
        return
    folder = Path(os.environ[FOLDER_VARIABLE])
    try:
        for kind, size in FILE_BYTES.items():
            _write_file(folder / f"{kind}_{os.getpid()}.db", size)
    except OSError as error:
        for kind in FILE_BYTES:
            (folder / f"{kind}_{os.getpid()}.db").unlink(missing_ok=True)
        del os.environ[FOLDER_VARIABLE]
        _warn(folder, error)


def _create_folder() -> tuple[Path, int]:
    """Returns the folder and the lock on it. Tries again if another process takes it for abandoned before."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):
            lock = try_lock(folder / LOCK)
            if lock is not None:
                return folder, lock


def _delete_if_abandoned(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    lock = try_lock(folder / LOCK)
    if lock is not None:
        rmtree(folder, ignore_errors=True)
        os.close(lock)


def _write_file(file: Path, size: int) -> None:
    """Writes it under another name first, because other workers read all files. Raises OSError."""
    if file.exists():  # of a dead process with the same number: its counts go on
        return
    incomplete = file.with_suffix(".new")
    try:
        incomplete.write_bytes(bytes(size))
        incomplete.replace(file)
    except OSError:
        with suppress(OSError):
            incomplete.unlink(missing_ok=True)
        raise


def _warn(folder: Path | str, error: OSError) -> None:
    log.warning(
        "this process counts metrics in its memory alone, so /metrics shows less than the sum of all workers: "
        "%s cannot hold its files (%s); free space there, or set TMPDIR to a folder that has some, and start again",
        folder,
        error.strerror or error,
    )
