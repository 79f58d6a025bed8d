"""Real servers for the tests: uvicorn in a thread of this process, and `whosthere serve` in one of its own."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn

from search_service.api.app import create_app
from search_service.api.connections import protocol_of
from search_service.api.middleware.input_limits import InputLimits
from search_service.api.permissions import BodyKind
from search_service.inference_queue import InferenceQueue
from search_service.service_context import ServiceContext
from tests.variants import clean_environment
from tests.waiting import DEADLINE, wait_for

Middleware = TypeVar("Middleware")

WHOSTHERE = str(Path(sys.executable).with_name("whosthere"))

ENVIRONMENT = clean_environment()


class Running:
    """`create_app` over a home, served on a free port of the loopback by a thread."""

    def __init__(self, context: ServiceContext) -> None:
        self.context = context
        self.app = create_app(context)
        config = uvicorn.Config(
            self.app,
            host="127.0.0.1",
            port=0,
            http=protocol_of(context.settings),
            log_config=None,
            lifespan="on",
            proxy_headers=False,
        )
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, name="server")

    def start(self) -> None:
        self._thread.start()
        wait_for(lambda: self.server.started or not self._thread.is_alive(), "the server starts")
        assert self.server.started
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    @property
    def queue(self) -> InferenceQueue:
        queue: InferenceQueue = self.app.state.service.queue
        return queue

    def middleware(self, kind: type[Middleware]) -> Middleware:
        """Returns the application's middleware of a class. The service has started."""
        layer: Any = self.app.middleware_stack
        while not isinstance(layer, kind):
            layer = layer.app
        return layer

    def held_bytes(self, kind: BodyKind) -> int:
        """Returns how large the bodies of that kind are that are being answered."""
        return self.middleware(InputLimits).limits[kind].held

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE)

    def ready(self) -> Running:
        """Waits until the service is ready, and returns it."""
        with self.client() as client:
            wait_for(lambda: client.get("/readyz").status_code == 200, "the service is ready")
        return self


@contextmanager
def running(context: ServiceContext) -> Iterator[Running]:
    service = Running(context)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def logged_url(log: Path) -> str:
    """Where a service answers that writes to this log, once it says so."""
    wait_for(
        lambda: _url_in(log.read_text(encoding="utf-8", errors="replace")) is not None, "the server tells its port"
    )
    return str(_url_in(log.read_text(encoding="utf-8", errors="replace")))


def _url_in(text: str) -> str | None:
    found = re.search(r"running on (http://127\.0\.0\.1:\d+)", text)
    return found[1] if found else None


class Serve:
    """`whosthere serve` as a process of its own, on a free port that it tells in its log. `program` stands in for
    `whosthere`; `environment` is set on top of what is there."""

    def __init__(
        self, home: Path, log: Path, *arguments: str, program: Sequence[str] = (WHOSTHERE,), **environment: str
    ) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*program, "serve", "--port", "0", "--home", str(home), *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT | environment,
            )
        wait_for(lambda: self._told() is not None or self.process.poll() is not None, "the server tells its port")
        told = self._told()
        assert told, self.log()
        self.client = httpx.Client(base_url=told, timeout=DEADLINE)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _told(self) -> str | None:
        return _url_in(self.log())

    def workers(self) -> set[int]:
        """Returns the ids of all worker processes that have started so far."""
        return {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", self.log())}

    def ready(self) -> Serve:
        wait_for(lambda: self.client.get("/readyz").status_code == 200, "the server is ready")
        return self

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends the process, if it still runs; its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(DEADLINE)


@contextmanager
def serving(home: Path, log: Path, *arguments: str, **environment: str) -> Iterator[Serve]:
    serve = Serve(home, log, *arguments, **environment)
    try:
        yield serve
    finally:
        serve.end(signal.SIGKILL)


def command(home: Path, *arguments: str | Path, **environment: str) -> tuple[int, Any]:
    """Runs `whosthere ... --json` to its end: its exit code, and what it printed."""
    done = subprocess.run(
        [WHOSTHERE, *map(str, arguments), "--home", str(home), "--json"],
        capture_output=True,
        env=ENVIRONMENT | environment,
        timeout=DEADLINE,
        check=False,
    )
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


def image(data: bytes, name: str = "photo.jpg", field: str = "image") -> dict[str, tuple[str, bytes]]:
    """`files=` of httpx for one image."""
    return {field: (name, data)}


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The `error` of an answer, after everything that all errors have in common was checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error", "request_id"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "details"}
    assert error["code"] == code, error
    assert isinstance(error["message"], str)
    assert len(error["message"]) > 5
    assert isinstance(error["details"], dict)
    assert body["request_id"] == response.headers["x-request-id"] != ""
    return error


def ok(response: httpx.Response, status: int = 200) -> Any:
    """The body of an answer that is no error."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    return response.json()
