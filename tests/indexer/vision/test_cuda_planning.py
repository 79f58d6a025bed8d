"""GPU availability, batch planning and the choice of captured shapes; these need no GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from indexer.errors import ModelUnavailable
from indexer.models.packs import SFACE, Network
from indexer.types import Device
from indexer.vision import cuda, networks
from indexer.vision.cuda import (
    BATCH_SIZES,
    MAX_BATCH_PIXELS,
    MAX_GRAPHS,
    MIN_CAPTURE_REQUESTS,
    GraphCache,
    batch_sizes,
    plan_batches,
)


def test_build_without_cuda_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.find_problem() == f"PyTorch {torch.__version__} is built without CUDA; expected a build for CUDA"
    pack = replace(
        SFACE,
        detector=replace(SFACE.detector, network=Network.RETINAFACE),
        embedder=replace(SFACE.embedder, network=Network.IRESNET50),
    )
    expected = r"sface cannot run on CUDA here: PyTorch .* is built without CUDA"
    with pytest.raises(ModelUnavailable, match=expected) as caught:
        networks.uses_cuda(pack, Device.CUDA)
    assert caught.value.code == "device_unavailable"
    assert not networks.uses_cuda(pack, Device.AUTO)


def test_missing_driver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check that you have one.")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    assert cuda.find_problem() == "Found no NVIDIA driver on your system."


def test_gpu_that_is_too_old_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(size: int, device: str) -> object:
        def add(value: int) -> object:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

        return SimpleNamespace(add=add)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla K80")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (3, 7))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch, "ones", ones)
    problem = cuda.find_problem()
    assert problem is not None
    assert "Tesla K80 of compute capability 3.7; it is built for sm_75, sm_90: CUDA error: no kernel image" in problem
    assert "\n" not in problem


def test_batch_sizes_are_limited_by_pixels() -> None:
    assert batch_sizes(112, 112) == BATCH_SIZES
    assert batch_sizes(1280, 1280) == (1, 2, 4)
    assert batch_sizes(320, 320) == (1, 2, 4, 16, 32, 64)
    assert batch_sizes(5000, 5000) == (1,)  # a single image of any size
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
def test_images_are_split_into_batches(count: int, expected: list[int]) -> None:
    assert [batch.size for batch in plan_batches(count, BATCH_SIZES)] == expected


@pytest.mark.parametrize("sizes", [BATCH_SIZES, (1, 4), (1,)])
def test_batches_contain_each_image_once_and_are_at_least_half_full(sizes: tuple[int, ...]) -> None:
    for count in range(1, 600):
        batches = list(plan_batches(count, sizes))
        assert [row for batch in batches for row in range(batch.start, batch.stop)] == list(range(count))
        assert all(b.size in sizes and b.size / 2 <= b.stop - b.start <= b.size for b in batches)


class Captures:
    """A graph cache that records what is captured."""

    def __init__(self, capacity: int) -> None:
        self.cache = GraphCache[int](capacity)
        self.made: list[int] = []

    def _capture(self, side: int) -> int:
        self.made.append(side)
        return side

    def request(self, side: int, times: int = 1) -> int | None:
        found = None
        for _ in range(times):
            found = self.cache.find((1, side, side), partial(self._capture, side))
        return found


def test_frequent_shapes_are_captured_once_and_evict_rarer_ones() -> None:
    captures = Captures(2)
    request = captures.request
    assert request(32, MIN_CAPTURE_REQUESTS - 1) is None
    assert request(32) == 32
    assert request(32, 5) == 32
    assert captures.made == [32]
    assert request(64, MIN_CAPTURE_REQUESTS) == 64
    assert request(96, MIN_CAPTURE_REQUESTS) is None  # the cache is full
    assert request(64) == 64
    assert captures.made == [32, 64]
    assert request(96, 2 * 8 - MIN_CAPTURE_REQUESTS) is None  # 32 was requested eight times
    assert request(96) == 96  # evicts 32, the least recently requested
    assert request(96) == 96
    assert captures.made == [32, 64, 96]


def test_alternating_shapes_do_not_evict_each_other() -> None:
    captures = Captures(MAX_GRAPHS)
    for _ in range(50):
        for side in range(2 * MAX_GRAPHS):
            captures.request(side)
    assert len(captures.made) == MAX_GRAPHS


def test_failed_capture_is_not_repeated() -> None:
    attempts: list[int] = []
    graphs: GraphCache[None] = GraphCache(2)
    for _ in range(10):
        assert graphs.find((1, 2, 3), lambda: attempts.append(1)) is None
    assert len(attempts) == 1
