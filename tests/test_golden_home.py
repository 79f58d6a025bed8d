"""Data of the last commit before the code was restructured opens with this code and has the same meaning.

`tests/golden_home/build.py` builds the data with the code of that commit, with SQLite and with PostgreSQL.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url

from tests.golden_home import build
from tests.golden_home.old_code import command, missing, run_commands
from tests.postgres import Postgres
from tests.search_service.api.serving import Serve, ok
from tests.search_service.background.receiver import Receiver, receiving
from tests.waiting import wait_for

TOLERANCES = {"box": 0.0101, "landmarks": 0.0101, "quality": 0.0101}
"""Units of the last decimal in the answers; all other numbers have four decimals."""


@dataclass(frozen=True)
class Installation:
    """A copy of an installation that the earlier code built."""

    home: Path
    demo: Path
    environment: Mapping[str, str]
    answers: Mapping[str, Any]
    """The answers that the earlier code gave."""

    def snapshots(self) -> dict[str, tuple[int, str]]:
        """Inode and SHA-256 of each index file."""
        files = [path for path in sorted((self.home / "indexes").iterdir()) if path.is_file()]
        return {path.name: (path.stat().st_ino, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


@dataclass(frozen=True)
class Service:
    """A service of this code over an installation, used with an administrator's key."""

    installation: Installation
    client: httpx.Client
    failing: Receiver
    """Receives what the earlier code could not deliver."""
    snapshots: Mapping[str, tuple[int, str]]
    """Those of the installation before the service started."""


@dataclass(frozen=True)
class Built:
    """An installation that the earlier code built. Tests use copies of it."""

    folder: Path
    demo: Path
    copy_database: Callable[[], str] | None = None
    """Returns the URL of a copy of its database; None where that is in the home folder."""

    def copy(self, folder: Path) -> Installation:
        home = Path(shutil.copytree(self.folder / "home", folder / "home", symlinks=True))
        database = {"WHOSTHERE_DATABASE_URL": self.copy_database()} if self.copy_database else {}
        answers = json.loads((self.folder / "answers.json").read_text())
        return Installation(home, self.demo, build.SETTINGS | database, answers)

    @contextmanager
    def serving(self, folder: Path) -> Iterator[Service]:
        """Starts a service of this code over a copy."""
        copy = self.copy(folder)
        before = copy.snapshots()
        with receiving(port=copy.answers["failing_port"]) as failing:
            serve = Serve(copy.home, folder / "serve.log", **copy.environment)
            try:
                serve.ready().client.headers["X-API-Key"] = copy.answers["admin"]
                yield Service(copy, serve.client, failing, before)
            finally:
                serve.end()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all the workers of this run with the earlier code, photos and networks."""
    reason = missing()
    if reason is not None:
        pytest.skip(f"data of the earlier code cannot be built: {reason}")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "golden"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (folder / "models").exists():
            build.prepare(folder)
    return folder


@pytest.fixture(scope="session")
def built_sqlite(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("sqlite")
    build.build(prepared, out)
    return Built(out, prepared / "demo")


@pytest.fixture(scope="session")
def built_postgresql(prepared: Path, tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Built:
    out, url = tmp_path_factory.mktemp("postgresql"), postgres.empty()
    build.build(prepared, out, url)
    return Built(out, prepared / "demo", lambda: postgres.copy(str(make_url(url).database)))


@pytest.fixture(scope="session")
def service_sqlite(built_sqlite: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with built_sqlite.serving(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="session")
def service_postgresql(built_postgresql: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with built_postgresql.serving(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database."""
    return str(request.param)


@pytest.fixture
def service(kind: str, request: pytest.FixtureRequest) -> Service:
    """A service that the tests share; they add nothing to it."""
    found: Service = request.getfixturevalue(f"service_{kind}")
    return found


