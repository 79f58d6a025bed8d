"""Who may ask what: every route, with every kind of key that must not open it and with one that does."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from indexer.clock import now
from indexer.errors import InvalidSetting, StorageUnavailable
from indexer.models.packs import SFACE
from indexer.settings import read_settings
from search_service.api import security
from search_service.api.app import create_app
from search_service.api.errors import Forbidden
from search_service.api.security import ADMIN, ENROLL, NEEDS, OWNER, SEARCH, Buckets, Guard, Guarded, Need
from search_service.service_context import ServiceContext
from search_service.store import api_keys
from search_service.store.api_keys import Key, Keys
from search_service.store.events import Sighting
from search_service.store.jobs import Jobs
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import (
    ENVIRONMENT,
    WHOSTHERE,
    Running,
    command,
    ok,
    refused,
    running,
    serving,
)
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for

BEYOND_GALLERIES = {
    ("POST", "/v1/detect"),
    ("POST", "/v1/compare"),
    ("POST", "/v1/embed"),
    ("GET", "/v1/models"),
    ("GET", "/v1/galleries"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{id}"),
    ("POST", "/v1/jobs/{id}/cancel"),
    ("GET", "/v1/events"),
    ("DELETE", "/v1/events"),
    ("GET", "/v1/events/{id}"),
    ("GET", "/v1/webhooks"),
    ("POST", "/v1/webhooks"),
    ("GET", "/v1/webhooks/{id}"),
    ("DELETE", "/v1/webhooks/{id}"),
    ("GET", "/v1/webhooks/{id}/deliveries"),
    ("POST", "/v1/webhooks/{id}/replay"),
}
"""Routes that a key limited to galleries may ask without a gallery in the path. Either they tell of no gallery, or they
look at the key themselves, and a test here or of theirs shows it. Think before you add one."""


def endpoints(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path that the application answers, whether it is documented or not."""
    for route in app.routes:
        included = getattr(route, "effective_route_contexts", None)  # how FastAPI 0.12x and later keep routers
        for one in included() if included else [route]:
            found: Any = getattr(one, "starlette_route", None) or one
            path = f"{found.path}/{{path:path}}" if isinstance(found, Mount) else found.path
            yield from ((method, path) for method in getattr(found, "methods", None) or ("GET", "HEAD"))


ROUTES = sorted(set(endpoints(create_app(ServiceContext(read_settings(SETTINGS, home=Path("nowhere")))))))


def plain(path: str) -> str:
    """How a parameter is called does not matter, but for the gallery's."""
    return re.sub(r"\{(?!gallery\})\w+", "{", path)


DECLARED = {(method, plain(path)): need for path, methods in NEEDS.items() for method, need in methods.items()}
NEEDED = {(method, path): DECLARED[method, plain(path)] for method, path in ROUTES if (method, plain(path)) in DECLARED}
GUARDED = [(method, path, need) for (method, path), need in NEEDED.items() if need is not None]
OPEN = [(method, path) for (method, path), need in NEEDED.items() if need is None]


@dataclass(frozen=True)
class Kept:
    """A service with keys, a gallery `staff` and another one."""

    service: Running
    texts: Mapping[str, str]
    client: httpx.Client

    def ask(self, method: str, path: str, key: str | None, gallery: str = "none", **given: Any) -> httpx.Response:
        """With a body that no route takes."""
        where = re.sub(r"\{(\w+)(:path)?\}", lambda place: gallery if place[1] == "gallery" else "1", path)
        headers = {} if key is None else {"Authorization": f"Bearer {self.texts.get(key, key)}"}
        return self.client.request(method, where, headers=headers, json={"nonsense": 1}, **given)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Iterator[Kept]:
    home = ServiceContext(read_settings(SETTINGS, home=new_home(tmp_path_factory.mktemp("guarded"), models_folder)))
    for name in ("staff", "other"):
        home.store.galleries.create(name, SFACE.name, SFACE.fingerprint, SFACE.dim)
    with running(home) as service, service.client() as client:
        yield Kept(service, make_keys(home), client)


