"""Networks on a GPU: what is planned and computed without one, and what one answers where there is one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from indexer.errors import ModelUnavailable, Overloaded
from indexer.models.architectures.iresnet import iresnet18, iresnet50
from indexer.models.architectures.retinaface import RetinaFaceNetwork
from indexer.models.packs import SFACE, Network
from indexer.types import Device, normalize
from indexer.vision import cuda, networks, runtime
from indexer.vision.cuda import (
    BATCH_SIZES,
    MAX_BATCH_PIXELS,
    MAX_GRAPHS,
    MIN_CAPTURE_REQUESTS,
    CudaSession,
    GraphCache,
    PreprocessedNetwork,
    batch_sizes,
    fold_batch_norms,
    plan_batches,
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
    """A network that may be changed."""
    return deepcopy(_original(kind))


def on_cpu(network: nn.Module, feed: Preprocessing, canvases: NDArray[np.uint8]) -> list[Tensor]:
    """What the plain network answers to what every other runtime is fed."""
    with torch.inference_mode():
        outputs = network(torch.from_numpy(runtime.to_blob(canvases, feed)))
    return [output.numpy() for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]


def cosines(a: Tensor, b: Tensor) -> NDArray[np.float32]:
    return np.asarray((normalize(a) * normalize(b)).sum(1), np.float32)


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.find_problem() == f"PyTorch {torch.__version__} is built without CUDA; expected a build for CUDA"
    pack = replace(
        SFACE,
        detector=replace(SFACE.detector, network=Network.RETINAFACE),
        embedder=replace(SFACE.embedder, network=Network.IRESNET50),
    )
    with pytest.raises(
        ModelUnavailable, match=r"sface cannot run on CUDA here: PyTorch .* is built without CUDA"
    ) as caught:
        networks.uses_cuda(pack, Device.CUDA)
    assert caught.value.code == "device_unavailable"
    assert not networks.uses_cuda(pack, Device.AUTO)


def test_no_driver_no_gpu_and_an_old_gpu_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check that you have one.")

    monkeypatch.setattr(torch.cuda, "init", init)
    assert cuda.find_problem() == "Found no NVIDIA driver on your system."

    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla K80")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (3, 7))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])

    def ones(size: int, device: str) -> object:
        def add(value: int) -> object:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

        return SimpleNamespace(add=add)

    monkeypatch.setattr(torch, "ones", ones)
    problem = cuda.find_problem()
    assert problem is not None
    assert "Tesla K80 of compute capability 3.7; it is built for sm_75, sm_90: CUDA error: no kernel image" in problem
    assert "\n" not in problem


def test_sizes_keep_a_batch_within_its_pixels() -> None:
    assert batch_sizes(112, 112) == BATCH_SIZES
    assert batch_sizes(1280, 1280) == (1, 2, 4)
    assert batch_sizes(320, 320) == (1, 2, 4, 16, 32, 64)
    assert batch_sizes(5000, 5000) == (1,)  # one is computed, however large
    assert all(size * 320 * 320 <= MAX_BATCH_PIXELS for size in batch_sizes(320, 320))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [1]),
        (2, [2]),
        (3, [4]),
        (5, [4, 1]),
        (7, [4, 4]),
        (8, [16]),
        (17, [32]),
        (32, [32]),
        (100, [64, 64]),
        (128, [256]),
        (300, [256, 64]),
        (1024, [256] * 4),
    ],
)
def test_cuts(count: int, expected: list[int]) -> None:
    assert [cut.size for cut in plan_batches(count, BATCH_SIZES)] == expected


@pytest.mark.parametrize("among", [BATCH_SIZES, (1, 4), (1,)])
def test_cuts_take_every_row_once_and_waste_at_most_half(among: tuple[int, ...]) -> None:
    for count in range(1, 600):
        parts = list(plan_batches(count, among))
        assert [row for cut in parts for row in range(cut.start, cut.stop)] == list(range(count))
        assert all(cut.size in among and cut.size / 2 <= cut.stop - cut.start <= cut.size for cut in parts)


class Maker:
    """Notes what is made."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def make(self, side: int) -> int:
        self.made.append(side)
        return side

    def ask(self, favourites: GraphCache[int], side: int, times: int = 1) -> int | None:
        found = None
        for _ in range(times):
            found = favourites.find((1, side, side), partial(self.make, side))
        return found


def test_favourites_are_made_once_and_only_for_what_comes_often() -> None:
    maker, favourites = Maker(), GraphCache[int](2)
    ask = partial(maker.ask, favourites)
    assert ask(32, MIN_CAPTURE_REQUESTS - 1) is None
    assert ask(32) == 32
    assert ask(32, 5) == 32
    assert maker.made == [32]
    assert ask(64, MIN_CAPTURE_REQUESTS) == 64
    assert ask(96, MIN_CAPTURE_REQUESTS) is None  # no room
    assert ask(64) == 64
    assert maker.made == [32, 64]
    assert ask(96, 2 * 8 - MIN_CAPTURE_REQUESTS) is None  # 32 was asked for eight times
    assert ask(96) == 96  # 32, the least recent, made room
    assert ask(96) == 96
    assert maker.made == [32, 64, 96]


