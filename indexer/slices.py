"""Divides long work into slices, between which its thread may do other work.

The thread's caller says what is done between slices; the work says where a slice ends. Elsewhere nothing happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

POLL_SECONDS = 0.01
"""How often work on another thread is asked whether it is finished."""

_thread = threading.local()


@contextmanager
def between_slices(action: Callable[[], object]) -> Iterator[None]:
    """Calls `action` on this thread between the slices of the work in the block. Its own work has no slices."""
    before = getattr(_thread, "action", None)
    _thread.action = action
    try:
        yield
    finally:
        _thread.action = before


def end_slice() -> None:
    """Ends a slice of long work."""
    action = getattr(_thread, "action", None)
    if action is not None:
        _thread.action = None
        try:
            action()
        finally:
            _thread.action = action


def run_aside(function: Callable[[], Result]) -> Result:
    """Returns the result of work that cannot be divided. It runs on another thread where this one may do other work."""
    if getattr(_thread, "action", None) is None:
        return function()
    future: Future[Result] = Future()
    thread = threading.Thread(target=_run, args=(future, function), name="aside", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread can be started now
        return function()
    while thread.is_alive():
        end_slice()
        thread.join(POLL_SECONDS)
    return future.result()


def _run(future: Future[Result], function: Callable[[], Result]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
