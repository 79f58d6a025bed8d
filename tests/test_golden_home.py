"""Data made by the last commit before the code was restructured is opened by this code, and means the same.

`tests/golden_home/build.py` makes it: a home folder with SQLite, and one with PostgreSQL.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url

from tests.golden_home import build
from tests.golden_home.old_code import command, missing, run_commands
from tests.postgres import Postgres
from tests.postgres import postgres as postgres
from tests.search_service.api.serving import Serve, ok
from tests.search_service.background.receiver import Receiver, receiving
from tests.waiting import wait_for

TOLERANCES = {"box": 0.0101, "landmarks": 0.0101, "quality": 0.0101}
"""One unit of the last decimal that is told; everything else has four decimals."""


@dataclass(frozen=True)
class Installation:
    """A copy of what the earlier code made."""

    home: Path
    demo: Path
    environment: Mapping[str, str]
    answers: Mapping[str, Any]
    """What was recorded when it was made."""

    def snapshots(self) -> dict[str, tuple[int, str]]:
        """Inode and SHA-256 of each index file."""
        files = [path for path in sorted((self.home / "indexes").iterdir()) if path.is_file()]
        return {path.name: (path.stat().st_ino, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


@dataclass(frozen=True)
class Service:
    """A service of this code over an installation, used with an administrator's key."""

    made: Installation
    client: httpx.Client
    failing: Receiver
    """Receives what the earlier code could not deliver."""
    snapshots: Mapping[str, tuple[int, str]]
    """Those of the installation before the service started."""


