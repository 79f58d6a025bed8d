"""Who is answered: callers on this machine until the first key exists, and only callers with a key afterwards."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Send
from starlette.types import Scope as RequestScope

from indexer.errors import InvalidSetting, StorageUnavailable
from indexer.models.packs import SFACE
from indexer.settings import read_settings
from search_service.api import security
from search_service.api.app import create_app
from search_service.api.middleware.access import Access
from search_service.api.routes import faces
from search_service.api.security import Guard
from search_service.service_context import ServiceContext
from search_service.store.api_keys import ApiKey, ApiKeyRepository, Scope
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import ENVIRONMENT, WHOSTHERE, ok, refused, running, serving
from tests.variants import SETTINGS
from tests.waiting import DEADLINE


def test_readyz_shows_gallery_names_only_to_admins(tmp_path: Path, models_folder: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=new_home(tmp_path, models_folder)))
    context.store.galleries.create("secret", SFACE.name, "an-older-print", SFACE.dim)
    with running(context) as service, service.client() as client:
        service.ready()
        assert ok(client.get("/readyz"))["galleries"].keys() == {"secret"}
        texts = {scope: context.keys.create(scope, [scope])[1] for scope in Scope}
        _, limited = context.keys.create("limited", [Scope.ADMIN], ["staff"])
        for headers in ({}, *({"X-API-Key": key} for key in ("wrong", texts[Scope.ENROLL], limited))):
            assert ok(client.get("/readyz", headers=headers)) == {"status": "ready"}
        assert "secret" in ok(client.get("/readyz", headers={"X-API-Key": texts[Scope.ADMIN]}))["galleries"]


def test_the_first_key_closes_a_running_service_for_good(tmp_path: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    local = Caller(context)
    assert local("/v1/galleries").status_code == 200
    other = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    created, _ = other.keys.create("door", [Scope.SEARCH])
    refused(local("/v1/galleries"), 401, "unauthorized")
    other.keys.revoke(created.id)
    refused(local("/v1/galleries"), 401, "unauthorized")
    refused(Caller(other)("/v1/galleries"), 401, "unauthorized")  # as after a restart
    context.close()
    other.close()


def test_a_caller_sees_whether_a_key_is_needed(tmp_path: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    local, remote = Caller(context), Caller(context, "192.0.2.7")
    assert local("/v1/access").json() == {"key_needed": False}
    assert remote("/v1/access").json() == {"key_needed": True}
    everything = {"name": None, "scopes": list(Scope), "galleries": None, "expires_at": None}
    assert local("/v1/keys/self").json() == everything
    context.keys.create("door", [Scope.SEARCH])
    assert local("/v1/access").json() == {"key_needed": True}
    context.close()


class Caller:
    """Asks the application of a context as a client at that address, without a server between."""

    def __init__(self, context: ServiceContext, address: str = "127.0.0.1") -> None:
        self._app = create_app(context)
        self._address = address

    def __call__(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, client=(self._address, 5000))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return await client.request(method, path, headers=named)

        return asyncio.run(ask())


OTHER_ADDRESSES = ["203.0.113.5", "192.168.1.5", "10.0.0.1", "::ffff:203.0.113.5", "2001:db8::1", "0.0.0.0", "", "unix"]


@pytest.mark.parametrize("address", OTHER_ADDRESSES)
def test_without_keys_other_machines_are_refused(tmp_path: Path, address: str) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    error = refused(Caller(context, address)("/v1/galleries"), 401, "unauthorized")
    assert "whosthere keys create" in error["message"]
    assert Caller(context, address)("/healthz").status_code == 200
    _, admin = context.keys.create("admin", [Scope.ADMIN])
    assert Caller(context, address)("/v1/galleries", x_api_key=admin).status_code == 200
    context.close()


def test_without_keys_proxies_on_this_machine_are_refused(tmp_path: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    for address in ("127.0.0.1", "127.8.8.8", "::1"):
        ask = Caller(context, address)
        assert ask("/v1/galleries").status_code == 200
        for header in SHOWN_BY_PROXIES:
            refused(ask("/v1/galleries", **{header: "/a"}), 401, "unauthorized")
    _, admin = context.keys.create("admin", [Scope.ADMIN])
    for header in SHOWN_BY_PROXIES:
        assert ask("/v1/galleries", x_api_key=admin, **{header: "/a"}).status_code == 200
    context.close()


SHOWN_BY_PROXIES = (
    *("Via", "Forwarded", "X-Real-IP", "X-Client-IP", "CDN-Loop"),
    *(f"X-Forwarded-{end}" for end in ("For", "Host", "Proto", "Port", "Prefix", "Scheme", "Server", "Client-Cert")),
    *("CF-Connecting-IP", "CF-Ray", "True-Client-IP", "Fastly-Client-IP", "Fastly-FF", "Akamai-Origin-Hop"),
    *("X-Azure-ClientIP", "X-Azure-FDID", "X-Amz-Cf-Id", "CloudFront-Viewer-Address", "X-Envoy-External-Address"),
    *("Fly-Client-IP", "X-Vercel-Forwarded-For", "X-Original-Forwarded-For", "Tailscale-User-Login"),
)


def test_without_keys_http_1_0_does_not_count_as_local(tmp_path: Path) -> None:
    """nginx's `proxy_pass` forwards with it by default, and adds no header."""
    with serving(tmp_path, tmp_path / "log") as server:
        port = server.client.base_url.port
        for version, status in ((b"1.1", b" 200 "), (b"1.0", b" 401 ")):
            with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
                connection.sendall(b"GET /v1/galleries HTTP/%s\r\nHost: localhost\r\n\r\n" % version)
                assert status in connection.recv(100)


