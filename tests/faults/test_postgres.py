"""PostgreSQL is restarted under load: stopped as for an update, and killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from tests import postgres
from tests.faults.installation import STAFF, NewInstallation, SendRequest, calling, checked, embedding, owners, pages
from tests.postgres import Postgres
from tests.waiting import DEADLINE, wait_for

SAFE = "synchronous_commit = on\n"
"""A setting with which acknowledged changes survive a crash of the server, though not a power failure."""


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres.running() as server:
        with (server.folder / "postgresql.conf").open("a") as file:
            file.write(SAFE)
        server.stop()
        server.start()
        yield server


def stop(server: Postgres) -> None:
    server.stop()


def crash(server: Postgres) -> None:
    """Kills the server and waits until its other processes have ended."""
    main = psutil.Process(int((server.folder / "postmaster.pid").read_text().split("\n")[0]))
    others = main.children(recursive=True)
    os.kill(main.pid, signal.SIGKILL)
    _, left = psutil.wait_procs([main, *others], timeout=DEADLINE)
    assert not left


@pytest.mark.parametrize("end", [stop, crash])
def test_service_survives_restart_of_postgresql_under_load(
    server: Postgres, new_installation: NewInstallation, enroll: SendRequest, end: Callable[[Postgres], None]
) -> None:
    """Requests get 503 with Retry-After during the restart, and succeed afterwards."""
    installation = new_installation(server.migrated())

    def send(client: httpx.Client, number: int) -> httpx.Response:
        turn, kind = divmod(number, 4)
        if kind == 0:
            return enroll(client, turn)
        if kind == 1:
            return client.post(f"{STAFF}/search", json={"embedding": embedding(turn).tolist()})
        if kind == 2:
            return client.put(f"{STAFF}/identities/n{turn}", json={"name": f"Number {turn}"})
        return client.get(f"{STAFF}/identities", params={"limit": 10})

    with installation.serving() as serve:
        client = serve.client
        with calling(str(client.base_url), send) as callers:
            callers.wait(40, 200, 201)
            end(server)
            callers.wait(40, 503)
            not_ready = client.get("/readyz")
            assert (not_ready.status_code, not_ready.json()["status"]) == (503, "failed")
            assert client.get("/healthz").status_code == 200
            server.start()
            callers.wait(40, 200, 201)
            wait_for(lambda: client.get("/readyz").status_code == 200, "it is ready again")
        serve.end()
    assert callers.statuses() == {200, 201, 503}
    assert callers.lost == 0, "no connection was lost"
    for answer in callers.answered.values():
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "storage_unavailable"
            assert int(answer.headers["retry-after"]) >= 1
    created = callers.bodies(201).values()
    kept = owners(one for one in created if "face_id" in one)
    assert len(kept) >= 10
    with checked(installation, kept) as client:
        people = {one["external_id"] for one in pages(client, f"{STAFF}/identities", "identities")}
        assert {one["external_id"] for one in created} <= people
