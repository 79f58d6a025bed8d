"""The processes of one service, as uvicorn keeps them: each is asked every half second whether it lives."""

from __future__ import annotations

from uvicorn.supervisors import multiprocess


def notice_deaths() -> None:
    """Lets uvicorn replace a worker that dies while it is being asked: else it waits for the answer for as long as one
    that is busy may be silent, and hears no signal meanwhile."""
    multiprocess.Process = Worker  # type: ignore[misc]


class Worker(multiprocess.Process):
    """Its end of the pipe is its own alone, so that the pipe ends with it."""

    def start(self) -> None:
        super().start()
        self.child_conn.close()
