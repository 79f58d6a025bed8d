"""`whosthere serve` as a process: next to commands, next to another server, and when it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests import photos as sources
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import (
    ENVIRONMENT,
    WHOSTHERE,
    Running,
    Serve,
    command,
    image,
    ok,
    refused,
    serving,
)
from tests.waiting import DEADLINE, wait_for

STAFF = "/v1/galleries/staff"


@pytest.fixture
def home(tmp_path: Path, models_folder: Path) -> Path:
    (tmp_path / "home").mkdir()
    return new_home(tmp_path / "home", models_folder)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "serve.log"


def enroll(serve: Serve, external_id: str, data: bytes) -> int:
    files = image(data)
    enrolled = ok(serve.client.post(f"{STAFF}/identities/{external_id}/faces", files=files), 201)
    return int(enrolled["face_id"])


def found(serve: Serve, data: bytes) -> list[str]:
    """Returns the external ids that a search matches."""
    answer = ok(serve.client.post(f"{STAFF}/search", files=image(data)))
    return above(answer)


def above(answer: Any) -> list[str]:
    return [
        candidate["external_id"]
        for face in answer["faces"]
        for candidate in face["candidates"]
        if candidate["score"] >= face["threshold"]
    ]


def test_command_line_and_server_agree_and_see_each_others_changes(
    service: Running, client: httpx.Client, gallery: str, tmp_path: Path, photos: Path
) -> None:
    """Both give the same answers, and each sees the other's changes at once."""
    place, name = service.context.settings.home, gallery.rpartition("/")[2]
    contents = {
        "six.jpg": sources.six_people(),
        "astronaut.png": sources.astronaut(),
        "nobody.jpg": sources.no_faces()[0],
        "none.txt": b"no image",
    }
    files = [tmp_path / file for file in contents]
    for file, data in zip(files, contents.values(), strict=True):
        file.write_bytes(data)
    astronaut = image(contents["astronaut.png"], "astronaut.png")

    # Enrolled by the command: the server finds them at once.
    assert above(ok(client.post(f"{gallery}/search", files=astronaut))) == []
    code, summary = command(place, "enroll", photos / "photos", "--gallery", name)
    assert (code, summary["enrolled"], summary["identities"]) == (0, 7, 7)
    assert above(ok(client.post(f"{gallery}/search", files=astronaut))) == ["collins"]

    # One answer for both.
    code, reported = command(place, "search", *files, "--gallery", name, "--all-faces", "--top-k", "3")
    assert code == 3
    for one, (named, data) in zip(reported, contents.items(), strict=True):
        assert one["image"] == str(tmp_path / named)
        asked = {"all_faces": "true", "top_k": "3"}
        answer = client.post(f"{gallery}/search", files=image(data, named), data=asked)
        if one["error"] is None:
            assert ok(answer)["image"] == named
            assert {**answer.json(), "image": None} == {**one, "image": None}
        else:
            assert one["faces"] == []
            assert refused(answer, 422, one["error"]["code"]) == one["error"]
    assert len(reported[0]["faces"]) == 6
    assert [one["error"] and one["error"]["code"] for one in reported] == [None, None, "no_face", "unreadable_image"]

    # Deleted by the command: the server never returns them again. Deleted over HTTP: nor does the command.
    code, deleted = command(place, "identity", "delete", "collins", "--gallery", name)
    assert (code, deleted) == (0, {"external_id": "collins", "faces": 1})
    assert above(ok(client.post(f"{gallery}/search", files=astronaut))) == []
    assert ok(client.get(gallery))["index"]["faces"] == 6
    ok(client.delete(f"{gallery}/identities/left-1"))
    eileen = ok(client.post(f"{gallery}/identities/eileen/faces", files=astronaut), 201)["face_id"]
    code, reported = command(place, "search", *files[:2], "--gallery", name, "--all-faces", "--top-k", "100")
    assert code == 0
    everybody = [c["external_id"] for one in reported for face in one["faces"] for c in face["candidates"]]
    assert not {"left-1", "collins"} & set(everybody)
    assert set(above(reported[0])) == {"left-2", "left-3", "left-4", "left-6"}
    best = reported[1]["faces"][0]["candidates"][0]
    assert (best["external_id"], best["face_id"]) == ("eileen", eileen)