def test_shapes_that_take_turns_do_not_drive_each_other_out() -> None:
    maker, favourites = Maker(), GraphCache[int](MAX_GRAPHS)
    for _ in range(50):
        for side in range(2 * MAX_GRAPHS):
            maker.ask(favourites, side)
    assert len(maker.made) == MAX_GRAPHS


def test_what_could_not_be_made_is_not_tried_again() -> None:
    tries: list[int] = []
    favourites: GraphCache[None] = GraphCache(2)
    for _ in range(10):
        assert favourites.find((1, 2, 3), lambda: tries.append(1)) is None
    assert len(tries) == 1


FEEDS = [
    Preprocessing(),
    ARCFACE,
    Preprocessing((104.0, 117.0, 123.0), bgr=True),
    Preprocessing((1.0, 0.0, 250.5), 1 / 58, True),
]


@pytest.mark.parametrize("feed", FEEDS)
def test_feeds_as_the_cpu_does(feed: Preprocessing) -> None:
    canvases = noise(3, 32, 64)
    fed = preprocess(torch.from_numpy(canvases), feed, torch.float32)
    assert fed.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(fed.numpy(), runtime.to_blob(canvases, feed), rtol=1e-6, atol=1e-6)
    assert np.array_equal(canvases, noise(3, 32, 64))
    half = preprocess(torch.from_numpy(canvases), feed, torch.float16)
    assert half.dtype == torch.float16
    assert np.allclose(half.numpy(), fed.numpy(), rtol=2**-11, atol=1e-6)


def batch_norms(network: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in network.modules())


@pytest.mark.parametrize(
    ("network", "side", "left"),
    # An IR-ResNet keeps those before a convolution, one a block, and the one before the linear layer.
    [(iresnet18, 112, 8 + 1), (RetinaFaceNetwork, 32, 0)],
)
def test_folding_changes_nothing_but_the_work(network: Callable[[], nn.Module], side: int, left: int) -> None:
    plain, fused = filled(network), fold_batch_norms(filled(network))
    assert batch_norms(plain) > batch_norms(fused) == left
    canvases = noise(2, side, side)
    for a, b in zip(on_cpu(plain, ARCFACE, canvases), on_cpu(fused, ARCFACE, canvases), strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()


def test_a_shared_convolution_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return torch.add(self.norm(y), y)

    plain = filled(Twice)
    fused = fold_batch_norms(filled(Twice))
    assert batch_norms(fused) == 1
    assert np.allclose(on_cpu(plain, ARCFACE, noise(1))[0], on_cpu(fused, ARCFACE, noise(1))[0], atol=1e-6)


def test_fed_answers_what_the_network_does() -> None:
    plain, canvases = filled(iresnet18), noise(3)
    (expected,) = on_cpu(plain, ARCFACE, canvases)
    for half, least in ((False, 0.999999), (True, 0.999)):
        fed = PreprocessedNetwork(filled(iresnet18), ARCFACE, half)
        with torch.inference_mode():
            (answer,) = fed(torch.from_numpy(canvases))
        assert answer.dtype == torch.float32
        assert cosines(answer.numpy(), expected).min() >= least


def test_fed_feeds_detectors_and_keeps_their_outputs_apart() -> None:
    canvases = noise(2, 64, 96)
    fed = PreprocessedNetwork(filled(RetinaFaceNetwork), RetinaFace.preprocessing, False)
    with torch.inference_mode():
        answers = fed(torch.from_numpy(canvases))
    expected = on_cpu(filled(RetinaFaceNetwork), RetinaFace.preprocessing, canvases)
    for a, b in zip(answers, expected, strict=True):
        assert a.is_contiguous()
        assert np.abs(a.numpy() - b).max() < 1e-4


class TwoOutputs(nn.Module):
    """(N, 3, H, W) -> (N, 4, H / 2, W / 2) and (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.norm(self.conv(x))
        return y, y.mean((1, 2, 3))[:, None]


class StandIn:
    """What is left of a captured graph without a GPU: the same buffers each time, overwritten by each run."""

    def __init__(self, fed: PreprocessedNetwork, shape: cuda.Shape, stream: object, pool: object) -> None:
        self.input = torch.full((*shape, 3), 99, dtype=torch.uint8)
        self.outputs = fed(self.input)
        self._fed = fed

    def replay(self) -> None:
        for kept, output in zip(self.outputs, self._fed(self.input), strict=True):
            kept.copy_(output)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a session run on the CPU, where streams do everything at once: all but the capture is the real code."""
    stream = SimpleNamespace(device=torch.device("cpu"), synchronize=lambda: None)
    monkeypatch.setattr(cuda, "allocate_pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(cuda, "_Graph", StandIn)


@pytest.mark.usefixtures("no_gpu")
def test_cut_and_padded_batches_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "BATCH_SIZES", (1, 4, 16))
    session = CudaSession(filled(TwoOutputs), RetinaFace.preprocessing, False)
    canvases = noise(81, 32, 64)  # five full batches and one row: more than are in flight
    expected = on_cpu(filled(TwoOutputs), RetinaFace.preprocessing, canvases)
    for _ in range(MIN_CAPTURE_REQUESTS):
        for count in (81, 7, 3, 1):
            answers = session.run(canvases[:count])
            assert [answer.dtype for answer in answers] == [np.float32] * 2
            for a, b in zip(answers, expected, strict=True):
                assert a.shape == (count, *b.shape[1:])
                assert np.abs(a - b[:count]).max() < 1e-4


@pytest.mark.usefixtures("no_gpu")
def test_what_cannot_be_captured_is_computed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda, "_Graph", fail)
    session = CudaSession(filled(iresnet18), ARCFACE, False)
    first, *others = [session.run(noise(1))[0] for _ in range(MIN_CAPTURE_REQUESTS + 2)]
    assert all(np.allclose(first, other, atol=1e-5) for other in others)
    (told,) = caplog.messages
    assert (
        told
        == "batches of 1 x 112 x 112 are not captured: CUDA error: operation not permitted when stream is capturing"
    )


