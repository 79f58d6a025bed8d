"""OpenVINO and ONNX Runtime sessions, errors without an engine or a valid model, and telemetry."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from indexer.errors import ModelUnavailable
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Precision
from indexer.vision import runtime
from indexer.vision.runtime import Preprocessing, Session, Threads, no_telemetry
from tests.indexer.vision.common import noise
from tests.waiting import DEADLINE

TELEMETRY = "openvino_telemetry"


@pytest.fixture(scope="module")
def model(models_folder: Path) -> bytes:
    return ModelFiles(models_folder).prepared_model(SFACE.embedder)


def load(model: bytes, threads: Threads = Threads(), engine: str | None = None) -> Session:
    return runtime.load(model, Preprocessing(), Precision.FLOAT32, threads, engine)


TWO_LOAD_FIRST = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np

from indexer.types import Precision
from indexer.vision.runtime import Preprocessing, Threads, load

sys.setswitchinterval(1e-6)
model, barrier = open(sys.argv[1], "rb").read(), Barrier(2)

def load_and_run(_):
    barrier.wait()
    session = load(model, Preprocessing(), Precision.NATIVE, Threads(per_stream=1), sys.argv[2])
    return session.run(np.zeros((1, 112, 112, 3), np.uint8))[0].shape

with ThreadPoolExecutor(2) as pool:
    assert list(pool.map(load_and_run, range(2))) == [(1, 128)] * 2
"""
"""Two threads load the first two networks of a process at once, like a service that starts and continues a job."""


@pytest.mark.parametrize("engine", runtime.ENGINES)
def test_two_threads_may_load_the_first_networks_at_once(engine: str, model: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    for _ in range(3):  # without a lock nearly every process deadlocks with OpenVINO 2026.4
        program = [sys.executable, "-c", TWO_LOAD_FIRST, str(tmp_path / "model.onnx"), engine]
        subprocess.run(program, check=True, timeout=DEADLINE)


@pytest.mark.parametrize("engine", runtime.ENGINES)
@pytest.mark.parametrize("data", [b"", b"garbage" * 100, bytes(1000)], ids=["empty", "garbage", "zeros"])
def test_data_that_is_not_a_model_is_rejected(engine: str, data: bytes) -> None:
    with pytest.raises(ModelUnavailable, match=f"{engine} cannot load the model") as caught:
        load(data, engine=engine)
    assert caught.value.code == "model_unavailable"


@pytest.mark.parametrize("engine", runtime.ENGINES)
def test_truncated_model_is_rejected(engine: str, model: bytes) -> None:
    with pytest.raises(ModelUnavailable):
        load(model[: len(model) // 2], engine=engine)


def test_engine_that_is_not_installed_is_rejected() -> None:
    with pytest.raises(ModelUnavailable, match="tensorrt is not installed; expected openvino or onnxruntime"):
        load(b"", engine="tensorrt")


def test_missing_engines_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert runtime.engines() == []
    with pytest.raises(ModelUnavailable, match="not installed"):
        load(b"")


def test_onnxruntime_is_used_without_openvino(monkeypatch: pytest.MonkeyPatch, model: bytes) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    session = runtime.load(model, Preprocessing(), Precision.NATIVE, Threads())
    assert "OnnxRuntime" in type(session).__name__
    assert session.run(np.zeros((1, 112, 112, 3), np.uint8))[0].shape == (1, 128)


@pytest.mark.parametrize("engine", runtime.ENGINES)
@pytest.mark.parametrize("threads", [Threads(), Threads(streams=2), Threads(streams=1, per_stream=1)])
def test_sessions_are_thread_safe(engine: str, threads: Threads, model: bytes) -> None:
    session = load(model, threads, engine)
    batches = [noise(1 + n % 3, seed=n) for n in range(12)]
    alone = [session.run(batch)[0] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: session.run(batch)[0], batches))
    for a, b in zip(alone, together, strict=True):
        assert np.allclose(a, b, atol=1e-4)
    assert not np.allclose(alone[0], alone[3], atol=1e-2)


def test_outputs_are_not_overwritten_by_the_next_run(model: bytes) -> None:
    session = load(model)
    (first,) = session.run(np.zeros((1, 112, 112, 3), np.uint8))
    copy = first.copy()
    session.run(np.full((1, 112, 112, 3), 200, np.uint8))
    assert np.array_equal(first, copy)


def test_pixels_are_preprocessed() -> None:
    images = np.zeros((2, 4, 6, 3), np.uint8)
    images[1, 2, 5] = (10, 20, 255)
    blob = runtime.to_blob(images, Preprocessing())
    assert blob.shape == (2, 3, 4, 6)
    assert blob.dtype == np.float32
    assert blob.flags.c_contiguous
    assert blob[1, :, 2, 5].tolist() == [10, 20, 255]
    assert blob.sum() == 285
    assert runtime.to_blob(images, Preprocessing(bgr=True))[1, :, 2, 5].tolist() == [255, 20, 10]
    scaled = runtime.to_blob(images, Preprocessing((5, 10, 15), 0.5, bgr=True))
    assert scaled[1, :, 2, 5].tolist() == [125, 5, -2.5]
    assert scaled[0, :, 0, 0].tolist() == [-2.5, -5, -7.5]


def test_streams_share_the_cores() -> None:
    cores = runtime.usable_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert Threads().threads_per_stream == cores
    assert Threads(streams=10 * cores).threads_per_stream == 1
    assert Threads(streams=2, per_stream=3).threads_per_stream == 3


@pytest.mark.parametrize(
    ("threads", "is_pinned"), [(Threads(1, 4), True), (Threads(1, 2), False), (Threads(2, 2), False)]
)
def test_threads_are_pinned_only_in_a_process_that_uses_all_cores(
    model: bytes, monkeypatch: pytest.MonkeyPatch, threads: Threads, is_pinned: bool
) -> None:
    monkeypatch.setattr(runtime, "usable_cores", lambda: 4)
    session: Any = runtime.load(model, Preprocessing(), Precision.NATIVE, threads, "openvino")
    assert session._model.get_property("ENABLE_CPU_PINNING") is is_pinned


def test_import_sends_no_telemetry(tmp_path: Path) -> None:
    """The libraries would create files in the home folder before they report."""
    script = (
        "from indexer.vision.runtime import no_telemetry\n"
        "with no_telemetry():\n"
        "    import openvino, onnxruntime, nncf\n"
        "assert type(nncf.telemetry.telemetry).__name__ == 'MagicMock'\n"
    )
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_telemetry_module_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(TELEMETRY)
    monkeypatch.setitem(sys.modules, TELEMETRY, module)
    with no_telemetry(), pytest.raises(ImportError):
        importlib.import_module(TELEMETRY)
    assert sys.modules[TELEMETRY] is module
    monkeypatch.delitem(sys.modules, TELEMETRY)
    with no_telemetry():
        pass
    assert TELEMETRY not in sys.modules


def test_imports_of_other_threads_wait() -> None:
    def import_in_another_thread() -> bool:
        with no_telemetry(), no_telemetry():
            pass
        return TELEMETRY in sys.modules

    was_imported = TELEMETRY in sys.modules
    with ThreadPoolExecutor(1) as pool:
        with no_telemetry():
            other = pool.submit(import_in_another_thread)
            with pytest.raises(TimeoutError):
                other.result(timeout=0.2)
            assert sys.modules[TELEMETRY] is None
        assert other.result() == was_imported
