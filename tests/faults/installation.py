"""An installation that tests damage: its home folder, database and processes, and checks of its data afterwards."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
"""What each worker of a service logs when it is ready."""


@dataclass(frozen=True)
class Installation:
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
        """Runs a service that is ready and has the gallery `staff`; it is killed at the end if it still runs."""
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
        """Creates galleries of synthetic people `p0`, `p1`, ... with one face each, the one of `embedding(number)`.

        Returns, for each gallery, the people by their faces' ids.
        """
        context = self.context()
        filled = {}
        for name, count in galleries.items():
            pack = context.pack
            gallery = context.store.galleries.create(name, pack.name, pack.fingerprint, pack.dim)
            new = [new_face(f"p{n}", n, embedding=embedding(n)) for n in range(count)]
            enrolled = context.store.faces.enroll(gallery, new)
            assert {one.outcome for one in enrolled} == {Outcome.ENROLLED}
            filled[name] = {int(one.face_id or 0): f"p{n}" for n, one in enumerate(enrolled)}
        context.close()
        return filled

    def context(self) -> ServiceContext:
        return ServiceContext(read_settings(SETTINGS, home=self.home, database_url=self.database_url))


def embedding(number: int) -> Any:
    """Returns the embedding of the synthetic person of that number, (128,) float32."""
    return vector(number, 128)


def faces(client: httpx.Client) -> dict[int, str]:
    """Returns `gallery/external_id` of every face in the service, by face id."""
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
def checked(
    installation: Installation, kept: Mapping[int, str], deleted: Collection[int] = ()
) -> Iterator[httpx.Client]:
    """Starts the service and checks that acknowledged faces exist and deleted ones do not.

    After the block, which can send more requests, it stops the service and checks that `doctor` finds no problem.

    Args:
        installation: The installation.
        kept: `gallery/external_id` of each enrolled face, by face id.
        deleted: Ids of the deleted faces.
    """
    with installation.serving() as serve:
        found = faces(serve.client)
        assert kept.items() <= found.items()
        assert not set(deleted) & found.keys()
        yield serve.client
        serve.end()
    code, findings = installation.command("doctor")
    assert code == 0, [finding for finding in findings if not finding["ok"]]


def check(installation: Installation, kept: Mapping[int, str]) -> None:
    with checked(installation, kept):
        pass


def owners(enrolled: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Returns `staff/external_id` of faces enrolled into `staff`, by face id."""
    return {one["face_id"]: f"staff/{one['external_id']}" for one in enrolled}


NewInstallation = Callable[[str], Installation]

Photo = Callable[[int], tuple[str, bytes]]
"""Returns the person in the photo of that number, and the file."""

SendRequest = Callable[[httpx.Client, int], httpx.Response]
"""Sends the request of that number."""


class Callers:
    """Threads that send numbered requests, each number once, until they are stopped.

    Each has a connection, and opens another one when it is lost. `answered` contains the answers by number. Whether an
    unanswered request was executed is unknown.
    """

    def __init__(self, url: str, send: SendRequest, count: int = 4, most: int | None = None) -> None:
        self._url = url
        self._send = send
        self._numbers = iter(range(most)) if most is not None else itertools.count()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.sent: set[int] = set()
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
        """Waits until so many more answers with these statuses have arrived."""
        enough = self.count(*statuses) + many
        try:
            wait_for(
                lambda: self.count(*statuses) >= enough or bool(self.problems), f"{many} more answers of {statuses}"
            )
        except AssertionError as error:
            arrived = Counter(answer.status_code for answer in self.answered.copy().values())
            raise AssertionError(
                f"{error}; these arrived: {dict(arrived)}, {self.lost} connections were lost"
            ) from None
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
        """Returns the bodies of the answers with that status, by number."""
        return {n: answer.json() for n, answer in self.answered.items() if answer.status_code == status}

    def _check(self) -> None:
        if self.problems:
            raise self.problems[0]

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                with suppress(httpx.TransportError), httpx.Client(base_url=self._url, timeout=DEADLINE) as client:
                    self._send_all(client)
                    continue
                self.lost += 1
                self._stopping.wait(0.05)  # while the service is down
        except Exception as error:
            self.problems.append(error)

    def _send_all(self, client: httpx.Client) -> None:
        while not self._stopping.is_set():
            with self._lock:
                number = next(self._numbers, None)
                if number is None:
                    self._stopping.set()
                    return
                self.sent.add(number)
            answer = self._send(client, number)
            with self._lock:
                self.answered[number] = answer


@contextmanager
def calling(url: str, send: SendRequest, count: int = 4, most: int | None = None) -> Iterator[Callers]:
    callers = Callers(url, send, count, most)
    try:
        yield callers
    finally:
        callers.stop()
