"""The clock is set back: while the service is down, and while it runs. Nothing waits until it has caught up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx

from indexer.files import write_atomically
from tests.faults import clock
from tests.faults.place import STAFF, Ask, Photo, Place, checked
from tests.search_service.api.serving import image, ok
from tests.search_service.background.receiver import receiving
from tests.waiting import wait_for

DAY = 86_400


def set_clock(file: Path, off: int) -> None:
    """In one step: the service reads it all the time."""
    write_atomically(file, [f"{off}".encode()])


def test_service_works_after_clock_is_set_back(place: Place, enrol: Ask, photo: Photo, tmp_path: Path) -> None:
    """A job whose worker was killed goes on, people are recorded again, and what was acknowledged is there."""
    file = tmp_path / "clock"
    set_clock(file, 0)
    told: list[dict[str, Any]] = []

    def enrolled(client: httpx.Client, number: int) -> None:
        told.append(ok(enrol(client, number), 201))

    def seen(client: httpx.Client) -> bool:
        """Returns whether a sighting at the door is recorded as a new event."""
        asked = {"record": "true", "device": "door"}
        (face,) = ok(client.post(f"{STAFF}/search", files=image(photo(0)[1]), data=asked))["faces"]
        return bool(face["event"]["recorded"])

    def job(client: httpx.Client, first: int) -> str:
        files = [("images", (f"{photo(n)[0]}_{n}.jpg", photo(n)[1])) for n in range(first, first + 35)]
        return str(ok(client.post(f"{STAFF}/enrollments", files=files), 202)["id"])

    def finished(client: httpx.Client, job_id: str) -> None:
        wait_for(lambda: ok(client.get(f"/v1/jobs/{job_id}"))["finished_at"] is not None, "the job has ended")
        ended = ok(client.get(f"/v1/jobs/{job_id}", params={"limit": 1000}))
        assert (ended["state"], ended["rejected"]) == ("done", 0), ended
        told.extend(ended["results"])

    program = (sys.executable, "-m", clock.__name__)
    with receiving() as receiver:
        with place.serving(program=program, CLOCK=str(file)) as serve:
            ok(serve.client.post("/v1/webhooks", json={"url": receiver.url}), 201)
            enrolled(serve.client, 0)
            assert seen(serve.client)
            assert not seen(serve.client)
            running = job(serve.client, 100)
            wait_for(lambda: ok(serve.client.get(f"/v1/jobs/{running}"))["done"] > 0, "it is in the middle of it")
            serve.process.kill()
        set_clock(file, -DAY)
        with place.serving(program=program, CLOCK=str(file)) as serve:
            finished(serve.client, running)
            enrolled(serve.client, 1)
            assert seen(serve.client)
            set_clock(file, -2 * DAY)
            assert seen(serve.client)
            assert not seen(serve.client)
            enrolled(serve.client, 2)
            gone = ok(serve.client.get(f"{STAFF}/identities/{photo(3)[0]}/faces"))["faces"]
            assert ok(serve.client.delete(f"{STAFF}/identities/{photo(3)[0]}"))["faces"] == len(gone) > 0
            finished(serve.client, job(serve.client, 200))
            wait_for(lambda: len(set(receiver.events())) == 3, "every event has arrived")
            serve.end()
    deleted = {one["face_id"] for one in gone}
    kept = {one["face_id"]: f"staff/{one['external_id']}" for one in told if one["face_id"] not in deleted}
    with checked(place, kept, deleted) as client:
        recorded = [event["id"] for event in ok(client.get("/v1/events"))["events"]]
        assert recorded == sorted(set(receiver.events()))
        assert seen(client)