def make_keys(home: ServiceContext) -> dict[str, str]:
    """A key of each kind by a name for it."""
    made = {str(scope): home.keys.create(str(scope), [scope]) for scope in api_keys.Scope}
    for scope in api_keys.Scope:
        for gallery in ("staff", "none"):
            made[f"{scope} {gallery}"] = home.keys.create(f"{scope} {gallery}", [scope], [gallery])
    made["revoked"] = home.keys.create("revoked", [api_keys.Scope.ADMIN])
    home.keys.revoke(made["revoked"][0].id)
    made["expired"] = home.keys.create("expired", [api_keys.Scope.ADMIN], expires_at=now() + timedelta(hours=1))
    with home.engine.begin() as connection:
        connection.execute(text("UPDATE keys SET expires_at = created_at WHERE name = 'expired'"))
    texts = {name: shown for name, (_, shown) in made.items()}
    texts["wrong secret"] = texts["admin"][:20] + texts["search"][20:]
    texts["unknown"] = f"wt_{'0' * 16}_{'A' * 43}"
    texts["malformed"] = "admin"
    return texts


def test_every_route_has_a_declared_need() -> None:
    """Where this fails, add the route to NEEDS in `search_service/api/security.py`: until then it is not answered."""
    assert {(method, plain(path)) for method, path in ROUTES} == DECLARED.keys()
    documented = create_app(ServiceContext(read_settings(SETTINGS, home=Path("nowhere")))).openapi()["paths"]
    assert {(method.upper(), path) for path, methods in documented.items() for method in methods} <= set(ROUTES)


def test_what_is_open() -> None:
    assert {path for _, path in OPEN} == {
        "/healthz",
        "/readyz",
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
        "/openapi.json",
        "/static-offline-docs/{path:path}",
    }


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_what_is_open_asks_for_no_key(guarded: Kept, method: str, path: str) -> None:
    for key in (None, "unknown", "revoked", "search staff"):
        assert guarded.ask(method, path, key).status_code not in (401, 403)


every_route = pytest.mark.parametrize(("method", "path", "need"), GUARDED)


@every_route
def test_every_route_without_a_genuine_key(guarded: Kept, method: str, path: str, need: Need) -> None:
    told = set()
    for key in (None, "unknown", "malformed", "wrong secret"):
        answer = guarded.ask(method, path, key)
        told.add((key is None, refused(answer, 401, "unauthorized")["message"]))
        assert answer.headers["www-authenticate"] == 'Bearer realm="whosthere"'
    assert len(told) == 2


@every_route
def test_every_route_with_a_key_that_is_over(guarded: Kept, method: str, path: str, need: Need) -> None:
    for key, why in (("revoked", "was revoked"), ("expired", "has expired")):
        assert why in refused(guarded.ask(method, path, key), 401, "unauthorized")["message"]


@every_route
def test_every_route_with_another_scope(guarded: Kept, method: str, path: str, need: Need) -> None:
    for scope in list(api_keys.Scope)[: list(api_keys.Scope).index(need.scope)]:
        message = refused(guarded.ask(method, path, str(scope)), 403, "forbidden_scope")["message"]
        assert need.scope in message


@every_route
def test_every_route_with_a_key_of_another_gallery(guarded: Kept, method: str, path: str, need: Need) -> None:
    if "{gallery}" in path or need.everywhere:
        told = [
            refused(guarded.ask(method, path, f"{need.scope} staff", there), 403, "forbidden_gallery")["message"]
            for there in ("other", "nosuch")
        ]
        assert told[0].replace("other", "nosuch") == told[1]
    else:
        assert (method, re.sub(r"\{\w+\}", "{id}", path)) in BEYOND_GALLERIES


@every_route
def test_every_route_with_the_right_key(guarded: Kept, method: str, path: str, need: Need) -> None:
    """The gallery is not there, so that nothing is deleted."""
    right = [
        str(scope)
        for scope in api_keys.Scope
        if list(api_keys.Scope).index(scope) >= list(api_keys.Scope).index(need.scope)
    ]
    right += [] if need.everywhere else [f"{need.scope} none"]
    for key in right:
        answer = guarded.ask(method, path, key)
        assert answer.status_code not in (401, 403), answer.text
        assert answer.status_code < 500


