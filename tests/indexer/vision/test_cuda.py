"""Networks for the GPU: computation that needs no GPU, and comparisons with the CPU if there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from indexer.errors import Overloaded
from indexer.models.architectures.iresnet import iresnet18, iresnet50
from indexer.models.architectures.retinaface import RetinaFaceNetwork
from indexer.types import normalize
from indexer.vision import cuda, runtime
from indexer.vision.cuda import (
    MIN_CAPTURE_REQUESTS,
    CudaSession,
    PreprocessedNetwork,
    fold_batch_norms,
    preprocess,
)
from indexer.vision.detectors.retinaface import RetinaFace
from indexer.vision.runtime import Preprocessing, Tensor
from tests.indexer.vision import golden

ARCFACE = Preprocessing((127.5,) * 3, 1 / 127.5)
PROBLEM = cuda.find_problem()
needs_cuda = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


def noise(count: int, height: int = 112, width: int = 112, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


@cache
def _original(kind: Callable[[], nn.Module]) -> nn.Module:
    return golden.fill(kind())


def filled(kind: Callable[[], nn.Module]) -> nn.Module:
    """Returns a network with reproducible weights that the caller may modify."""
    return deepcopy(_original(kind))


def session_of(kind: Callable[[], nn.Module], half: bool = False) -> CudaSession:
    preprocessing = ARCFACE if kind in (iresnet18, iresnet50) else RetinaFace.preprocessing
    return CudaSession(filled(kind), preprocessing, half)


def on_cpu(network: nn.Module, preprocessing: Preprocessing, images: NDArray[np.uint8]) -> list[Tensor]:
    """Returns the outputs of the unmodified network, with the preprocessing of the CPU runtimes."""
    with torch.inference_mode():
        outputs = network(torch.from_numpy(runtime.to_blob(images, preprocessing)))
    return [output.numpy() for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]


def cosines(a: Tensor, b: Tensor) -> NDArray[np.float32]:
    return np.asarray((normalize(a) * normalize(b)).sum(1), np.float32)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        ARCFACE,
        Preprocessing((104.0, 117.0, 123.0), bgr=True),
        Preprocessing((1.0, 0.0, 250.5), 1 / 58, True),
    ],
)
def test_preprocessing_equals_that_of_the_cpu(preprocessing: Preprocessing) -> None:
    images = noise(3, 32, 64)
    single = preprocess(torch.from_numpy(images), preprocessing, torch.float32)
    assert single.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(single.numpy(), runtime.to_blob(images, preprocessing), rtol=1e-6, atol=1e-6)
    assert np.array_equal(images, noise(3, 32, 64))
    half = preprocess(torch.from_numpy(images), preprocessing, torch.float16)
    assert half.dtype == torch.float16
    assert np.allclose(half.numpy(), single.numpy(), rtol=2**-11, atol=1e-6)


def batch_norms(network: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in network.modules())


@pytest.mark.parametrize(
    ("network", "side", "left"),
    # An IR-ResNet keeps those before a convolution, one in each block, and the one before the linear layer.
    [(iresnet18, 112, 8 + 1), (RetinaFaceNetwork, 32, 0)],
)
def test_folding_batch_norms_keeps_the_outputs(network: Callable[[], nn.Module], side: int, left: int) -> None:
    original, folded = filled(network), fold_batch_norms(filled(network))
    assert batch_norms(original) > batch_norms(folded) == left
    images = noise(2, side, side)
    for a, b in zip(on_cpu(original, ARCFACE, images), on_cpu(folded, ARCFACE, images), strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()


def test_convolution_with_two_users_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return torch.add(self.norm(y), y)

    folded = fold_batch_norms(filled(Twice))
    assert batch_norms(folded) == 1
    (expected,), (found,) = (on_cpu(network, ARCFACE, noise(1)) for network in (filled(Twice), folded))
    assert np.allclose(expected, found, atol=1e-6)


@pytest.mark.parametrize(("half", "min_cosine"), [(False, 0.999999), (True, 0.999)])
def test_preprocessed_embedder_returns_the_same_embeddings(half: bool, min_cosine: float) -> None:
    images = noise(3)
    (expected,) = on_cpu(filled(iresnet18), ARCFACE, images)
    with torch.inference_mode():
        (found,) = PreprocessedNetwork(filled(iresnet18), ARCFACE, half)(torch.from_numpy(images))
    assert found.dtype == torch.float32
    assert cosines(found.numpy(), expected).min() >= min_cosine


def test_preprocessed_detector_returns_the_same_outputs() -> None:
    images = noise(2, 64, 96)
    with torch.inference_mode():
        outputs = PreprocessedNetwork(filled(RetinaFaceNetwork), RetinaFace.preprocessing, False)(
            torch.from_numpy(images)
        )
    for a, b in zip(outputs, on_cpu(filled(RetinaFaceNetwork), RetinaFace.preprocessing, images), strict=True):
        assert a.is_contiguous()
        assert np.abs(a.numpy() - b).max() < 1e-4


class TwoOutputs(nn.Module):
    """Takes (N, 3, H, W) and returns (N, 4, H / 2, W / 2) and (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.norm(self.conv(x))
        return y, y.mean((1, 2, 3))[:, None]


class FakeGraph:
    """Replaces a captured graph without a GPU: each replay overwrites the same buffers."""

    def __init__(self, network: PreprocessedNetwork, shape: cuda.Shape, stream: object, pool: object) -> None:
        self.input = torch.full((*shape, 3), 99, dtype=torch.uint8)
        self.outputs = network(self.input)
        self._network = network

    def replay(self) -> None:
        for kept, output in zip(self.outputs, self._network(self.input), strict=True):
            kept.copy_(output)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes sessions run on the CPU with synchronous streams: everything but the capture is the real code."""
    stream = SimpleNamespace(device=torch.device("cpu"), synchronize=lambda: None)
    monkeypatch.setattr(cuda, "allocate_pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(cuda, "_Graph", FakeGraph)


@pytest.mark.usefixtures("no_gpu")
def test_outputs_of_padded_batches_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "BATCH_SIZES", (1, 4, 16))
    session = session_of(TwoOutputs)
    images = noise(81, 32, 64)  # five full batches and one image: more than MAX_PENDING
    expected = on_cpu(filled(TwoOutputs), RetinaFace.preprocessing, images)
    for _ in range(MIN_CAPTURE_REQUESTS):
        for count in (81, 7, 3, 1):
            outputs = session.run(images[:count])
            assert [output.dtype for output in outputs] == [np.float32] * 2
            for a, b in zip(outputs, expected, strict=True):
                assert a.shape == (count, *b.shape[1:])
                assert np.abs(a - b[:count]).max() < 1e-4


@pytest.mark.usefixtures("no_gpu")
def test_shape_that_cannot_be_captured_is_computed_without_a_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda, "_Graph", fail)
    session = session_of(iresnet18)
    first, *others = [session.run(noise(1))[0] for _ in range(MIN_CAPTURE_REQUESTS + 2)]
    assert all(np.allclose(first, other, atol=1e-5) for other in others)
    reason = "CUDA error: operation not permitted when stream is capturing"
    assert caplog.messages == [f"cannot capture batches of 1 x 112 x 112: {reason}"]


@pytest.mark.usefixtures("no_gpu")
def test_full_gpu_memory_is_reported_as_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(iresnet18)

    def fail(self: PreprocessedNetwork, images: torch.Tensor) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much.\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(PreprocessedNetwork, "forward", fail)
        with pytest.raises(Overloaded, match=r"a batch of 112 x 112 images does not fit .*: CUDA out of memory"):
            session.run(noise(1))
    assert session.run(noise(1))[0].shape == (1, 512)


@needs_cuda
@pytest.mark.parametrize(("half", "min_cosine"), [(False, 0.99999), (True, 0.999)])
def test_embeddings_equal_those_of_the_cpu_at_every_batch_size(half: bool, min_cosine: float) -> None:
    crops = noise(300)
    (expected,) = on_cpu(filled(iresnet50), ARCFACE, crops)
    session = session_of(iresnet50, half)
    for count in (1, 3, 5, 17, 64, 300):
        for _ in range(MIN_CAPTURE_REQUESTS + 2):  # without a graph, captured, replayed
            (found,) = session.run(crops[:count])
            assert found.dtype == np.float32
            assert found.shape == (count, 512)
            assert cosines(found, expected[:count]).min() >= min_cosine


@needs_cuda
def test_detector_outputs_equal_those_of_the_cpu_in_many_shapes() -> None:
    session, original = session_of(RetinaFaceNetwork), filled(RetinaFaceNetwork)
    shapes = [(64, 96), (96, 64), (320, 320), (32, 32), (64, 96)] * MIN_CAPTURE_REQUESTS
    for number, (height, width) in enumerate(shapes):
        images = noise(1 + number % 5, height, width, number)
        for a, b in zip(session.run(images), on_cpu(original, RetinaFace.preprocessing, images), strict=True):
            assert a.shape == b.shape
            assert np.abs(a - b).max() < 1e-3  # without TensorFloat-32


@needs_cuda
def test_padding_does_not_affect_outputs() -> None:
    """Neither earlier batches nor the number of rows changes a result."""
    session = session_of(iresnet18, half=True)
    crops = noise(16)
    for _ in range(MIN_CAPTURE_REQUESTS):
        session.run(crops)
    (full,) = session.run(crops)
    for fill in (0, 255):
        session.run(np.full_like(crops, fill))
        (part,) = session.run(crops[:9])
        assert part.shape == (9, 512)
        assert np.array_equal(part, full[:9])


@needs_cuda
def test_sessions_are_thread_safe() -> None:
    """Sessions are created, capture and compute in parallel."""
    rng = np.random.default_rng(0)
    batches = [noise(int(rng.integers(1, 80)), seed=n) for n in range(60)]
    original = filled(iresnet18)
    expected = [on_cpu(original, ARCFACE, batch)[0] for batch in batches]
    sessions = [session_of(iresnet18, half) for half in (True, False)]
    detector = session_of(RetinaFaceNetwork)

    def work(number: int) -> Tensor:
        detector.run(noise(1 + number % 3, 64 + 32 * (number % 4), 64, number))
        return sessions[number % 2].run(batches[number])[0]

    with ThreadPoolExecutor(8) as pool:
        created = pool.submit(lambda: session_of(iresnet18, half=True).run(batches[0])[0])
        results = list(pool.map(work, range(len(batches))))
        assert cosines(created.result(), expected[0]).min() >= 0.999
    for found, wanted in zip(results, expected, strict=True):
        assert cosines(found, wanted).min() >= 0.999


@needs_cuda
def test_images_may_be_a_view_with_negative_strides() -> None:
    session = session_of(iresnet18)
    mirrored = noise(4)[:, :, ::-1]
    assert cosines(session.run(mirrored)[0], session.run(np.ascontiguousarray(mirrored))[0]).min() > 0.99999
