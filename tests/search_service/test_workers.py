"""uvicorn's supervisor over real processes."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection

import psutil
import pytest
from uvicorn import Config

from search_service.workers import Worker
from tests.waiting import DEADLINE, wait_for


async def silent(*_: object) -> None:
    """An application that answers nothing."""


def test_waiting_for_a_worker_ends_with_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(Config(silent, lifespan="off", log_config=None), [])
    worker.start()
    polling, poll = threading.Event(), Connection.poll

    def noted(connection: Connection, timeout: float | None = 0.0) -> bool:
        polling.set()
        return poll(connection, timeout)

    try:
        assert worker.is_alive(DEADLINE)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)  # it cannot answer any more
        process = psutil.Process(worker.pid)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the worker is stopped")
        monkeypatch.setattr(Connection, "poll", noted)
        answers: list[bool] = []
        asking = threading.Thread(target=lambda: answers.append(worker.ping(100 * DEADLINE)), daemon=True)
        asking.start()
        assert polling.wait(DEADLINE)
        assert answers == []
        os.kill(worker.pid, signal.SIGKILL)
        asking.join(DEADLINE)
        assert answers == [False]
    finally:
        worker.kill()
        worker.join()
