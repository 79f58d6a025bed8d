"""A receiver of webhooks on the loopback that does as it is told."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[3] / "docs" / "webhooks.md"

HANG, DRIP, REDIRECT = -1, -2, -3
"""Instead of a status: never answer; answer a byte at a time; send elsewhere, to `/elsewhere`."""


@dataclass(frozen=True)
class Received:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def told(self) -> Any:
        return json.loads(self.body)


def genuine() -> Callable[[str, Mapping[str, str], bytes], bool]:
    """The check that the documentation tells receivers to make."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    check: Callable[[str, Mapping[str, str], bytes], bool] = names["genuine"]
    return check


class Receiver:
    """Answers with `statuses` in their order, the last of them again and again."""

    def __init__(self, port: int = 0, *statuses: int) -> None:
        self.statuses = list(statuses or (200,))
        self.received: list[Received] = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.received.append(Received(self.path, dict(self.headers), body))
                status = outer.statuses.pop(0) if len(outer.statuses) > 1 else outer.statuses[0]
                if status == HANG:
                    outer.released.wait()
                    self.close_connection = True
                elif status == DRIP:
                    for byte in itertools.chain(b"HTTP/1.1 200 OK\r\nX-Slow: ", itertools.repeat(ord("."))):
                        self.wfile.write(bytes([byte]))
                        if outer.released.wait(0.05):
                            break
                    self.close_connection = True
                elif status == REDIRECT:
                    self.send_response(307)
                    self.send_header("Location", "/elsewhere")
                    self.end_headers()
                else:
                    self.send_response(status)
                    self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name in the base class)
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Whoever hangs up is no error here."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/doors?of=staff"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="receiver")
        self._thread.start()

    def events(self) -> list[int]:
        """Ids of the events received, as often as they were."""
        return [one.told["event"]["id"] for one in self.received]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def receiving(*statuses: int, port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver(port, *statuses)
    try:
        yield receiver
    finally:
        receiver.close()
