"""Runs ONNX networks on a CPU with OpenVINO or ONNX Runtime, or on a GPU with ONNX Runtime.

On a CPU, the faster engine for a network is used (`packs.ModelFile.engines`, measured by `benchmarks/runtime.py`), or
the other if that is not installed. Both have wheels for Linux on x86-64 and ARM and for macOS on ARM.
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

ENGINES = ("openvino", "onnxruntime")
ON_CUDA = "onnxruntime on CUDA"

CPU_BATCH = 16
"""A face takes the same time in batches of 8, 16 or more (`benchmarks/runtime.py`)."""

CUDA_BATCH = 256
"""The largest of `cuda.BATCH_SIZES`."""

CUDA_OPTIONS = {
    "use_tf32": "0",  # landmarks must equal those of the CPU: see `cuda.CudaSession`
    "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search for each new image size takes longer than inference
}

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@dataclass(frozen=True)
class Preprocessing:
    """Converts pixels to a network's input: (x - mean) * scale, where x is 0..255, with channels as RGB or BGR."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """In the channel order of the network."""
    scale: float = 1.0
    bgr: bool = False


class Session(Protocol):
    """A loaded network with one input. Thread-safe."""

    batch: int
    """Number of aligned crops to run at once for the best speed."""

    def run(self, images: NDArray[np.uint8]) -> list[Tensor]:
        """Returns all outputs, in the order of the model file, for (N, H, W, 3) RGB uint8 images."""
        ...


