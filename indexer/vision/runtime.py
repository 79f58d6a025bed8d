"""The one place that runs ONNX networks, on a CPU or, by ONNX Runtime, on a GPU.

OpenVINO and ONNX Runtime, whichever is faster for a network (`packs.ModelFile.engines`, measured by
`benchmarks/runtime.py`), or the other where that is not installed. Both have wheels for Linux on x86-64 and ARM and for
macOS on ARM.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable
from indexer.types import Precision

Tensor = NDArray[np.float32]

CPU_BATCH = 16
"""A face takes the same time in batches of 8, 16 or more (`benchmarks/runtime.py`)."""


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its pixels: (x - mean) * scale, x being 0..255, the channels as RGB or BGR."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """In the order of the network's channels."""
    scale: float = 1.0
    bgr: bool = False


class Session(Protocol):
    """A loaded network with one input. Safe to call from several threads."""

    batch: int
    """Aligned crops worth running at a time."""

    def run(self, canvases: NDArray[np.uint8]) -> list[Tensor]:
        """All outputs, in the order of the file, for (N, H, W, 3) RGB uint8."""
        ...


@dataclass(frozen=True)
class Threads:
    """`streams` batches are computed side by side, each on `each` threads."""

    streams: int = 1
    per_stream: int = 0
    """0: as many as there are cores for a stream."""

    @property
    def threads_per_stream(self) -> int:
        return self.per_stream or max(1, usable_cores() // self.streams)


def to_blob(canvases: NDArray[np.uint8], feed: Preprocessing) -> Tensor:
    """(N, H, W, 3) RGB uint8 -> (N, 3, H, W) float32 as `feed` says."""
    ordered = canvases[..., ::-1] if feed.bgr else canvases
    blob = np.ascontiguousarray(ordered.transpose(0, 3, 1, 2), dtype=np.float32)
    if any(feed.mean):
        blob -= np.array(feed.mean, dtype=np.float32)[:, None, None]
    if feed.scale != 1.0:
        blob *= np.float32(feed.scale)
    return blob


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


ENGINES = ("openvino", "onnxruntime")

ON_CUDA = "onnxruntime on CUDA"


def engines(preferred: Sequence[str] = ENGINES) -> list[str]:
    """Those of `preferred` that are installed here, in that order."""
    return [name for name in preferred if importlib.util.find_spec(name)]


def load(
    model: bytes, feed: Preprocessing, precision: Precision, threads: Threads, engine: str | None = None
) -> Session:
    """Loads an ONNX model that is fed as `feed` says.

    Raises ModelUnavailable when no runtime is installed or the model does not load.
    """
    installed = engines()
    engine = engine or (installed[0] if installed else "openvino")
    if engine not in (*installed, ON_CUDA):
        raise ModelUnavailable(f"the runtime {engine} is not installed; expected openvino or onnxruntime")
    try:
        if engine == "openvino":
            return _OpenVino(model, feed, precision, threads)
        return _OnnxRuntime(model, feed, threads, _CUDA if engine == ON_CUDA else _CPU)
    except Exception as error:  # each runtime raises errors of its own
        raise ModelUnavailable(f"{engine} cannot load the model: {error}") from error


@cache
def find_cuda_problem() -> str | None:
    """Why ONNX networks cannot run on a GPU here; None where they can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install onnxruntime-gpu"
    with no_telemetry():
        import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime is built without CUDA: pip install onnxruntime-gpu in its place"
    try:  # what it was built with says nothing of the GPU, its driver and CUDA's libraries
        _OnnxRuntime(_one_node(), Preprocessing(), Threads(per_stream=1), _CUDA)
    except Exception as error:  # it raises errors of its own
        return str(error)
    return None


def _one_node() -> bytes:
    """The smallest network there is."""
    from onnx import TensorProto, helper

    image, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 1, 1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", [image], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


_importing = threading.RLock()


@contextmanager
def no_telemetry() -> Iterator[None]:
    """For importing OpenVINO, NNCF and ONNX Runtime, which report to their makers that they are used, and leave files
    in the home folder for it. OpenVINO and NNCF (to Google Analytics) do so unless the package `openvino_telemetry` is
    not installed, which meanwhile it is not; ONNX Runtime 1.32 (to Microsoft) unless the environment says no when it is
    imported, which it does from now on. One thread at a time: what is imported is the whole process's."""
    name = "openvino_telemetry"
    with _importing:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        before = {name: sys.modules[name]} if name in sys.modules else {}
        sys.modules[name] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            del sys.modules[name]
            sys.modules.update(before)


class _OpenVino:
    """Requests are made as threads ask for them and kept for the next: one computes one batch at a time."""

    batch = CPU_BATCH

    def __init__(self, model: bytes, feed: Preprocessing, precision: Precision, threads: Threads) -> None:
        with no_telemetry():
            import openvino

        # OpenVINO (2026.4) fills its table of element types at first use, with the GIL held on and off: two threads
        # whose first inferences meet there wait for each other for ever. One use before there are threads mends it.
        openvino.Type.f32.to_dtype()
        core = openvino.Core()
        config: dict[str, Any] = {
            "NUM_STREAMS": threads.streams,
            "INFERENCE_NUM_THREADS": threads.streams * threads.threads_per_stream,
        }
        if threads.streams > 1 or threads.threads_per_stream < usable_cores():
            # A pinned stream waits for whatever else runs on its core: several processes, each with some of the cores,
            # are all pinned to the first ones.
            config["ENABLE_CPU_PINNING"] = False
        if precision is not Precision.NATIVE:
            config["INFERENCE_PRECISION_HINT"] = "f32"
        self._model = core.compile_model(core.read_model(model), "CPU", config)
        self._feed = feed
        self._outputs = range(len(self._model.outputs))
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def run(self, canvases: NDArray[np.uint8]) -> list[Tensor]:
        batch = to_blob(canvases, self._feed)
        with self._lock:
            request = self._idle.pop() if self._idle else self._model.create_infer_request()
        try:
            request.infer([batch], share_inputs=True)
            return [request.get_output_tensor(i).data.copy() for i in self._outputs]
        finally:
            with self._lock:
                self._idle.append(request)


CUDA_BATCH = 256
"""As `cuda.SIZES` has it at most."""

CUDA_OPTIONS = {
    "use_tf32": "0",  # landmarks must be what the CPU's are: see `cuda.CudaSession`
    "cudnn_conv_algo_search": "HEURISTIC",  # measuring each new shape of photo takes longer than computing it
}


class _OnnxRuntime:
    def __init__(self, model: bytes, feed: Preprocessing, threads: Threads, provider: str) -> None:
        with no_telemetry():
            import onnxruntime

        self._feed = feed
        self.batch = CUDA_BATCH if provider == _CUDA else CPU_BATCH
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads.threads_per_stream
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to other threads
        options.log_severity_level = 3
        tuning = CUDA_OPTIONS if provider == _CUDA else {}
        self._session = onnxruntime.InferenceSession(model, options, providers=[(provider, tuning)])
        if provider not in self._session.get_providers():  # it falls back to the CPU without an error
            raise RuntimeError(
                "onnxruntime cannot start CUDA; what it printed says what is missing: GPU, driver, library"
            )
        self._input = self._session.get_inputs()[0].name

    def run(self, canvases: NDArray[np.uint8]) -> list[Tensor]:
        outputs: Sequence[Any] = self._session.run(None, {self._input: to_blob(canvases, self._feed)})
        return [np.asarray(output, dtype=np.float32) for output in outputs]
