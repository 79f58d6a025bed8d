"""Where the workers of one service count together: a folder in which each has files of its own, which
prometheus_client maps into its memory.

It makes them sparse. Where the disk is full when a page of one is written for the first time, the system kills the
process (SIGBUS), so a file is filled before it is mapped; where it cannot be, the worker counts in its memory alone.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

from indexer.files import try_lock

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The environment's word for the folder: prometheus_client's own."""

PREFIX = "whosthere-metrics-"

LOCK = "lock"
"""The file in the folder that is locked for as long as its service runs."""

KINDS = ("counter", "histogram", "gauge_livesum")
"""What is counted, a file each, as prometheus_client names them."""

FILE_BYTES = 2**16
"""Of a new file, as prometheus_client makes it; one that is full is made twice as large."""

ENTRY_BYTES = 28
"""Of a number in a file, beside its name: the name's length, up to 8 to pad it, value and time."""

log = logging.getLogger(__name__)


@contextmanager
def shared_folder() -> Iterator[Path | None]:
    """A new one, for as long as the block runs; None, and a line in the log, where there can be none. Deletes those of
    services that were killed."""
    try:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with suppress(OSError):  # somebody else's
                _sweep(left)
        made = _make_folder()
    except OSError as error:
        _tell_alone(tempfile.tempdir or "the temporary folder", error)
        made = None
    if made is None:
        yield None
        return
    folder, lock = made
    try:
        yield folder
    finally:
        rmtree(folder, ignore_errors=True)
        os.close(lock)


def join() -> Path | None:
    """The folder in which this process counts, its files in it filled; None where it counts in memory only. To be
    called before a metric is made: each decides then where it counts."""
    if SHARED not in os.environ:
        return None
    folder = Path(os.environ[SHARED])
    try:
        for kind in KINDS:
            _make_file(folder / f"{kind}_{os.getpid()}.db")
    except OSError as error:
        _tell_alone(folder, error)
        values.ValueClass = values.MutexValue
        return None
    values.MmapedDict = _FilledFile  # type: ignore[attr-defined]
    return folder


def _make_folder() -> tuple[Path, int]:
    """And the lock on it. Who sweeps at this moment may have taken it for left behind: then there is another one."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):
            lock = try_lock(folder / LOCK)
            if lock is not None:
                return folder, lock


def _sweep(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    lock = try_lock(folder / LOCK)
    if lock is not None:
        rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_file(file: Path) -> None:
    """Under another name at first: whoever reads all files at this moment would find it empty. Raises OSError."""
    if file.exists():  # of this process, or of a dead one of its number
        return
    making = file.with_suffix(".new")
    try:
        making.write_bytes(bytes(FILE_BYTES))
        making.replace(file)
    except OSError:
        with suppress(OSError):
            making.unlink(missing_ok=True)
        raise


def _tell_alone(folder: Path | str, error: OSError) -> None:
    log.warning(
        "this process counts metrics in its memory alone, so /metrics tells less than the sum of all workers: "
        "%s cannot hold its files (%s); free space there, or set TMPDIR to a folder that has some, and start again",
        folder,
        error.strerror or error,
    )


class _FilledFile(MmapedDict):
    """prometheus_client's numbers by name, in a file that is filled before it is made larger. Where it cannot be, they
    go on in memory, and the file tells what they were."""

    def _init_value(self, key: str) -> None:
        """Adds one."""
        room = self._capacity
        while self._used + len(key.encode()) + ENTRY_BYTES > room:
            room *= 2
        if room > self._capacity and not isinstance(self._f, _Nowhere):
            try:
                with Path(self._fname).open("ab") as file:
                    file.write(bytes(room - self._capacity))
            except OSError as error:
                _tell_alone(Path(self._fname).parent, error)
                self._f.truncate(self._capacity)
                self._f.close()
                self._f = _Nowhere()  # type: ignore[assignment]
        super()._init_value(key)  # type: ignore[no-untyped-call]


class _Nowhere:
    """Stands for a file: what is mapped of it is memory."""

    def truncate(self, size: int) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass
