"""Other people's web pages cannot use the service through a browser."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from indexer.settings import read_settings
from search_service.api.hosts import allowed_hosts
from search_service.service_context import ServiceContext
from tests import photos
from tests.search_service.api.serving import Running, image, ok, refused, running


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
