"""API keys over HTTP: creating, limiting to galleries, rate limits, revoking."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from starlette.requests import Request

from indexer.clock import now
from indexer.settings import read_settings
from search_service.api import security
from search_service.api.errors import Forbidden
from search_service.api.security import Buckets
from search_service.service_context import ServiceContext
from search_service.store.api_keys import ApiKey, Scope
from search_service.store.events import Sighting
from search_service.store.jobs import JobRepository
from tests import photos
from tests.search_service.api.conftest import new_home
from tests.search_service.api.guarded import Guarded
from tests.search_service.api.guarded import guarded as guarded
from tests.search_service.api.serving import command, ok, refused, running, serving
from tests.variants import SETTINGS


def test_a_limited_key_lists_only_its_own_galleries(guarded: Guarded) -> None:
    def names(key: str, **query: str) -> list[str]:
        return [one["name"] for one in ok(guarded.request("GET", "/v1/galleries", key, params=query))["galleries"]]

    assert names("search") == names("admin") == ["staff", "other"]
    assert names("search staff") == names("search staff", limit="1") == ["staff"]
    assert names("search none") == []
    assert ok(guarded.request("GET", "/v1/galleries", "search staff", params={"limit": "1"}))["cursor"] is None
    _, both = guarded.service.context.keys.create("both", [Scope.SEARCH], ["other", "staff"])
    first = ok(guarded.request("GET", "/v1/galleries", both, params={"limit": "1"}))
    assert [one["name"] for one in first["galleries"]] == ["staff"]
    assert names(both, limit="1", cursor=first["cursor"]) == ["other"]


def test_a_limited_key_sees_only_jobs_of_its_own_galleries(guarded: Guarded) -> None:
    context = guarded.service.context
    created = {
        name: JobRepository(context.engine).create(context.store.galleries.get(name).id, 1, {}, iter(())).id
        for name in ("staff", "other")
    }

    def seen(key: str) -> set[str]:
        return {job["gallery"] for job in ok(guarded.request("GET", "/v1/jobs", key))["jobs"]}

    assert seen("enroll") == {"staff", "other"}
    assert seen("enroll staff") == {"staff"}
    assert seen("enroll none") == set()
    refused(guarded.request("GET", "/v1/jobs", "enroll staff", params={"gallery": "other"}), 403, "forbidden_gallery")
    path = f"/v1/jobs/{created['other']}"
    for method, where in (("GET", path), ("POST", f"{path}/cancel")):
        for key, status in (("enroll", 200), ("enroll staff", 404), ("enroll none", 404)):
            assert guarded.request(method, where, key).status_code == status


def test_a_limited_admin_sees_only_events_and_webhooks_of_its_own_galleries(guarded: Guarded) -> None:
    context = guarded.service.context
    seen = Sighting("door", None, "no_match", False, None, None, 0.4)
    events, hooks = {}, {}
    for name in ("staff", "other"):
        gallery = context.store.galleries.get(name)
        hooks[name] = context.webhooks.create("http://127.0.0.1:1/", gallery, ["match"])[0].id
        events[name] = context.events.record(gallery, seen, timedelta()).event.id
    hooks["every"] = context.webhooks.create("http://127.0.0.1:1/", None, ["match"])[0].id

    def visible(key: str) -> tuple[list[str], set[str]]:
        found = ok(guarded.request("GET", "/v1/events", key))["events"]
        there = ok(guarded.request("GET", "/v1/webhooks", key))["webhooks"]
        return [event["gallery"] for event in found], {hook["id"] for hook in there}

    assert visible("admin") == (["staff", "other"], {*hooks.values()})
    assert visible("admin staff") == (["staff"], {hooks["staff"]})
    assert visible("admin none") == ([], set())
    for method in ("GET", "DELETE"):
        answer = guarded.request(method, "/v1/events", "admin staff", params={"gallery": "other"})
        refused(answer, 403, "forbidden_gallery")
    ok(guarded.request("GET", f"/v1/events/{events['staff']}", "admin staff"))
    refused(guarded.request("GET", f"/v1/events/{events['other']}", "admin staff"), 404, "event_not_found")
    headers = {"X-API-Key": guarded.keys["admin staff"]}
    for whose in ({"gallery": "other"}, {"gallery": None}):
        new = {"url": "http://127.0.0.1:1/", **whose}
        refused(guarded.client.post("/v1/webhooks", json=new, headers=headers), 403, "forbidden_gallery")
    for hidden in ("other", "every"):
        for method, more in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/replay")):
            answer = guarded.request(method, f"/v1/webhooks/{hooks[hidden]}{more}", "admin staff")
            refused(answer, 404, "webhook_not_found")
    ok(guarded.request("GET", f"/v1/webhooks/{hooks['staff']}", "admin staff"))


@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_shows_what_it_opens(guarded: Guarded, scope: Scope) -> None:
    own = ok(guarded.request("GET", "/v1/keys/self", f"{scope} staff"))
    included = list(Scope)[: list(Scope).index(scope) + 1]
    assert own == {"name": f"{scope} staff", "scopes": included, "galleries": ["staff"], "expires_at": None}


def test_keys_are_created_listed_and_revoked(tmp_path: Path, models_folder: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=new_home(tmp_path, models_folder)))
    with running(context) as service, service.client() as client:
        created = client.post("/v1/keys", json={"name": "root", "scopes": ["admin"]})  # without keys, from this machine
        assert created.headers["cache-control"] == "no-store"
        root = ok(created, 201)
        refused(client.get("/v1/keys"), 401, "unauthorized")
        client.headers["X-API-Key"] = root["key"]
        new = {"name": "door", "scopes": ["search"], "galleries": ["staff"], "expires_at": "2101-01-01T00:00:00Z"}
        door = ok(client.post("/v1/keys", json=new | {"per_minute": 60}), 201)
        assert new.items() <= door.items()
        assert context.keys.authenticate(door["key"]) == context.keys.get(door["id"])
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
def test_an_invalid_new_key_is_refused(guarded: Guarded, wrong: dict[str, Any]) -> None:
    before = guarded.service.context.keys.list()
    headers = {"X-API-Key": guarded.keys["admin"]}
    answer = guarded.client.post("/v1/keys", json={"name": "new", "scopes": ["search"]} | wrong, headers=headers)
    refused(answer, 400, "invalid_request")
    assert guarded.service.context.keys.list() == before


def test_repeating_the_request_does_not_show_a_new_key_again(guarded: Guarded) -> None:
    headers = {"X-API-Key": guarded.keys["admin"], "Idempotency-Key": "again"}
    new = {"name": "once", "scopes": ["search"]}
    created = ok(guarded.client.post("/v1/keys", json=new, headers=headers), 201)
    again = guarded.client.post("/v1/keys", json=new, headers=headers)
    refused(again, 409, "key_exists")
    with guarded.service.context.engine.connect() as connection:
        kept = connection.execute(text("SELECT * FROM answers")).all()
    assert created["key"] not in str(kept)


def test_a_key_over_its_rate_limit_gets_429_with_the_time_to_wait(guarded: Guarded) -> None:
    _, slow = guarded.service.context.keys.create("slow", [Scope.SEARCH], per_minute=2)
    for _ in range(2):
        ok(guarded.request("GET", "/v1/galleries", slow))
    answer = guarded.request("GET", "/v1/galleries", slow)
    error = refused(answer, 429, "rate_limited")
    assert 28 <= int(answer.headers["retry-after"]) == error["details"]["retry_after_seconds"] <= 30
    refused(guarded.request("DELETE", "/v1/galleries/{gallery}", slow), 429, "rate_limited")
    ok(guarded.request("GET", "/v1/galleries", "search"))
    assert guarded.request("GET", "/healthz", slow).status_code == 200


@pytest.mark.parametrize("per_minute", [1, 2, 7, 60, 1000])
def test_a_rate_limited_key_works_again_exactly_after_the_wait(per_minute: int) -> None:
    clock = [1000.0]
    buckets = Buckets(lambda: clock[0])
    key = ApiKey("a", "a", frozenset(), None, per_minute, None, now(), None, None)
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


def test_large_images_count_as_several_requests(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "PIXELS_OF_REQUEST", 100_000)
    _, slow = guarded.service.context.keys.create("photos", [Scope.SEARCH], per_minute=4)
    files = {"image": photos.encode(np.zeros((500, 500, 3), np.uint8), "PNG")}
    ok(guarded.client.post("/v1/detect", files=files, headers={"X-API-Key": slow}))
    ok(guarded.request("GET", "/v1/galleries", slow))
    refused(guarded.request("GET", "/v1/galleries", slow), 429, "rate_limited")
    ok(guarded.client.post("/v1/detect", files=files, headers={"X-API-Key": guarded.keys["search"]}))


def test_more_uses_than_are_left_delay_later_ones() -> None:
    clock = [0.0]
    buckets = Buckets(lambda: clock[0])
    key = ApiKey("a", "a", frozenset(), None, 60, None, now(), None, None)
    assert buckets.take(key) == 0
    buckets.charge(key, 100)
    assert buckets.take(key) == 42
    clock[0] = 42.0
    assert [buckets.take(key), buckets.take(key)] == [0, 1]


def test_each_key_has_its_own_rate_limit() -> None:
    buckets = Buckets(lambda: 0.0)
    one, other, free = (
        ApiKey(name, name, frozenset(), None, limit, None, now(), None, None)
        for name, limit in (("a", 1), ("b", 1), ("c", None))
    )
    assert [buckets.take(key) for key in (one, other, one, free, free, free)] == [0, 0, 60, 0, 0, 0]


def test_a_revoked_key_is_refused_by_every_process(tmp_path: Path, models_folder: Path) -> None:
    place = new_home(tmp_path, models_folder)
    _, created = command(place, "keys", "create", "--name", "door", "--scope", "search")
    headers = {"X-API-Key": created["key"]}
    with serving(place, tmp_path / "one.log") as one, serving(place, tmp_path / "two.log") as two:
        for server in (one, two):
            refused(server.client.get("/v1/galleries"), 401, "unauthorized")
            ok(server.client.get("/v1/galleries", headers=headers))
        command(place, "keys", "revoke", created["id"])
        for server in (one, two, one, two):
            refused(server.client.get("/v1/galleries", headers=headers), 401, "unauthorized")
            refused(server.client.get("/v1/galleries"), 401, "unauthorized")
        assert created["key"] not in one.log() + two.log()
        _, new = command(place, "keys", "create", "--name", "new", "--scope", "search")
        for server in (one, two):
            ok(server.client.get("/v1/galleries", headers={"X-API-Key": new["key"]}))


def test_check_gallery_refuses_keys_of_other_galleries() -> None:
    request = Request({"type": "http", "headers": []})
    security.check_gallery(request, "any")
    request.state.key = ApiKey("a", "a", frozenset({Scope.ENROLL}), frozenset({"staff"}), None, None, now(), None, None)
    security.check_gallery(request, "staff")
    with pytest.raises(Forbidden) as caught:
        security.check_gallery(request, "other")
    assert caught.value.code == "forbidden_gallery"
