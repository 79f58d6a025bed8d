"""Measures the service under load: searches, enrollments and deletions over HTTP on loopback, and lost changes.

    python -m benchmarks.load [FOLDER] [--seconds 20]

`whosthere serve --workers 2` runs with SQLite and with PostgreSQL, both durable across a power failure. Of 20 requests,
18 search, one enrolls a photo of a new person and one deletes an enrolled person. First, CLIENTS connections send
requests as fast as they are answered (throughput). Then requests arrive at LOAD of that rate at random moments (a
Poisson process); a request's time starts when it is due, even while all connections are busy.

The packs are `sface`, and IR-50 with random weights, which do not change its speed, with the same detector.

The same run measures the limits of the machine: the networks alone (decode, detect twice, align, embed) in as many
processes, without HTTP, index or database, and the embedder alone on aligned crops.

Afterwards, everyone who was enrolled and not deleted must be found, nobody who was deleted, `doctor` must report no
problem, and every request must have been answered once, with its own id.

Writes benchmarks/results/load.csv.
"""

from __future__ import annotations

import http.client
import itertools
import json
import multiprocessing
import os
import queue
import random
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch

from benchmarks.lfw import RESULTS, Cell, Shot, arguments, by_person, enrolled, list_shots, say, write_results
from indexer.enrollment.sources import rows_of
from indexer.models.architectures.iresnet import iresnet50
from indexer.settings import read_settings
from indexer.types import Pick
from search_service.service_context import ServiceContext
from tests.indexer.vision import golden
from tests.postgres import Postgres
from tests.search_service.api.serving import ENVIRONMENT, WHOSTHERE, logged_url

WORKERS = 2
CLIENTS = (1, 8, 64)
LOAD = 0.7
"""Share of the throughput at which latencies are measured: a service with deadlines is not run at its limit."""
ENROLLMENTS, DELETIONS, ALL = 1, 1, 20
PATIENCE = 120.0
RANDOM = "ir50-random"
AT_ONCE = 16
"""Photos in one batch of the networks alone."""


@dataclass
class Ledger:
    """The acknowledged changes. Thread-safe."""

    spare: queue.Queue[tuple[str, bytes]]
    """People to enroll, with a photo."""
    enrolled: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def somebody(self) -> str | None:
        """Takes an enrolled person to delete, so that no other client deletes the same one."""
        with self.lock:
            return self.enrolled.pop() if self.enrolled else None


@dataclass(frozen=True)
class Timed:
    what: str
    seconds: float


class Client:
    """One connection. Not thread-safe."""

    def __init__(self, url: str, gallery: str, probes: Sequence[bytes], ledger: Ledger, seed: int) -> None:
        self._to = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
        self._gallery = f"/v1/galleries/{gallery}"
        self._probes = probes
        self._ledger = ledger
        self._random = random.Random(seed)

    def send_next(self) -> str:
        """Sends one request of the mixture and returns its kind."""
        what = self._random.randrange(ALL)
        if what < ENROLLMENTS and not self._ledger.spare.empty():
            return self._enroll()
        if what < ENROLLMENTS + DELETIONS and (somebody := self._ledger.somebody()) is not None:
            return self._delete(somebody)
        status, answer = self._send("POST", f"{self._gallery}/search", self._random.choice(self._probes))
        if status == 200 and not answer["faces"]:
            self._ledger.wrong.append(f"a search was answered without faces: {answer}")
        return self._count("search", status)

    def _enroll(self) -> str:
        try:
            who, photo = self._ledger.spare.get_nowait()
        except queue.Empty:
            return self.send_next()
        status, _ = self._send("POST", f"{self._gallery}/identities/{who}/faces", photo)
        with self._ledger.lock:
            if status == 201:
                self._ledger.enrolled.add(who)
        return self._count("enroll", status)

    def _delete(self, who: str) -> str:
        status, _ = self._send("DELETE", f"{self._gallery}/identities/{who}")
        with self._ledger.lock:
            (self._ledger.deleted if status == 200 else self._ledger.enrolled).add(who)
        return self._count("delete", status)

    def _count(self, what: str, status: int) -> str:
        with self._ledger.lock:
            self._ledger.statuses[what, status] += 1
        return what

    def _send(self, method: str, path: str, photo: bytes | None = None) -> tuple[int, dict[str, object]]:
        request_id = uuid.uuid4().hex
        headers = {"X-Request-ID": request_id}
        body = None
        if photo is not None:
            headers["Content-Type"] = f"multipart/form-data; boundary={request_id}"
            head = f'--{request_id}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n\r\n'
            body = head.encode() + photo + f"\r\n--{request_id}--\r\n".encode()
        self._to.request(method, path, body, headers)
        answer = self._to.getresponse()
        data = answer.read()
        if answer.headers.get_all("X-Request-ID") != [request_id]:
            self._ledger.wrong.append(f"{method} {path} was answered with another request's id")
        return answer.status, json.loads(data)

    def close(self) -> None:
        self._to.close()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="Of each measurement.")
    options = parser.parse_args()
    shots = list_shots(options.folder)
    people = by_person(shots)
    probes = [photos[1].path.read_bytes() for photos in people.values() if len(photos) > 1][:200]
    strangers = [(name, photos[0].path.read_bytes()) for name, photos in people.items() if len(photos) == 1]
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory() as folder, _postgres(Path(folder)) as server:
        models = Path(folder) / "models"
        _add_random_pack(Path(folder))
        for pack in ("sface", RANDOM):
            limits = _limits(models, pack, probes, options.seconds)
            rows += [{"what": f"{pack}, {what}", "requests_a_second": rate} for what, rate in limits.items()]
            for what, url in (("SQLite", ""), ("PostgreSQL", server.empty())):
                home = Path(folder) / f"{what}-{pack}"
                home.mkdir()
                (home / "models").symlink_to(models)
                _enroll(home, url, pack, enrolled(shots))
                rows += _measure(f"{pack}, {what}", home, url, probes, strangers, options.seconds, limits)
    write_results(RESULTS / "load.csv", rows)


