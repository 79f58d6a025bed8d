"""A web server on this machine that misbehaves on request."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Response = bytes | Callable[[Message], Iterable[bytes]]
"""The raw bytes of a response, or what makes them from the request's headers."""


@dataclass
class WebServer:
    """Sends the responses that are registered for a path, and 404 for all others."""

    url: str = ""
    responses: dict[str, Response] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    """The requested paths in order, or whole URLs if it serves as a proxy."""
    headers: list[Message] = field(default_factory=list)
    """The headers of each request."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the server stops; a response that never ends waits for it."""

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [headers["Range"] for headers in self.headers]

    def respond_raw(self, path: str, response: Response) -> str:
        """Registers the response and returns its URL, as the following methods do."""
        self.responses[path] = response
        return self.url + path

    def respond(self, path: str, body: bytes, status: str = "200 OK", length: int | None = None, head: str = "") -> str:
        return self.respond_raw(path, http_response(body, status, length, head))

    def redirect(self, path: str, location: str) -> str:
        return self.respond(path, b"", "302 Found", head=f"Location: {location}\r\n")

    def serve_file(self, path: str, content: bytes, head: str = 'ETag: "1"\r\n', cuts: Iterable[int] = ()) -> str:
        """Serves a file with ranges, and with If-Range compared with the validator in `head`. The first responses are
        cut after the given numbers of bytes."""
        left = list(cuts)
        validators = [line.partition(": ")[2] for line in head.splitlines()]

        def response(headers: Message) -> Iterable[bytes]:
            wanted = re.fullmatch(r"bytes=(\d+)-", headers["Range"] or "")
            start = int(wanted[1]) if wanted and (headers["If-Range"] or "") in ("", *validators) else 0
            if start and start >= len(content):
                yield f"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{len(content)}\r\n\r\n".encode()
                return
            body = content[start:]
            lines = f"HTTP/1.1 {'206 Partial Content' if start else '200 OK'}\r\n{head}Content-Length: {len(body)}\r\n"
            if start:
                lines += f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}\r\n"
            yield f"{lines}\r\n".encode() + (body[: left.pop(0)] if left else body)

        return self.respond_raw(path, response)


def http_response(body: bytes, status: str = "200 OK", length: int | None = None, head: str = "") -> bytes:
    """Returns a raw response. `head` contains further lines, each ending in CRLF."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {size}\r\nConnection: close\r\n\r\n".encode() + body


def chunked(*chunks: bytes) -> bytes:
    """Returns a chunked response; without its last five bytes, it is cut off."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


@contextmanager
def run_web_server(tls: ssl.SSLContext | None = None) -> Iterator[WebServer]:
    server = WebServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.paths.append(self.path)
            server.headers.append(self.headers)
            response = server.responses.get(self.path, http_response(b"", "404 Not Found"))
            with suppress(ConnectionError):  # the client may be gone
                for piece in [response] if isinstance(response, bytes) else response(self.headers):
                    self.wfile.write(piece)
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        listener.socket = tls.wrap_socket(listener.socket, server_side=True)
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
        server.stopping.set()
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
