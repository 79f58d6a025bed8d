"""What `benchmarks.compare` measures, in turns of a few seconds. It uses nothing that an older checkout may lack.

Runs in a process of either checkout, whose code it imports, and answers each line of the standard input with the
measurements of a turn.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import faiss
import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import lfw
from benchmarks.plain import same_embedder_loop
from indexer.enrollment.sources import rows_of
from indexer.gallery.embeddings import FaceVectors
from indexer.settings import read_settings
from indexer.types import Gallery, Pick, Precision, Tier
from indexer.vectors.base import Header
from indexer.vectors.engines import FaissEngine
from search_service.calibration.thresholds import Thresholds
from search_service.evaluation.protocol import Protocol
from search_service.evaluation.run import evaluate
from search_service.search import Query, SearchService
from search_service.service_context import ServiceContext
from tests.search_service.api.serving import logged_url

PROBES, PHOTOS = 20, 96
"""Photos searched, and enrolled, in one turn."""

SECONDS, CALLERS, WORKERS = 4.0, 8, 2
"""Of one turn of the service."""

QUERIES, BATCH, TOP = 100, 256, 10
"""Queries of a vector index in one turn, one by one and at once, each for so many identities."""

Values = Mapping[str, float]
"""The measurements of one turn, by name."""


@dataclass(frozen=True)
class Task:
    """The photos, as `benchmarks.lfw` reads them, and an .npz with a synthetic gallery: `faces` (N, 512), `identities`
    (N,), mated `probes` (Q, 512) and their identities, `right` (Q,)."""

    folder: Path
    vectors: Path


def search(task: Task) -> Generator[Values]:
    """Searches one photo after the other in the process."""
    shots = lfw.list_shots(task.folder)
    probes = itertools.cycle([own[1].path.read_bytes() for own in lfw.by_person(shots).values() if len(own) > 1])
    with _context() as context:
        gallery = _enroll(context, lfw.enrolled(shots))
        service = SearchService(context, Thresholds(context))
        service.search([next(probes)], gallery, Query())
        service.settle()
        loop = same_embedder_loop(Precision.NATIVE)
        while True:
            some = list(itertools.islice(probes, PROBES))
            yield {
                "ms per search": _median_ms(lambda probe: service.search([probe], gallery, Query()), some),
                "ms per photo, plain loop": _median_ms(loop.describe, some),
            }


def enroll(task: Task) -> Generator[Values]:
    """Enrolls photos into a new gallery each time."""
    shots = lfw.list_shots(task.folder)[:PHOTOS]
    images = [shot.path.read_bytes() for shot in shots]
    loop = same_embedder_loop(Precision.NATIVE)
    with _context() as context:
        for number in itertools.count():
            begun = time.perf_counter()
            _enroll(context, shots, f"g{number}")
            middle = time.perf_counter()
            for image in images:
                loop.describe(image)
            if number:  # the networks are loaded
                yield {
                    "photos enrolled per second": PHOTOS / (middle - begun),
                    "photos per second, plain loop": PHOTOS / (time.perf_counter() - middle),
                }


def service(task: Task) -> Generator[Values]:
    """Searches over HTTP from CALLERS connections; memory is that of the largest worker."""
    shots = lfw.list_shots(task.folder)
    probes = [own[1].path.read_bytes() for own in lfw.by_person(shots).values() if len(own) > 1][:200]
    with _context() as context:
        _enroll(context, lfw.enrolled(shots))
        home = context.settings.home
        context.close()
        with _serving(home) as (url, process):
            idle = _largest_mib(process)
            while True:
                answered = _load(url, probes)
                yield {
                    "searches per second, service": answered / SECONDS,
                    "MiB of a worker, idle": idle,
                    "MiB of a worker, under load": _largest_mib(process),
                }


def vectors(task: Task) -> Generator[Values]:
    """Queries a compressed index by identity, on one thread and in batches on all cores. The scan alone finds as many
    rows as the index rescores."""
    with np.load(task.vectors) as file:
        faces, identities, probes, right = (file[name] for name in ("faces", "identities", "probes", "right"))
    flat = faiss.IndexFlatIP(faces.shape[1])
    flat.add(faces)
    exact = identities[flat.search(probes, 1)[1][:, 0]]
    del flat
    pages = [
        FaceVectors(np.arange(start, start + len(some)), identities[start : start + len(some)], some)
        for start, some in ((start, faces[start : start + 10_000]) for start in range(0, len(faces), 10_000))
    ]
    header = Header(1, "", "", faces.shape[1], 0, "", len(faces))
    with tempfile.TemporaryDirectory() as folder:
        index, _ = FaissEngine(Tier.COMPRESSED).build(Path(folder) / "index", header, lambda: iter(pages))
        found = np.array([hits[0].identity_id for hits in index.nearest_identities(probes, TOP)])
        recall = float((found == exact)[exact == right].mean())
        scan, rescored = index._scan, index.rescored  # type: ignore[attr-defined]
        one_by_one = itertools.cycle(np.split(probes, len(probes)))
        batch = np.resize(probes, (BATCH, probes.shape[1]))
        while True:
            some = list(itertools.islice(one_by_one, QUERIES))
            faiss.omp_set_num_threads(1)
            alone = _median_ms(lambda probe: scan.search(probe, rescored), some)
            whole = _median_ms(lambda probe: index.nearest_identities(probe, TOP), some)
            faiss.omp_set_num_threads(os.cpu_count() or 1)
            yield {
                "ms per query by identity": whole,
                "query by identity, times the scan alone": whole / alone,
                f"ms per {BATCH} queries at once": _median_ms(
                    lambda some: index.nearest_identities(some, TOP), [batch]
                ),
                "recall relative to exact search": recall,
            }


def imports(task: Task) -> Generator[Values]:
    """Imports a Parquet file into a new home, until the first search is answered."""
    with np.load(task.vectors) as file:
        faces, identities = file["faces"][:, :128], file["identities"]
    faces = np.ascontiguousarray(faces / np.linalg.norm(faces, axis=1, keepdims=True))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faces.parquet"
        column = pa.FixedSizeListArray.from_arrays(pa.array(faces.ravel()), 128)
        pq.write_table(pa.table({"external_id": [f"p{one}" for one in identities], "embedding": column}), path)
        while True:
            home = tempfile.mkdtemp(dir=folder)
            begun = time.perf_counter()
            subprocess.run(
                _whosthere("gallery", "import", "g", str(path), "--model", "sface", "--home", home),
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            with _context(Path(home)) as context:
                gallery = context.store.galleries.get("g")
                SearchService(context, Thresholds(context)).search_embedding(faces[0].tolist(), gallery, Query())
                yield {f"s to import {len(faces):,} faces and search": time.perf_counter() - begun}


def accuracy(task: Task) -> Generator[Values]:
    """Evaluates LFW with one enrolled photo per person. Same photos in both checkouts, so the results are paired."""
    with _context() as context:
        rows = rows_of([task.folder / "people"])
        found = evaluate(context, rows, Protocol(1, Pick.CENTER), None, False, lambda *_: None).metrics
    values = {"rank-1 error, %": 100 * (1 - found.rank_1.value)}
    for rate, calibrated in zip(found.rates, found.calibrated, strict=True):
        if rate.fnir is not None:
            values[f"FNIR at FPIR {rate.fpir:.1%}, %"] = 100 * rate.fnir.value
        values[f"FPIR observed for {rate.fpir:.1%}, %"] = 100 * calibrated.observed.value
    yield values


ROWS: Mapping[str, tuple[Callable[[Task], Generator[Values]], int]] = {
    "search": (search, 12),
    "enroll": (enroll, 6),
    "service": (service, 6),
    "vectors": (vectors, 8),
    "import": (imports, 2),
    "accuracy": (accuracy, 1),
}
"""Each row with the number of its rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("vectors", type=Path)
    options = parser.parse_args()
    measure, _ = ROWS[options.row]
    with closing(measure(Task(options.folder, options.vectors))) as turns:
        for _line in sys.stdin:
            print(json.dumps(next(turns)), flush=True)


