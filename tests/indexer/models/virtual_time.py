"""Timeouts of sockets in time that tests advance, so that no test depends on how fast the machine is."""

from __future__ import annotations

import select
import socket
import threading

import pytest

from tests.waiting import wait_for

_POLL_SECONDS = 0.01


class VirtualTime:
    """Makes `socket.recv` time out when the time of this object, instead of the clock's, has advanced enough."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.received = 0
        """Bytes that all calls of `recv` have returned."""
        self._seconds = 0.0
        self._lock = threading.Lock()
        receive = socket.socket.recv

        def recv(connection: socket.socket, size: int, flags: int = 0) -> bytes:
            limit = connection.gettimeout()
            end = None if limit is None else self.seconds + limit
            while True:
                # Read before the socket is: what was sent before the time advanced is received, not timed out.
                is_over = end is not None and self.seconds >= end
                if select.select([connection], [], [], 0 if is_over else _POLL_SECONDS)[0]:
                    data = receive(connection, size, flags)
                    self.received += len(data)
                    return data
                if is_over:
                    raise TimeoutError("timed out")

        monkeypatch.setattr(socket.socket, "recv", recv)

    def wait_for_received(self, count: int) -> None:
        """Waits until `recv` has returned that many bytes in total."""
        wait_for(lambda: self.received == count, f"the client to receive {count} bytes")

    @property
    def seconds(self) -> float:
        with self._lock:
            return self._seconds

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._seconds += seconds
