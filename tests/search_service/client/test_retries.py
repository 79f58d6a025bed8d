"""Retries against a server that fails: a request is executed once, or reported as possibly executed."""

from __future__ import annotations

import socket
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search_service.client import (
    Client,
    GalleryHandle,
    NotFound,
    Outcome,
    Overloaded,
    PreconditionFailed,
    Retries,
    ServiceUnreachable,
    Unavailable,
    UnexpectedAnswer,
)
from tests.search_service.api.serving import Running
from tests.search_service.client.conftest import Connect, guarded
from tests.search_service.client.faulty import Alter, Drop, Faulty, Refuse
from tests.waiting import DEADLINE

QUICK = Retries(deadline_seconds=DEADLINE, first_seconds=0.001, longest_seconds=0.01)


@pytest.fixture
def failing(faulty: Faulty, connect: Connect, gallery: GalleryHandle) -> Iterator[GalleryHandle]:
    """The gallery behind a proxy whose faults the test sets."""
    yield connect(faulty.url, retries=QUICK).gallery(gallery.name)
    assert not faulty.script


def test_temporary_failures_are_retried(faulty: Faulty, failing: GalleryHandle) -> None:
    proxies = [Refuse(502), Refuse(503, "storage_unavailable"), Refuse(504)]
    busy = [Refuse(429, "overloaded", {"Retry-After": "0"}), Refuse(409, "request_in_progress")]
    faulty.script.extend([*proxies, *busy, Drop(after=False), Drop(after=True)])
    assert failing.show().name == failing.name
    assert len(faulty.seen) == 8
    assert len({seen.headers["x-request-id"] for seen in faulty.seen}) == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Refuse(500, "failed"), "failed: not now"),
        (Refuse(409, "gallery_exists"), "gallery_exists"),
        (Refuse(404), "expected an answer of whosthere; got status 404: '<html>"),
        (Refuse(302, headers={"Location": "/elsewhere"}), "status 302"),
        (Alter(lambda answer: answer.pop("name")), "the answer has no 'name'"),
    ],
)
def test_permanent_failures_are_not_retried(faulty: Faulty, failing: GalleryHandle, fault: Any, error: str) -> None:
    faulty.script.append(fault)
    with pytest.raises(Exception, match=error) as caught:
        failing.show()
    assert isinstance(caught.value, UnexpectedAnswer) == (error not in ("failed: not now", "gallery_exists"))
    assert len(faulty.seen) == 1


@pytest.mark.parametrize("fault", [Drop(after=True), Drop(after=False), Refuse(503, "storage_unavailable")])
def test_photo_is_enrolled_once(faulty: Faulty, failing: GalleryHandle, photos: Path, fault: Drop | Refuse) -> None:
    """If the answer is lost after the faces were committed, the second attempt receives the first one's answer."""
    faulty.script.append(fault)
    enrolled = failing.enroll("ana", photos / "photos" / "left-1" / "1.jpg")
    assert enrolled.outcome is Outcome.ENROLLED
    assert len(list(failing.identity("ana").faces())) == 1
    first, second = faulty.seen[:2]
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_each_changing_request_has_its_own_idempotency_key(
    faulty: Faulty, failing: GalleryHandle, photos: Path
) -> None:
    for number in range(2):
        failing.create_identity(f"p{number}")
    failing.search(photos / "probes" / "stranger.jpg")
    keys = [seen.headers.get("idempotency-key") for seen in faulty.seen]
    assert None not in keys[:2]
    assert keys[0] != keys[1]
    assert keys[2] is None, "a search that records nothing changes nothing"
    failing.search(photos / "probes" / "stranger.jpg", record=True, device="door")
    assert "idempotency-key" in faulty.seen[3].headers


def test_archive_creates_one_job(faulty: Faulty, failing: GalleryHandle, connect: Connect, photos: Path) -> None:
    """Each attempt reads the file again, and all receive the job that the first one created."""
    path = photos.parent / f"{uuid.uuid4().hex}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(photos / "photos" / "left-1" / "1.jpg", "ana/1.jpg")
    faulty.script.extend([Drop(after=True), Refuse(429, "overloaded")])
    job = failing.enroll_archive(path)
    assert [seen.size for seen in faulty.seen] == [path.stat().st_size] * 3
    assert job.wait(DEADLINE).enrolled == 1
    jobs = connect(faulty.url).jobs(gallery=failing.name)
    assert [found.id for found in jobs] == [job.id]


