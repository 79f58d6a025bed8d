"""Measures enrollment: photos per second compared with a plain OpenCV loop, and memory over a long run.

    python -m benchmarks.enroll [FOLDER]

Speed: the same photos go, in turns, through the whole program (read, decode, detect twice, embed mirrored crops, commit
to SQLite) and through plain loops that store nothing; the ratio is of medians. Memory: the resident size of `whosthere
enroll` over all photos, sampled while it runs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from benchmarks.lfw import RESULTS, Cell, Shot, arguments, list_shots, write_results
from benchmarks.plain import PlainLoop, opencv_loop, same_embedder_loop
from indexer.app_context import AppContext
from indexer.enrollment.sources import rows_of
from indexer.settings import read_settings
from indexer.types import Pick, Precision

PHOTOS = 640
ROUNDS = 5
SAMPLE_EVERY_SECONDS = 0.5
WARM_UP = 0.2
"""Share of a run after which memory should no longer grow."""


def main() -> None:
    shots = list_shots(arguments(__doc__).parse_args().folder)
    rows = speed(shots[:PHOTOS])
    rows += memory(shots)
    write_results(RESULTS / "enroll.csv", rows)


def speed(shots: Sequence[Shot]) -> list[dict[str, Cell]]:
    images = [shot.path.read_bytes() for shot in shots]
    ways: dict[str, Callable[[], object]] = {
        "whosthere enroll, default": lambda: _enroll(shots, Precision.NATIVE),
        "whosthere enroll, float32": lambda: _enroll(shots, Precision.FLOAT32),
        "plain loop, OpenCV": _plain(opencv_loop(), images),
        "plain loop, same embedder, float32": _plain(same_embedder_loop(Precision.FLOAT32), images),
        "plain loop, same embedder, native": _plain(same_embedder_loop(Precision.NATIVE), images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begun)
        print(f"round {number}/{ROUNDS}", file=sys.stderr, flush=True)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    ours = medians["whosthere enroll, default"]
    return [
        {
            "what": name,
            "photos_a_second": len(shots) / median,
            "ms_a_photo": 1000 * median / len(shots),
            "default_is_times_as_fast": median / ours,
        }
        for name, median in medians.items()
    ]


_contexts: dict[Precision, AppContext] = {}
_folder = tempfile.TemporaryDirectory()


def _enroll(shots: Sequence[Shot], precision: Precision) -> None:
    """Enrolls into a new gallery each time; the networks stay loaded, as in the plain loops."""
    if precision not in _contexts:
        _contexts[precision] = AppContext(read_settings({}, home=Path(_folder.name) / precision, precision=precision))
    context = _contexts[precision]
    gallery = context.open_gallery(f"g{time.monotonic_ns()}", "sface")
    for _ in context.enroller(gallery).enroll(rows_of([shot.path for shot in shots]), Pick.CENTER):
        pass


def _plain(loop: PlainLoop, images: Sequence[bytes]) -> Callable[[], object]:
    return lambda: [loop.describe(image) for image in images]


def memory(shots: Sequence[Shot]) -> list[dict[str, Cell]]:
    """Returns the resident MiB of the command after its start, at its end, and at most."""
    whosthere = Path(sys.executable).parent / "whosthere"
    people = shots[0].path.parent.parent
    with tempfile.TemporaryDirectory() as folder:
        command = [str(whosthere), "enroll", str(people), "--gallery", "all", "--pick", "center", "--home", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        watched = psutil.Process(process.pid)
        samples = []
        while process.poll() is None:
            try:
                samples.append(watched.memory_info().rss / 2**20)
            except psutil.Error:
                break
            time.sleep(SAMPLE_EVERY_SECONDS)
        process.wait()
    early = samples[int(len(samples) * WARM_UP)]
    return [
        {"what": "photos in the long run", "value": len(shots)},
        {"what": f"MiB resident after {WARM_UP:.0%} of it", "value": early},
        {"what": "MiB resident at its end", "value": samples[-2]},
        {"what": "MiB resident at most", "value": max(samples)},
    ]


if __name__ == "__main__":
    main()
