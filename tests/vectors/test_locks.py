"""Readers and writers take turns, and a file takes its place whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from indexer.vectors.locks import SharedLock, clear, replacing
from tests.gallery.together import SECONDS, in_threads
from tests.vectors.disks import limited_file_size

Take = Callable[[], AbstractContextManager[None]]


def test_readers_hold_it_together() -> None:
    lock, together = SharedLock(), threading.Barrier(4)

    def read() -> None:
        with lock.reading():
            together.wait(SECONDS)  # nobody passes unless all four are in

    in_threads([read] * 4)


def test_a_writer_is_alone() -> None:
    lock, state, seen = SharedLock(), {"whole": True}, list[bool]()

    def write() -> None:
        for _ in range(200):
            with lock.writing():
                seen.append(state["whole"])
                state["whole"] = False
                time.sleep(0)
                state["whole"] = True

    def read() -> None:
        for _ in range(200):
            with lock.reading():
                seen.append(state["whole"])

    in_threads([write, write, read, read])
    assert len(seen) == 800
    assert all(seen)


def test_nobody_waits_for_ever() -> None:
    """Neither a writer among readers that come without end, nor a reader among writers."""
    lock, done, end = SharedLock(), threading.Event(), time.monotonic() + SECONDS
    turns = {"reader": 0, "writer": 0}

    def busy(take: Take) -> Callable[[], None]:
        def without_end() -> None:
            while not done.is_set() and time.monotonic() < end:
                with take():
                    time.sleep(0.0005)

        return without_end

    def one(name: str, take: Take) -> None:
        try:
            for _ in range(20):
                with take():
                    turns[name] += 1
        finally:
            done.set()

    in_threads([busy(lock.reading), busy(lock.reading), busy(lock.reading), lambda: one("writer", lock.writing)])
    done.clear()
    in_threads([busy(lock.writing), busy(lock.writing), busy(lock.writing), lambda: one("reader", lock.reading)])
    assert turns == {"reader": 20, "writer": 20}
    assert time.monotonic() < end


def test_they_go_in_the_order_they_came() -> None:
    lock, order = SharedLock(), list[str]()

    def later(name: str, take: Take) -> threading.Thread:
        def run() -> None:
            with take():
                order.append(name)

        thread = threading.Thread(target=run)
        waiting = len(lock._waiting)
        thread.start()
        while len(lock._waiting) == waiting:
            time.sleep(0.001)
        return thread

    with lock.reading():
        threads = [later("writer", lock.writing), later("reader", lock.reading), later("second", lock.writing)]
        assert order == []
    for thread in threads:
        thread.join(SECONDS)
    assert order == ["writer", "reader", "second"]


def test_what_is_raised_inside_frees_it() -> None:
    lock = SharedLock()
    for take in (lock.reading, lock.writing):
        with pytest.raises(ValueError, match="inside"), take():
            raise ValueError("inside")
    with lock.writing():
        pass


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "4.index"
    for content in (b"one", b"two"):
        with replacing(path) as (file, temporary):
            file.write(content)
            file.flush()
            assert temporary.read_bytes() == content
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o077 == 0  # embeddings are nobody else's


def test_nothing_is_left_of_one_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    path.write_bytes(b"before")
    with pytest.raises(TypeError), replacing(path) as (file, _):
        file.write("half")  # type: ignore[call-overload]
    with pytest.raises(OSError, match="too large"), limited_file_size(64), replacing(path) as (file, _):
        file.write(b"\0" * 100)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def _write_for_ever(path: str) -> None:
    with replacing(Path(path)) as (file, _):
        file.write(b"x" * 10)
        file.flush()
        time.sleep(SECONDS)


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "4.index"
    (tmp_path / "44.index.x.tmp").write_bytes(b"another gallery's")
    process = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(str(path),))
    process.start()
    until = time.monotonic() + SECONDS
    while not any(p.stat().st_size == 10 for p in tmp_path.glob("4.index*.tmp")) and time.monotonic() < until:
        time.sleep(0.01)
    clear(path)
    assert len(list(tmp_path.glob("4.index*.tmp"))) == 1
    with replacing(path) as (file, _):
        file.write(b"mine")
    assert len(list(tmp_path.glob("4.index*.tmp"))) == 1
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(SECONDS)
    clear(path)
    assert {p.name for p in tmp_path.iterdir()} == {"4.index", "44.index.x.tmp"}
