"""schemathesis against the running service, over either database: whatever is asked, the answer is one that OpenAPI
tells of, and no 5xx."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests import photos as sources
from tests.postgres import Postgres
from tests.search_service.api import schema_photos
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Serve, command, image, ok, serving

SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)

ENDS = ("revoke_key", "delete_gallery", "delete_webhook")
"""What takes away things that others ask for: tried by itself, at the end."""

FORMS = ("search",)
"""What few of the bodies that the schema allows make sense to: tried more often."""

HARD = {
    ("POST", "/v1/galleries/{gallery}/identities/{external_id}/merge"),
    ("DELETE", "/v1/keys/{id}"),
    ("POST", "/v1/galleries/{gallery}/enrollments"),
}
"""What needs a second thing that is there, or a ZIP, which are not found by chance: it is tried, and refused."""

OPEN = ("/healthz", "/readyz", "/metrics")

SEED = "1"
"""The same requests at every run."""

CONFIG = """
hooks = "{hooks}"

[parameters]
"path.gallery" = "staff"
"path.external_id" = "ana"
"path.face_id" = {face_id}
"path.event_id" = {event_id}
"path.webhook_id" = "{webhook_id}"
"path.id" = "{job_id}"
"""
"""Things that are there, asked for in most requests; at the edges of the schema others are."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of a service over it."""
    if request.param == "sqlite":
        return {}
    server: Postgres = request.getfixturevalue("postgres")
    return {"WHOSTHERE_DATABASE_URL": server.migrated()}


@pytest.fixture(scope="module")
def place(database: dict[str, str], tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Path:
    return new_home(tmp_path_factory.mktemp("home"), models_folder)


@pytest.fixture(scope="module")
def serve(database: dict[str, str], place: Path) -> Iterator[Serve]:
    """A service with one key, shown by its client."""
    code, made = command(place, "keys", "create", "--name", "schema", "--scope", "admin", **database)
    assert code == 0
    with serving(place, place / "log", **database) as serve:
        serve.client.headers["X-API-Key"] = made["key"]
        yield serve.ready()


@pytest.fixture(scope="module")
def config(place: Path, serve: Serve) -> Path:
    """Names what is there, once it is."""
    client, staff = serve.client, "/v1/galleries/staff"
    photo = image(sources.astronaut())
    ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
    face = ok(client.post(f"{staff}/identities/ana/faces", files=photo), 201)
    seen = ok(client.post(f"{staff}/search", files=photo, data={"record": "true", "device": "door"}))
    told = {
        "hooks": schema_photos.__name__,
        "face_id": face["face_id"],
        "event_id": seen["faces"][0]["event"]["id"],
        "webhook_id": ok(client.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"}), 201)["id"],
        "job_id": ok(client.post(f"{staff}/enrollments", files={"images": ("a.png", sources.astronaut())}), 202)["id"],
    }
    path = place / "schemathesis.toml"
    path.write_text(CONFIG.format(**told))
    return path


def run(serve: Serve, config: Path, *arguments: str) -> str:
    """What schemathesis reports; an AssertionError with all of it where it finds anything."""
    done = subprocess.run(
        [
            *(SCHEMATHESIS, "--no-color", "--config-file", config, "run", f"{serve.client.base_url}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--seed", SEED, "--no-shrink", "--continue-on-failure"),
            *("--suppress-health-check", "all", "--phases", "examples,coverage,fuzzing", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=config.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answered(client: httpx.Client) -> Counter[tuple[str, str, int]]:
    """How many requests of each method and route were answered with each status so far, as the service counts them."""
    counted = r'^whosthere_requests_total\{method="(\w+)",route="([^"]+)",status="(\d+)"\} (\S+)$'
    found = re.findall(counted, client.get("/metrics").text, re.MULTILINE)
    return Counter({(method, route, int(status)): int(float(count)) for method, route, status, count in found})


def routes(client: httpx.Client) -> set[tuple[str, str]]:
    paths = ok(client.get("/openapi.json"))["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_with_an_admins_key(serve: Serve, config: Path) -> None:
    key = ("-H", f"X-API-Key: {serve.client.headers['X-API-Key']}")
    before = answered(serve.client)
    run(serve, config, "--max-examples", "10", *key, *named("exclude", ENDS))
    run(serve, config, "--max-examples", "100", "--mode", "positive", *key, *named("include", FORMS))
    run(serve, config, "--max-examples", "10", *key, *named("include", ENDS))
    found = answered(serve.client) - before
    assert not [which for which in found if which[2] in (401, 403, 429)]
    reached = {(method, route) for method, route, status in found if status < 300}
    assert routes(serve.client) - reached <= HARD, "what is never done is not tried"


def test_without_a_key(serve: Serve, config: Path) -> None:
    before = answered(serve.client)
    run(serve, config, "--max-examples", "2")
    found = answered(serve.client) - before
    assert {status for _, route, status in found if route not in (*OPEN, "none")} <= {401}
    assert sum(count for (_, _, status), count in found.items() if status == 401) > 100


def named(how: str, operations: Sequence[str]) -> list[str]:
    return [word for name in operations for word in (f"--{how}-operation-id", name)]
