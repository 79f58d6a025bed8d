"""Measures searches: milliseconds from a probe's bytes to the answer, compared with a plain OpenCV loop.

    python -m benchmarks.search_latency [FOLDER]

One probe at a time, in turns: SearchService (decode, detect twice, embed mirrored crops, index, SQL, decision), the
same over HTTP on loopback, and plain loops with a NumPy inner product. Medians; ratios are to the first row.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from benchmarks.lfw import RESULTS, Cell, arguments, by_person, enrolled, list_shots, write_results
from benchmarks.plain import PlainGallery, PlainLoop, opencv_loop, same_embedder_loop
from indexer.app_context import AppContext
from indexer.enrollment.sources import rows_of
from indexer.settings import read_settings
from indexer.types import Pick, Precision
from search_service.calibration.thresholds import Thresholds
from search_service.search import Query, SearchService
from tests.search_service.api.serving import WHOSTHERE, logged_url

PROBES = 200
START_SECONDS = 60.0


def main() -> None:
    shots = list_shots(arguments(__doc__).parse_args().folder)
    gallery_shots = enrolled(shots)
    probes = [photos[1].path.read_bytes() for photos in by_person(shots).values() if len(photos) > 1][:PROBES]
    with tempfile.TemporaryDirectory() as folder:
        context = AppContext(read_settings({}, home=Path(folder)))
        gallery = context.open_gallery("lfw", "sface")
        for _ in context.enroller(gallery).enroll(rows_of([shot.path for shot in gallery_shots]), Pick.CENTER):
            pass
        index = context.indexes.get(gallery)
        faces = index.state().faces
        index.save()
        service, query = SearchService(context, Thresholds(context)), Query()
        server, url = _serve(Path(folder))
        with httpx.Client() as client:
            ways: dict[str, Callable[[bytes], object]] = {
                "SearchService": lambda probe: service.search([probe], gallery, query),
                "over HTTP": lambda probe: client.post(
                    f"{url}/v1/galleries/lfw/search", files={"image": probe}
                ).raise_for_status(),
                "plain loop, OpenCV": _plain(opencv_loop(), faces),
                "plain loop, same embedder, float32": _plain(same_embedder_loop(Precision.FLOAT32), faces),
                "plain loop, same embedder, native": _plain(same_embedder_loop(Precision.NATIVE), faces),
            }
            rows = _time(ways, probes, faces)
        server.terminate()
        server.wait()
        context.close()
    write_results(RESULTS / "search_latency.csv", rows)


def _time(ways: dict[str, Callable[[bytes], object]], probes: list[bytes], faces: int) -> list[dict[str, Cell]]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number, probe in enumerate([*probes[:10], *probes]):
        for name, way in ways.items():
            begun = time.perf_counter()
            way(probe)
            if number >= 10:  # the first ten warm up
                taken[name].append(1000 * (time.perf_counter() - begun))
    ours = statistics.median(taken["SearchService"])
    return [
        {
            "what": name,
            "faces_enrolled": faces,
            "median_ms": statistics.median(times),
            "p95_ms": float(np.percentile(times, 95)),
            "of_SearchService": statistics.median(times) / ours,
        }
        for name, times in taken.items()
    ]


def _plain(loop: PlainLoop, faces: int) -> Callable[[bytes], object]:
    """The plain loop with as many random embeddings as are enrolled; the inner product takes as long with any."""
    rng = np.random.default_rng(0)
    gallery = PlainGallery(rng.standard_normal((faces, 128)).astype(np.float32))

    def search(probe: bytes) -> int | None:
        vector = loop.describe(probe)
        return None if vector is None else gallery.best(vector)

    return search


def _serve(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts a server on a free port and waits until it is ready."""
    log = home / "log"
    with log.open("wb") as file:
        command = [WHOSTHERE, "serve", "--port", "0", "--home", str(home)]
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    url = logged_url(log)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if httpx.get(f"{url}/readyz").status_code == 200:
            return server, url
        time.sleep(0.1)
    server.kill()
    raise SystemExit("the server did not get ready")


if __name__ == "__main__":
    main()