def _measure(
    what: str,
    home: Path,
    url: str,
    probes: Sequence[bytes],
    strangers: Sequence[tuple[str, bytes]],
    seconds: float,
    limits: dict[str, float],
) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    spare: queue.Queue[tuple[str, bytes]] = queue.Queue()
    for i, (_, photo) in enumerate(strangers):
        spare.put((f"new-{i}", photo))
    ledger = Ledger(spare)
    with _serving(home, url) as address:
        _load(address, probes, ledger, 8, seconds / 4)  # which loads what is loaded lazily
        for clients in CLIENTS:
            closed = _load(address, probes, ledger, clients, seconds)
            rate = len(closed) / seconds
            times = _load(address, probes, ledger, clients, seconds, LOAD * rate)
            say(f"{what}, {clients} clients: {rate:.1f} requests a second")
            row: dict[str, Cell] = {"what": what, "clients": clients, "requests_a_second": rate}
            row |= {f"of_{name.replace(' ', '_')}": rate / limit for name, limit in limits.items()}
            for kind in ("search", "enroll", "delete"):
                some = [1000 * t.seconds for t in times if t.what == kind]
                if some:
                    row[f"{kind}_p50_ms"] = statistics.median(some)
                    row[f"{kind}_p99_ms"] = float(np.percentile(some, 99))
            rows.append(row)
        failed = {f"{kind} {status}": n for (kind, status), n in ledger.statuses.items() if status not in (200, 201)}
        lost = _lost(address, ledger)
    environment = ENVIRONMENT | ({"WHOSTHERE_DATABASE_URL": url} if url else {})
    doctor = subprocess.run([WHOSTHERE, "doctor", "--home", str(home)], env=environment, check=False).returncode
    say(f"{what}: {sum(ledger.statuses.values())} requests, failed: {failed or 'none'}; lost: {lost or 'nothing'}")
    rows.append(
        {
            "what": f"{what}, afterwards",
            "requests": sum(ledger.statuses.values()),
            "refused": sum(failed.values()),
            "lost_or_twice": len(lost) + len(ledger.wrong),
            "doctor": doctor,
        }
    )
    for wrong in (*lost, *ledger.wrong)[:20]:
        say(wrong)
    return rows