def test_the_key_may_come_in_either_header(guarded: Kept) -> None:
    right, wrong = guarded.texts["search"], guarded.texts["unknown"]
    for headers in (
        {"Authorization": f"Bearer {right}"},
        {"authorization": f"bearer  {right}"},
        {"X-API-Key": right},
        {"x-api-key": right, "Authorization": "Basic dXNlcjpwYXNz"},
        {"x-api-key": right, "Authorization": "Bearer of-a-gateway"},
    ):
        ok(guarded.client.get("/v1/galleries", headers=headers))
    for headers in (
        {"Authorization": right},
        {"Authorization": f"Basic {right}"},
        {"Authorization": "Bearer"},
        {"X-API-Key": ""},
        {"X-API-Key": f"Bearer {right}"},
        {"X-API-Key": wrong, "Authorization": f"Bearer {right}"},
        {"Cookie": f"key={right}"},
    ):
        refused(guarded.client.get("/v1/galleries", headers=headers), 401, "unauthorized")
    refused(guarded.client.get("/v1/galleries", params={"key": right, "api_key": right}), 401, "unauthorized")


def test_what_is_not_there_is_told_to_those_with_a_key(guarded: Kept) -> None:
    for path in ("/v1/nothing", "/v1/galleries/staff/secrets", "/", "/v1/galleries/", "/metrics/x"):
        refused(guarded.ask("GET", path, None), 401, "unauthorized")
        refused(guarded.ask("GET", path, "search staff"), 404, "not_found")
    refused(guarded.ask("PUT", "/v1/galleries", None), 401, "unauthorized")
    answer = guarded.ask("PUT", "/v1/galleries", "search staff")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    "path",
    ["other", "staff/../other", "staff%2F..%2Fother", "./other", "/other", "%6Fther", "Staff", "staff%00", "staff%20"],
)
def test_a_limited_key_reaches_no_other_gallery(guarded: Kept, path: str) -> None:
    answer = guarded.client.build_request(
        "GET", "/v1/galleries/x", headers={"X-API-Key": guarded.texts["search staff"]}
    )
    answer.url = answer.url.copy_with(raw_path=f"/v1/galleries/{path}".encode())
    assert guarded.client.send(answer).status_code in (403, 404)
    ok(guarded.ask("GET", "/v1/galleries/staff", "search staff"))


def test_a_limited_key_is_told_of_its_own_galleries_only(guarded: Kept) -> None:
    def names(key: str, **query: str) -> list[str]:
        return [one["name"] for one in ok(guarded.ask("GET", "/v1/galleries", key, params=query))["galleries"]]

    assert names("search") == names("admin") == ["staff", "other"]
    assert names("search staff") == names("search staff", limit="1") == ["staff"]
    assert names("search none") == []
    assert ok(guarded.ask("GET", "/v1/galleries", "search staff", params={"limit": "1"}))["cursor"] is None
    _, both = guarded.service.context.keys.create("both", [api_keys.Scope.SEARCH], ["other", "staff"])
    first = ok(guarded.ask("GET", "/v1/galleries", both, params={"limit": "1"}))
    assert [one["name"] for one in first["galleries"]] == ["staff"]
    assert names(both, limit="1", cursor=first["cursor"]) == ["other"]


def test_a_limited_key_is_told_of_its_own_jobs_only(guarded: Kept) -> None:
    home = guarded.service.context
    made = {
        name: Jobs(home.engine).create(home.store.galleries.get(name).id, 1, {}, iter(())).id
        for name in ("staff", "other")
    }

    def seen(key: str) -> set[str]:
        return {job["gallery"] for job in ok(guarded.ask("GET", "/v1/jobs", key))["jobs"]}

    assert seen("enroll") == {"staff", "other"}
    assert seen("enroll staff") == {"staff"}
    assert seen("enroll none") == set()
    refused(guarded.ask("GET", "/v1/jobs", "enroll staff", params={"gallery": "other"}), 403, "forbidden_gallery")
    path = f"/v1/jobs/{made['other']}"
    for method, where in (("GET", path), ("POST", f"{path}/cancel")):
        for key, status in (("enroll", 200), ("enroll staff", 404), ("enroll none", 404)):
            assert guarded.ask(method, where, key).status_code == status


