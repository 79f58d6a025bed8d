"""Measures the CPU time of a liveness check for each face on one thread, with each engine that is installed.

    python -m benchmarks.liveness_speed --models MODELS

MODELS is a folder with the files of the pack. The faces are 200 pixels wide in random pictures of 1280 x 720; what a
picture shows does not change the time. Cutting the crops is included. Writes benchmarks/results/liveness_speed.csv.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import lfw
from indexer.models.liveness_packs import MINIFASNET, LivenessNetwork, LivenessPack
from indexer.models.model_files import ModelFiles
from indexer.models.pull import pull
from indexer.types import Box, Pixels
from indexer.vision import runtime
from indexer.vision.liveness.base import LivenessModel
from indexer.vision.runtime import Threads

BATCHES = (1, 4, 16)
RUNS = 30


def on_engine(network: LivenessNetwork, engine: str) -> LivenessNetwork:
    return replace(network, file=replace(network.file, engines=(engine,)))


def pack_of(*networks: LivenessNetwork) -> LivenessPack:
    name = MINIFASNET.name if len(networks) > 1 else networks[0].file.name
    return replace(MINIFASNET, name=name, networks=networks)


def milliseconds(model: LivenessModel, faces: list[tuple[Pixels, Box]]) -> float:
    """Returns the least CPU time of a face: other programs can only add to it."""
    model.score(faces)
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        model.score(faces)
        times.append(time.process_time() - start)
    return 1000 * min(times) / len(faces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="a folder with the files of the pack")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    faces = [
        (rng.integers(0, 256, (720, 1280, 3), np.uint8), Box(rng.uniform(0, 1080), rng.uniform(0, 520), 200, 200))
        for _ in range(max(BATCHES))
    ]
    rows: list[dict[str, lfw.Cell]] = []
    with tempfile.TemporaryDirectory() as temporary:
        files = ModelFiles(Path(temporary))
        pull(MINIFASNET, files, str(options.models))
        packs = [(pack_of(*MINIFASNET.networks), "as shipped")]
        packs += [
            (pack_of(on_engine(network, engine)), engine)
            for network in MINIFASNET.networks
            for engine in runtime.engines()
        ]
        for pack, engine in packs:
            model = LivenessModel(pack, files, Threads(per_stream=1))
            row: dict[str, lfw.Cell] = {"networks": pack.name, "engine": engine}
            row |= {f"ms_batch_{count}": round(milliseconds(model, faces[:count]), 2) for count in BATCHES}
            lfw.say(str(row))
            rows.append(row)
    lfw.write_results(lfw.RESULTS / "liveness_speed.csv", rows)


if __name__ == "__main__":
    main()
