"""The one place that runs ONNX networks on a CPU.

OpenVINO and ONNX Runtime, whichever is faster for a network (`packs.ModelFile.engines`, measured by
`benchmarks/runtime.py`), or the other where that is not installed. Both have wheels for Linux on x86-64 and ARM and for
macOS on ARM.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable
from indexer.types import Precision

Tensor = NDArray[np.float32]


class Session(Protocol):
    """A loaded network with one input. Safe to call from several threads."""

    def run(self, batch: Tensor) -> list[Tensor]:
        """All outputs, in the order of the file, for `batch` (N, C, H, W)."""
        ...


@dataclass(frozen=True)
class Threads:
    """`streams` batches are computed side by side, each on `each` threads."""

    streams: int = 1
    each: int = 0
    """0: as many as there are cores for a stream."""

    @property
    def per_stream(self) -> int:
        return self.each or max(1, usable_cores() // self.streams)


def to_blob(canvases: NDArray[np.uint8], swap: bool) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32, 0..255; with `swap`, RGB becomes BGR."""
    ordered = canvases[..., ::-1] if swap else canvases
    return np.ascontiguousarray(ordered.transpose(0, 3, 1, 2), dtype=np.float32)


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


ENGINES = ("openvino", "onnxruntime")


def engines(preferred: Sequence[str] = ENGINES) -> list[str]:
    """Those of `preferred` that are installed here, in that order."""
    return [name for name in preferred if importlib.util.find_spec(name)]


def load(model: bytes, precision: Precision, threads: Threads, engine: str | None = None) -> Session:
    """Loads an ONNX model. Raises ModelUnavailable when no runtime is installed or the model does not load."""
    installed = engines()
    engine = engine or (installed[0] if installed else "openvino")
    if engine not in installed:
        raise ModelUnavailable(f"the runtime {engine} is not installed; expected openvino or onnxruntime")
    try:
        if engine == "openvino":
            return _OpenVino(model, precision, threads)
        return _OnnxRuntime(model, threads)
    except Exception as error:  # each runtime raises errors of its own
        raise ModelUnavailable(f"{engine} cannot load the model: {error}") from error


class _OpenVino:
    """Requests are made as threads ask for them and kept for the next: one computes one batch at a time."""

    def __init__(self, model: bytes, precision: Precision, threads: Threads) -> None:
        import openvino

        # OpenVINO (2026.4) fills its table of element types at first use, with the GIL held on and off: two threads
        # whose first inferences meet there wait for each other for ever. One use before there are threads mends it.
        openvino.Type.f32.to_dtype()
        core = openvino.Core()
        config: dict[str, Any] = {
            "NUM_STREAMS": threads.streams,
            "INFERENCE_NUM_THREADS": threads.streams * threads.per_stream,
        }
        if threads.streams > 1:  # a pinned stream waits for whatever else runs on its core
            config["ENABLE_CPU_PINNING"] = False
        if precision is Precision.FLOAT32:
            config["INFERENCE_PRECISION_HINT"] = "f32"
        self._model = core.compile_model(core.read_model(model), "CPU", config)
        self._outputs = range(len(self._model.outputs))
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def run(self, batch: Tensor) -> list[Tensor]:
        with self._lock:
            request = self._idle.pop() if self._idle else self._model.create_infer_request()
        try:
            request.infer([np.ascontiguousarray(batch)], share_inputs=True)
            return [request.get_output_tensor(i).data.copy() for i in self._outputs]
        finally:
            with self._lock:
                self._idle.append(request)


class _OnnxRuntime:
    def __init__(self, model: bytes, threads: Threads) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads.per_stream
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to other threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: Tensor) -> list[Tensor]:
        outputs: Sequence[Any] = self._session.run(None, {self._input: batch})
        return [np.asarray(output, dtype=np.float32) for output in outputs]
