"""Background parts stop at the same time and within a limit."""

from __future__ import annotations

import logging
import threading

import pytest

from search_service.api.app import CLOSE_SECONDS, STOP_SECONDS, stop_together
from search_service.background.webhooks import Schedule
from search_service.server import SHUTDOWN_SECONDS, WORKER_SILENT_SECONDS
from tests.waiting import DEADLINE, wait_for


def test_parts_are_stopped_at_the_same_time() -> None:
    """Each waits for the others to be stopped."""
    together = threading.Barrier(3)
    passed: list[int] = []
    stop_together([lambda: passed.append(together.wait(DEADLINE))] * 3, DEADLINE)
    assert sorted(passed) == [0, 1, 2]


def test_a_part_that_does_not_stop_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    over, stopped = threading.Event(), threading.Event()
    with caplog.at_level(logging.WARNING, "search_service.api.app"):
        stop_together([stopped.set, over.wait], 1.0)
    assert stopped.is_set()
    assert "1 of 2 parts did not stop within 1 s" in caplog.text
    over.set()
    wait_for(lambda: all(thread.name != "stopping" for thread in threading.enumerate()), "no thread is left")


def test_stopping_ends_before_a_supervisor_kills() -> None:
    """Supervisors wait for a minute (`docker/`)."""
    assert WORKER_SILENT_SECONDS + SHUTDOWN_SECONDS + STOP_SECONDS + CLOSE_SECONDS < 60
    assert Schedule().timeout_seconds < STOP_SECONDS
