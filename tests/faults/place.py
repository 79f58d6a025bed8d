"""One installation that is hurt: its home, its database, the processes over it; and what must hold of it after."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from indexer.settings import read_settings
from indexer.types import Outcome
from search_service.service_context import ServiceContext
from tests.indexer.gallery.faces import new_face, vector
from tests.search_service.api.serving import WHOSTHERE, Serve, command, ok
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for

STAFF = "/v1/galleries/staff"

STARTED = "Application startup complete"
"""What each worker of a service logs."""


@dataclass(frozen=True)
class Place:
    home: Path
    database_url: str
    logs: Iterator[Path]

    @property
    def environment(self) -> dict[str, str]:
        return {"WHOSTHERE_DATABASE_URL": self.database_url}

    @contextmanager
    def serving(
        self, *, workers: int = 1, program: Sequence[str] = (WHOSTHERE,), **environment: str
    ) -> Iterator[Serve]:
        """A service that is ready, with the gallery `staff`; killed at the end where it still runs."""
        several = ("--workers", str(workers)) if workers > 1 else ()
        environment |= self.environment
        serve = Serve(self.home, next(self.logs), *several, program=program, **environment)
        try:
            wait_for(lambda: serve.log().count(STARTED) == workers, "every worker has started")
            serve.ready()
            if serve.client.get(STAFF).status_code == 404:
                ok(serve.client.post("/v1/galleries", json={"name": "staff"}), 201)
            yield serve
        finally:
            serve.process.kill()
            serve.process.wait(DEADLINE)
            serve.client.close()

    def command(self, *arguments: str | Path) -> tuple[int, Any]:
        return command(self.home, *arguments, **self.environment)

    def fill(self, galleries: Mapping[str, int]) -> dict[str, dict[int, str]]:
        """Makes galleries of so many made-up people, a face each: of each gallery, the people by their faces' ids,
        which `embedding` knows."""
        home = ServiceContext(read_settings(SETTINGS, home=self.home, database_url=self.database_url))
        filled = {}
        for name, count in galleries.items():
            gallery = home.store.galleries.create(name, home.pack.name, home.pack.fingerprint, home.pack.dim)
            new = [new_face(f"p{n}", n, embedding=embedding(n)) for n in range(count)]
            enrolled = home.store.faces.enroll(gallery, new)
            assert {one.outcome for one in enrolled} == {Outcome.ENROLLED}
            filled[name] = {int(one.face_id or 0): f"p{n}" for n, one in enumerate(enrolled)}
        home.close()
        return filled


def embedding(number: int) -> Any:
    """Returns the embedding of the invented person of that number."""
    return vector(number, 128)


def faces(client: httpx.Client) -> dict[int, str]:
    """Everything that the service knows: `gallery/external_id` of each face."""
    found = {}
    for gallery in pages(client, "/v1/galleries", "galleries"):
        path = f"/v1/galleries/{gallery['name']}"
        for person in pages(client, f"{path}/identities", "identities"):
            for face in pages(client, f"{path}/identities/{person['external_id']}/faces", "faces"):
                found[int(face["face_id"])] = f"{gallery['name']}/{person['external_id']}"
    return found


def pages(client: httpx.Client, path: str, name: str) -> Iterator[Any]:
    cursor = None
    while True:
        page = ok(client.get(path, params={"limit": 1000} | ({"cursor": cursor} if cursor else {})))
        yield from page[name]
        cursor = page["cursor"]
        if cursor is None:
            return


@contextmanager
def checked(place: Place, kept: Mapping[int, str], gone: Collection[int] = ()) -> Iterator[httpx.Client]:
    """Starts the service anew: what was acknowledged is there, what was deleted is gone. After the block, in which
    more may be asked of it, it is ended, and `doctor` finds nothing.

    `kept` says whose each face is that was enrolled (`gallery/external_id`), `gone` which were deleted.
    """
    with place.serving() as serve:
        there = faces(serve.client)
        assert kept.items() <= there.items()
        assert not set(gone) & there.keys()
        yield serve.client
        serve.end()
    code, findings = place.command("doctor")
    assert code == 0, [finding for finding in findings if not finding["ok"]]


def check(place: Place, kept: Mapping[int, str], gone: Collection[int] = ()) -> None:
    with checked(place, kept, gone):
        pass


Photo = Callable[[int], tuple[str, bytes]]
"""Whom the photo of that number shows, and the file."""

Ask = Callable[[httpx.Client, int], httpx.Response]
"""Sends the request of that number."""


class Callers:
    """Threads that ask one thing after the other, each number once, until they are told to stop; each over a
    connection of its own, a new one after it was lost. `answered` holds every answer by its number; a number without
    one was asked in vain, and whether it was done is not known."""

    def __init__(self, url: str, ask: Ask, count: int = 4, most: int | None = None) -> None:
        self._url = url
        self._ask = ask
        self._numbers = iter(range(most)) if most is not None else itertools.count()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.asked: set[int] = set()
        self.answered: dict[int, httpx.Response] = {}
        self.lost = 0
        self.problems: list[Exception] = []
        self._threads = [threading.Thread(target=self._run, name=f"caller-{n}") for n in range(count)]
        for thread in self._threads:
            thread.start()

    def count(self, *statuses: int) -> int:
        with self._lock:
            return sum(answer.status_code in statuses for answer in self.answered.values())

    def wait(self, many: int, *statuses: int) -> None:
        """Until so many more of these answers have come."""
        enough = self.count(*statuses) + many
        try:
            wait_for(
                lambda: self.count(*statuses) >= enough or bool(self.problems), f"{many} more answers of {statuses}"
            )
        except AssertionError as error:
            came = Counter(answer.status_code for answer in self.answered.copy().values())
            raise AssertionError(f"{error}; these came: {dict(came)}, {self.lost} connections were lost") from None
        self._check()

    def statuses(self) -> set[int]:
        return {answer.status_code for answer in self.answered.values()}

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        self._check()

    def bodies(self, status: int) -> dict[int, Any]:
        """Of the answers of that status, by number."""
        return {n: answer.json() for n, answer in self.answered.items() if answer.status_code == status}

    def _check(self) -> None:
        if self.problems:
            raise self.problems[0]

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                with suppress(httpx.TransportError), httpx.Client(base_url=self._url, timeout=DEADLINE) as client:
                    self._ask_on(client)
                    continue
                self.lost += 1
                self._stopping.wait(0.05)  # while the service is down
        except Exception as error:
            self.problems.append(error)

    def _ask_on(self, client: httpx.Client) -> None:
        while not self._stopping.is_set():
            with self._lock:
                number = next(self._numbers, None)
                if number is None:
                    self._stopping.set()
                    return
                self.asked.add(number)
            answer = self._ask(client, number)
            with self._lock:
                self.answered[number] = answer


@contextmanager
def calling(url: str, ask: Ask, count: int = 4, most: int | None = None) -> Iterator[Callers]:
    callers = Callers(url, ask, count, most)
    try:
        yield callers
    finally:
        callers.stop()