@contextmanager
def _context(home: Path | None = None) -> Iterator[ServiceContext]:
    with tempfile.TemporaryDirectory() as folder:
        context = ServiceContext(read_settings({}, home=home or Path(folder)))
        try:
            yield context
        finally:
            context.close()


def _enroll(context: ServiceContext, shots: Sequence[lfw.Shot], name: str = "lfw") -> Gallery:
    gallery = context.open_gallery(name, "sface")
    for _ in context.enroller(gallery).enroll(rows_of([shot.path for shot in shots]), Pick.CENTER):
        pass
    return context.store.galleries.get(name)


def _median_ms(step: Callable[..., object], items: Sequence[object]) -> float:
    taken = []
    for item in items:
        begun = time.perf_counter()
        step(item)
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken)


def _whosthere(*arguments: str) -> list[str]:
    """Returns a command of the checkout that this process has imported."""
    return [sys.executable, "-c", "from search_service.cli import main; main()", *arguments]


@contextmanager
def _serving(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    log = home / "log"
    with log.open("wb") as file:
        command = _whosthere("serve", "--port", "0", "--workers", str(WORKERS), "--home", str(home))
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        url = logged_url(log)
        while _status(url) != 200:
            time.sleep(0.2)
        yield url, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def _status(url: str) -> int:
    to = http.client.HTTPConnection(urlsplit(url).netloc)
    try:
        to.request("GET", "/readyz")
        return to.getresponse().status
    except OSError:  # no worker listens yet
        return 0
    finally:
        to.close()


def _largest_mib(server: psutil.Process) -> float:
    return max(child.memory_info().rss for child in server.children(recursive=True)) / 2**20


def _load(url: str, probes: Sequence[bytes]) -> int:
    """Returns how many searches CALLERS connections finish within SECONDS."""
    end = time.perf_counter() + SECONDS
    counts = [0] * CALLERS
    requests = [httpx.Request("POST", url, files={"image": probe}) for probe in probes]
    bodies = [(request.read(), dict(request.headers)) for request in requests]

    def call(caller: int) -> None:
        to = http.client.HTTPConnection(urlsplit(url).netloc)
        for number in itertools.count(caller * len(probes) // CALLERS):
            to.request("POST", "/v1/galleries/lfw/search", *bodies[number % len(bodies)])
            answer = to.getresponse()
            answer.read()
            if time.perf_counter() > end:
                break
            counts[caller] += answer.status == 200
        to.close()

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


if __name__ == "__main__":
    main()