class Golden:
    """Builds what the earlier code makes over each kind of database, once for a test process, SQLite once for all."""

    def __init__(self, shared: Path, own: Path, postgres: Callable[[], Postgres]) -> None:
        self._shared = shared
        self._own = own
        self._postgres = postgres
        self._databases: dict[str, str] = {}
        self._services: dict[str, Service] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def installation(self, kind: str, folder: Path) -> Installation:
        """Returns a copy in a folder, over a database of its own."""
        built = self._sqlite() if kind == "sqlite" else self._postgresql()
        environment = dict(build.SETTINGS)
        if kind != "sqlite":
            environment["WHOSTHERE_DATABASE_URL"] = self._postgres().copy(self._databases[kind])
        home = Path(shutil.copytree(built / "home", folder / "home", symlinks=True))
        answers = json.loads((built / "answers.json").read_text())
        return Installation(home, self._shared / "demo", environment, answers)

    def service(self, kind: str) -> Service:
        """Returns a service over a copy; its tests add nothing to it."""
        if kind not in self._services:
            folder = self._own / f"{kind}-service"
            folder.mkdir()
            made = self.installation(kind, folder)
            before = made.snapshots()
            failing = self._stack.enter_context(receiving(port=made.answers["failing_port"]))
            serve = Serve(made.home, folder / "serve.log", **made.environment)
            self._stack.callback(serve.end)
            serve.ready().client.headers["X-API-Key"] = made.answers["admin"]
            self._services[kind] = Service(made, serve.client, failing, before)
        return self._services[kind]

    def _sqlite(self) -> Path:
        out = self._shared / "sqlite"
        with locked(self._shared):
            if not (out / "answers.json").exists():
                build.build(self._shared, out)
        return out

    def _postgresql(self) -> Path:
        out = self._own / "postgresql"
        if not self._databases:
            url = self._postgres().empty()
            build.build(self._shared, out, url)
            self._databases["postgresql"] = str(make_url(url).database)
        return out


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Golden]:
    reason = missing()
    if reason is not None:
        pytest.skip(f"data of the earlier code cannot be made: {reason}")
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "golden"
    shared.mkdir(exist_ok=True)
    with locked(shared):
        if not (shared / "models").exists():
            build.prepare(shared)
    golden = Golden(shared, tmp_path_factory.mktemp("golden"), lambda: request.getfixturevalue("postgres"))
    yield golden
    golden.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database."""
    return str(request.param)


@pytest.fixture
def service(golden: Golden, kind: str) -> Service:
    return golden.service(kind)


@pytest.fixture
def installation(golden: Golden, kind: str, tmp_path: Path) -> Installation:
    """An installation that a test may change."""
    return golden.installation(kind, tmp_path)


def test_searches_have_the_same_answers(service: Service) -> None:
    for name, search in build.searches(service.made.demo).items():
        assert (name, ok(search(service.client))) == (name, near(service.made.answers["searches"][name]))


def test_lists_and_details_are_the_same(service: Service) -> None:
    for path, expected in service.made.answers["readings"].items():
        found = build.reading(service.client, path)
        assert (path, without_waiting(found)) == (path, without_waiting(expected))


def test_keys_open_what_they_opened(service: Service) -> None:
    for name, key in service.made.answers["keys"].items():
        assert (name, build.statuses(service.client, key)) == (name, service.made.answers["statuses"][name])


def test_repeated_enrollment_gets_the_stored_answer(service: Service) -> None:
    again = build.enroll(service.client, service.made.demo, build.PEOPLE[0])
    expected = service.made.answers["enrolled"]
    assert (again.status_code, again.json()) == (expected["status"], expected["body"])
    assert again.headers["idempotency-replayed"] == "true"


def test_repeated_search_tells_the_events_that_were_recorded(service: Service) -> None:
    for number, expected in enumerate(service.made.answers["recorded"]):
        again = build.record(service.client, service.made.demo, number)
        assert ok(again) == near(expected)
        assert again.headers["idempotency-replayed"] == "true"


def test_person_is_not_recorded_again_within_the_cooldown(service: Service) -> None:
    for number, expected in enumerate(service.made.answers["recorded"]):
        (face,) = ok(build.record(service.client, service.made.demo, number, "another key"))["faces"]
        assert face["event"] == expected["faces"][0]["event"] | {"recorded": False}


def test_compressed_index_is_loaded_and_not_rebuilt(service: Service) -> None:
    """The service runs with `WHOSTHERE_VECTORS=auto`, which would build an exact index for so few faces."""
    index = ok(service.client.get("/v1/galleries/large"))["index"]
    assert (index["kind"], index) == ("compressed", service.made.answers["index"])
    assert service.made.snapshots() == service.snapshots


def test_waiting_delivery_is_sent_with_the_signature_of_the_former_secret(service: Service) -> None:
    _, hook = service.made.answers["webhooks"]
    path = f"/v1/webhooks/{hook['id']}"
    wait_for(lambda: ok(service.client.get(path))["waiting"] == 0, "the delivery that failed arrives")
    (received,) = service.failing.received
    recorded = service.made.answers["recorded"][2]["faces"][0]["event"]
    event = {name: value for name, value in recorded.items() if name != "recorded"}
    assert json.loads(received.body) == {"webhook": hook["id"], "event": event}
    signed = f"{received.headers['X-Whosthere-Timestamp']}.".encode() + received.body
    expected = hmac.new(hook["secret"].encode(), signed, hashlib.sha256).hexdigest()
    assert received.headers["X-Whosthere-Signature"] == f"v1={expected}"


def test_doctor_finds_nothing_wrong(installation: Installation) -> None:
    (findings,) = run_commands([command("doctor", "--json", "--home", installation.home)], **installation.environment)
    assert [finding for finding in findings if not finding["ok"]] == []
    assert {f"gallery {name}" for name in ("staff", "moved", "large")} <= {finding["check"] for finding in findings}


def test_gallery_moves_between_packs_by_former_embeddings_and_crops(installation: Installation) -> None:
    home = ("--home", installation.home)
    search = build.search_moved(installation.demo, installation.home)
    commands = [
        search,
        command("gallery", "reembed", "moved", "--rollback", *home),
        search,
        command("gallery", "reembed", "moved", "--forget", *home),
        command("gallery", "reembed", "moved", "--model", "other", *home),
        search,
    ]
    bound, _, back, _, _, by_crops = run_commands(commands, **installation.environment)
    former = installation.answers["moved"]
    assert bound == near(former["other"])
    assert back == near(former["sface"])
    assert by_crops == near(former["other"])


def near(expected: Any, tolerance: float = 1.01e-4) -> Any:
    """Equals what differs by no more than one unit of the last decimal."""
    if isinstance(expected, Mapping):
        return {name: near(value, TOLERANCES.get(name, tolerance)) for name, value in expected.items()}
    if isinstance(expected, list):
        return [near(value, tolerance) for value in expected]
    return pytest.approx(expected, abs=tolerance, rel=1e-4) if isinstance(expected, float) else expected


def without_waiting(answer: Any) -> Any:
    """A webhook's answer without the number of deliveries on their way: they arrive meanwhile."""
    if isinstance(answer, Mapping):
        return {name: without_waiting(value) for name, value in answer.items() if name != "waiting"}
    return [without_waiting(value) for value in answer] if isinstance(answer, list) else answer


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps the other workers of this run out meanwhile."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
