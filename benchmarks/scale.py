"""Times requests to the database with more and more people, faces and events, and prints how they grow.

    python -m benchmarks.scale SIZE... [--database URL] [--rounds N]

Each SIZE is a number of people, faces and events. A writer that changes identities and records events, and a reader
that shows single identities, run meanwhile; their worst waits are printed. The exponent of an operation is the slope
between the smallest and the largest size on logarithmic scales: 0 does not grow, 1 grows like the size. The database is
a temporary SQLite file, or an empty PostgreSQL database, whose contents are deleted after each size.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine

from benchmarks.lfw import say
from indexer.gallery.database import migrate, open_database
from indexer.gallery.identity_search import IdentityFilter
from indexer.gallery.schema import Base
from indexer.gallery.store import Store
from indexer.types import NamedIdentity, Person
from search_service.store.event_pages import EventFilter
from search_service.store.events import EventRepository, Sighting
from tests.search_service.store.growing import NOON, fill

PAGE = 100

DAYS = timedelta(days=30)

LEAST_SECONDS = 1.0
"""For which each operation is repeated, so that the writer and the reader run many times meanwhile."""


def operations(engine: Engine, size: int) -> dict[str, Callable[[], object]]:
    """Returns what is timed, by name."""
    store, events = Store(engine), EventRepository(engine)
    staff, middle = store.galleries.get("staff"), size // 2
    of_staff = EventFilter(["staff"])
    return {
        "page of identities": lambda: store.identities.list(staff.id, middle, PAGE),
        "search, frequent word": lambda: store.identities.list(staff.id, 0, PAGE, IdentityFilter("ana")),
        "search, rare word": lambda: store.identities.list(staff.id, 0, PAGE, IdentityFilter(f"p-{size}")),
        "counts": lambda: store.galleries.counts(staff.id),
        "page of events": lambda: events.find(of_staff, middle, PAGE),
        "page of a device": lambda: events.find(EventFilter(["staff"], device="door 7"), 0, PAGE),
        "latest events": lambda: events.latest(of_staff, PAGE),
        "attendance": lambda: sum(map(len, events.between(staff, NOON, NOON + DAYS, "match"))),
        "people with faces": lambda: store.calibrations.count_people(staff),
        "small gallery": lambda: list(store.embeddings.pages(store.galleries.get("visitors"))),
    }


class Background:
    """A thread that repeats an operation and remembers its longest time."""

    def __init__(self, operation: Callable[[int], object]) -> None:
        self.worst_ms = 0.0
        self._operation = operation
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        turn = 0
        while not self._stopped.wait(0.02):
            turn += 1
            self.worst_ms = max(self.worst_ms, milliseconds(lambda: self._operation(turn)))  # noqa: B023

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def write(engine: Engine, size: int) -> Callable[[int], object]:
    store, events = Store(engine), EventRepository(engine)
    staff = store.galleries.get("staff")

    def change(turn: int) -> None:
        external_id = f"p-{turn % size + 1}"
        store.identities.change(staff.id, external_id, lambda _: Person(external_id, f"Ana {turn}"))
        person = NamedIdentity(1, external_id, None, {}, 1)
        events.record(staff, Sighting("door 7", None, "match", True, person, 0.5, 0.4), timedelta())

    return change


def read(engine: Engine, size: int) -> Callable[[int], object]:
    store = Store(engine)
    staff = store.galleries.get("staff")
    return lambda turn: store.identities.get(staff.id, f"p-{turn % size + 1}")


def milliseconds(operation: Callable[[], object]) -> float:
    begun = time.perf_counter()
    operation()
    return 1000 * (time.perf_counter() - begun)


@contextmanager
def filled(url: str | None, size: int) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(url or f"sqlite:///{Path(folder) / 'scale.db'}")
        migrate(engine)
        fill(engine, size)
        yield engine
        if url is not None:
            with engine.begin() as connection:
                for table in reversed(Base.metadata.sorted_tables):
                    connection.exec_driver_sql(f"TRUNCATE {table.name} RESTART IDENTITY CASCADE")
        engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="+", metavar="SIZE")
    parser.add_argument("--database", metavar="URL")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    sizes = sorted(options.sizes)
    times: dict[str, dict[int, float]] = {}
    for size in sizes:
        with filled(options.database, size) as engine:
            for name, operation in operations(engine, size).items():
                with Background(write(engine, size)) as writer, Background(read(engine, size)) as reader:
                    found: list[float] = []
                    begun = time.monotonic()
                    while len(found) < options.rounds or time.monotonic() < begun + LEAST_SECONDS:
                        found.append(milliseconds(operation))
                times.setdefault(name, {})[size] = statistics.median(found)
                say(
                    f"{size:>9,} {name:22} {times[name][size]:9.2f} ms; "
                    f"worst write {writer.worst_ms:.1f} ms, worst read {reader.worst_ms:.1f} ms"
                )
    if len(sizes) > 1:
        for name, by_size in times.items():
            slope = math.log(by_size[sizes[-1]] / by_size[sizes[0]]) / math.log(sizes[-1] / sizes[0])
            say(f"{name:22} exponent {slope:.2f}")


if __name__ == "__main__":
    main()
