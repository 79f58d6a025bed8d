"""Requests that read are answered while others wait for the database's write lock, and those are bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from indexer.models.packs import SFACE
from indexer.settings import read_settings
from search_service.api import app as module
from search_service.api.errors import StorageBusy
from search_service.api.threads import Writers
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests.postgres import Database, connected
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import ok, refused, running
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for

STAFF = "/v1/galleries/staff"


@contextmanager
def write_lock(database: Database) -> Iterator[None]:
    """Holds off everybody else who writes, as a backup or a stopped process does."""
    with connected(database.url) as engine:
        options = {"writing": True} if database.kind == "sqlite" else {}
        with engine.connect().execution_options(**options) as connection, connection.begin():
            tables = "identities, galleries, answers"
            lock = "SELECT 1" if database.kind == "sqlite" else f"LOCK TABLE {tables} IN EXCLUSIVE MODE"
            connection.execute(text(lock))
            yield


@pytest.mark.parametrize("writing", [1, 8])
def test_reading_does_not_wait_for_writers_and_writers_are_bounded(
    database: Database, tmp_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch, writing: int
) -> None:
    monkeypatch.setattr(module, "Writers", lambda: Writers(writing, most_waiting=2, patience=DEADLINE))
    home = new_home(tmp_path, models_folder)
    context = ServiceContext(read_settings(SETTINGS, home=home, database_url=database.url))
    context.store.galleries.create("staff", SFACE.name, SFACE.fingerprint, SFACE.dim)
    _, key = context.keys.create("root", [Scope.ADMIN])
    with running(context) as service, service.client() as client, ThreadPoolExecutor(writing + 2) as pool:
        client.headers["X-API-Key"] = key
        service.ready()

        def write(name: str, **headers: str) -> httpx.Response:
            body = {"external_id": name}
            return client.post(f"{STAFF}/identities", json=body, headers=headers)

        with write_lock(database):
            waiting: list[Future[httpx.Response]] = [pool.submit(write, f"p{n}") for n in range(writing + 2)]
            wait_for(lambda: service.app.state.service.writers.waiting == 2, "the writers wait")
            for path in ("/healthz", "/readyz", "/metrics", "/v1/galleries", f"{STAFF}/identities", "/v1/keys"):
                assert client.get(path).status_code == 200
            for headers in ({}, {"Idempotency-Key": "one"}):
                answer = write("more", **headers)
                refused(answer, 503, "storage_busy")
                assert int(answer.headers["Retry-After"]) > 0
            assert not any(one.done() for one in waiting), "nobody has read after the lock was free"
        for one in waiting:
            ok(one.result(), 201)
        ok(write("more", **{"Idempotency-Key": "one"}), 201)


def test_writer_that_waits_for_long_is_refused() -> None:
    writers, release = Writers(1, most_waiting=1, patience=0.01), threading.Event()

    async def both() -> str:
        first = asyncio.create_task(writers.run(release.wait, DEADLINE))
        await asyncio.sleep(0)
        with pytest.raises(StorageBusy, match=r"was not free for 0\.01 s"):
            await writers.run(str, "second")
        release.set()
        await first
        return await writers.run(str, "third")

    assert asyncio.run(both()) == "third"
    assert writers.waiting == 0