def _load(
    url: str, probes: Sequence[bytes], ledger: Ledger, clients: int, seconds: float, rate: float | None = None
) -> list[Timed]:
    """Returns the answers within `seconds`: each client sends when answered, or all send `rate` requests per second."""
    begin = time.perf_counter() + 0.2
    due = _moments(begin, seconds, rate) if rate else itertools.repeat(begin)
    lock = threading.Lock()
    done: list[Timed] = []

    def work(seed: int) -> None:
        client = Client(url, "lfw", probes, ledger, seed)
        try:
            while True:
                with lock:
                    at = next(due, None)
                if at is None or time.perf_counter() > begin + (seconds if rate is None else 3 * seconds):
                    return
                time.sleep(max(0.0, at - time.perf_counter()))
                sent = time.perf_counter()
                what = client.send_next()
                now = time.perf_counter()
                if rate is not None or now < begin + seconds:
                    done.append(Timed(what, now - (at if rate is not None else sent)))
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(1000 * clients + i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def _moments(begin: float, seconds: float, rate: float) -> Iterator[float]:
    clock = random.Random(0)
    at = begin
    while (at := at + clock.expovariate(rate)) < begin + seconds:
        yield at


def _lost(url: str, ledger: Ledger) -> list[str]:
    """Returns the acknowledged changes that were lost."""
    to = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    faces: dict[str, int] = {}
    cursor = ""
    while True:
        to.request("GET", f"/v1/galleries/lfw/identities?limit=1000{cursor}")
        page = json.loads(to.getresponse().read())
        faces |= {one["external_id"]: one["faces"] for one in page["identities"]}
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    to.close()
    lost = [f"{who} was enrolled and has {faces.get(who, 0)} faces" for who in ledger.enrolled if faces.get(who) != 1]
    return lost + [f"{who} was deleted and still exists" for who in ledger.deleted if who in faces]


def _limits(models: Path, pack: str, probes: Sequence[bytes], seconds: float) -> dict[str, float]:
    """Returns the images per second of as many processes as workers, each with its share of the cores."""
    rates = {}
    for what in ("networks alone", "embedder alone"):
        context = multiprocessing.get_context("spawn")
        with context.Pool(WORKERS) as pool:
            calls = [(what, models, pack, probes, seconds)] * WORKERS
            rates[what] = sum(pool.starmap(_compute, calls, chunksize=1))
        say(f"{what}: {rates[what]:.1f} a second")
    return rates


def _compute(what: str, models: Path, pack: str, probes: Sequence[bytes], seconds: float) -> float:
    cores = max(1, len(os.sched_getaffinity(0)) // WORKERS)
    settings = read_settings({}, home=models.parent, threads=cores)
    pipeline = ServiceContext(settings).pipeline(ServiceContext(settings).packs.find(pack))
    batch = list(itertools.islice(itertools.cycle(probes), AT_ONCE))
    crops = [face.crop for seen in pipeline.describe(batch, Pick.LARGEST) for face in seen.faces[:1]]
    views = np.stack([np.stack([crop] * len(pipeline.pack.zooms)) for crop in crops if crop is not None])
    _, embedder = pipeline._load()
    done, begun = 0, time.perf_counter()
    while time.perf_counter() < begun + seconds:
        if what == "embedder alone":
            embedder.embed_views(views)
        else:
            start = done % len(probes)
            pipeline.describe((list(probes[start:]) + list(probes))[:AT_ONCE], Pick.LARGEST)
        done += AT_ONCE
    return done / (time.perf_counter() - begun)


def _add_random_pack(home: Path) -> None:
    """Adds a pack of IR-50 with random weights and the detector of `sface`."""
    file = home / "random.pth"
    torch.save(golden.fill(iresnet50()).state_dict(), file)
    networks = ["--embedder", str(file), "--embedder-network", "iresnet50", "--detector", "sface"]
    command = [WHOSTHERE, "models", "add", RANDOM, *networks, "--home", str(home)]
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)


def _enroll(home: Path, url: str, pack: str, shots: Sequence[Shot]) -> None:
    context = ServiceContext(read_settings({}, home=home, lookalikes="off", **({"database_url": url} if url else {})))
    gallery = context.open_gallery("lfw", pack)
    for _ in context.enroller(gallery).enroll(rows_of([shot.path for shot in shots]), Pick.CENTER):
        pass
    context.close()


@contextmanager
def _serving(home: Path, url: str) -> Iterator[str]:
    environment = ENVIRONMENT | ({"WHOSTHERE_DATABASE_URL": url} if url else {})
    environment |= {"WHOSTHERE_LOOKALIKES": "off"}  # with random weights, all faces look alike
    log = home / "log"
    with log.open("wb") as file:
        serve = subprocess.Popen(
            [WHOSTHERE, "serve", "--port", "0", "--workers", str(WORKERS), "--home", str(home)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        address = logged_url(log)
        _until_ready(address)
        yield address
    finally:
        serve.terminate()
        serve.wait(PATIENCE)


def _until_ready(url: str) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        to = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
        with suppress(ConnectionRefusedError):  # before the first worker listens
            to.request("GET", "/readyz")
            if to.getresponse().status == 200:
                return
        time.sleep(0.2)
    raise SystemExit("the service does not become ready")


@contextmanager
def _postgres(folder: Path) -> Iterator[Postgres]:
    (folder / "postgres").mkdir()
    server = Postgres(folder / "postgres")
    server.start()
    for safe in ("fsync", "synchronous_commit", "full_page_writes"):
        server.run(f"ALTER SYSTEM SET {safe} = on")
    server.run("SELECT pg_reload_conf()")
    try:
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    main()