@pytest.fixture
def installation(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Installation:
    """An installation that a test may change."""
    built: Built = request.getfixturevalue(f"built_{kind}")
    return built.copy(tmp_path)


def test_searches_have_the_same_answers(service: Service) -> None:
    for name, search in build.searches(service.installation.demo).items():
        expected = service.installation.answers["searches"][name]
        assert (name, known_fields(ok(search(service.client)), expected)) == (name, near(expected))


def test_lists_and_details_are_the_same(service: Service) -> None:
    for path, expected in service.installation.answers["readings"].items():
        found = build.reading(service.client, path)
        assert (path, known_fields(without_waiting(found), expected)) == (
            path,
            renamed_scopes(without_waiting(expected)),
        )


def test_keys_open_what_they_opened(service: Service) -> None:
    for name, key in service.installation.answers["keys"].items():
        assert (name, build.statuses(service.client, key)) == (name, service.installation.answers["statuses"][name])


def test_repeated_enrollment_gets_the_stored_answer(service: Service) -> None:
    again = build.enroll(service.client, service.installation.demo, build.PEOPLE[0])
    expected = service.installation.answers["enrolled"]
    assert (again.status_code, again.json()) == (expected["status"], expected["body"])
    assert again.headers["idempotency-replayed"] == "true"


def test_repeated_search_returns_the_recorded_events(service: Service) -> None:
    for number, expected in enumerate(service.installation.answers["recorded"]):
        again = build.record(service.client, service.installation.demo, number)
        assert known_fields(ok(again), expected) == near(expected)
        assert again.headers["idempotency-replayed"] == "true"


def test_person_is_not_recorded_again_within_the_cooldown(service: Service) -> None:
    for number, expected in enumerate(service.installation.answers["recorded"]):
        (face,) = ok(build.record(service.client, service.installation.demo, number, "another key"))["faces"]
        event = expected["faces"][0]["event"]
        assert known_fields(face["event"], event) == event | {"recorded": False}


def test_compressed_index_is_loaded_and_not_rebuilt(service: Service) -> None:
    """The service runs with `WHOSTHERE_VECTORS=auto`, which would build an exact index for so few faces."""
    index = ok(service.client.get("/v1/galleries/large"))["index"]
    assert (index["kind"], index) == ("compressed", service.installation.answers["index"])
    assert service.installation.snapshots() == service.snapshots


def test_waiting_delivery_is_sent_with_the_signature_of_the_former_secret(service: Service) -> None:
    _, hook = service.installation.answers["webhooks"]
    path = f"/v1/webhooks/{hook['id']}"
    wait_for(lambda: ok(service.client.get(path))["waiting"] == 0, "the delivery that failed arrives")
    (received,) = service.failing.received
    recorded = service.installation.answers["recorded"][2]["faces"][0]["event"]
    event = {name: value for name, value in recorded.items() if name != "recorded"}
    body = {"webhook": hook["id"], "event": event}
    assert known_fields(json.loads(received.body), body) == body
    signed = f"{received.headers['X-Whosthere-Timestamp']}.".encode() + received.body
    expected = hmac.new(hook["secret"].encode(), signed, hashlib.sha256).hexdigest()
    assert received.headers["X-Whosthere-Signature"] == f"v1={expected}"


def test_doctor_finds_nothing_wrong(installation: Installation) -> None:
    commands = [
        command(name, *rest, "--json", "--home", installation.home) for name, *rest in (["keys", "list"], ["doctor"])
    ]
    _, findings = run_commands(commands, **installation.environment)  # the first one migrates the tables
    assert [finding for finding in findings if not finding["ok"]] == []
    assert {f"gallery {name}" for name in ("staff", "moved", "large")} <= {finding["check"] for finding in findings}
    assert "scope investigate" in {finding["check"] for finding in findings}, "the former keys of the scope search"


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
    for found, expected in ((bound, "other"), (back, "sface"), (by_crops, "other")):
        assert known_fields(found, former[expected]) == near(former[expected])


def renamed_scopes(answer: Any) -> Any:
    """Renames the scope `search` to what it opens now; a migration does the same with the keys."""
    if isinstance(answer, Mapping):
        return {name: renamed_scopes(value) for name, value in answer.items()}
    if isinstance(answer, list):
        return ["investigate" if value == "search" else renamed_scopes(value) for value in answer]
    return answer


def known_fields(found: Any, expected: Any) -> Any:
    """Returns an answer without the fields that were added since."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return {name: known_fields(value, expected[name]) for name, value in found.items() if name in expected}
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [known_fields(*both) for both in zip(found, expected, strict=True)]
    return found


def near(expected: Any, tolerance: float = 1.01e-4) -> Any:
    """Returns a value that equals answers whose numbers differ by at most one unit of the last decimal."""
    if isinstance(expected, Mapping):
        return {name: near(value, TOLERANCES.get(name, tolerance)) for name, value in expected.items()}
    if isinstance(expected, list):
        return [near(value, tolerance) for value in expected]
    return pytest.approx(expected, abs=tolerance, rel=1e-4) if isinstance(expected, float) else expected


def without_waiting(answer: Any) -> Any:
    """Removes the number of waiting deliveries from webhooks: the service under test delivers them."""
    if isinstance(answer, Mapping):
        return {name: without_waiting(value) for name, value in answer.items() if name != "waiting"}
    return [without_waiting(value) for value in answer] if isinstance(answer, list) else answer
