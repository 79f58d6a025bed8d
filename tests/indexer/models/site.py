"""A web server on this machine, and a proxy, that do what the real ones do on their bad days."""

from __future__ import annotations

import http.client
import re
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Answer = bytes | Callable[[Message], Iterable[bytes]]
"""The raw bytes that are sent, or what makes them of the request's headers."""


@dataclass
class Site:
    """`answers` maps a path to what is sent; everything else is not found. `asked` are the paths, in order, and
    `headers` what came with each."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    headers: list[Message] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the site goes down; an answer that waits for nothing waits for this."""

    def serve(self, path: str, body: bytes, status: str = "200 OK", length: int | None = None, head: str = "") -> str:
        """Answers with exactly this, whatever is asked. `head` has further lines, each ending in CRLF."""
        size = len(body) if length is None else length
        said = f"HTTP/1.1 {status}\r\n{head}Content-Length: {size}\r\nConnection: close\r\n\r\n"
        return self.serve_raw(path, said.encode() + body)

    def serve_raw(self, path: str, answer: Answer) -> str:
        self.answers[path] = answer
        return self.url + path

    def keep(self, path: str, content: bytes, head: str = 'ETag: "1"\r\n', cuts: Iterable[int] = ()) -> str:
        """Answers as a file server: with ranges, and If-Range against what `head` says of the version. Of the first
        answers, each is cut after so many bytes of its body."""
        left = list(cuts)

        def answer(asked: Message) -> Iterable[bytes]:
            wanted = re.fullmatch(r"bytes=(\d+)-", asked["Range"] or "")
            start = int(wanted[1]) if wanted and (asked["If-Range"] or "") in ("", *values(head)) else 0
            if start and start >= len(content):
                yield f"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{len(content)}\r\n\r\n".encode()
                return
            body = content[start:]
            said = f"HTTP/1.1 {'206 Partial Content' if start else '200 OK'}\r\n{head}Content-Length: {len(body)}\r\n"
            if start:
                said += f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}\r\n"
            yield f"{said}\r\n".encode() + (body[: left.pop(0)] if left else body)

        return self.serve_raw(path, answer)


def values(head: str) -> list[str]:
    """Of header lines."""
    return [line.partition(": ")[2] for line in head.splitlines()]


def chunked(*pieces: bytes) -> bytes:
    """An answer in chunks; to be cut, leave its last five bytes off."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


@contextmanager
def open_site(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append(self.path)
            here.headers.append(self.headers)
            answer = here.answers.get(self.path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            with suppress(ConnectionError):  # who asked may have gone
                for piece in [answer] if isinstance(answer, bytes) else answer(self.headers):
                    self.wfile.write(piece)
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    with _running(Handler, tls) as port:
        here.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        yield here
        here.closing.set()


@contextmanager
def open_proxy() -> Iterator[Site]:
    """Forwards to where it is asked to; its `asked` are whole URLs, and it has no answers of its own."""
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append(self.path)
            here.headers.append(self.headers)
            there = urlsplit(self.path)
            connection = http.client.HTTPConnection(there.netloc, timeout=10)
            connection.request("GET", there.path, headers=dict(self.headers.items()))
            answer = connection.getresponse()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())
            connection.close()
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    with _running(Handler, None) as port:
        here.url = f"http://127.0.0.1:{port}"
        yield here


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None) -> Iterator[int]:
    """A server for these requests; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
