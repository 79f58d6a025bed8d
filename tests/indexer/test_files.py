"""Tests of atomic replacement of files and of file locks."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.files import (
    atomic_file,
    exclusive_lock,
    exposed_paths,
    is_exposed,
    make_private,
    make_private_folder,
    remove_leftovers,
    try_lock,
    write_atomically,
)
from tests.indexer.vectors.disks import limited_file_size
from tests.waiting import DEADLINE, wait_for


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_parts_are_written_in_order(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", [b"one ", memoryview(b"two "), b"", b"three"])
    assert (tmp_path / "x").read_bytes() == b"one two three"
    assert listed(tmp_path) == ["x"]


def test_existing_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"a much longer file that was there before")
    with target.open("rb") as reader:
        write_atomically(target, [b"new"])
        assert reader.read() == b"a much longer file that was there before"
    assert target.read_bytes() == b"new"
    write_atomically(target, [])
    assert target.read_bytes() == b""
    assert listed(tmp_path) == ["x"]


def test_folder_is_created(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "x", [b"new"])
    assert (tmp_path / "a" / "b" / "x").read_bytes() == b"new"


@pytest.mark.parametrize("failure", [OSError, ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there", [True, False])
def test_failing_content_leaves_no_file(tmp_path: Path, failure: type[BaseException], there: bool) -> None:
    target = tmp_path / "x"
    if there:
        target.write_bytes(b"old")

    def parts() -> Iterator[bytes]:
        yield b"half of the new"
        assert len(listed(tmp_path)) == there + 1
        raise failure

    with pytest.raises(failure):
        write_atomically(target, parts())
    assert listed(tmp_path) == ["x"] * there
    assert not there or target.read_bytes() == b"old"


def test_too_large_file_leaves_no_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with limited_file_size(10_000), pytest.raises(OSError, match="too large"):
        write_atomically(target, [bytes(4_000)] * 5)
    assert target.read_bytes() == b"old"
    assert listed(tmp_path) == ["x"]
    write_atomically(target, [bytes(4_000)] * 5)
    assert target.stat().st_size == 20_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; skips the test if none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, timeout=30
        )
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=30)


def test_full_disk_leaves_no_file(small_disk: Path) -> None:
    target = small_disk / "x"
    write_atomically(target, [b"old"])
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, [bytes(10_000)] * 10)
    assert target.read_bytes() == b"old"
    assert listed(small_disk) == ["x"]


def test_folder_that_cannot_be_created_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file" / "x", [b"new"])
    assert listed(tmp_path) == ["file"]


def test_folder_in_place_of_the_file_raises(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x"):
        write_atomically(tmp_path / "x", [b"new"])
    assert listed(tmp_path) == ["x"]
    assert listed(tmp_path / "x") == []


def test_complete_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "made" / "4.index"
    for content in (b"one", b"two"):
        with atomic_file(path) as (file, temporary):
            file.write(content)
            file.flush()
            assert temporary.read_bytes() == content
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o077 == 0  # only the owner can read it


def test_failed_block_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    path.write_bytes(b"before")
    with pytest.raises(TypeError), atomic_file(path) as (file, _):
        file.write("half")  # type: ignore[call-overload]
    with pytest.raises(OSError, match="too large"), limited_file_size(64), atomic_file(path) as (file, _):
        file.write(b"\0" * 100)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def _write_until_killed(path: str) -> None:
    with atomic_file(Path(path)) as (file, _):
        file.write(b"x" * 10)
        file.flush()
        threading.Event().wait()  # until the process is killed


def test_leftovers_of_killed_processes_are_deleted_and_open_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    (tmp_path / "44.index.x.tmp").write_bytes(b"another gallery's")
    process = multiprocessing.get_context("spawn").Process(target=_write_until_killed, args=(str(path),))
    process.start()
    wait_for(lambda: any(p.stat().st_size == 10 for p in tmp_path.glob("4.index*.tmp")), "the process to write")
    remove_leftovers(path)
    assert len(list(tmp_path.glob("4.index*.tmp"))) == 1
    with atomic_file(path) as (file, _):
        file.write(b"mine")
    assert len(list(tmp_path.glob("4.index*.tmp"))) == 1
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(DEADLINE)
    remove_leftovers(path)
    assert {p.name for p in tmp_path.iterdir()} == {"4.index", "44.index.x.tmp"}


def test_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "made" / "4.lock"
    with exclusive_lock(path) as one, exclusive_lock(path) as other:
        assert (one, other) == (True, False)
    with pytest.raises(ValueError, match="inside"), exclusive_lock(path) as one:
        raise ValueError("inside")
    with exclusive_lock(path) as one:
        assert one
    assert listed(path.parent) == []


def test_lock_file_removed_by_its_holder_does_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    with monkeypatch.context() as late:
        late.setattr(fcntl, "flock", lambda *_: path.unlink())
        assert try_lock(path) is None
    lock = try_lock(path)
    assert lock is not None
    assert try_lock(path) is None
    os.close(lock)


@pytest.mark.parametrize(
    ("mode", "is_own", "exposed"),
    [
        (0o600, True, False),
        (0o700, True, False),
        (0o640, True, True),
        (0o604, True, True),
        (0o750, True, True),
        (0o770, False, False),
        (0o771, False, True),
    ],
    ids=str,
)
def test_permissions_of_others_expose_a_file(mode: int, is_own: bool, exposed: bool) -> None:
    status = os.stat_result([mode, 0, 0, 1, 1000, 1000, 0, 0, 0, 0])
    assert is_exposed(status, 1000 if is_own else 1001) == exposed


def test_links_to_exposed_folders_are_not_followed(tmp_path: Path) -> None:
    outside, home = tmp_path / "outside", tmp_path / "home"
    make_private_folder(home / "indexes")
    outside.mkdir()
    outside.chmod(0o755)
    (home / "models").symlink_to(outside)
    (home / "indexes" / "old").touch()
    (home / "indexes" / "old").chmod(0o644)
    assert list(exposed_paths(home, home / "cache")) == [home / "indexes" / "old"]
    make_private(home / "indexes" / "old")
    assert list(exposed_paths(home, home / "cache")) == []
