"""The engines, and what happens without one or without a model."""

from __future__ import annotations

import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import ModelUnavailable
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Precision
from indexer.vision import runtime
from indexer.vision.runtime import Preprocessing, Threads


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("model", [b"", b"garbage" * 100, bytes(1000)], ids=["empty", "garbage", "zeros"])
def test_a_model_that_is_none(engine: str, model: bytes) -> None:
    with pytest.raises(ModelUnavailable, match=f"{engine} cannot load the model") as caught:
        runtime.load(model, Preprocessing(), Precision.FLOAT32, Threads(), engine)
    assert caught.value.code == "model_unavailable"


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_model_that_is_cut_short(engine: str, models_folder: Path) -> None:
    model = ModelFiles(models_folder).prepared_model(SFACE.detector)
    with pytest.raises(ModelUnavailable):
        runtime.load(model[: len(model) // 2], Preprocessing(), Precision.FLOAT32, Threads(), engine)


def test_an_engine_that_is_not_installed() -> None:
    with pytest.raises(ModelUnavailable, match="tensorrt is not installed; expected openvino or onnxruntime"):
        runtime.load(b"", Preprocessing(), Precision.FLOAT32, Threads(), "tensorrt")


def test_no_engine_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert runtime.engines() == []
    with pytest.raises(ModelUnavailable, match="not installed"):
        runtime.load(b"", Preprocessing(), Precision.FLOAT32, Threads())


def test_the_other_engine_takes_over(monkeypatch: pytest.MonkeyPatch, models_folder: Path) -> None:
    model = ModelFiles(models_folder).prepared_model(SFACE.embedder)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    session = runtime.load(model, Preprocessing(), Precision.NATIVE, Threads())
    assert "OnnxRuntime" in type(session).__name__
    assert session.run(np.zeros((1, 112, 112, 3), np.uint8))[0].shape == (1, 128)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("threads", [Threads(), Threads(streams=2), Threads(streams=1, per_stream=1)])
def test_many_threads_get_their_own_answers(engine: str, threads: Threads, models_folder: Path) -> None:
    model = ModelFiles(models_folder).prepared_model(SFACE.embedder)
    session = runtime.load(model, Preprocessing(), Precision.FLOAT32, threads, engine)
    rng = np.random.default_rng(0)
    blobs = [rng.integers(0, 256, (1 + n % 3, 112, 112, 3), np.uint8) for n in range(12)]
    alone = [session.run(blob)[0] for blob in blobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda blob: session.run(blob)[0], blobs))
    for a, b in zip(alone, together, strict=True):
        assert np.allclose(a, b, atol=1e-4)
    assert not np.allclose(alone[0], alone[3], atol=1e-2)


def test_answers_outlive_the_next_run(models_folder: Path) -> None:
    session = runtime.load(
        ModelFiles(models_folder).prepared_model(SFACE.embedder), Preprocessing(), Precision.FLOAT32, Threads()
    )
    (first,) = session.run(np.zeros((1, 112, 112, 3), np.uint8))
    kept = first.copy()
    session.run(np.full((1, 112, 112, 3), 200, np.uint8))
    assert np.array_equal(first, kept)


def test_to_blob() -> None:
    canvases = np.zeros((2, 4, 6, 3), np.uint8)
    canvases[1, 2, 5] = (10, 20, 255)
    blob = runtime.to_blob(canvases, Preprocessing())
    assert blob.shape == (2, 3, 4, 6)
    assert blob.dtype == np.float32
    assert blob.flags.c_contiguous
    assert blob[1, :, 2, 5].tolist() == [10, 20, 255]
    assert runtime.to_blob(canvases, Preprocessing(bgr=True))[1, :, 2, 5].tolist() == [255, 20, 10]
    fed = runtime.to_blob(canvases, Preprocessing((5, 10, 15), 0.5, bgr=True))
    assert fed[1, :, 2, 5].tolist() == [125, 5, -2.5]
    assert fed[0, :, 0, 0].tolist() == [-2.5, -5, -7.5]
    assert blob.sum() == 285


def test_threads_share_the_cores() -> None:
    cores = runtime.usable_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert Threads().threads_per_stream == cores
    assert Threads(streams=10 * cores).threads_per_stream == 1
    assert Threads(streams=2, per_stream=3).threads_per_stream == 3


def test_processes_that_share_the_cores_are_not_all_on_the_first_ones(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "usable_cores", lambda: 4)
    model = ModelFiles(models_folder).prepared_model(SFACE.embedder)
    for threads, pinned in ((Threads(1, 4), True), (Threads(1, 2), False), (Threads(2, 2), False)):
        session: Any = runtime.load(model, Preprocessing(), Precision.NATIVE, threads, "openvino")
        assert session._model.get_property("ENABLE_CPU_PINNING") is pinned, threads