def test_command_line_and_server_compare_alike(service: Running, client: httpx.Client, tmp_path: Path) -> None:
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    a.write_bytes(sources.astronaut())
    b.write_bytes(sources.aligned_face())
    code, reported = command(service.context.settings.home, "compare", a, b)
    files = image(a.read_bytes(), field="image_a") | image(b.read_bytes(), field="image_b")
    assert (code, reported) == (0, ok(client.post("/v1/compare", files=files)))


def test_two_servers_over_one_home_see_each_others_changes(home: Path, log: Path, tmp_path: Path) -> None:
    data = sources.astronaut()
    with serving(home, log) as one, serving(home, tmp_path / "other.log") as other:
        ok(one.client.post("/v1/galleries", json={"name": "staff"}), 201)
        assert found(other, data) == []
        for n in range(3):
            here, there = (one, other) if n % 2 == 0 else (other, one)
            face_id = enroll(here, f"person-{n}", data)
            assert found(there, data) == [f"person-{n}"]
            assert found(here, data) == [f"person-{n}"]
            if n == 1:
                ok(there.client.delete(f"{STAFF}/faces/{face_id}"))
            else:
                ok(there.client.delete(f"{STAFF}/identities/person-{n}"))
            assert found(here, data) == []
            assert found(there, data) == []
        ok(one.client.delete(STAFF))
        refused(other.client.post(f"{STAFF}/search", files=image(data)), 404, "gallery_not_found")
        ok(other.client.post("/v1/galleries", json={"name": "staff"}), 201)
        assert found(one, data) == []
        enroll(other, "again", data)
        assert found(one, data) == ["again"]


