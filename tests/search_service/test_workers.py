"""uvicorn's supervisor over real processes."""

from __future__ import annotations

import os
import signal
import threading
import time

from uvicorn import Config

from search_service.workers import Worker


async def silent(*_: object) -> None:
    """Answers nothing."""


def test_whoever_waits_for_a_worker_hears_of_its_death() -> None:
    worker = Worker(Config(silent, lifespan="off", log_config=None), [])
    worker.start()
    try:
        assert worker.is_alive(60)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)  # asked, it does not answer
        heard: list[bool] = []
        asking = threading.Thread(target=lambda: heard.append(worker.ping(600)), daemon=True)
        asking.start()
        time.sleep(0.5)
        assert not heard
        os.kill(worker.pid, signal.SIGKILL)
        asking.join(60)
        assert heard == [False]
    finally:
        worker.kill()
        worker.join()
