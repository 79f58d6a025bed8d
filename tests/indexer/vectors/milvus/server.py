"""Runs `milvus-lite` in a separate process, which tests use through `pymilvus`."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_for


class MilvusServer:
    """A server on the loopback interface with its data in a folder. Every address has its own collections."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.start()

    def address(self, options: str = "") -> str:
        return f"milvus://127.0.0.1:{self.port}?prefix=test{next(self._numbers)}{options}"

    def start(self) -> None:
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self._folder)]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        process = self._process
        wait_for(lambda: _listens(self.port) or process.poll() is not None, "milvus-lite to start")
        assert process.poll() is None, "milvus-lite has ended"

    def kill(self) -> None:
        """Kills the server without letting it write anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Makes the server accept connections without answering."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """Runs one server per test process."""
    server = MilvusServer(tmp_path_factory.mktemp("milvus") / "data")
    yield server
    server.kill()
