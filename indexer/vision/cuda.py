"""Runs PyTorch networks on an NVIDIA GPU.

Batches are padded to a few sizes, and frequent shapes are captured as CUDA graphs, so that a network of a hundred small
kernels is launched by one call. Pixels are copied as bytes from pinned memory; the GPU reorders and scales them and
converts them to half precision.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from indexer.errors import ModelUnavailable, Overloaded
from indexer.vision.runtime import Preprocessing

log = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 16, 32, 64, 256)
"""Sizes of the batches that run on the GPU; other numbers of images are split and padded to these."""

MAX_BATCH_PIXELS = 2**23
"""Limits GPU memory. A batch of 256 crops has 3.2 million pixels, four canvases of 1280 x 1280 have 6.6 million."""

MAX_PENDING = 4
"""Batches queued on the GPU while the next one is copied to pinned memory."""

MIN_CAPTURE_REQUESTS = 3
"""Requests of a shape after which it is captured; a capture takes as long as hundreds of runs."""

MAX_GRAPHS = 24
"""Captured graphs of a session: seven batch sizes of crops; a detector gets many image shapes, few of them often."""

WARM_UP_RUNS = 3
"""Runs before a capture, in which cuDNN selects its algorithms and libraries allocate their buffers."""

Shape = tuple[int, int, int]
"""Batch size, height, width."""

V = TypeVar("V")

_launch_lock = threading.Lock()
"""Serializes launches and captures in the process: a capture allows few other calls and no second capture. The lock is
not held while waiting for the GPU, so that the work of several sessions overlaps."""


def find_problem() -> str | None:
    """Returns why PyTorch cannot use a GPU here, None if it can."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA; expected a build for CUDA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about GPUs that are too old: reported below
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            index = torch.cuda.current_device()
            name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        except (RuntimeError, AssertionError) as error:  # no driver, an old driver, no GPU, a forked process
            return _first_line(error)
        try:
            torch.ones(1, device="cuda").add(1).item()
        except RuntimeError as error:
            return (
                f"PyTorch {torch.__version__} does not run on {name} of compute capability "
                f"{'.'.join(map(str, capability))}; it is built for {', '.join(torch.cuda.get_arch_list())}: "
                f"{_first_line(error)}"
            )
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class BatchSlice:
    """Images `start` to `stop`, computed as a batch of `size`."""

    start: int
    stop: int
    size: int


def batch_sizes(height: int, width: int) -> tuple[int, ...]:
    """Returns the BATCH_SIZES allowed for images of this size."""
    return tuple(size for size in BATCH_SIZES if size * height * width <= MAX_BATCH_PIXELS) or BATCH_SIZES[:1]


def plan_batches(count: int, sizes: tuple[int, ...]) -> Iterator[BatchSlice]:
    """Splits `count` images into batches of the given ascending sizes. A batch is padded to at most twice its
    images."""
    start = 0
    while start < count:
        left = count - start
        padded = next((size for size in sizes if left <= size <= 2 * left), None)
        size = padded or max((size for size in sizes if size <= left), default=sizes[0])
        stop = start + min(left, size)
        yield BatchSlice(start, stop, size)
        start = stop


class GraphCache(Generic[V]):
    """Caches captured graphs for the shapes requested most often."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._requests: Counter[Shape] = Counter()
        self._cached: OrderedDict[Shape, V] = OrderedDict()
        """In order of the last request, the oldest first."""

    def find(self, shape: Shape, capture: Callable[[], V]) -> V | None:
        """Returns the value cached for `shape`, calling `capture` if necessary; None for a rare shape.

        A full cache evicts the least recently requested shape only for one requested more than twice as often, so that
        alternating shapes do not evict each other.
        """
        self._requests[shape] += 1
        if shape in self._cached:
            self._cached.move_to_end(shape)
            return self._cached[shape]
        if self._requests[shape] < MIN_CAPTURE_REQUESTS:
            return None
        if len(self._cached) >= self._capacity:
            oldest = next(iter(self._cached))
            if self._requests[shape] <= 2 * self._requests[oldest]:
                return None
            del self._cached[oldest]
        self._cached[shape] = value = capture()
        return value


def preprocess(images: Tensor, preprocessing: Preprocessing, dtype: torch.dtype) -> Tensor:
    """Converts (N, H, W, 3) uint8 RGB to (N, 3, H, W) of `dtype`, channels last in memory. Computes in float32."""
    x = images.to(torch.float32)
    if preprocessing.bgr:
        x = x.flip(3)
    for channel, mean in enumerate(preprocessing.mean):  # a capture could not copy a tensor of means to the GPU
        if mean:
            x[..., channel] -= mean
    if preprocessing.scale != 1.0:
        x *= preprocessing.scale
    return x.to(dtype).permute(0, 3, 1, 2)


class PreprocessedNetwork(nn.Module):
    """A network that takes (N, H, W, 3) uint8 RGB and returns its outputs in float32.

    The given network is modified: half precision if requested, channels last, batch normalization folded.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, half: bool) -> None:
        super().__init__()
        self._dtype = torch.float16 if half else torch.float32
        self._preprocessing = preprocessing
        folded: nn.Module = fold_batch_norms(network.eval().float()).to(self._dtype)
        self._network = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs = self._network(preprocess(images, self._preprocessing, self._dtype))
        return [output.float().contiguous() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]


def fold_batch_norms(network: nn.Module) -> fx.GraphModule:
    """Folds each batch normalization that follows a convolution or a linear layer into that layer, which saves memory
    traffic. Others remain: those before a padded convolution cannot be folded, because the padding is added later."""
    traced = fx.symbolic_trace(network)
    modules: dict[str, Any] = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        fuse = _FUSIONS.get((type(modules[str(before.target)]), type(modules[str(node.target)])))
        if fuse is None:
            continue
        modules[str(before.target)] = fused = fuse(modules[str(before.target)], modules[str(node.target)])
        traced.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.requires_grad_(False)


