"""PyTorch networks on an NVIDIA GPU.

A batch is padded to one of a few sizes, and whatever is computed at one size and one height and width often is captured
as a CUDA graph: a network of a hundred small kernels is then started by one call. Pixels travel as bytes from pinned
memory; they are ordered, scaled and made half precision on the GPU.
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
"""Batches that are computed; others are cut and padded to these."""

MAX_BATCH_PIXELS = 2**23
"""Of a batch: 256 crops are 3.2 million, four canvases of 1280 x 1280 6.6 million. It bounds the GPU's memory."""

IN_FLIGHT = 4
"""Batches that wait on the GPU while the next is copied to pinned memory."""

MIN_CAPTURE_REQUESTS = 3
"""A shape is captured when it is asked for this often: a capture costs hundreds of runs."""

MAX_GRAPHS = 24
"""Captured at a time, a session: seven sizes of crops; a detector meets many shapes of photos, few of them often."""

WARM_UP = 3
"""Runs before a capture, in which cuDNN measures its algorithms and libraries allocate what they keep."""

Shape = tuple[int, int, int]
"""Batch, height, width."""

V = TypeVar("V")

_launching = threading.Lock()
"""Held by the one thread of the process that starts work on the GPU, or captures it: little else is allowed beside a
capture, and a second capture is not. Nobody waits for the GPU with it, so that what is started overlaps."""


def find_problem() -> str | None:
    """Why PyTorch cannot use a GPU here; None where it can."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA; expected a build for CUDA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a GPU that is too old: told below
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
    """Rows `start` to `stop` of what is asked for, computed as a batch of `size`."""

    start: int
    stop: int
    size: int


def batch_sizes(height: int, width: int) -> tuple[int, ...]:
    """Those of BATCH_SIZES in which canvases of these sides are computed."""
    return tuple(size for size in BATCH_SIZES if size * height * width <= MAX_BATCH_PIXELS) or BATCH_SIZES[:1]


def plan_batches(count: int, among: tuple[int, ...]) -> Iterator[BatchSlice]:
    """`count` rows as batches of the sizes `among`, rising. The last is padded where that doubles it at most."""
    start = 0
    while start < count:
        left = count - start
        padded = next((size for size in among if left <= size <= 2 * left), None)
        size = padded or max((size for size in among if size <= left), default=among[0])
        stop = start + min(left, size)
        yield BatchSlice(start, stop, size)
        start = stop


class GraphCache(Generic[V]):
    """What is made once for the shapes that are asked for most."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._asked: Counter[Shape] = Counter()
        self._kept: OrderedDict[Shape, V] = OrderedDict()
        """The least recently asked for first."""

    def find(self, shape: Shape, make: Callable[[], V]) -> V | None:
        """What was made for `shape`, or is now; None for a rare shape.

        Where there is no room, the one that was left alone longest makes some for one that is asked for twice as often:
        shapes that take turns do not drive each other out.
        """
        self._asked[shape] += 1
        if shape in self._kept:
            self._kept.move_to_end(shape)
            return self._kept[shape]
        if self._asked[shape] < MIN_CAPTURE_REQUESTS:
            return None
        if len(self._kept) >= self._room:
            oldest = next(iter(self._kept))
            if self._asked[shape] <= 2 * self._asked[oldest]:
                return None
            del self._kept[oldest]
        self._kept[shape] = made = make()
        return made


