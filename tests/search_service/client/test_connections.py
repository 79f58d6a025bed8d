"""Concurrent requests, and HTTP clients given by the caller."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from search_service.client import AsyncClient, Client
from tests.search_service.api.serving import Running
from tests.waiting import DEADLINE

AT_ONCE = 6


class _BarrierServer(ThreadingHTTPServer):
    """Answers only after AT_ONCE requests have arrived."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _BarrierHandler)
        self.barrier = threading.Barrier(AT_ONCE)


class _BarrierHandler(BaseHTTPRequestHandler):
    server: _BarrierServer

    def do_GET(self) -> None:
        self.server.barrier.wait(DEADLINE)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"models": [], "default": "sface"}')

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the inherited name)
        return


@pytest.mark.parametrize("way", ["threads", "asyncio"])
def test_client_sends_requests_concurrently(way: str) -> None:
    with _BarrierServer() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            defaults = by_threads(url) if way == "threads" else asyncio.run(by_tasks(url))
        finally:
            server.shutdown()
            serving.join(DEADLINE)
    assert defaults == ["sface"] * AT_ONCE


def by_threads(url: str) -> list[str]:
    with Client(url) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda _: client.models().default, range(AT_ONCE)))


async def by_tasks(url: str) -> list[str]:
    async with AsyncClient(url) as client:
        return [models.default for models in await asyncio.gather(*(client.models() for _ in range(AT_ONCE)))]


def test_http_client_of_the_caller_stays_open(service: Running) -> None:
    with httpx.Client(headers={"X-Door": "7"}) as http:
        with Client(service.url, http=http) as client, client.with_options(timeout_seconds=DEADLINE) as other:
            assert client.models() == other.models()
        assert not http.is_closed


def test_client_closes_its_own_connections(service: Running) -> None:
    client = Client(service.url)
    with client.with_options(request_id="x") as other:
        other.models()
    assert client.models().models
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.models()
