"""Behind a path of a reverse proxy, links and redirections carry that path, whether the proxy removes it or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from indexer.settings import read_settings
from search_service.client import Client
from search_service.service_context import ServiceContext
from tests import photos
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Serve, ok, refused, running
from tests.variants import SETTINGS
from tests.waiting import wait_for

CONFIGURED = {"WHOSTHERE_ROOT_PATH": "/faces"}
FORWARDED = {"X-Forwarded-Prefix": "/faces"}

PROXIES = {
    "configured, removed": (CONFIGURED, {}, ""),
    "configured, left": (CONFIGURED, {}, "/faces"),
    "forwarded, removed": ({}, FORWARDED, ""),
    "forwarded, left": ({}, FORWARDED, "/faces"),
    "forwarded with a slash": ({}, {"X-Forwarded-Prefix": "/faces/"}, ""),
    "forwarded in place of the configured one": ({"WHOSTHERE_ROOT_PATH": "/other"}, FORWARDED, ""),
    "nobody is trusted": ({"WHOSTHERE_TRUSTED_PROXIES": "", **CONFIGURED}, {"X-Forwarded-Prefix": "/evil"}, ""),
}
"""Settings, headers of the proxy, and the prefix of the paths that it requests, for a proxy below `/faces`."""


@pytest.fixture(scope="module", params=PROXIES.values(), ids=list(PROXIES))
def proxied(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models_folder: Path
) -> Iterator[httpx.Client]:
    """A client that sends what a proxy below `/faces` would. Callers without keys are only answered directly."""
    settings, headers, prefix = request.param
    home = new_home(tmp_path_factory.mktemp("proxied"), models_folder)
    read = read_settings({**SETTINGS, "WHOSTHERE_OPEN": "true", **settings}, home=home)
    with running(ServiceContext(read)) as service, service.client() as client:
        client.headers.update(headers)
        client.base_url = httpx.URL(service.url + prefix)
        yield client


def test_links_of_the_documentation_carry_the_prefix(proxied: httpx.Client) -> None:
    for page in ("/docs", "/redoc"):
        links = re.findall(r"""(?:href|src|url|spec-url)[=:] ?["']([^"'#]+)""", proxied.get(page).text)
        assert len(links) >= 3
        for link in links:
            path = link.removeprefix("/faces")
            assert path != link
            assert proxied.get(path).status_code == 200, link
    assert ok(proxied.get("/openapi.json"))["servers"] == [{"url": "/faces"}]


def test_location_of_a_job_carries_the_prefix(proxied: httpx.Client) -> None:
    ok(proxied.post("/v1/galleries", json={"name": "staff"}), 201)
    ok(proxied.put("/v1/galleries/staff/identities/a%2Fb", json={}), 201)
    assert ok(proxied.get("/v1/galleries/staff/identities/a%2Fb"))["external_id"] == "a/b"
    images = {"images": ("a.png", photos.astronaut())}
    sent = {"files": images, "headers": {"Idempotency-Key": "1"}}
    answer = proxied.post("/v1/galleries/staff/enrollments", **sent)  # type: ignore[arg-type]
    job = ok(answer, 202)["id"]
    assert answer.headers["location"] == f"/faces/v1/jobs/{job}"
    assert ok(proxied.get(f"/v1/jobs/{job}"))["id"] == job
    again = proxied.post("/v1/galleries/staff/enrollments", **sent)  # type: ignore[arg-type]
    assert (again.headers["location"], ok(again, 202)["id"]) == (answer.headers["location"], job)


def test_routes_and_refusals_are_the_same_behind_a_prefix(proxied: httpx.Client) -> None:
    refused(proxied.get("/v1/nothing"), 404, "not_found")
    refused(proxied.get("/v1/events?nonsense=1"), 400, "invalid_request")
    refused(proxied.get("/v1/events?device=%00"), 400, "invalid_request")
    answer = proxied.put("/v1/galleries")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"
    detected = {"files": {"image": ("a.png", photos.astronaut())}, "headers": {"Idempotency-Key": "2"}}
    for _ in range(2):  # an answer that is not stored
        again = proxied.post("/v1/detect", **detected)  # type: ignore[arg-type]
        assert ok(again)["faces"]
        assert "idempotency-replayed" not in again.headers


@pytest.mark.parametrize("prefix", ["faces", "//evil.example", "/a b", "/a?b", "https://evil.example", '/"><script>'])
def test_a_forwarded_prefix_that_is_no_path_is_refused(client: httpx.Client, prefix: str) -> None:
    error = refused(client.get("/docs", headers={"X-Forwarded-Prefix": prefix}), 400, "invalid_request")
    assert "X-Forwarded-Prefix" in error["message"]


def test_prefixes_of_a_chain_of_proxies_are_joined(client: httpx.Client) -> None:
    for headers in (
        [("X-Forwarded-Prefix", "/outer"), ("X-Forwarded-Prefix", "/inner")],
        [("X-Forwarded-Prefix", "/outer, /inner/")],
    ):
        assert '"/outer/inner/openapi.json"' in client.get("/docs", headers=headers).text.replace("'", '"')
    assert "servers" not in ok(client.get("/openapi.json", headers={"X-Forwarded-Prefix": "/"}))


def test_only_trusted_proxies_set_the_prefix(tmp_path: Path, models_folder: Path) -> None:
    new_home(tmp_path, models_folder)
    for trusted, prefix in (("10.0.0.0/8", ""), ("10.0.0.1, 127.0.0.0/8", "/faces"), ("127.0.0.1", "/faces")):
        settings = read_settings({**SETTINGS, "WHOSTHERE_TRUSTED_PROXIES": trusted}, home=tmp_path)
        with running(ServiceContext(settings)) as service, service.client() as client:
            assert f"'{prefix}/openapi.json'" in client.get("/docs", headers=FORWARDED).text


def test_a_caller_without_a_key_is_refused_behind_a_prefix(client: httpx.Client) -> None:
    """Until there are keys, only this machine is answered, and a proxy on it is not."""
    refused(client.get("/v1/galleries", headers=FORWARDED), 401, "unauthorized")


def test_the_python_client_works_below_a_prefix(tmp_path: Path, models_folder: Path) -> None:
    settings = read_settings({**SETTINGS, **CONFIGURED}, home=new_home(tmp_path, models_folder))
    with running(ServiceContext(settings)) as service, Client(f"{service.url}/faces") as faces:
        staff = faces.gallery("staff")
        staff.create()
        job = staff.enroll_many({"a.png": photos.astronaut()})
        assert job.show().gallery == "staff"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_takes_the_prefix_from_the_command_line(tmp_path: Path, models_folder: Path, workers: str) -> None:
    serve = Serve(new_home(tmp_path, models_folder), tmp_path / "log", "--root-path", "/faces", "--workers", workers)
    try:
        wait_for(lambda: serve.log().count("Application startup complete") == int(workers), "all workers have started")
        assert "'/faces/openapi.json'" in serve.client.get("/docs").text
        assert "'/other/openapi.json'" in serve.client.get("/docs", headers={"X-Forwarded-Prefix": "/other"}).text
    finally:
        serve.end()