def test_a_limited_admin_is_told_of_events_and_webhooks_of_its_own_galleries_only(guarded: Kept) -> None:
    home = guarded.service.context
    seen = Sighting("door", None, "no_match", False, None, None, 0.4)
    events, hooks = {}, {}
    for name in ("staff", "other"):
        gallery = home.store.galleries.get(name)
        hooks[name] = home.webhooks.create("http://127.0.0.1:1/", gallery, ["match"])[0].id
        events[name] = home.events.record(gallery, seen, timedelta()).event.id
    hooks["every"] = home.webhooks.create("http://127.0.0.1:1/", None, ["match"])[0].id

    def told(key: str) -> tuple[list[str], set[str]]:
        found = ok(guarded.ask("GET", "/v1/events", key))["events"]
        there = ok(guarded.ask("GET", "/v1/webhooks", key))["webhooks"]
        return [event["gallery"] for event in found], {hook["id"] for hook in there}

    assert told("admin") == (["staff", "other"], {*hooks.values()})
    assert told("admin staff") == (["staff"], {hooks["staff"]})
    assert told("admin none") == ([], set())
    for method in ("GET", "DELETE"):
        answer = guarded.ask(method, "/v1/events", "admin staff", params={"gallery": "other"})
        refused(answer, 403, "forbidden_gallery")
    ok(guarded.ask("GET", f"/v1/events/{events['staff']}", "admin staff"))
    refused(guarded.ask("GET", f"/v1/events/{events['other']}", "admin staff"), 404, "event_not_found")
    headers = {"X-API-Key": guarded.texts["admin staff"]}
    for whose in ({"gallery": "other"}, {"gallery": None}):
        new = {"url": "http://127.0.0.1:1/", **whose}
        refused(guarded.client.post("/v1/webhooks", json=new, headers=headers), 403, "forbidden_gallery")
    for hidden in ("other", "every"):
        for method, more in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/replay")):
            answer = guarded.ask(method, f"/v1/webhooks/{hooks[hidden]}{more}", "admin staff")
            refused(answer, 404, "webhook_not_found")
    ok(guarded.ask("GET", f"/v1/webhooks/{hooks['staff']}", "admin staff"))


def test_a_body_is_not_read_before_the_key(guarded: Kept) -> None:
    host, port = guarded.service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
        connection.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_readiness_tells_strangers_no_names(tmp_path: Path, models_folder: Path) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=new_home(tmp_path, models_folder)))
    home.store.galleries.create("secret", SFACE.name, "an-older-print", SFACE.dim)
    with running(home) as service, service.client() as client:
        wait_for(lambda: client.get("/readyz").status_code == 200, "the service is ready")
        assert ok(client.get("/readyz"))["galleries"].keys() == {"secret"}
        texts = {scope: home.keys.create(scope, [scope])[1] for scope in api_keys.Scope}
        _, limited = home.keys.create("limited", [api_keys.Scope.ADMIN], ["staff"])
        for headers in ({}, *({"X-API-Key": key} for key in ("wrong", texts[api_keys.Scope.ENROLL], limited))):
            assert ok(client.get("/readyz", headers=headers)) == {"status": "ready"}
        assert "secret" in ok(client.get("/readyz", headers={"X-API-Key": texts[api_keys.Scope.ADMIN]}))["galleries"]


