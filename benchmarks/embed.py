"""Measures the embedding of aligned crops: faces per second by network, device, runtime and precision.

    python -m benchmarks.embed [FOLDER]

The networks are the published SFace and IR-50 with random weights, which do not change its speed but its cosines. The
crops are faces of an LFW folder. All ways of running a network take turns, and the median counts. `times_as_fast` is
relative to PyTorch's defaults on the same device with the same batch, for SFace to ONNX Runtime; cosines are between
the embeddings of the same faces.

`threads` is the number of concurrent batches and the threads of each. On a GPU, batches have up to 1024 faces. The
whole path goes from JPEG bytes to embeddings, with the second detection pass and mirrored crops: YuNet on the CPU,
IR-50 on the device.

Writes benchmarks/results/embed.csv.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks import lfw
from benchmarks.lfw import Cell, say
from indexer.models.architectures.iresnet import iresnet50
from indexer.models.checkpoints import load_network
from indexer.models.model_files import ModelFiles
from indexer.models.packs import CHECKPOINTS, IR50, SFACE, Pack
from indexer.types import Device, Pick, Precision, Vectors, normalize
from indexer.vision import cuda, networks, runtime
from indexer.vision.cuda import CudaSession
from indexer.vision.pipeline import FacePipeline, Options
from indexer.vision.quantize import quantize_embedder
from indexer.vision.runtime import CPU_BATCH, Preprocessing, Session, Threads, to_blob, usable_cores
from tests.indexer.vision import golden

ROUNDS = 5
PAUSE_SECONDS = 0.05
"""Pause before each turn: the threads of the previous runtime busy-wait for a while."""
FACES = 180
"""A third of these faces checks int8, and all ways of running the network."""
PHOTOS = 256
"""Photos on the whole path."""
DESCRIBED = 32
"""Photos described at a time."""
GPU_BATCHES = (1, 16, 64, 256, 1024)

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(N, 112, 112, 3) RGB uint8 -> (N, D), not normalized."""


@dataclass(frozen=True)
class Way:
    """One way of running a network."""

    runtime: str
    precision: str
    run: Run
    batch: int = CPU_BATCH
    streams: int = 1
    base: bool = False
    """The way that the others are compared with."""


@dataclass(frozen=True)
class Plain:
    """PyTorch with its defaults, or with the memory format that is often recommended."""

    network: nn.Module
    feed: Preprocessing
    device: str = "cpu"
    layout: torch.memory_format = torch.contiguous_format

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            blob = torch.from_numpy(to_blob(crops, self.feed)).to(self.device, memory_format=self.layout)
            output: torch.Tensor = self.network(blob)
            return np.asarray(output.cpu().numpy(), np.float32)


