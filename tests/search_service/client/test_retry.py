"""Requests, retries and parsing, without I/O."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from search_service.client import Client, Overloaded, ServiceUnreachable, UnexpectedAnswer
from search_service.client.answers import Identity
from search_service.client.calls import GalleryCalls, ServiceCalls
from search_service.client.parsing import read
from search_service.client.request_bodies import CHUNK, form, json_body, photo
from search_service.client.retry import Api, NoAnswer, Options, Pause, Reply, Retries, Send, Steps, base_url, no_answer
from search_service.client.service_answers import Model, Models
from search_service.client.service_calls import JobCalls

T = TypeVar("T")

BUSY = Reply(429, {"retry-after": "3"}, b'{"error": {"code": "overloaded", "message": "busy"}, "request_id": "r"}')


@dataclass
class Clock:
    """A clock that only pauses advance."""

    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def api(self, retries: Retries, chance: float = 0.5) -> Api:
        return Api(Options(retries=retries), clock=lambda: self.now, chance=lambda: chance)

    def run(self, steps: Steps[T], replies: Sequence[Reply | NoAnswer]) -> T:
        """Executes the steps with these replies; the last one is repeated."""
        left = list(replies)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    self.now += step.seconds
                    self.waits.append(step.seconds)
                    step = steps.send(None)
                else:
                    step = steps.send(left.pop(0) if len(left) > 1 else left[0])
        except StopIteration as end:
            result: T = end.value
            return result


def test_waits_double_up_to_the_longest_and_end_with_the_deadline() -> None:
    clock = Clock()
    api = clock.api(Retries(deadline_seconds=20, first_seconds=1, longest_seconds=4))
    with pytest.raises(ServiceUnreachable, match=r"no answer: refused$"):
        clock.run(ServiceCalls(api).models(), [NoAnswer("refused", reached=False, permanent=False)])
    assert clock.waits == [0.5, 1, *[2] * 9]


def test_retry_after_is_added_to_the_jitter() -> None:
    clock = Clock()
    api = clock.api(Retries(deadline_seconds=8, first_seconds=1))
    with pytest.raises(Overloaded):
        clock.run(ServiceCalls(api).models(), [BUSY])
    assert clock.waits == [3.5, 4]


@pytest.mark.parametrize(
    ("text", "wait"), [("soon", 0), ("-3", 0), ("", 0), ("٣", 0), ("in the past", 0), ("date", 90)]
)
def test_retry_after_can_be_a_date_and_is_ignored_if_invalid(text: str, wait: float) -> None:
    now = datetime.now(UTC)
    text = {"date": format_datetime(now + timedelta(seconds=90)), "in the past": format_datetime(now)}.get(text, text)
    clock = Clock()
    api = clock.api(Retries(deadline_seconds=1000), chance=0)
    answer = Reply(200, {}, b'{"models": [], "default": "sface"}')
    clock.run(ServiceCalls(api).models(), [Reply(503, {"retry-after": text}, b""), answer])
    assert clock.waits == [pytest.approx(wait, abs=60)]


def test_wait_after_many_attempts_does_not_overflow() -> None:
    assert Retries().wait(100_000, 0, 1) == Retries.longest_seconds


def test_pauses_between_polls_of_a_job_double() -> None:
    running = {"id": "a" * 32, "gallery": "g", "state": "running", "created_at": "2026-03-02T07:58:12Z"}
    counts = dict.fromkeys(("images", "done", "enrolled", "unchanged", "rejected"), 0)
    clock = Clock()
    api = clock.api(Retries())
    with pytest.raises(TimeoutError, match="running after 10 s"):
        clock.run(JobCalls(api, "a").wait(10), [Reply(200, {}, bytes(json_body(running | counts).pieces[0]))])
    assert clock.waits[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0])
    assert clock.now <= 10


@pytest.mark.parametrize(
    ("error", "reached"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("slow"), False),
        (httpx.PoolTimeout("busy"), False),
        (httpx.ReadTimeout("slow"), True),
        (httpx.RemoteProtocolError("hung up"), True),
        (httpx.WriteError(""), True),
    ],
)
def test_errors_show_whether_the_request_was_sent(error: httpx.RequestError, reached: bool) -> None:
    assert no_answer(error).reached is reached
    assert not no_answer(error).permanent
    assert no_answer(error).why.startswith(type(error).__name__)


def test_untrusted_certificate_is_a_permanent_failure() -> None:
    error = httpx.ConnectError("certificate verify failed")
    error.__cause__ = ssl.SSLCertVerificationError("certificate verify failed")
    assert no_answer(error).permanent


def test_file_is_sent_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "people.zip"
    with path.open("wb") as file:
        file.truncate(3 * CHUNK + 1)
    step = next(GalleryCalls(Api(Options()), "g").enroll_archive(path, pick="largest"))
    assert isinstance(step, Send)
    assert step.request.body is not None
    assert step.request.body.pieces == (path,)
    assert [len(chunk) for chunk in step.request.body.chunks()] == [CHUNK, CHUNK, CHUNK, 1]


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "localhost", "ftp://host", "http://", "http://h/?a=b", "http://h:port", 7]
)
def test_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Client(url)


def test_url_can_have_a_path() -> None:
    assert base_url("https://door.example.com/faces/") == "https://door.example.com/faces"


@pytest.mark.parametrize("options", [{"key": "wt_\n"}, {"key": ""}, {"request_id": "x" * 65}, {"request_id": "é"}])
def test_options_that_no_header_can_contain_are_rejected(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))) as caught:
        Options(**options)  # type: ignore[arg-type]
    assert "wt_" not in str(caught.value)


def test_repr_hides_the_key() -> None:
    assert "wt_secret" not in repr(Options(key="wt_secret"))
    assert "wt_secret" not in repr(Api(Options(key="wt_secret")))


def test_form_equals_the_one_of_httpx() -> None:
    ours = form([photo("image", b"\xff\xd8", "a.jpg")], {"top_k": 3, "all_faces": True, "pick": None})
    boundary = ours.content_type.split("=")[1]
    data = {"top_k": "3", "all_faces": "true"}
    files = {"image": ("a.jpg", b"\xff\xd8", "application/octet-stream")}
    theirs = httpx.Request("POST", "http://h", data=data, files=files, headers={"Content-Type": ours.content_type})
    assert boundary in theirs.headers["content-type"]
    assert b"".join(ours.chunks()) == theirs.read()
    assert ours.size == len(theirs.read())


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        (Models, [], "the answer is \\[\\]; expected dict"),
        (Models, {"models": {}, "default": "x"}, "the answer.models is {}; expected list"),
        (Models, {"models": [{"name": 7}], "default": "x"}, r"the answer.models\[0\].name is 7; expected str"),
        (Model, {"name": "x", "installed": 1}, "the answer.installed is 1; expected bool"),
        (Model, {"name": "x", "installed": True, "dim": True}, "the answer.dim is True; expected int"),
        (Identity, {"external_id": "x", "metadata": {}, "id": 1, "faces": 0, "created_at": "now"}, "expected a time"),
    ],
)
def test_unexpected_answer_names_the_field(kind: type, value: object, error: str) -> None:
    with pytest.raises(UnexpectedAnswer, match=error):
        read(kind, value)


def test_request_has_content_length_and_authorization() -> None:
    step = next(ServiceCalls(Api(Options(key="wt_k"))).detect(b"123"))
    assert isinstance(step, Send)
    assert step.request.body is not None
    assert step.headers["Content-Length"] == str(len(b"".join(step.request.body.chunks())))
    assert step.headers["Authorization"] == "Bearer wt_k"