def test_sigterm_finishes_running_searches_and_saves_the_index(home: Path, log: Path) -> None:
    data = sources.astronaut()
    multipart = httpx.Request("POST", "http://x", files=image(data))
    body = multipart.read()
    stopping = threading.Event()

    def slowly() -> Iterator[bytes]:
        """The first half of a search; the second when the server has been reported to stop."""
        yield body[: len(body) // 2]
        serve.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "Shutting down" in serve.log(), "the server knows that it is to stop")
        stopping.set()
        yield body[len(body) // 2 :]

    with serving(home, log) as serve:
        ok(serve.client.post("/v1/galleries", json={"name": "staff"}), 201)
        face_id = enroll(serve.ready(), "collins", data)
        snapshots = home / "indexes"
        assert not list(snapshots.glob("*.index"))
        headers = {"Content-Type": multipart.headers["content-type"], "Content-Length": str(len(body))}
        answer = serve.client.post(f"{STAFF}/search", content=slowly(), headers=headers)
        assert stopping.is_set()
        (face,) = ok(answer)["faces"]
        assert [(c["external_id"], c["face_id"]) for c in face["candidates"]] == [("collins", face_id)]
        assert serve.end() in (0, -signal.SIGTERM), (
            serve.process.returncode
        )  # uvicorn ends by the signal it was sent, as supervisors expect
    assert "Application shutdown complete" in serve.log()
    assert "Traceback" not in serve.log()
    assert len(list(snapshots.glob("*.index"))) == 1
    code, shown = command(home, "gallery", "show", "staff")
    assert code == 0
    assert shown["index"]["faces"] == 1
    assert shown["index"]["snapshot_seq"] == shown["index"]["seq"] > 0  # read from the snapshot, not made anew


HANGING = """
import os, pathlib, threading
from indexer.gallery.galleries import GalleryRepository
from search_service import server
from search_service.api import app
from search_service.cli.app import main

def hang(*_):
    pathlib.Path(os.environ["MARK"]).touch()
    threading.Event().wait()

server.SHUTDOWN_SECONDS = app.STOP_SECONDS = app.CLOSE_SECONDS = 1
GalleryRepository.counts = hang
main()
"""
"""Never answers a request that shows a gallery, and has little time to stop."""


def test_stopping_service_does_not_wait_for_a_request_that_hangs(home: Path, log: Path, tmp_path: Path) -> None:
    mark = tmp_path / "hangs"
    serve = Serve(home, log, program=(sys.executable, "-c", HANGING), MARK=str(mark))

    def create() -> None:
        with suppress(httpx.HTTPError):
            serve.client.post("/v1/galleries", json={"name": "staff"})

    creating = threading.Thread(target=create)
    creating.start()
    try:
        wait_for(mark.exists, "the request to hang")
        serve.process.send_signal(signal.SIGINT)
        assert serve.process.wait(DEADLINE) == 0
    finally:
        serve.process.kill()
        creating.join(DEADLINE)
        serve.end(signal.SIGKILL)
    assert "although some of its threads are still working" in serve.log()


def test_workers_of_a_killed_parent_finish_their_requests_and_a_restart_works_at_once(
    home: Path, log: Path, tmp_path: Path
) -> None:
    body = b'{"name": "staff"}'
    head = (
        "POST /v1/galleries HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nExpect: 100-continue\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with serving(home, log, "--workers", "2") as serve:
        have_started(serve)
        workers = [psutil.Process(pid) for pid in serve.workers()]
        port = serve.client.base_url.port
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
            connection.sendall(head.encode())
            assert b"100 Continue" in connection.recv(1000)  # a worker reads the body now
            serve.process.kill()
            with serving(home, tmp_path / "restarted.log", "--workers", "2", "--port", str(port)) as restarted:
                connection.sendall(body)
                with connection.makefile("rb") as answer:
                    assert b" 201 " in answer.read()
                _, alive = psutil.wait_procs(workers, DEADLINE)
                assert alive == []
                have_started(restarted)
                ok(restarted.client.get(STAFF))
                assert restarted.end() == 0
    assert serve.log().count("the parent process is gone") == 2


def have_started(serve: Serve) -> None:
    wait_for(lambda: serve.log().count("Application startup complete") == 2, "both workers have started")


def test_start_on_a_port_in_use_fails_after_a_wait(home: Path, log: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [WHOSTHERE, "serve", "--port", port, "--home", str(home)],
            capture_output=True,
            env=ENVIRONMENT,
            timeout=DEADLINE,
            check=False,
        )
    assert done.returncode != 0
    assert b"address already in use" in done.stderr.lower()


def test_acknowledged_changes_survive_kill_9(home: Path, log: Path, tmp_path: Path) -> None:
    data, other = sources.astronaut(), sources.aligned_face()
    with serving(home, log) as serve:
        ok(serve.client.post("/v1/galleries", json={"name": "staff"}), 201)
        enroll(serve, "gone", other)
        ok(serve.client.delete(f"{STAFF}/identities/gone"))
        face_id = enroll(serve, "collins", data)
        assert serve.end(signal.SIGKILL) == -signal.SIGKILL
    assert not list((home / "indexes").glob("*.index"))
    with serving(home, tmp_path / "again.log") as serve:
        (face,) = ok(serve.client.post(f"{STAFF}/search", files=image(data)))["faces"]
        assert [(c["external_id"], c["face_id"]) for c in face["candidates"]] == [("collins", face_id)]
        assert face["decision"] == "match"
        assert found(serve, other) == []
        again = ok(serve.client.post(f"{STAFF}/identities/collins/faces", files=image(data)))
        assert (again["outcome"], again["face_id"]) == ("unchanged", face_id)
