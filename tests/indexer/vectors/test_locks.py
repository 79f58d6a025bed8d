"""Readers and writers take turns."""

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


def test_readers_hold_it_together() -> None:
    lock, together = ReadWriteLock(), threading.Barrier(4)

    def read() -> None:
        with lock.reading():
            together.wait(DEADLINE)  # nobody passes unless all four are in

    in_threads([read] * 4)


def test_a_writer_is_alone() -> None:
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


def test_nobody_waits_for_ever() -> None:
    """Neither a writer among readers that come without end, nor a reader among writers."""
    lock, done = ReadWriteLock(), threading.Event()
    turns = {"reader": 0, "writer": 0}

    def busy(take: Take) -> Callable[[], None]:
        def without_end() -> None:
            while not done.is_set():
                with take():
                    time.sleep(0.0005)  # so that it is held nearly all the time

        return without_end

    def one(name: str, take: Take) -> None:
        try:
            for _ in range(20):
                with take():
                    turns[name] += 1
        finally:
            done.set()

    # A turn that never comes would leave the threads waiting for each other: `done` ends them after a time.
    giving_up = threading.Timer(DEADLINE, done.set)
    giving_up.start()
    in_threads([busy(lock.reading), busy(lock.reading), busy(lock.reading), lambda: one("writer", lock.writing)])
    done.clear()
    in_threads([busy(lock.writing), busy(lock.writing), busy(lock.writing), lambda: one("reader", lock.reading)])
    assert turns == {"reader": 20, "writer": 20}
    assert giving_up.is_alive(), "they had to be ended"
    giving_up.cancel()


def test_they_go_in_the_order_they_came() -> None:
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


def test_what_is_raised_inside_frees_it() -> None:
    lock = ReadWriteLock()
    for take in (lock.reading, lock.writing):
        with pytest.raises(ValueError, match="inside"), take():
            raise ValueError("inside")
    with lock.writing():
        pass
