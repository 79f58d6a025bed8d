"""No statement of a request reads more rows because there are more people, faces, events or deliveries.

SQLite counts the steps of its virtual machine, at least four for each row that it reads or sorts. PostgreSQL counts the
rows of each node of the plan that it has executed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from indexer.gallery.identity_search import IdentityFilter
from indexer.gallery.store import Store
from indexer.types import NamedIdentity, Person
from search_service.store.api_keys import ApiKeyRepository
from search_service.store.event_pages import Direction, EventFilter
from search_service.store.events import EventRepository, Sighting
from search_service.store.idempotency import IdempotencyStore
from search_service.store.jobs import JobRepository
from search_service.store.webhooks import WebhookRepository
from tests.indexer.gallery.faces import enroll_one, new_face
from tests.postgres import Postgres, connected
from tests.search_service.store.growing import NOON, fill

ROWS = 20_000
"""Rows of each table that grows."""

PAGE = 100

MOST_STEPS = 50_000
"""Of one statement in SQLite: hardly more than a page with its counts needs, and less than reading ROWS."""

MOST_ROWS = 3_000
"""Of one node of a plan in PostgreSQL, likewise."""

LATE = NOON + timedelta(minutes=ROWS - 200)


@dataclass
class Watched:
    """A database with ROWS in each table of the gallery `staff`, whose statements are counted."""

    engine: Engine
    statements: dict[str, int] = field(default_factory=dict)
    """Steps or rows of each statement."""

    def __post_init__(self) -> None:
        self.store = Store(self.engine)
        self.staff, self.visitors = (self.store.galleries.get(name) for name in ("staff", "visitors"))
        self.events, self.webhooks = EventRepository(self.engine), WebhookRepository(self.engine)
        self.jobs, self.answers = JobRepository(self.engine), IdempotencyStore(self.engine)
        self.keys = ApiKeyRepository(self.engine)
        self.webhook = self.webhooks.list()[0].id
        if self.engine.dialect.name == "sqlite":
            self._count_steps()
        else:
            event.listen(self.engine, "before_cursor_execute", self._explain)

    def _count_steps(self) -> None:
        current = [""]

        @event.listens_for(self.engine, "before_cursor_execute")
        def start(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            current[0] = statement
            self.statements.setdefault(statement, 0)

        def step() -> None:
            self.statements[current[0]] += 1_000

        @event.listens_for(self.engine, "checkout")
        def count(connection: Any, *_: Any) -> None:
            connection.set_progress_handler(step, 1_000)

    def _explain(self, connection: Any, cursor: Any, statement: str, values: Any, _: Any, is_many: bool) -> None:
        if is_many or not statement.startswith(("SELECT", "UPDATE", "DELETE")):
            return
        with connection.connection.cursor() as explained:
            is_writing = not connection.connection.dbapi_connection.autocommit
            if is_writing:
                explained.execute("SAVEPOINT explained")
            explained.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
            plan = explained.fetchone()[0][0]["Plan"]
            if is_writing:
                explained.execute("ROLLBACK TO SAVEPOINT explained")
        self.statements[statement] = max(self.statements.get(statement, 0), rows_of_plan(plan))


def rows_of_plan(plan: dict[str, Any]) -> int:
    """Returns the most rows that one node of a plan has read."""
    read = plan["Actual Rows"] + sum(value for name, value in plan.items() if name.startswith("Rows Removed"))
    return max([int(read * plan["Actual Loops"]), *map(rows_of_plan, plan.get("Plans", ()))])


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def watched(
    request: pytest.FixtureRequest, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    if request.param == "sqlite":
        path = Path(shutil.copy(sqlite_template, tmp_path_factory.mktemp("growth") / "truth.db"))
        url = f"sqlite:///{path}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        url = server.migrated()
    with connected(url) as engine:
        fill(engine, ROWS)
        yield Watched(engine)


def seen(device: str, name: str) -> Sighting:
    return Sighting(device, Direction.IN, "match", True, NamedIdentity(1, name, None, {}, 1), 0.5, 0.4)


def patched(identity: Any) -> Person:
    return Person(identity.external_id, "Anna")


REQUESTS: dict[str, Callable[[Watched], object]] = {
    "galleries": lambda w: w.store.galleries.list(0, PAGE),
    "counts": lambda w: w.store.galleries.counts(w.staff.id),
    "first page of identities": lambda w: w.store.identities.list(w.staff.id, 0, PAGE),
    "later page of identities": lambda w: w.store.identities.list(w.staff.id, ROWS // 2, PAGE),
    "page of a small gallery": lambda w: w.store.identities.list(w.visitors.id, 0, PAGE),
    "search of identities": lambda w: w.store.identities.list(w.staff.id, 0, PAGE, IdentityFilter("ANA")),
    "identity": lambda w: w.store.identities.get(w.staff.id, "p-77"),
    "new identity": lambda w: w.store.identities.put(w.staff.id, Person("new")),
    "changed identity": lambda w: w.store.identities.change(w.staff.id, "p-78", patched),
    "merged identity": lambda w: w.store.identities.merge(w.staff.id, "p-79", "p-80"),
    "deleted identity": lambda w: w.store.identities.delete(w.staff.id, "p-81"),
    "ids": lambda w: w.store.identities.ids(w.staff.id, [f"p-{i}" for i in range(1, PAGE)]),
    "candidates": lambda w: (w.store.identities.valid(range(100, 200), NOON), w.store.identities.by_id([1, 2])),
    "faces of an identity": lambda w: w.store.faces.list(w.staff.id, "p-82", 0, PAGE),
    "face": lambda w: (w.store.faces.get(w.staff.id, 90), w.store.faces.known_images(w.staff.id, ["hash 90"])),
    "deleted face": lambda w: w.store.faces.delete(w.staff.id, 91),
    "enrolled face": lambda w: enroll_one(w.store, w.staff, new_face("p-92", 2)),
    "embeddings of faces": lambda w: w.store.embeddings.of_faces(w.staff, list(range(200, 300))),
    "embeddings of identities": lambda w: w.store.embeddings.of_identities(w.staff, list(range(200, 300))),
    "embeddings of a small gallery": lambda w: list(w.store.embeddings.pages(w.visitors)),
    "faces without an embedding": lambda w: w.store.reembeddings.missing(w.visitors.id, "other", 0, PAGE),
    "position in the change log": lambda w: (w.store.changes.position(w.staff.id), w.store.changes.last(w.staff.id)),
    "changes": lambda w: w.store.changes.since(w.staff.id, ROWS - 10),
    "enough people for a calibration": lambda w: w.store.calibrations.count_people(w.staff, PAGE),
    "events": lambda w: w.events.find(EventFilter(), ROWS // 2, PAGE),
    "latest events": lambda w: w.events.latest(EventFilter(), PAGE),
    "events of a gallery": lambda w: w.events.find(EventFilter(["staff"]), ROWS // 2, PAGE),
    "latest events of a gallery": lambda w: w.events.latest(EventFilter(["staff"]), PAGE),
    "events of a small gallery": lambda w: w.events.find(EventFilter(["visitors"]), 0, PAGE),
    "events of two galleries": lambda w: w.events.find(EventFilter(["visitors", "staff"]), 0, PAGE),
    "events of a device": lambda w: w.events.find(EventFilter(["staff"], device="door 7"), 0, PAGE),
    "latest events of a device": lambda w: w.events.latest(EventFilter(device="door 7"), PAGE),
    "events of an unknown device": lambda w: w.events.find(EventFilter(["staff"], device="none"), 0, PAGE),
    "events of a person": lambda w: w.events.find(EventFilter(["staff"], external_id="p-7"), 0, PAGE),
    "events with a decision": lambda w: w.events.find(EventFilter(["staff"], decision="review"), 0, PAGE),
    "events since": lambda w: w.events.find(EventFilter(["staff"], since=LATE), 0, PAGE),
    "latest events until": lambda w: w.events.latest(EventFilter(["staff"], until=NOON + timedelta(hours=3)), PAGE),
    "attendance": lambda w: list(w.events.between(w.staff, LATE, LATE + timedelta(days=1), "match")),
    "event": lambda w: w.events.get(77),
    "recorded event": lambda w: w.events.record(w.staff, seen("door 8", "p-9"), timedelta(0)),
    "repeated event": lambda w: w.events.record(w.staff, seen("door 8", "p-9"), timedelta(hours=1)),
    "forgotten events": lambda w: w.events.delete(w.staff, "p-11"),
    "dead deliveries": lambda w: w.webhooks.deliveries(w.webhook, "dead", 0, PAGE),
    "due deliveries": lambda w: w.webhooks.due([]),
    "jobs": lambda w: (w.jobs.latest(["staff"], None, PAGE), w.jobs.list_unfinished(), w.jobs.claim(1)),
    "idempotency": lambda w: w.answers.claim("owner", "other"),
    "API keys": lambda w: (w.keys.list("", PAGE), w.keys.has_any(), w.keys.authenticate("wt_x_y")),
}


@pytest.mark.parametrize("name", list(REQUESTS))
def test_request_reads_no_more_rows_of_larger_tables(watched: Watched, name: str) -> None:
    watched.statements.clear()
    REQUESTS[name](watched)
    most = MOST_STEPS if watched.engine.dialect.name == "sqlite" else MOST_ROWS
    assert watched.statements
    assert {statement: work for statement, work in watched.statements.items() if work > most} == {}
