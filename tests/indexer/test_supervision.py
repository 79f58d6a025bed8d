"""Threads go on after their functions fail, and observers do not affect what they observe."""

from __future__ import annotations

import logging
import threading

import pytest

from indexer import supervision
from indexer.supervision import SupervisedThread, notify
from tests.waiting import DEADLINE, wait_for


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit()])
def test_function_is_called_again_until_it_returns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    monkeypatch.setattr(supervision, "RESTART_SECONDS", 0.01)
    calls: list[str] = []

    def fail_twice() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) < 3:
            raise error

    thread = SupervisedThread("worker", fail_twice)
    thread.start()
    wait_for(lambda: not thread.is_alive(), "it returns")
    assert calls == ["worker"] * 3
    assert [record.message for record in caplog.records] == ["the thread worker failed; it goes on in 0.01 s"] * 2


def test_join_ends_the_wait_for_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "RESTART_SECONDS", 100 * DEADLINE)
    calls: list[str] = []

    def fail() -> None:
        calls.append("one")
        raise ValueError("a bug")

    thread = SupervisedThread("worker", fail)
    thread.start()
    wait_for(lambda: bool(calls), "it is called")
    thread.join()
    assert not thread.is_alive()
    assert calls == ["one"]


def test_thread_that_was_not_started_can_be_joined() -> None:
    SupervisedThread("worker", lambda: None).join()


def test_failing_observers_are_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervision, "_reported_at", -supervision.REPORT_SECONDS)
    seen: list[int] = []

    def observe(number: int) -> None:
        seen.append(number)
        raise OSError("No space left on device")

    for number in range(3):
        notify(observe, number)
    assert seen == [0, 1, 2]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