def main() -> None:
    folder = lfw.arguments(__doc__).parse_args().folder
    images = [shot.path.read_bytes() for shot in lfw.list_shots(folder)]
    images = images[:: max(1, len(images) // max(FACES, PHOTOS))]
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory() as models:
        files = ModelFiles(Path(models))
        crops = faces_of(images[:FACES], files)
        for pack in (SFACE, random_pack(files)):
            say(f"{pack.name}: quantizing")
            quantize_embedder(pack, files, crops)
            for threads in (Threads(), Threads(streams=usable_cores())):
                rows += measure(pack.name, "CPU", cpu_ways(pack, files, threads), crops, threads.streams)
            rows += on_gpu(pack, files, crops)
        rows += whole_paths(random_pack(files), files, images[:PHOTOS])
    lfw.write_results(lfw.RESULTS / "embed.csv", rows)


def faces_of(images: Sequence[bytes], files: ModelFiles) -> NDArray[np.uint8]:
    """Returns the aligned central faces, (N, 112, 112, 3), of the photos that have one."""
    seen = lfw.describe_all(FacePipeline(SFACE, files), images, len(images))
    return np.stack([face.crop for answer in seen for face in answer.faces if face.crop is not None])


def random_pack(files: ModelFiles) -> Pack:
    """Returns `ir50` with an embedder of random weights, written to the models folder once."""
    name = "random.pt"
    if not (files.folder / name).exists():
        buffer = io.BytesIO()
        torch.save(golden.fill(iresnet50()).state_dict(), buffer)
        (files.folder / name).write_bytes(buffer.getvalue())
    return replace(IR50, name="ir50, random weights", embedder=replace(IR50.embedder, name=name))


def cpu_ways(pack: Pack, files: ModelFiles, threads: Threads) -> list[Way]:
    """Lists the ways; PyTorch runs only with the threads that it chooses itself."""
    feed, streams = networks.embedder_preprocessing(pack), threads.streams
    exact, int8 = files.prepared_model(pack.embedder), files.quantized_model(pack.embedder)
    ways = [
        Way(
            engine,
            str(precision),
            first_output(
                runtime.load(int8 if precision is Precision.INT8 else exact, feed, precision, threads, engine)
            ),
            streams=streams,
            base=engine == "onnxruntime" and pack.embedder.network not in CHECKPOINTS,
        )
        for engine, precision in (
            *(("openvino", precision) for precision in Precision),
            ("onnxruntime", Precision.FLOAT32),
        )
        if engine in runtime.engines()
    ]
    if pack.embedder.network in CHECKPOINTS:
        network = load_network(files.read(pack.embedder), pack.embedder)
        ways.insert(0, Way("pytorch", "float32", Plain(network, feed), base=True))
        if streams == 1:
            last = torch.channels_last
            network = load_network(files.read(pack.embedder), pack.embedder).to(memory_format=last)  # type: ignore[call-overload]
            ways.append(Way("pytorch, channels last", "float32", Plain(network, feed, layout=last)))
    return ways


def first_output(session: Session) -> Run:
    return lambda crops: session.run(crops)[0]


def on_gpu(pack: Pack, files: ModelFiles, crops: NDArray[np.uint8]) -> list[dict[str, Cell]]:
    if pack.embedder.network not in CHECKPOINTS or cuda.find_problem() is not None:
        say(f"{pack.name}: not on a GPU: {cuda.find_problem() or 'it is no PyTorch network'}")
        return []
    feed = networks.embedder_preprocessing(pack)
    network, *others = (load_network(files.read(pack.embedder), pack.embedder) for _ in range(3))
    plain = Plain(network.cuda(), feed, "cuda")
    sessions = {
        precision: CudaSession(other, feed, precision is not Precision.FLOAT32)
        for precision, other in zip((Precision.FLOAT32, Precision.NATIVE), others, strict=True)
    }
    rows: list[dict[str, Cell]] = []
    for batch in GPU_BATCHES:
        ways = [Way("pytorch", "float32", plain, batch, base=True)]
        ways += [Way("whosthere", str(p), first_output(session), batch) for p, session in sessions.items()]
        rows += measure(pack.name, torch.cuda.get_device_name(), ways, crops)
    return rows


def measure(
    network: str, device: str, ways: Sequence[Way], crops: NDArray[np.uint8], streams: int = 1
) -> list[dict[str, Cell]]:
    """Returns each way's speed, measured in turns, and its agreement with the base."""
    seconds: list[list[float]] = [[] for _ in ways]
    batches = {way.batch: np.resize(crops, (way.batch, *crops.shape[1:])) for way in ways}
    with ThreadPoolExecutor(streams) as pool:
        for number in range(ROUNDS + 1):
            for way, taken in zip(ways, seconds, strict=True):
                time.sleep(PAUSE_SECONDS)
                compute(way, batches[way.batch], pool)
                begun = time.perf_counter()
                compute(way, batches[way.batch], pool)
                if number:  # the first round warms up
                    taken.append((time.perf_counter() - begun) / (way.streams * way.batch))
            say(f"{network}, {device}, {streams} streams: round {number}/{ROUNDS}")
    medians = [statistics.median(taken) for taken in seconds]
    (base,) = (index for index, way in enumerate(ways) if way.base)
    vectors = [embed(way, crops) for way in ways]
    rows: list[dict[str, Cell]] = []
    for way, median, found in zip(ways, medians, vectors, strict=True):
        cosines = (found * vectors[base]).sum(1)
        rows.append(
            {
                "what": network,
                "device": device,
                "runtime": way.runtime,
                "precision": way.precision,
                "threads": f"{way.streams} x {usable_cores() // way.streams}",
                "batch": way.batch,
                "faces_a_second": 1 / median,
                "ms_a_face": 1000 * median,
                "times_as_fast": medians[base] / median,
                "cosine_mean": float(cosines.mean()),
                "cosine_min": float(cosines.min()),
            }
        )
    return rows


def compute(way: Way, batch: NDArray[np.uint8], pool: ThreadPoolExecutor) -> None:
    """Runs one batch, or one in each stream."""
    if way.streams == 1:
        way.run(batch)
    else:
        list(pool.map(way.run, [batch] * way.streams))


def embed(way: Way, crops: NDArray[np.uint8]) -> Vectors:
    """Returns the cosines for faces that int8 was not calibrated on."""
    held = crops[2::3]
    return normalize(np.concatenate([way.run(held[i : i + way.batch]) for i in range(0, len(held), way.batch)]))


def whole_paths(pack: Pack, files: ModelFiles, images: Sequence[bytes]) -> list[dict[str, Cell]]:
    """Measures JPEG bytes to embeddings, on the CPU and, if there is one, on a GPU."""
    feed, streams = networks.embedder_preprocessing(pack), usable_cores()
    model, threads = files.prepared_model(pack.embedder), Threads(streams)
    sessions: list[tuple[str, str, str, Session]] = [
        ("CPU", "openvino", "native", networks.load_on_cpu(model, pack.embedder, feed, Precision.NATIVE, threads))
    ]
    if cuda.find_problem() is None:
        network = load_network(files.read(pack.embedder), pack.embedder)
        device = torch.cuda.get_device_name()
        sessions.append((device, "whosthere", "native", CudaSession(network, feed, half=True)))
    rows: list[dict[str, Cell]] = []
    for device, name, precision, session in sessions:
        rate = describe_rate(pack, files, session, images, streams)
        rows.append(
            {
                "what": f"{pack.name}, whole path from JPEG",
                "device": device,
                "runtime": name,
                "precision": precision,
                "threads": f"{streams} x 1",
                "batch": DESCRIBED,
                "faces_a_second": rate,
                "ms_a_face": 1000 / rate,
            }
        )
        say(f"whole path, {device}: done")
    return rows


def describe_rate(pack: Pack, files: ModelFiles, session: Session, images: Sequence[bytes], streams: int) -> float:
    """Returns photos per second: the median of ROUNDS, with a thread for each core."""
    options = Options(threads=Threads(streams), device=Device.CPU)
    pipeline = FacePipeline(replace(SFACE, zooms=pack.zooms), files, options)
    detector, _ = pipeline._load()
    pipeline._networks = detector, networks.build_embedder(pack, session)
    shares = [images[i : i + DESCRIBED] for i in range(0, len(images), DESCRIBED)]
    taken = []
    with ThreadPoolExecutor(streams) as pool:
        for number in range(ROUNDS + 1):
            begun = time.perf_counter()
            list(pool.map(lambda share: pipeline.describe(share, Pick.CENTER), shares))
            if number:
                taken.append(time.perf_counter() - begun)
    return len(images) / statistics.median(taken)


if __name__ == "__main__":
    main()
