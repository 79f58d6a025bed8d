"""Measures the networks of the `sface` pack on each runtime, and the effect of the CPU's native precision.

    python -m benchmarks.runtime [FOLDER]

Times YuNet on 160 x 160 and 320 x 320 pixels (first and second pass) and SFace on 112 x 112, at batches of 1, 4 and 16,
with one thread, as in each stream of an enrollment, and with one for each core, as in the service. The runtimes take
turns of a few calls, so that other load affects all of them; the median counts. A pause before each turn, and a first
call that does not count, let the other runtime's threads stop busy-waiting.

At the second pass only YuNet's coarsest stride is computed ("coarsest"). The number of second passes whose most
confident detection is at that stride is counted over the whole folder.

Embeddings in native precision are compared with those in float32 on faces of an LFW folder. Writes
benchmarks/results/runtime.csv.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import lfw
from benchmarks.lfw import Cell
from indexer.models import onnx_prepare
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Detection, Pick, Precision
from indexer.vision import runtime
from indexer.vision.detectors.yunet import YuNet
from indexer.vision.pipeline import Options
from indexer.vision.runtime import Preprocessing, Session, Threads

BASE = ("onnxruntime", Precision.FLOAT32)
WAYS = (("openvino", Precision.FLOAT32), ("openvino", Precision.NATIVE), BASE)
BATCHES = (1, 4, 16)
ROUNDS = 10
CALLS = 4
"""Measured calls in each turn."""
PAUSE_SECONDS = 0.05
WARM_UP = 3
FACES = 200


def median_ms(calls: list[Callable[[], object]]) -> list[float]:
    """Returns the median time of each call, measured in turns for ROUNDS rounds."""
    for call in calls:
        for _ in range(WARM_UP):
            call()
    times = np.empty((ROUNDS, len(calls), CALLS))
    for row in times:
        for turn, call in zip(row, calls, strict=True):
            time.sleep(PAUSE_SECONDS)
            call()
            for index in range(CALLS):
                begun = time.perf_counter()
                call()
                turn[index] = 1000 * (time.perf_counter() - begun)
    return [float(value) for value in np.median(times, axis=(0, 2))]


def time_network(name: str, model: bytes, feed: Preprocessing, side: int, threads: Threads) -> list[dict[str, Cell]]:
    """Measures each runtime and batch on noise; the time does not depend on the image."""
    installed = runtime.engines()
    ways = [way for way in WAYS if way[0] in installed]
    sessions = [runtime.load(model, feed, precision, threads, engine) for engine, precision in ways]
    rows: list[dict[str, Cell]] = []
    for batch in BATCHES:
        noise = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
        times = median_ms([_call(session, noise) for session in sessions])
        base = times[ways.index(BASE)]
        for (engine, precision), taken in zip(ways, times, strict=True):
            rows.append(
                {
                    "what": f"{name} {side} x {side}",
                    "threads": threads.threads_per_stream,
                    "runtime": engine,
                    "precision": str(precision),
                    "batch": batch,
                    "ms_a_batch": taken,
                    "ms_an_image": taken / batch,
                    "of_onnxruntime": taken / base,
                }
            )
        print(f"{name}, batch {batch}: done", file=sys.stderr, flush=True)
    return rows


def _call(session: Session, batch: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: session.run(batch)


def compare_precisions(folder: Path) -> list[dict[str, Cell]]:
    """Returns the cosines between embeddings of the same faces in native precision and in float32, whole pipeline."""
    shots = lfw.list_shots(folder)
    shots = shots[:: max(1, len(shots) // FACES)][:FACES]
    exact, native = (
        lfw.embed(lfw.load_pipeline(SFACE, Options(precision=precision)), shots)
        for precision in (Precision.FLOAT32, Precision.NATIVE)
    )
    cosines = (exact.vectors * native.vectors).sum(1)
    scores = np.abs(exact.vectors @ exact.vectors.T - native.vectors @ native.vectors.T)
    return [
        {"what": f"cosine native to float32, {len(cosines)} faces, mean", "value": float(cosines.mean())},
        {"what": f"cosine native to float32, {len(cosines)} faces, min", "value": float(cosines.min())},
        {"what": "change of a score between two faces, mean", "value": float(scores.mean())},
        {"what": "change of a score between two faces, max", "value": float(scores.max())},
    ]


def count_strides(folder: Path) -> list[dict[str, Cell]]:
    """Counts the second passes at the central faces of all photos, upright and mirrored, and those that find the face
    only at another stride than the coarsest, or with more confidence there."""
    pipeline = lfw.load_pipeline(SFACE)
    detector, _ = pipeline._load()
    looks: list[NDArray[np.uint8]] = []
    detect = detector.detect_large

    def watched(canvases: NDArray[np.uint8]) -> list[list[Detection]]:
        looks.append(canvases)
        return detect(canvases)

    detector.detect_large = watched  # type: ignore[method-assign]
    count = finer = 0
    shots = lfw.list_shots(folder)
    for start in range(0, len(shots), lfw.BATCH):
        looks.clear()
        pipeline.detect([shot.path.read_bytes() for shot in shots[start : start + lfw.BATCH]], Pick.CENTER)
        for canvases in looks:
            count += len(canvases)
            pairs = zip(detect(canvases), detector.detect(canvases), strict=True)
            finer += sum(
                max((f.score for f in every), default=0) > max((f.score for f in some), default=0) + 1e-4
                for some, every in pairs
            )
    return [
        {"what": "second passes", "value": count},
        {"what": "second passes surer at a finer stride", "value": finer},
    ]


def main() -> None:
    folder = lfw.arguments(__doc__).parse_args().folder
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory() as models:
        files = ModelFiles(Path(models))
        yunet, sface = files.prepared_model(SFACE.detector), files.prepared_model(SFACE.embedder)
        for name, model, feed, side in (
            ("YuNet", yunet, YuNet.preprocessing, 160),
            ("YuNet", yunet, YuNet.preprocessing, 320),
            ("YuNet, coarsest,", onnx_prepare.extract_outputs(yunet, YuNet.output_slices[1]), YuNet.preprocessing, 320),
            ("SFace", sface, Preprocessing(), 112),
        ):
            for threads in (Threads(per_stream=1), Threads()):
                rows += time_network(name, model, feed, side, threads)
    lfw.write_results(lfw.RESULTS / "runtime.csv", rows + compare_precisions(folder) + count_strides(folder))


if __name__ == "__main__":
    main()