@dataclass(frozen=True)
class Threads:
    """Threads of a network on the CPU: `streams` batches are computed in parallel, each on `per_stream` threads."""

    streams: int = 1
    per_stream: int = 0
    """0 divides the usable cores among the streams."""

    @property
    def threads_per_stream(self) -> int:
        return self.per_stream or max(1, usable_cores() // self.streams)


def to_blob(images: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Converts (N, H, W, 3) RGB uint8 images to a network's input, (N, 3, H, W) float32."""
    ordered = images[..., ::-1] if preprocessing.bgr else images
    blob = np.ascontiguousarray(ordered.transpose(0, 3, 1, 2), dtype=np.float32)
    if any(preprocessing.mean):
        blob -= np.array(preprocessing.mean, dtype=np.float32)[:, None, None]
    if preprocessing.scale != 1.0:
        blob *= np.float32(preprocessing.scale)
    return blob


def usable_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def engines(preferred: Sequence[str] = ENGINES) -> list[str]:
    """Returns the installed ones of the `preferred` engines, in that order."""
    return [name for name in preferred if importlib.util.find_spec(name)]


def load(
    model: bytes, preprocessing: Preprocessing, precision: Precision, threads: Threads, engine: str | None = None
) -> Session:
    """Loads an ONNX model.

    Raises:
        ModelUnavailable: No engine is installed, or the model does not load.
    """
    installed = engines()
    engine = engine or (installed[0] if installed else "openvino")
    if engine not in (*installed, ON_CUDA):
        raise ModelUnavailable(f"the runtime {engine} is not installed; expected openvino or onnxruntime")
    try:
        if engine == "openvino":
            return _OpenVino(model, preprocessing, precision, threads)
        return _OnnxRuntime(model, preprocessing, threads, _CUDA if engine == ON_CUDA else _CPU)
    except Exception as error:  # engines raise errors of their own
        raise ModelUnavailable(f"{engine} cannot load the model: {error}") from error


def load_original(model: bytes, preprocessing: Preprocessing) -> _OnnxRuntime:
    """Loads an ONNX file as it is in ONNX Runtime on the CPU, which computes each node as it is written."""
    return _OnnxRuntime(model, preprocessing, Threads(), _CPU, is_optimized=False)


@cache
def find_cuda_problem() -> str | None:
    """Returns why ONNX networks cannot run on a GPU here, None if they can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install onnxruntime-gpu"
    with no_telemetry():
        import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime is built without CUDA: pip install onnxruntime-gpu in its place"
    try:  # being built with CUDA does not prove that GPU, driver and CUDA libraries work
        _OnnxRuntime(_minimal_model(), Preprocessing(), Threads(per_stream=1), _CUDA)
    except Exception as error:  # ONNX Runtime raises errors of its own
        return str(error)
    return None


def _minimal_model() -> bytes:
    from onnx import TensorProto, helper

    source, output = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 1, 1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "minimal", [source], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


_importing = threading.RLock()


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Prevents OpenVINO, NNCF and ONNX Runtime from reporting their use when they are imported within the block.

    OpenVINO and NNCF report to Google Analytics, and write files to the user's home folder, if the package
    `openvino_telemetry` can be imported; within the block it cannot. ONNX Runtime 1.32 reports to Microsoft unless an
    environment variable forbids it, which is set for good. A lock protects the interpreter's table of modules.
    """
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
    """Runs a model with OpenVINO. Inference requests are pooled because each runs one batch at a time."""

    batch = CPU_BATCH

    def __init__(self, model: bytes, preprocessing: Preprocessing, precision: Precision, threads: Threads) -> None:
        with no_telemetry():
            import openvino

            # OpenVINO (2026.4) fills its table of element types at first use, partly without the GIL: two threads that
            # use it first deadlock there, and the whole process with them. The lock of this block lets one do it alone.
            openvino.Type.f32.to_dtype()
        core = openvino.Core()
        config: dict[str, Any] = {
            "NUM_STREAMS": threads.streams,
            "INFERENCE_NUM_THREADS": threads.streams * threads.threads_per_stream,
        }
        if threads.streams > 1 or threads.threads_per_stream < usable_cores():
            # A pinned stream waits for other work on its core, and several processes that each use some of the cores
            # would all be pinned to the first ones.
            config["ENABLE_CPU_PINNING"] = False
        if precision is not Precision.NATIVE:
            config["INFERENCE_PRECISION_HINT"] = "f32"
        self._model = core.compile_model(core.read_model(model), "CPU", config)
        self._preprocessing = preprocessing
        self._outputs = range(len(self._model.outputs))
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def run(self, images: NDArray[np.uint8]) -> list[Tensor]:
        blob = to_blob(images, self._preprocessing)
        with self._lock:
            request = self._idle.pop() if self._idle else self._model.create_infer_request()
        try:
            request.infer([blob], share_inputs=True)
            return [request.get_output_tensor(i).data.copy() for i in self._outputs]
        finally:
            with self._lock:
                self._idle.append(request)


class _OnnxRuntime:
    """Runs a model with ONNX Runtime."""

    def __init__(
        self, model: bytes, preprocessing: Preprocessing, threads: Threads, provider: str, is_optimized: bool = True
    ) -> None:
        with no_telemetry():
            import onnxruntime

        self._preprocessing = preprocessing
        self.batch = CUDA_BATCH if provider == _CUDA else CPU_BATCH
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads.threads_per_stream
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to other threads
        options.log_severity_level = 3 if is_optimized else 4  # errors of original files are handled
        if not is_optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        tuning = CUDA_OPTIONS if provider == _CUDA else {}
        self._session = onnxruntime.InferenceSession(model, options, providers=[(provider, tuning)])
        if provider not in self._session.get_providers():  # ONNX Runtime falls back to the CPU without an error
            raise RuntimeError(
                "onnxruntime cannot start CUDA; its output names what is missing: GPU, driver or a library"
            )
        self._input = self._session.get_inputs()[0].name
        self.sides = self._session.get_inputs()[0].shape
        """Sides of the input: numbers where the file fixes them."""

    def run(self, images: NDArray[np.uint8]) -> list[Tensor]:
        outputs: Sequence[Any] = self._session.run(None, {self._input: to_blob(images, self._preprocessing)})
        return [np.asarray(output, dtype=np.float32) for output in outputs]
