"""Other people's web pages cannot use the service through a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from indexer.gallery.galleries import GalleryRepository
from indexer.settings import read_settings
from search_service.api.hosts import allowed_hosts
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests import photos
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Running, image, ok, refused, running
from tests.variants import SETTINGS


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:1", "http://localhost", "null", ""])
def test_a_page_of_another_origin_is_refused(client: httpx.Client, gallery: str, origin: str) -> None:
    path, headers = f"{gallery}/identities/ana/faces", {"Origin": origin}
    refused(client.post(path, files=image(photos.astronaut()), headers=headers), 403, "forbidden_origin")
    refused(client.get("/v1/galleries", headers=headers), 403, "forbidden_origin")
    refused(client.request("OPTIONS", path, headers=headers), 403, "forbidden_origin")
    refused(client.get(f"{gallery}/identities/ana"), 404, "identity_not_found")


def test_the_services_own_pages_are_served(service: Running, client: httpx.Client) -> None:
    headers = {"Origin": service.url}
    assert client.get("/docs", headers={"Sec-Fetch-Mode": "navigate"}).status_code == 200
    ok(client.post("/v1/detect", files=image(photos.astronaut()), headers=headers))
    port = service.url.rpartition(":")[2]
    own = {"Origin": f"http://LOCALHOST:{port}", "Host": f"localhost:{port}"}
    ok(client.get("/v1/galleries", headers=own))


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1", "127.0.0.2:99", "[::1]", "[::1]:8000"])
def test_names_of_this_machine_are_served_on_loopback(client: httpx.Client, host: str) -> None:
    ok(client.get("/v1/galleries", headers={"Host": host}))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "192.168.1.5", "[::2]", "[", "", "a, localhost"],
)
def test_other_names_are_refused_on_loopback(client: httpx.Client, host: str) -> None:
    """A page whose host name resolves to this machine sends a matching origin."""
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        error = refused(client.get("/v1/galleries", headers=headers), 403, "forbidden_host")
        assert "WHOSTHERE_ALLOWED_HOSTS" in error["message"]


def test_configured_host_names_are_served_besides_those_of_this_machine(tmp_path: Path, models_folder: Path) -> None:
    (tmp_path / "models").symlink_to(models_folder)
    settings = read_settings({"WHOSTHERE_ALLOWED_HOSTS": "Faces.example.com, other"}, home=tmp_path)
    with running(ServiceContext(settings)) as service, service.client() as client:
        for host in ("faces.example.com", "FACES.example.com:8443", "other", "localhost"):
            ok(client.get("/v1/galleries", headers={"Host": host}))
        secure = {"Host": "faces.example.com", "Origin": "https://faces.example.com"}
        ok(client.get("/v1/galleries", headers=secure))
        refused(client.get("/v1/galleries", headers={"Host": "example.com"}), 403, "forbidden_host")
        crossed = secure | {"Origin": "https://other"}
        refused(client.get("/v1/galleries", headers=crossed), 403, "forbidden_origin")


def test_host_names_are_restricted_on_loopback_or_when_configured() -> None:
    assert allowed_hosts("0.0.0.0", [""]) is None
    assert allowed_hosts("faces.example.com", [""]) is None
    assert allowed_hosts("0.0.0.0", ["localhost"]) == frozenset({"localhost"})
    for loopback in ("127.0.0.1", "127.0.0.5", "localhost", "::1"):
        assert allowed_hosts(loopback, [""]) == frozenset()


ALLOWED = "https://app.example.com"


@pytest.fixture(scope="module")
def shared_with_a_page(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Iterator[httpx.Client]:
    """A client of a service with an API key, which allows pages of ALLOWED and of another origin."""
    settings = read_settings(
        {**SETTINGS, "WHOSTHERE_ALLOWED_ORIGINS": f"{ALLOWED}:443, http://Localhost:3000"},
        home=new_home(tmp_path_factory.mktemp("shared"), models_folder),
    )
    context = ServiceContext(settings)
    _, key = context.keys.create("page", [Scope.ADMIN])
    with running(context) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}, headers={"X-API-Key": key}), 201)
        client.headers = httpx.Headers({"X-API-Key": key})
        yield client


PREFLIGHT = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "if-match,x-api-key"}


@pytest.mark.parametrize("origin", [ALLOWED, "http://localhost:3000"])
def test_an_allowed_origin_may_send_requests_after_a_preflight(shared_with_a_page: httpx.Client, origin: str) -> None:
    path = f"{shared_with_a_page.base_url}/v1/galleries/staff/identities/ana"
    answer = httpx.options(path, headers={"Origin": origin, **PREFLIGHT})  # without a key, as browsers send it
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "if-match,x-api-key"
    assert "Origin" in answer.headers["vary"]
    assert answer.headers["x-request-id"]
    assert "access-control-allow-credentials" not in answer.headers


def test_an_allowed_origin_may_read_answers_and_refusals(shared_with_a_page: httpx.Client) -> None:
    client, origin = shared_with_a_page, {"Origin": ALLOWED}
    created = client.put("/v1/galleries/staff/identities/ana", json={}, headers=origin)
    ok(created, 201)
    refusals = (
        (client.get("/v1/models", headers=origin | {"X-API-Key": "wrong"}), 401, "unauthorized"),
        (client.get("/v1/nothing", headers=origin), 404, "not_found"),
        (client.post("/v1/keys", content=b" " * 2**21, headers=origin), 413, "body_too_large"),
        (client.get("/v1/models", headers=origin | {"X-Forwarded-Prefix": "?"}), 400, "invalid_request"),
        (client.get("/v1/models", headers=origin | {"Host": "evil.example"}), 403, "forbidden_host"),
    )
    for answer, status, code in refusals:
        refused(answer, status, code)
    for answer in (created, *(answer for answer, _, _ in refusals)):
        assert answer.headers["access-control-allow-origin"] == ALLOWED
        readable = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"etag", "location", "retry-after", "x-request-id"} <= set(readable)


def test_an_allowed_origin_may_read_that_a_request_failed(
    shared_with_a_page: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(GalleryRepository, "counts", fail)
    answer = shared_with_a_page.get("/v1/galleries/staff", headers={"Origin": ALLOWED})
    assert refused(answer, 500, "failed")
    assert answer.headers["access-control-allow-origin"] == ALLOWED
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example.com", f"{ALLOWED}:8443", f"{ALLOWED}.evil.example", "null"]
)
def test_other_origins_are_refused_where_some_are_allowed(shared_with_a_page: httpx.Client, origin: str) -> None:
    for answer in (
        shared_with_a_page.options("/v1/models", headers={"Origin": origin, **PREFLIGHT}),
        shared_with_a_page.get("/v1/models", headers={"Origin": origin}),
    ):
        assert "WHOSTHERE_ALLOWED_ORIGINS" in refused(answer, 403, "forbidden_origin")["message"]
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_no_origin_is_allowed_by_default(client: httpx.Client) -> None:
    answer = client.options("/v1/models", headers={"Origin": ALLOWED, **PREFLIGHT})
    refused(answer, 403, "forbidden_origin")
    assert not [name for name in answer.headers if name.startswith("access-control-")]
