"""A proxy in front of the real service that fails as a script prescribes."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import httpx

from tests.waiting import DEADLINE

HOP_HEADERS = ("host", "connection", "content-length", "transfer-encoding", "content-encoding", "date", "server")
"""Headers that are not forwarded, because they belong to one connection."""


@dataclass(frozen=True)
class Refuse:
    """The request is answered with an error and does not reach the service."""

    status: int
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """The connection ends without an answer: `after` the service has answered, or before the request reaches it."""

    after: bool


@dataclass(frozen=True)
class Alter:
    """The service's answer is changed."""

    change: Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: Mapping[str, str]
    size: int


class Faulty:
    """Applies the next fault of the `script` to each request, and forwards requests when there is none."""

    def __init__(self, target: str) -> None:
        self.script: deque[Refuse | Drop | Alter] = deque()
        self.seen: list[Seen] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.faulty = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="faulty")
        self.http = httpx.Client(base_url=target, timeout=DEADLINE)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(DEADLINE)
        self._server.server_close()
        self.http.close()


class _Server(ThreadingHTTPServer):
    faulty: Faulty
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        faulty = self.server.faulty
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        faulty.seen.append(Seen(self.command, self.path, headers, len(body)))
        fault = faulty.script.popleft() if faulty.script else None
        if isinstance(fault, Refuse):
            error = {"error": {"code": fault.code, "message": "not now", "details": {}}, "request_id": "x"}
            self._send(fault.status, fault.headers, json.dumps(error).encode() if fault.code else b"<html>no</html>")
            return
        if isinstance(fault, Drop) and not fault.after:
            self.close_connection = True
            return
        forwarded = {name: value for name, value in headers.items() if name not in HOP_HEADERS}
        answer = faulty.http.request(self.command, self.path, content=body, headers=forwarded)
        if isinstance(fault, Drop):
            self.close_connection = True
            return
        content = answer.content
        if isinstance(fault, Alter):
            changed = answer.json()
            fault.change(changed)
            content = json.dumps(changed).encode()
        self._send(answer.status_code, {n: v for n, v in answer.headers.items() if n not in HOP_HEADERS}, content)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 (names that http.server calls)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the inherited name)
        return