def preprocess(canvases: Tensor, feed: Preprocessing, dtype: torch.dtype) -> Tensor:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) as `feed` says, channels last in memory. Computed in float32."""
    x = canvases.to(torch.float32)
    if feed.bgr:
        x = x.flip(3)
    for channel, mean in enumerate(feed.mean):  # numbers and no tensors, which a capture could not copy to the GPU
        if mean:
            x[..., channel] -= mean
    if feed.scale != 1.0:
        x *= feed.scale
    return x.to(dtype).permute(0, 3, 1, 2)


class PreprocessedNetwork(nn.Module):
    """A network with what stands before and after it: (N, H, W, 3) uint8 RGB -> its outputs in float32.

    The network is changed: half precision where asked for, channels last, batch normalisation fold_batch_norms.
    """

    def __init__(self, network: nn.Module, feed: Preprocessing, half: bool) -> None:
        super().__init__()
        self._dtype = torch.float16 if half else torch.float32
        self._feed = feed
        plain: nn.Module = fold_batch_norms(network.eval().float()).to(self._dtype)
        self._network = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, canvases: Tensor) -> list[Tensor]:
        outputs = self._network(preprocess(canvases, self._feed, self._dtype))
        return [output.float().contiguous() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]


def fold_batch_norms(network: nn.Module) -> fx.GraphModule:
    """The network with each batch normalisation that follows a convolution or a linear layer made part of it, which
    saves reading and writing all it answers. Other batch normalisations stay: zeros that pad a convolution come after
    them."""
    traced = fx.symbolic_trace(network)
    modules: dict[str, Any] = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        fuse = _FUSES.get((type(modules[str(before.target)]), type(modules[str(node.target)])))
        if fuse is None:
            continue
        modules[str(before.target)] = fused = fuse(modules[str(before.target)], modules[str(node.target)])
        traced.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.requires_grad_(False)


_FUSES: dict[tuple[type[nn.Module], type[nn.Module]], Callable[[Any, Any], nn.Module]] = {
    (nn.Conv2d, nn.BatchNorm2d): fuse_conv_bn_eval,
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn_eval,
}


def allocate_pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of the host that the GPU reads and writes by itself. PyTorch keeps it for the next, and gives it to no one
    before the copies that were started with it are done."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


@contextmanager
def _measuring() -> Iterator[None]:
    """cuDNN tries its algorithms and takes the fastest: worth it for a shape that is captured, not for a rare one."""
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


class _Graph:
    """One shape, captured on `stream`: replayed there, it computes `outputs` of what is in `input`.

    All graphs of a session share one memory pool, so that it is as large as the largest needs: the outputs are those of
    the graph that ran last, and are copied before the next runs. Made and replayed with `_launching` held, in `stream`.
    """

    def __init__(self, fed: PreprocessedNetwork, shape: Shape, stream: torch.cuda.Stream, pool: Any) -> None:
        # Outside of the pool: what is written into it must survive other graphs.
        self.input = torch.zeros((*shape, 3), dtype=torch.uint8, device=stream.device)
        with _measuring():
            for _ in range(WARM_UP):
                fed(self.input)
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # Other threads go on with what would be forbidden in this one, such as waiting for their own streams.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.outputs: list[Tensor] = fed(self.input)

    def replay(self) -> None:
        self._graph.replay()


class CudaSession:
    """A network on the GPU, as `runtime.Session` has it. Sessions overlap, each on a stream of its own; the threads
    that share one take turns.

    In float32, TensorFloat-32 is not used: it keeps 11 bits of each factor, no more than half precision, and where
    float32 is asked for, as for landmarks, the GPU should answer what the CPU does.
    """

    batch = IN_FLIGHT * BATCH_SIZES[-1]

    def __init__(self, module: nn.Module, feed: Preprocessing, half: bool) -> None:
        """Raises ModelUnavailable when the GPU's memory does not hold the network."""
        torch.backends.cudnn.allow_tf32 = False  # of the process; networks in half precision do not ask
        torch.backends.cuda.matmul.allow_tf32 = False
        self._lock = threading.Lock()
        fed = PreprocessedNetwork(module, feed, half)
        with _launching:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            try:
                self._fed = fed.to(self._stream.device)
            except torch.OutOfMemoryError as error:
                raise ModelUnavailable(
                    f"the GPU's memory does not hold the network: {_first_line(error)}", code="device_unavailable"
                ) from error
            torch.cuda.current_stream().synchronize()
        self._graphs: GraphCache[_Graph | None] = GraphCache(MAX_GRAPHS)

    def run(self, canvases: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """All outputs, in the network's order, for (N, H, W, 3) RGB uint8, N at least 1.

        Raises Overloaded when the GPU's memory does not hold one batch.
        """
        count, height, width, _ = canvases.shape
        flying: list[list[Tensor]] = []
        answers: list[list[NDArray[np.float32]]] = []
        with self._lock, torch.inference_mode(), torch.cuda.stream(self._stream):
            try:
                for cut in plan_batches(count, batch_sizes(height, width)):
                    flying.append(self._start(canvases[cut.start : cut.stop], (cut.size, height, width)))
                    if len(flying) == IN_FLIGHT:
                        answers += self._landed(flying)
                answers += self._landed(flying)
            except torch.OutOfMemoryError as error:
                raise Overloaded(
                    f"the GPU's memory does not hold a batch of pictures of {width} x {height}: {_first_line(error)}"
                ) from error
            finally:
                # Whatever happened, pinned memory that the GPU still reads or writes outlives it.
                self._stream.synchronize()
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]

    def _start(self, rows: NDArray[np.uint8], shape: Shape) -> list[Tensor]:
        """Puts copying there, computing and copying back of one batch into the stream, and waits for none of it; what
        comes back may be read after that."""
        staged = allocate_pinned(rows.shape, torch.uint8)
        np.copyto(staged.numpy(), rows)
        with _launching:
            graph = self._graphs.find(shape, lambda: self._captured(shape))
            if graph is None:
                outputs = self._fed(staged.to(self._stream.device, non_blocking=True))
            else:
                # The rows behind them are an earlier batch's: rows do not see each other, and these are not read.
                graph.input[: len(rows)].copy_(staged, non_blocking=True)
                graph.replay()
                outputs = [output[: len(rows)] for output in graph.outputs]
            back = [allocate_pinned(output.shape, torch.float32) for output in outputs]
            for target, output in zip(back, outputs, strict=True):
                target.copy_(output, non_blocking=True)
        return back

    def _landed(self, flying: list[list[Tensor]]) -> list[list[NDArray[np.float32]]]:
        """What was started, when it is done, in pageable memory. Empties `flying`."""
        self._stream.synchronize()
        landed = [[output.numpy().copy() for output in outputs] for outputs in flying]
        flying.clear()
        return landed

    def _captured(self, shape: Shape) -> _Graph | None:
        """None where capturing fails: the shape is computed kernel by kernel then, slower and with the same answer."""
        try:
            return _Graph(self._fed, shape, self._stream, self._pool)
        except RuntimeError as error:  # full memory, too; nothing of the answer depends on it
            log.warning("batches of %d x %d x %d are not captured: %s", *shape, _first_line(error))
            self._pool = torch.cuda.graph_pool_handle()  # one whose only graph failed cannot be used again
            return None