def test_keys_are_made_listed_and_revoked(tmp_path: Path, models_folder: Path) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=new_home(tmp_path, models_folder)))
    with running(home) as service, service.client() as client:
        made = client.post("/v1/keys", json={"name": "root", "scopes": ["admin"]})  # without keys, from this machine
        assert made.headers["cache-control"] == "no-store"
        root = ok(made, 201)
        refused(client.get("/v1/keys"), 401, "unauthorized")
        client.headers["X-API-Key"] = root["key"]
        new = {"name": "door", "scopes": ["search"], "galleries": ["staff"], "expires_at": "2101-01-01T00:00:00Z"}
        door = ok(client.post("/v1/keys", json=new | {"per_minute": 60}), 201)
        assert new.items() <= door.items()
        assert home.keys.genuine(door["key"]) == home.keys.find(door["id"])
        listed = ok(client.get("/v1/keys"))
        assert listed["cursor"] is None
        assert listed["keys"] == [{k: v for k, v in one.items() if k != "key"} for one in (door, root)]
        first = ok(client.get("/v1/keys?limit=1"))
        rest = ok(client.get("/v1/keys", params={"cursor": first["cursor"]}))
        assert [*first["keys"], *rest["keys"]] == listed["keys"]
        revoked = ok(client.delete(f"/v1/keys/{door['id']}"))
        assert revoked["revoked_at"] is not None
        assert ok(client.delete(f"/v1/keys/{door['id']}")) == revoked
        refused(client.get("/v1/models", headers={"X-API-Key": door["key"]}), 401, "unauthorized")
        refused(client.delete("/v1/keys/none"), 404, "key_not_found")
        refused(client.post("/v1/keys", json=new), 409, "key_exists")
        for wrong in ("%%%", "YWZ0ZXI6MQ==", "bmFtZTp4AA=="):
            refused(client.get("/v1/keys", params={"cursor": wrong}), 400, "invalid_request")


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"galleries": []},
        {"galleries": "staff"},
        {"name": ""},
        {"per_minute": 0},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"more": 1},
    ],
)
def test_a_key_that_makes_no_sense_is_refused(guarded: Kept, wrong: dict[str, Any]) -> None:
    before = guarded.service.context.keys.list()
    headers = {"X-API-Key": guarded.texts["admin"]}
    answer = guarded.client.post("/v1/keys", json={"name": "new", "scopes": ["search"]} | wrong, headers=headers)
    refused(answer, 400, "invalid_request")
    assert guarded.service.context.keys.list() == before


def test_a_key_is_shown_once_whatever_is_asked_again(guarded: Kept) -> None:
    headers = {"X-API-Key": guarded.texts["admin"], "Idempotency-Key": "again"}
    new = {"name": "once", "scopes": ["search"]}
    made = ok(guarded.client.post("/v1/keys", json=new, headers=headers), 201)
    again = guarded.client.post("/v1/keys", json=new, headers=headers)
    refused(again, 409, "key_exists")
    with guarded.service.context.engine.connect() as connection:
        kept = connection.execute(text("SELECT * FROM answers")).all()
    assert made["key"] not in str(kept)


def test_a_key_that_was_used_too_often_is_told_when_it_may_again(guarded: Kept) -> None:
    _, slow = guarded.service.context.keys.create("slow", [api_keys.Scope.SEARCH], per_minute=2)
    for _ in range(2):
        ok(guarded.ask("GET", "/v1/galleries", slow))
    answer = guarded.ask("GET", "/v1/galleries", slow)
    error = refused(answer, 429, "rate_limited")
    assert 28 <= int(answer.headers["retry-after"]) == error["details"]["retry_after_seconds"] <= 30
    refused(guarded.ask("DELETE", "/v1/galleries/{gallery}", slow), 429, "rate_limited")
    ok(guarded.ask("GET", "/v1/galleries", "search"))
    assert guarded.ask("GET", "/healthz", slow).status_code == 200