@pytest.mark.usefixtures("no_gpu")
def test_full_memory_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    session = CudaSession(filled(iresnet18), ARCFACE, False)
    forward = PreprocessedNetwork.forward

    def fail(self: PreprocessedNetwork, canvases: torch.Tensor) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much.\nmore")

    monkeypatch.setattr(PreprocessedNetwork, "forward", fail)
    with pytest.raises(Overloaded, match=r"a batch of pictures of 112 x 112: CUDA out of memory"):
        session.run(noise(1))
    monkeypatch.setattr(PreprocessedNetwork, "forward", forward)
    assert session.run(noise(1))[0].shape == (1, 512)


@needs_cuda
@pytest.mark.parametrize("half", [False, True])
def test_embeddings_agree_with_the_cpu_at_every_size(half: bool) -> None:
    crops = noise(300)
    (expected,) = on_cpu(filled(iresnet50), ARCFACE, crops)
    session = CudaSession(filled(iresnet50), ARCFACE, half)
    for count in (1, 3, 5, 17, 64, 300):
        answers = [session.run(crops[:count])[0] for _ in range(MIN_CAPTURE_REQUESTS + 2)]  # eager, captured, replayed
        for answer in answers:
            assert answer.dtype == np.float32
            assert answer.shape == (count, 512)
            assert cosines(answer, expected[:count]).min() >= (0.999 if half else 0.99999)


@needs_cuda
def test_detectors_agree_with_the_cpu_in_many_shapes() -> None:
    session = CudaSession(filled(RetinaFaceNetwork), RetinaFace.preprocessing, False)
    plain = filled(RetinaFaceNetwork)
    for number, (height, width) in enumerate(
        [(64, 96), (96, 64), (320, 320), (32, 32), (64, 96)] * MIN_CAPTURE_REQUESTS
    ):
        canvases = noise(1 + number % 5, height, width, number)
        for a, b in zip(session.run(canvases), on_cpu(plain, RetinaFace.preprocessing, canvases), strict=True):
            assert a.shape == b.shape
            assert np.abs(a - b).max() < 1e-3  # without TensorFloat-32


@needs_cuda
def test_rows_that_pad_do_not_leak() -> None:
    """Neither what was there before nor how many rows there are changes an answer."""
    session = CudaSession(filled(iresnet18), ARCFACE, True)
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
def test_threads_get_their_own_answers_from_several_sessions() -> None:
    """Sessions capture, compute and are made side by side."""
    rng = np.random.default_rng(0)
    batches = [noise(int(rng.integers(1, 80)), seed=n) for n in range(60)]
    plain = filled(iresnet18)
    expected = [on_cpu(plain, ARCFACE, batch)[0] for batch in batches]
    sessions = [CudaSession(filled(iresnet18), ARCFACE, half) for half in (True, False)]
    detector = CudaSession(filled(RetinaFaceNetwork), RetinaFace.preprocessing, False)

    def work(number: int) -> Tensor:
        detector.run(noise(1 + number % 3, 64 + 32 * (number % 4), 64, number))
        return sessions[number % 2].run(batches[number])[0]

    with ThreadPoolExecutor(8) as pool:
        made = pool.submit(lambda: CudaSession(filled(iresnet18), ARCFACE, True).run(batches[0])[0])
        answers = list(pool.map(work, range(len(batches))))
        assert cosines(made.result(), expected[0]).min() >= 0.999
    for answer, one in zip(answers, expected, strict=True):
        assert cosines(answer, one).min() >= 0.999


@needs_cuda
def test_a_view_of_other_pixels_is_taken_as_it_reads() -> None:
    session = CudaSession(filled(iresnet18), ARCFACE, False)
    crops = noise(4)
    (mirrored,) = session.run(crops[:, :, ::-1])
    assert cosines(mirrored, session.run(np.ascontiguousarray(crops[:, :, ::-1]))[0]).min() > 0.99999