_FUSIONS: dict[tuple[type[nn.Module], type[nn.Module]], Callable[[Any, Any], nn.Module]] = {
    (nn.Conv2d, nn.BatchNorm2d): fuse_conv_bn_eval,
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn_eval,
}


def allocate_pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocates host memory that the GPU can access. PyTorch reuses it only after the copies started with it are
    complete."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    """Makes cuDNN measure its algorithms and choose the fastest, which pays off for captured shapes only."""
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


class _Graph:
    """A network captured for one shape on `stream`; a replay there computes `outputs` from `input`.

    All graphs of a session share a memory pool, which is as large as the largest needs: `outputs` are valid until the
    next graph runs. Create and replay it with `_launch_lock` held, in `stream`.
    """

    def __init__(self, network: PreprocessedNetwork, shape: Shape, stream: torch.cuda.Stream, pool: Any) -> None:
        # Outside of the pool: other graphs must not overwrite it.
        self.input = torch.zeros((*shape, 3), dtype=torch.uint8, device=stream.device)
        with _cudnn_benchmark():
            for _ in range(WARM_UP_RUNS):
                network(self.input)
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # "thread_local" lets other threads make calls that are forbidden during a capture, such as synchronizing.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.outputs: list[Tensor] = network(self.input)

    def replay(self) -> None:
        self._graph.replay()


class CudaSession:
    """Runs a network on the GPU as a `runtime.Session`. Sessions run in parallel, each on its own stream; threads that
    share a session take turns.

    In float32, TensorFloat-32 is disabled: it has a precision of 11 bits, no more than half precision, and float32 is
    requested where results must equal those of the CPU, as for landmarks.
    """

    batch = MAX_PENDING * BATCH_SIZES[-1]

    def __init__(self, module: nn.Module, preprocessing: Preprocessing, half: bool) -> None:
        """Raises ModelUnavailable if the network does not fit in the GPU's memory."""
        torch.backends.cudnn.allow_tf32 = False  # for the whole process; half precision does not use it
        torch.backends.cuda.matmul.allow_tf32 = False
        self._lock = threading.Lock()
        network = PreprocessedNetwork(module, preprocessing, half)
        with _launch_lock:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            try:
                self._network = network.to(self._stream.device)
            except torch.OutOfMemoryError as error:
                raise ModelUnavailable(
                    f"the network does not fit in the GPU's memory: {_first_line(error)}", code="device_unavailable"
                ) from error
            torch.cuda.current_stream().synchronize()
        self._graphs: GraphCache[_Graph | None] = GraphCache(MAX_GRAPHS)

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Returns all outputs, in the network's order, for (N, H, W, 3) RGB uint8 images, N at least 1.

        Raises:
            Overloaded: A batch does not fit in the GPU's memory.
        """
        count, height, width, _ = images.shape
        pending: list[list[Tensor]] = []
        finished: list[list[NDArray[np.float32]]] = []
        with self._lock, torch.inference_mode(), torch.cuda.stream(self._stream):
            try:
                for batch in plan_batches(count, batch_sizes(height, width)):
                    pending.append(self._start(images[batch.start : batch.stop], (batch.size, height, width)))
                    if len(pending) == MAX_PENDING:
                        finished += self._finish(pending)
                finished += self._finish(pending)
            except torch.OutOfMemoryError as error:
                raise Overloaded(
                    f"a batch of {width} x {height} images does not fit in the GPU's memory: {_first_line(error)}"
                ) from error
            finally:
                # Even after an error, pinned memory must outlive the copies that use it.
                self._stream.synchronize()
        return [np.concatenate(parts) for parts in zip(*finished, strict=True)]

    def _start(self, rows: NDArray[np.uint8], shape: Shape) -> list[Tensor]:
        """Queues copying to the GPU, computing and copying back of one batch on the stream. The returned tensors are
        valid after the stream is synchronized."""
        staged = allocate_pinned(rows.shape, torch.uint8)
        np.copyto(staged.numpy(), rows)
        with _launch_lock:
            graph = self._graphs.find(shape, lambda: self._capture(shape))
            if graph is None:
                outputs = self._network(staged.to(self._stream.device, non_blocking=True))
            else:
                # Padding rows keep pixels of an earlier batch; rows are independent, and their outputs are not read.
                graph.input[: len(rows)].copy_(staged, non_blocking=True)
                graph.replay()
                outputs = [output[: len(rows)] for output in graph.outputs]
            results = [allocate_pinned(output.shape, torch.float32) for output in outputs]
            for target, output in zip(results, outputs, strict=True):
                target.copy_(output, non_blocking=True)
        return results

    def _finish(self, pending: list[list[Tensor]]) -> list[list[NDArray[np.float32]]]:
        """Waits for the pending batches, empties the list and returns their outputs in pageable memory."""
        self._stream.synchronize()
        finished = [[output.numpy().copy() for output in outputs] for outputs in pending]
        pending.clear()
        return finished

    def _capture(self, shape: Shape) -> _Graph | None:
        """Captures a graph. Returns None on failure: the shape then runs kernel by kernel, with the same result."""
        try:
            return _Graph(self._network, shape, self._stream, self._pool)
        except RuntimeError as error:  # including full memory
            log.warning("cannot capture batches of %d x %d x %d: %s", *shape, _first_line(error))
            self._pool = torch.cuda.graph_pool_handle()  # a pool whose only graph failed cannot be used again
            return None
