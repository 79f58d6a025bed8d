"""Readers share the lock, writers hold it alone, and nobody starves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from indexer.vectors.locks import ReadWriteLock
from tests.indexer.gallery.together import in_threads
from tests.waiting import DEADLINE, wait_for

Take = Callable[[], AbstractContextManager[None]]


def test_readers_share_the_lock() -> None:
    lock, together = ReadWriteLock(), threading.Barrier(4)

    def read() -> None:
        with lock.reading():
            together.wait(DEADLINE)  # passes only when all four hold the lock

    in_threads([read] * 4)


def test_writer_holds_the_lock_alone() -> None:
    lock, state, seen = ReadWriteLock(), {"whole": True}, list[bool]()

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


def test_nobody_starves() -> None:
    """Neither a writer among a stream of readers, nor a reader among a stream of writers."""
    lock, done = ReadWriteLock(), threading.Event()
    turns = {"reader": 0, "writer": 0}

    def busy(take: Take) -> Callable[[], None]:
        def endlessly() -> None:
            while not done.is_set():
                with take():
                    time.sleep(0.0005)  # so that it is held nearly all the time

        return endlessly

    def one(name: str, take: Take) -> None:
        try:
            for _ in range(20):
                with take():
                    turns[name] += 1
        finally:
            done.set()

    # If a thread starved, the others would never end: `done` ends them after a time.
    giving_up = threading.Timer(DEADLINE, done.set)
    giving_up.start()
    in_threads([busy(lock.reading), busy(lock.reading), busy(lock.reading), lambda: one("writer", lock.writing)])
    done.clear()
    in_threads([busy(lock.writing), busy(lock.writing), busy(lock.writing), lambda: one("reader", lock.reading)])
    assert turns == {"reader": 20, "writer": 20}
    assert giving_up.is_alive(), "a thread starved"
    giving_up.cancel()


def test_threads_are_served_in_the_order_of_arrival() -> None:
    lock, order = ReadWriteLock(), list[str]()

    def later(name: str, take: Take) -> threading.Thread:
        def run() -> None:
            with take():
                order.append(name)

        thread = threading.Thread(target=run)
        waiting = len(lock._waiting)
        thread.start()
        wait_for(lambda: len(lock._waiting) > waiting, f"{name} to wait for its turn")
        return thread

    with lock.reading():
        threads = [later("writer", lock.writing), later("reader", lock.reading), later("second", lock.writing)]
        assert order == []
    for thread in threads:
        thread.join(DEADLINE)
    assert order == ["writer", "reader", "second"]


def test_exception_releases_the_lock() -> None:
    lock = ReadWriteLock()
    for take in (lock.reading, lock.writing):
        with pytest.raises(ValueError, match="inside"), take():
            raise ValueError("inside")
    with lock.writing():
        pass
