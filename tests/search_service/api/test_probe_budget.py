"""The daily budget of different probes of an API key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from indexer.models.packs import SFACE
from indexer.settings import read_settings
from search_service.api.errors import ProbeBudgetUsed
from search_service.api.probe_budget import ProbeBudget
from search_service.service_context import ServiceContext
from search_service.store.api_keys import ApiKey, Scope
from tests import photos as sources
from tests.postgres import Database
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import image, ok, refused, running
from tests.search_service.api.test_observing import samples
from tests.variants import SETTINGS
from tests.waiting import wait_for

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Iterator[ServiceContext]:
    """The context of one process."""
    settings = read_settings(SETTINGS, home=tmp_path, database_url=database.url)
    with closing(ServiceContext(settings)) as context:
        yield context


def new_key(context: ServiceContext, daily_probes: int | None, name: str = "door") -> ApiKey:
    return context.keys.create(name, [Scope.SEARCH], daily_probes=daily_probes)[0]


def photos(*numbers: int) -> list[bytes]:
    return [b"photo %d" % number for number in numbers]


def test_only_different_probes_count(context: ServiceContext) -> None:
    budget, key = ProbeBudget(context, lambda: NOON), new_key(context, 3)
    assert budget.spend(key, photos(1, 2, 2)) == 2
    assert budget.spend(key, photos(1, 2)) == 0
    assert budget.spend(new_key(context, 1, "other"), photos(1)) == 1
    with pytest.raises(ProbeBudgetUsed) as caught:
        budget.spend(key, photos(1, 3, 4))
    assert caught.value.details == {"retry_after_seconds": 12 * 3600 + 1}
    assert budget.spend(key, photos(3)) == 1
    budget.add(key, 5)
    assert budget.spend(key, photos(1, 2, 3)) == 0
    with pytest.raises(ProbeBudgetUsed):
        budget.spend(key, photos(4))
    assert budget.spend(None, photos(4)) == 0
    assert budget.spend(new_key(context, None, "free"), photos(*range(1000))) == 1000


def test_processes_share_the_counts_and_a_restart_keeps_them(context: ServiceContext) -> None:
    key = new_key(context, 4)
    one, other = ProbeBudget(context, lambda: NOON), ProbeBudget(context, lambda: NOON)
    one.spend(key, photos(1, 2))
    one.flush()
    other.spend(key, photos(3, 4))
    other.flush()
    restarted = ProbeBudget(context, lambda: NOON)
    restarted.start()
    restarted.stop()
    for budget in (other, restarted):
        with pytest.raises(ProbeBudgetUsed):
            budget.spend(key, photos(5))
    assert context.probe_counts.of_day(NOON.date()) == {key.id: 4}


def test_budget_is_renewed_at_midnight(context: ServiceContext) -> None:
    clock, key = [NOON], new_key(context, 1)
    budget = ProbeBudget(context, lambda: clock[0])
    budget.spend(key, photos(1))
    budget.flush()
    clock[0] = NOON.replace(hour=23, minute=59)
    with pytest.raises(ProbeBudgetUsed):
        budget.spend(key, photos(2))
    clock[0] += timedelta(minutes=1)
    assert budget.spend(key, photos(1)) == 1
    budget.flush()
    assert context.probe_counts.of_day(clock[0].date()) == {key.id: 1}
    context.probe_counts.add(clock[0].date() + timedelta(days=8), {key.id: 1, "deleted": 1})
    assert context.probe_counts.of_day(clock[0].date()) == {}


def test_log_warns_once_before_a_budget_is_used_up(context: ServiceContext, caplog: pytest.LogCaptureFixture) -> None:
    budget, key = ProbeBudget(context, lambda: NOON), new_key(context, 10)
    budget.spend(key, photos(*range(7)))
    assert caplog.messages == []
    for number in (7, 8, 9):
        budget.spend(key, photos(number))
    assert caplog.messages == [f"the API key {key.id} has used 8 of its 10 probes of today"]


def test_search_beyond_the_budget_is_429_and_metrics_show_it(tmp_path: Path, models_folder: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=new_home(tmp_path, models_folder)))
    context.store.galleries.create("staff", SFACE.name, SFACE.fingerprint, SFACE.dim)
    door, text = context.keys.create("door", [Scope.SEARCH], daily_probes=7)
    root = {"X-API-Key": context.keys.create("root", [Scope.ADMIN])[1]}

    def search(client: httpx.Client, photo: bytes) -> httpx.Response:
        fields, headers = {"all_faces": "true"}, {"X-API-Key": text}
        return client.post("/v1/galleries/staff/search", files=image(photo), data=fields, headers=headers)

    with running(context) as service, service.client() as client:
        for photo, faces in ((sources.six_people(), 6), (sources.astronaut(), 1), (sources.astronaut(), 1)):
            assert len(ok(search(client, photo))["faces"]) == faces
        answer = search(client, sources.astronaut() + b" ")
        assert refused(answer, 429, "probe_budget_used")["message"].startswith("the API key 'door' may search 7 ")
        assert 0 < int(answer.headers["Retry-After"]) <= 86_400
        client.headers.update(root)
        label = frozenset({("key", door.id)})
        wait_for(lambda: samples(client).get(("whosthere_key_probes", label)) == 7, "the probes are counted")
        assert samples(client)["whosthere_key_probe_budget", label] == 7


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({"scopes": ["search"]}, 20_000),
        ({"scopes": ["investigate"], "daily_probes": None}, 20_000),
        ({"scopes": ["search"], "daily_probes": 0}, None),
        ({"scopes": ["search"], "daily_probes": 5}, 5),
        ({"scopes": ["enroll"]}, None),
        ({"scopes": ["search", "admin"]}, None),
        ({"scopes": ["enroll"], "daily_probes": 5}, 5),
    ],
    ids=str,
)
def test_new_keys_get_the_budget_of_their_scope(
    keys_client: httpx.Client, fields: dict[str, object], budget: int | None
) -> None:
    created = ok(keys_client.post("/v1/keys", json={"name": f"door {fields}", **fields}), 201)
    assert created["daily_probes"] == budget


@pytest.fixture(scope="module")
def keys_client(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Iterator[httpx.Client]:
    """A client of a service with an administrator's key."""
    home = new_home(tmp_path_factory.mktemp("keys"), models_folder)
    context = ServiceContext(read_settings(SETTINGS, home=home))
    _, text = context.keys.create("root", [Scope.ADMIN])
    with running(context) as service, service.client() as client:
        client.headers["X-API-Key"] = text
        yield client
