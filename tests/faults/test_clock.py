"""The clock is set back while the service is stopped, and while it runs: nothing waits for the former time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx

from indexer.files import write_atomically
from tests.faults import clock
from tests.faults.installation import STAFF, Installation, Photo, SendRequest, checked, owners
from tests.search_service.api.serving import image, ok
from tests.search_service.background.receiver import receiving
from tests.waiting import wait_for

DAY = 86_400


def set_clock(file: Path, offset: int) -> None:
    """Sets the clock atomically, because the service reads the file all the time."""
    write_atomically(file, [f"{offset}".encode()])


def test_service_works_after_clock_is_set_back(
    installation: Installation, enroll: SendRequest, photo: Photo, tmp_path: Path
) -> None:
    """The job of a killed worker continues, people are recorded again, and acknowledged changes are kept."""
    file = tmp_path / "clock"
    set_clock(file, 0)
    enrolled: list[dict[str, Any]] = []

    def enroll_one(client: httpx.Client, number: int) -> None:
        enrolled.append(ok(enroll(client, number), 201))

    def seen(client: httpx.Client) -> bool:
        """Returns whether a sighting at the door is recorded as a new event."""
        fields = {"record": "true", "device": "door"}
        (face,) = ok(client.post(f"{STAFF}/search", files=image(photo(0)[1]), data=fields))["faces"]
        return bool(face["event"]["recorded"])

    def start_job(client: httpx.Client, first: int) -> str:
        files = [("images", (f"{photo(n)[0]}_{n}.jpg", photo(n)[1])) for n in range(first, first + 35)]
        return str(ok(client.post(f"{STAFF}/enrollments", files=files), 202)["id"])

    def wait_for_job(client: httpx.Client, job_id: str) -> None:
        wait_for(lambda: ok(client.get(f"/v1/jobs/{job_id}"))["finished_at"] is not None, "the job has ended")
        ended = ok(client.get(f"/v1/jobs/{job_id}", params={"limit": 1000}))
        assert (ended["state"], ended["rejected"]) == ("done", 0), ended
        enrolled.extend(ended["results"])

    program = (sys.executable, "-m", clock.__name__)
    with receiving() as receiver:
        with installation.serving(program=program, CLOCK=str(file)) as serve:
            ok(serve.client.post("/v1/webhooks", json={"url": receiver.url}), 201)
            enroll_one(serve.client, 0)
            assert seen(serve.client)
            assert not seen(serve.client)
            running = start_job(serve.client, 100)
            wait_for(lambda: ok(serve.client.get(f"/v1/jobs/{running}"))["done"] > 0, "the job has some results")
            serve.process.kill()
        set_clock(file, -DAY)
        with installation.serving(program=program, CLOCK=str(file)) as serve:
            wait_for_job(serve.client, running)
            enroll_one(serve.client, 1)
            assert seen(serve.client)
            set_clock(file, -2 * DAY)
            assert seen(serve.client)
            assert not seen(serve.client)
            enroll_one(serve.client, 2)
            removed = ok(serve.client.get(f"{STAFF}/identities/{photo(3)[0]}/faces"))["faces"]
            assert ok(serve.client.delete(f"{STAFF}/identities/{photo(3)[0]}"))["faces"] == len(removed) > 0
            wait_for_job(serve.client, start_job(serve.client, 200))
            wait_for(lambda: len(set(receiver.events())) == 3, "every event has arrived")
            serve.end()
    deleted = {one["face_id"] for one in removed}
    kept = owners(one for one in enrolled if one["face_id"] not in deleted)
    with checked(installation, kept, deleted) as client:
        recorded = [event["id"] for event in ok(client.get("/v1/events"))["events"]]
        assert recorded == sorted(set(receiver.events()))
        assert seen(client)
