"""Slices of long work, between which the thread does other work."""

from __future__ import annotations

import threading

import pytest

from indexer.slices import between_slices, end_slice, run_aside
from tests.waiting import DEADLINE


def test_action_runs_between_slices_of_the_block_alone() -> None:
    done: list[str] = []
    end_slice()
    with between_slices(lambda: done.append("other")):
        done.append("one")
        end_slice()
        done.append("two")
    end_slice()
    assert done == ["one", "other", "two"]


def test_action_itself_has_no_slices() -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(len(calls))
        end_slice()

    with between_slices(action):
        end_slice()
        end_slice()
    assert calls == [0, 1]


def test_work_aside_lets_other_work_run() -> None:
    may_end = threading.Event()
    with between_slices(may_end.set):
        assert run_aside(lambda: may_end.wait(DEADLINE)), "the action runs while the work waits"
        assert run_aside(threading.current_thread) is not threading.current_thread()
    assert run_aside(threading.current_thread) is threading.current_thread(), "there is no other work"


def test_error_aside_is_raised() -> None:
    def fail() -> None:
        raise KeyError("no")

    with between_slices(lambda: None), pytest.raises(KeyError):
        run_aside(fail)


def test_error_of_the_action_leaves_later_slices_as_they_were() -> None:
    calls: list[str] = []

    def action() -> None:
        calls.append("called")
        raise ValueError("no")

    with between_slices(action):
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                end_slice()
    assert calls == ["called", "called"]