@pytest.mark.parametrize("per_minute", [1, 2, 7, 60, 1000])
def test_a_key_may_again_exactly_when_it_was_told(per_minute: int) -> None:
    clock = [1000.0]
    buckets = Buckets(lambda: clock[0])
    key = Key("a", "a", frozenset(), None, per_minute, now(), None, None)
    assert [buckets.take(key) for _ in range(per_minute)] == [0] * per_minute
    wait = buckets.take(key)
    assert wait == max(1, -(-60 // per_minute))
    clock[0] += 60 / per_minute - 0.01 / per_minute
    assert buckets.take(key) == 1
    clock[0] = 1000.0 + wait
    assert buckets.take(key) == 0
    clock[0] += 10_000  # nothing is saved up beyond a minute's
    assert [buckets.take(key) for _ in range(per_minute)] == [0] * per_minute
    assert buckets.take(key) > 0


def test_each_key_has_its_own_limit() -> None:
    buckets = Buckets(lambda: 0.0)
    one, other, free = (
        Key(name, name, frozenset(), None, limit, now(), None, None)
        for name, limit in (("a", 1), ("b", 1), ("c", None))
    )
    assert [buckets.take(key) for key in (one, other, one, free, free, free)] == [0, 0, 60, 0, 0, 0]


def test_a_revoked_key_opens_nothing_in_any_process(tmp_path: Path, models_folder: Path) -> None:
    place = new_home(tmp_path, models_folder)
    _, made = command(place, "keys", "create", "--name", "door", "--scope", "search")
    headers = {"X-API-Key": made["key"]}
    with serving(place, tmp_path / "one.log") as one, serving(place, tmp_path / "two.log") as two:
        for server in (one, two):
            refused(server.client.get("/v1/galleries"), 401, "unauthorized")
            ok(server.client.get("/v1/galleries", headers=headers))
        command(place, "keys", "revoke", made["id"])
        for server in (one, two, one, two):
            refused(server.client.get("/v1/galleries", headers=headers), 401, "unauthorized")
            refused(server.client.get("/v1/galleries"), 401, "unauthorized")
        assert made["key"] not in one.log() + two.log()
        _, new = command(place, "keys", "create", "--name", "new", "--scope", "search")
        for server in (one, two):
            ok(server.client.get("/v1/galleries", headers={"X-API-Key": new["key"]}))


def test_the_first_key_closes_a_running_service_and_nothing_opens_it_again(tmp_path: Path) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    local = Caller(home)
    assert local("/v1/galleries").status_code == 200
    other = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    made, _ = other.keys.create("door", [api_keys.Scope.SEARCH])
    refused(local("/v1/galleries"), 401, "unauthorized")
    other.keys.revoke(made.id)
    refused(local("/v1/galleries"), 401, "unauthorized")
    refused(Caller(other)("/v1/galleries"), 401, "unauthorized")  # as after a restart
    home.close()
    other.close()


class Caller:
    """Asks the application of a home as a client at that address, without a server between."""

    def __init__(self, home: ServiceContext, address: str = "127.0.0.1") -> None:
        self._app = create_app(home)
        self._address = address

    def __call__(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, client=(self._address, 5000))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return await client.request(method, path, headers=named)

        return asyncio.run(ask())


ELSEWHERE = ["203.0.113.5", "192.168.1.5", "10.0.0.1", "::ffff:203.0.113.5", "2001:db8::1", "0.0.0.0", "", "unix"]


@pytest.mark.parametrize("address", ELSEWHERE)
def test_without_keys_nobody_elsewhere_is_answered(tmp_path: Path, address: str) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    error = refused(Caller(home, address)("/v1/galleries"), 401, "unauthorized")
    assert "whosthere keys create" in error["message"]
    assert Caller(home, address)("/healthz").status_code == 200
    _, admin = home.keys.create("admin", [api_keys.Scope.ADMIN])
    assert Caller(home, address)("/v1/galleries", x_api_key=admin).status_code == 200
    home.close()


def test_without_keys_a_proxy_of_this_machine_is_not_answered(tmp_path: Path) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    for address in ("127.0.0.1", "127.8.8.8", "::1"):
        assert Caller(home, address)("/v1/galleries").status_code == 200
        for header in ("x_forwarded_for", "forwarded", "x_real_ip"):
            refused(Caller(home, address)("/v1/galleries", **{header: "127.0.0.1"}), 401, "unauthorized")
    home.close()


def test_an_open_service_answers_everybody_until_there_is_a_key(tmp_path: Path) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path, open=True))
    for address in ("203.0.113.5", "127.0.0.1"):
        assert Caller(home, address)("/v1/galleries", x_forwarded_for="10.1.1.1").status_code == 200
    home.keys.create("admin", [api_keys.Scope.ADMIN])
    for address in ("203.0.113.5", "127.0.0.1"):
        refused(Caller(home, address)("/v1/galleries"), 401, "unauthorized")
    home.close()


