"""Metrics, log lines and request ids of a running service, in one process and in several."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import struct
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from indexer.settings import LogFormat
from indexer.timing import Stopwatch, untimed
from indexer.vision import pillow_decoder
from indexer.vision.decode import decode, end_processes
from search_service import logs
from search_service.api.metrics import Metrics
from search_service.logs import FIELDS, Json, Text
from tests import photos as sources
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import ENVIRONMENT, WHOSTHERE, Running, image, ok
from tests.waiting import DEADLINE, wait_for


def samples(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Returns every metric by name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(client: httpx.Client, name: str, **labels: str) -> float:
    return samples(client).get((f"whosthere_{name}", frozenset(labels.items())), 0.0)


def test_requests_stages_and_decisions_are_counted(client: httpx.Client, gallery: str, service: Running) -> None:
    name = gallery.rpartition("/")[2]
    data = sources.astronaut()
    ok(client.post(f"{gallery}/identities/eileen/faces", files=image(data)), 201)
    before = samples(client)
    ok(client.post(f"{gallery}/search", files=image(data)))
    ok(client.post(f"{gallery}/search", files=image(sources.six_people()), data={"all_faces": "true"}))
    assert client.get(f"{gallery}/identities/nobody").status_code == 404
    after = samples(client)

    def more(name: str, **labels: str) -> float:
        key = f"whosthere_{name}", frozenset(labels.items())
        return after.get(key, 0.0) - before.get(key, 0.0)

    search = "/v1/galleries/{gallery}/search"
    assert more("requests_total", method="POST", route=search, status="200") == 2
    assert more("request_seconds_count", route=search) == 2
    missing = "/v1/galleries/{gallery}/identities/{external_id}"
    assert more("requests_total", method="GET", route=missing, status="404") == 1
    for stage in ("queue", "decode", "detect", "look", "embed", "index"):
        assert more("stage_seconds_count", stage=stage) == 2, stage
    assert more("batch_images_count") == 2
    assert more("decisions_total", gallery=name, decision="match") == 1
    assert more("decisions_total", gallery=name, decision="no_match") == 6
    assert after["whosthere_gallery_faces", frozenset({("gallery", name)})] == 1
    assert after["whosthere_gallery_identities", frozenset({("gallery", name)})] == 1
    assert after["whosthere_gallery_index_lag", frozenset({("gallery", name)})] == 0
    assert after["whosthere_database_up", frozenset()] == 1
    enrolled = service.context.store.galleries.get(name)
    service.context.store.identities.delete(enrolled.id, "eileen")  # as by another process: the index is not notified
    assert value(client, "gallery_index_lag", gallery=name) == 2


def test_queued_jobs_and_deliveries_are_measured(client: httpx.Client, gallery: str, service: Running) -> None:
    webhook, _ = service.context.webhooks.create("http://127.0.0.1:9/hook", None, ["match"])
    reported = samples(client)
    service.context.webhooks.delete(webhook.id)
    for name in ("waiting", "dead"):
        assert reported[f"whosthere_webhook_events_{name}", frozenset({("webhook", webhook.id)})] == 0
    for state in ("queued", "running", "cancelling"):
        assert ("whosthere_jobs", frozenset({("state", state)})) in reported


def test_unknown_paths_are_counted_as_one_route(client: httpx.Client) -> None:
    before = value(client, "requests_total", method="GET", route="none", status="404")
    for path in ("/what", "/v1/what", "/v2/galleries"):
        assert client.get(path).status_code == 404
    assert value(client, "requests_total", method="GET", route="none", status="404") == before + 3


def test_a_request_is_logged_in_one_line_without_names(
    client: httpx.Client, gallery: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "search_service.api.middleware.request_context")
    data = image(sources.astronaut(), "private.png")
    ok(client.post(f"{gallery}/identities/secret-badge/faces", files=data), 201)
    headers = {"X-Request-ID": "door-7-42"}
    answer = client.post(f"{gallery}/search", files=data, headers=headers)
    assert answer.headers["x-request-id"] == "door-7-42"
    client.get("/readyz")

    def lines() -> list[str]:
        """Returns the lines about the search, which are written after its answer was sent."""
        reported = [
            Json().format(r) for r in caplog.records if r.name == "search_service.api.middleware.request_context"
        ]
        assert not any("/readyz" in line for line in reported)
        return [line for line in reported if "door-7-42" in line]

    wait_for(lambda: bool(lines()), "the search is logged")
    (line,) = lines()
    reported = json.loads(line)
    assert {key: reported[key] for key in ("message", "level", "request_id", "method", "route", "status", "key")} == {
        "message": "request",
        "level": "info",
        "request_id": "door-7-42",
        "method": "POST",
        "route": "/v1/galleries/{gallery}/search",
        "status": 200,
        "key": None,
    }
    assert reported["bytes"] == len(answer.content)
    assert reported["milliseconds"] > 0
    for private in ("secret-badge", "private.png", gallery.rpartition("/")[2]):
        assert private not in line


def test_log_lines_have_the_documented_formats() -> None:
    record = logging.LogRecord("a.logger", logging.WARNING, "file", 1, "%s of %d\nlines", ("one", 2), None)
    setattr(record, FIELDS, {"status": 200, "key": None, "at": Path("x")})
    assert Text("%(levelname)s: %(message)s").format(record) == "WARNING: one of 2\nlines status=200 at=x"
    setattr(record, FIELDS, {"request_id": 'x status=500 "', "status": 200, "key": None, "at": Path("x")})
    assert Text("%(levelname)s").format(record) == r'WARNING request_id="x status=500 \"" status=200 at=x'
    setattr(record, FIELDS, {"status": 200, "key": None, "at": Path("x")})
    reported = json.loads(Json().format(record))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", reported.pop("time"))
    expected: dict[str, Any] = {"level": "warning", "logger": "a.logger", "message": "one of 2\nlines"}
    assert reported == expected | {"status": 200, "key": None, "at": "x"}
    assert "\n" not in Json().format(record)


def test_an_exception_is_logged_in_the_same_line() -> None:
    try:
        raise ValueError("what went wrong")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "failed", (), (ValueError, error, error.__traceback__))
    assert json.loads(Json().format(record))["exception"].endswith("ValueError: what went wrong")


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root, chatty = logging.getLogger(), logging.getLogger(logs.CHATTY[0])
    handlers, level, other = root.handlers[:], root.level, chatty.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in logs.CHATTY:
        logging.getLogger(name).setLevel(other)


@pytest.mark.parametrize(("wanted", "formatter"), [(LogFormat.JSON, Json), (LogFormat.TEXT, Text), ("auto", Json)])
@pytest.mark.usefixtures("logging_as_before")
def test_logs_are_json_unless_written_to_a_terminal(wanted: str, formatter: type[logging.Formatter]) -> None:
    logs.set_up(LogFormat(wanted))
    assert [type(handler.formatter) for handler in logging.getLogger().handlers] == [formatter]


@pytest.mark.usefixtures("logging_as_before")
def test_warnings_of_decoders_are_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    """A TIFF with one tag that claims to be longer than the file; one with 25,000 caused as many lines."""
    fields = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, 8), (279, 64)]
    tags = [(tag, 4, 1, value) for tag, value in fields] + [(40000, 2, 10**6, 100)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    tiff = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + bytes(64)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert pillow_decoder.decode(tiff).width == 8
        assert warned
        warned.clear()
        logs.set_up(LogFormat.JSON)
        assert pillow_decoder.decode(tiff).width == 8
        assert not warned
    end_processes()
    assert decode(tiff).width == 8
    assert capfd.readouterr().err == "", "the process that decodes TIFFs prints none either"


@pytest.mark.parametrize("method", ["batch", "waiting", "stage", "request"])
def test_requests_are_answered_while_metrics_fail(
    client: httpx.Client, people: str, stranger: bytes, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    called = []

    def fail(*_: object) -> None:
        called.append(method)
        raise OSError("No space left on device")

    monkeypatch.setattr(Metrics, method, fail)
    for _ in range(2):
        (face,) = ok(client.post(f"{people}/search", files=image(stranger)))["faces"]
        assert face["decision"] == "no_match"
    assert ok(client.get("/readyz")) == {"status": "ready"}
    wait_for(lambda: len(called) >= 2, "both requests were observed")


def test_the_stopwatch_notifies_its_listener() -> None:
    heard: list[tuple[str, float]] = []
    stopwatch = Stopwatch()
    with stopwatch.stage("before"):
        pass
    stopwatch.add_listener(lambda name, seconds: heard.append((name, seconds)))
    with stopwatch.stage("decode"):
        pass
    with pytest.raises(ValueError, match="x"), stopwatch.stage("failed"):
        raise ValueError("x")
    with untimed("nobody"):
        pass
    assert [name for name, _ in heard] == ["decode"]
    assert 0 <= heard[0][1] < 1


def test_workers_share_a_port_count_together_and_are_replaced_when_they_die_or_hang(
    tmp_path: Path, models_folder: Path
) -> None:
    home, log = new_home(tmp_path, models_folder), tmp_path / "log"
    with log.open("wb") as file:
        parent = subprocess.Popen(
            [WHOSTHERE, "serve", "--port", "0", "--workers", "2", "--home", str(home)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
        )
    try:
        wait_for(lambda: log.read_text().count("Application startup complete") == 2, "both workers have started")
        (url,) = set(re.findall(r"running on (http://127\.0\.0\.1:\d+)", log.read_text()))
        workers = {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log.read_text())}
        assert len(workers) == 2
        answered = 0
        wait_for(lambda: httpx.get(f"{url}/readyz", timeout=DEADLINE).status_code == 200, "one is ready")
        while answered < 20:
            with httpx.Client(base_url=url, timeout=DEADLINE) as client:  # each connection may be another worker's
                ok(client.get("/v1/galleries"))
            answered += 1
        with httpx.Client(base_url=url, timeout=DEADLINE) as client:
            assert value(client, "requests_total", method="GET", route="/v1/galleries", status="200") == answered
        os.kill(min(workers), signal.SIGKILL)
        wait_for(lambda: log.read_text().count("Application startup complete") == 3, "another worker took its place")
        with httpx.Client(base_url=url, timeout=DEADLINE) as client:
            ok(client.get("/v1/galleries"))
            assert value(client, "requests_total", method="GET", route="/v1/galleries", status="200") >= answered
            assert samples(client)["whosthere_waiting_images", frozenset()] == 0
        folder = re.search(r"PROMETHEUS_MULTIPROC_DIR=(\S+)", environment_of(max(workers)))
        assert folder is not None
        assert not list(Path(folder[1]).glob(f"gauge_live*_{min(workers)}.db"))
        os.kill(max(workers), signal.SIGSTOP)
        wait_for(lambda: log.read_text().count("Application startup complete") == 4, "the hung worker was replaced")
    finally:
        parent.terminate()
        assert parent.wait(DEADLINE) == 0
    assert not Path(folder[1]).exists()
    for line in log.read_text().splitlines():
        json.loads(line)


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"\n").decode()