def test_an_open_service_answers_everybody_until_there_is_a_key(tmp_path: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path, open=True))
    for address in ("203.0.113.5", "127.0.0.1"):
        assert Caller(context, address)("/v1/galleries", x_forwarded_for="10.1.1.1").status_code == 200
    context.keys.create("admin", [Scope.ADMIN])
    for address in ("203.0.113.5", "127.0.0.1"):
        refused(Caller(context, address)("/v1/galleries"), 401, "unauthorized")
    context.close()


def test_a_service_without_keys_may_listen_only_on_loopback() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        security.check_address(read_settings(SETTINGS, host=host), any_key=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "faces.example.com", "", "localhost.example.com"):
        settings = read_settings(SETTINGS, host=host)
        with pytest.raises(InvalidSetting, match=r"whosthere keys create.*WHOSTHERE_OPEN") as caught:
            security.check_address(settings, any_key=False)
        assert repr(host) in caught.value.message
        security.check_address(settings, any_key=True)
        security.check_address(read_settings({"WHOSTHERE_OPEN": "true"}, host=host), any_key=False)


def test_serve_refuses_other_addresses_without_keys(tmp_path: Path) -> None:
    arguments = ["serve", "--host", "0.0.0.0", "--port", "0", "--home", str(tmp_path)]
    done = subprocess.run(
        [WHOSTHERE, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=DEADLINE, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]  # after what is logged of the new database
    assert line.startswith("Error: WHOSTHERE_HOST is '0.0.0.0'")
    assert "whosthere keys create" in line
    with serving(tmp_path, tmp_path / "log") as server:
        ok(server.client.get("/v1/galleries"))
        assert "there are no API keys" in server.log()
        refused(server.client.get("/v1/galleries", headers={"X-Forwarded-For": "203.0.113.5"}), 401, "unauthorized")
        refused(server.client.get("/v1/galleries", headers={"X-Forwarded-For": "127.0.0.1"}), 401, "unauthorized")


def test_a_route_without_a_declaration_is_not_answered(tmp_path: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    open_app = Caller(context)
    open_app._app.add_api_route("/v1/forgotten", lambda: "secret")
    open_app._app.add_api_route("/v1/models", lambda: "secret", methods=["POST"])
    assert "secret" not in refused(open_app("/v1/forgotten"), 404, "not_found")["message"]
    refused(open_app("/v1/models", "POST"), 405, "method_not_allowed")
    _, admin = context.keys.create("admin", [Scope.ADMIN])
    refused(open_app("/v1/forgotten"), 401, "unauthorized")
    refused(open_app("/v1/forgotten", x_api_key=admin), 404, "not_found")
    context.close()


def test_a_websocket_is_closed(tmp_path: Path) -> None:
    async def nothing(scope: RequestScope, receive: Receive, send: Send) -> None:
        raise AssertionError("it was reached")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    asyncio.run(
        Access(nothing, Guard(context), None, frozenset())(
            {"type": "websocket", "path": "/v1/models", "headers": []}, receive, send
        )
    )
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_the_key_of_a_request_is_in_its_state(tmp_path: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    seen: list[ApiKey | None] = []

    async def inside(scope: RequestScope, receive: Receive, send: Send) -> None:
        seen.append(security.key_of(Request(scope)))
        await PlainTextResponse("")(scope, receive, send)

    ask, guard = Caller(context), Guard(context)
    guard.routes.add(faces.router.routes)
    ask._app = Access(inside, guard, None, frozenset())  # type: ignore[assignment]
    ask("/v1/models")
    created, text = context.keys.create("door", [Scope.SEARCH])
    ask("/v1/models", x_api_key=text)
    assert seen == [None, created]
    context.close()


def test_without_its_database_guarded_routes_answer_503(tmp_path: Path) -> None:
    context = ServiceContext(read_settings({"WHOSTHERE_DATABASE_URL": "postgresql://me@127.0.0.1:1/x"}, home=tmp_path))
    ask = Caller(context)
    for headers in ({}, {"x_api_key": f"wt_{'0' * 16}_{'A' * 43}"}):
        refused(ask("/v1/models", **headers), 503, "storage_unavailable")
    assert ask("/healthz").status_code == 200


def test_an_unreachable_database_does_not_lift_the_key_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    _, admin = context.keys.create("admin", [Scope.ADMIN])
    guard = Guard(context)
    request = Request({"type": "http", "path": "/readyz", "headers": [], "client": ("127.0.0.1", 1)})
    assert not asyncio.run(guard.trusts(request))

    def gone(*_: object) -> None:
        raise StorageUnavailable("the database does not answer")

    monkeypatch.setattr(ApiKeyRepository, "authenticate", gone)
    monkeypatch.setattr(ApiKeyRepository, "has_any", gone)
    shown = {"type": "http", "path": "/readyz", "headers": [(b"x-api-key", admin.encode())], "client": ("127.0.0.1", 1)}
    assert not asyncio.run(guard.trusts(Request(shown)))
    assert not asyncio.run(guard.trusts(request))
    context.close()