def test_where_a_service_without_keys_may_listen() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        security.check_address(read_settings(SETTINGS, host=host), any_key=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "faces.example.com", "", "localhost.example.com"):
        settings = read_settings(SETTINGS, host=host)
        with pytest.raises(InvalidSetting, match=r"whosthere keys create.*WHOSTHERE_OPEN") as caught:
            security.check_address(settings, any_key=False)
        assert repr(host) in caught.value.message
        security.check_address(settings, any_key=True)
        security.check_address(read_settings({"WHOSTHERE_OPEN": "true"}, host=host), any_key=False)


def test_serve_refuses_to_be_reached_without_keys_and_says_so(tmp_path: Path) -> None:
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


def test_a_route_that_was_not_declared_is_not_answered(tmp_path: Path) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    open_app = Caller(home)
    open_app._app.add_api_route("/v1/forgotten", lambda: "secret")
    open_app._app.add_api_route("/v1/models", lambda: "secret", methods=["POST"])
    assert "secret" not in refused(open_app("/v1/forgotten"), 404, "not_found")["message"]
    refused(open_app("/v1/models", "POST"), 405, "method_not_allowed")
    _, admin = home.keys.create("admin", [api_keys.Scope.ADMIN])
    refused(open_app("/v1/forgotten"), 401, "unauthorized")
    refused(open_app("/v1/forgotten", x_api_key=admin), 404, "not_found")
    home.close()


def test_a_websocket_is_closed(tmp_path: Path) -> None:
    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it was reached")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    asyncio.run(
        Guarded(nothing, Guard(home))({"type": "websocket", "path": "/v1/models", "headers": []}, receive, send)
    )
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_the_key_is_known_to_what_is_inside(tmp_path: Path) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    seen: list[Key | None] = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(security.key_of(Request(scope)))
        await PlainTextResponse("")(scope, receive, send)

    ask = Caller(home)
    ask._app = Guarded(inside, Guard(home))  # type: ignore[assignment]
    ask("/v1/models")
    made, text = home.keys.create("door", [api_keys.Scope.SEARCH])
    ask("/v1/models", x_api_key=text)
    assert seen == [None, made]
    home.close()


def test_a_job_or_whatever_names_its_gallery_elsewhere_can_be_checked() -> None:
    request = Request({"type": "http", "headers": []})
    security.check_gallery(request, "any")
    request.state.key = Key("a", "a", frozenset({api_keys.Scope.ENROLL}), frozenset({"staff"}), None, now(), None, None)
    security.check_gallery(request, "staff")
    with pytest.raises(Forbidden) as caught:
        security.check_gallery(request, "other")
    assert caught.value.code == "forbidden_gallery"


def test_without_its_database_nothing_is_answered(tmp_path: Path) -> None:
    home = ServiceContext(read_settings({"WHOSTHERE_DATABASE_URL": "postgresql://me@127.0.0.1:1/x"}, home=tmp_path))
    ask = Caller(home)
    for headers in ({}, {"x_api_key": f"wt_{'0' * 16}_{'A' * 43}"}):
        refused(ask("/v1/models", **headers), 503, "storage_unavailable")
    assert ask("/healthz").status_code == 200


def test_a_database_that_is_gone_opens_nothing_that_was_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    _, admin = home.keys.create("admin", [api_keys.Scope.ADMIN])
    guard = Guard(home)
    request = Request({"type": "http", "path": "/readyz", "headers": [], "client": ("127.0.0.1", 1)})
    assert not asyncio.run(guard.trusts(request))

    def gone(*_: object) -> None:
        raise StorageUnavailable("the database does not answer")

    monkeypatch.setattr(Keys, "genuine", gone)
    monkeypatch.setattr(Keys, "any_key", gone)
    shown = {"type": "http", "path": "/readyz", "headers": [(b"x-api-key", admin.encode())], "client": ("127.0.0.1", 1)}
    assert not asyncio.run(guard.trusts(Request(shown)))
    assert not asyncio.run(guard.trusts(request))
    home.close()


def test_declared_needs_are_of_these_kinds() -> None:
    kinds = {need for methods in NEEDS.values() for need in methods.values()}
    assert kinds == {None, SEARCH, ENROLL, ADMIN, OWNER, Need(api_keys.Scope.SEARCH, everywhere=True)}