def test_event_is_recorded_once(faulty: Faulty, failing: GalleryHandle, connect: Connect, photos: Path) -> None:
    faulty.script.append(Drop(after=True))
    probe = photos / "probes" / "stranger.jpg"
    recorded = failing.search(probe, record=True, device="door", cooldown=0).faces[0].event
    assert recorded is not None
    assert recorded.recorded
    assert [event.id for event in connect(faulty.url).events(gallery=failing.name)] == [recorded.id]


def test_conditional_change_is_not_retried_after_it_may_be_executed(faulty: Faulty, failing: GalleryHandle) -> None:
    """The condition of the second attempt would fail because of the first one's change."""
    ana = failing.identity("ana")
    created = ana.put(name="Ana", if_missing=True)
    faulty.script.append(Drop(after=True))
    with pytest.raises(ServiceUnreachable, match="the request may have been executed") as caught:
        ana.update(name="Ann", if_match=created.etag)
    assert caught.value.maybe_done
    assert ana.show().name == "Ann"
    with pytest.raises(PreconditionFailed):
        ana.update(name="Anna", if_match=created.etag)
    faulty.script.append(Drop(after=True))
    assert ana.update(name="Anja").name == "Anja", "an unconditional change can be repeated"
    faulty.script.append(Drop(after=True))
    with pytest.raises(NotFound):
        ana.delete()


def test_key_is_created_once(connect: Connect, tmp_path: Path, models_folder: Path) -> None:
    """Its secret is returned once and not stored: a second attempt could only report that the key exists."""
    with guarded(tmp_path, models_folder) as (url, secret), Faulty(url) as faulty:
        owner = connect(faulty.url, secret, retries=QUICK)
        faulty.script.extend([Refuse(429, "overloaded"), Drop(after=True)])
        with pytest.raises(ServiceUnreachable) as caught:
            owner.keys.create("door", scopes=["search"])
        assert caught.value.maybe_done
        assert [key.name for key in owner.keys.list()] == ["door", "owner"]


def test_retries_end_with_the_deadline(faulty: Faulty, connect: Connect) -> None:
    """A wait that would end after the deadline does not begin."""
    faulty.script.append(Refuse(429, "overloaded", {"Retry-After": "3600"}))
    with pytest.raises(Overloaded):
        connect(faulty.url).models()
    faulty.script.append(Refuse(503))
    with pytest.raises(Unavailable, match="a proxy answered with status 503"):
        connect(faulty.url, retries=Retries(deadline_seconds=0)).models()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(ServiceUnreachable) as caught:
            connect(address, retries=Retries(deadline_seconds=0.05, first_seconds=0.01)).models()
    assert not caught.value.maybe_done
    assert caught.value.request_id


def test_hanging_server_causes_a_timeout(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = connect(url, timeout_seconds=100 * DEADLINE, retries=Retries(deadline_seconds=0))
        with pytest.raises(ServiceUnreachable, match="ReadTimeout"):
            client.with_options(timeout_seconds=0.05).models()


def test_request_id_of_the_caller_is_sent(service: Running, faulty: Faulty, connect: Connect) -> None:
    client: Client = connect(faulty.url).with_options(request_id="door-7")
    client.models()
    with pytest.raises(NotFound) as caught:
        client.gallery("nowhere").show()
    assert {seen.headers["x-request-id"] for seen in faulty.seen} == {"door-7"}
    assert caught.value.request_id == "door-7"


def test_answers_of_other_versions_are_parsed(faulty: Faulty, failing: GalleryHandle, photos: Path) -> None:
    """New fields are ignored, new enumeration values are strings, and missing optional fields are None."""
    failing.enroll("ana", photos / "photos" / "left-1" / "1.jpg")

    def change(answer: dict[str, Any]) -> None:
        answer["galaxy"] = "new"
        answer["faces"][0] |= {"decision": "ask_again", "reasons": ["too_new"], "mood": 7}
        answer["faces"][0].pop("event")
        answer.pop("error")

    faulty.script.append(Alter(change))
    answer = failing.search(photos / "probes" / "left-1-small.jpg")
    assert (answer.faces[0].decision, answer.faces[0].reasons) == ("ask_again", ("too_new",))
    assert (answer.match, answer.error, answer.faces[0].event) == (None, None, None)
