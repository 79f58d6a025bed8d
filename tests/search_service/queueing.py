"""An inference queue whose pipeline waits when a test wants it to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from indexer.errors import ModelUnavailable
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Gallery, Pick
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import FacePipeline, ImageResult
from search_service.inference_queue import InferenceQueue, Kind
from search_service.search import Answer, Query
from tests.waiting import DEADLINE, wait_for_async

LARGEST = Kind(Pick.LARGEST)
DETECT = Kind(None, embed=False)
BAD = Kind(Pick.CENTER)
"""What HeldPipeline fails on."""

Result = TypeVar("Result")


class HeldPipeline(FacePipeline):
    """Computes nothing, for speed: an image's width is its number of bytes. Waits while `go` is not set."""

    def __init__(self) -> None:
        super().__init__(SFACE, ModelFiles(Path("nowhere")))
        self.calls: list[tuple[str, list[bytes]]] = []
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        return self._answer(f"{pick}/{gate}", images, is_bad=pick is BAD.pick)

    def detect(
        self, images: Sequence[bytes], pick: Pick | None = None, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        return self._answer("detect", images, is_bad=False)

    def _answer(self, kind: str, images: Sequence[bytes], is_bad: bool) -> list[ImageResult]:
        self.calls.append((kind, list(images)))
        self.entered.set()
        assert self.go.wait(DEADLINE)
        if is_bad:
            raise ModelUnavailable("out of order")
        return [ImageResult(width=len(data), height=len(kind)) for data in images]

    @property
    def batches(self) -> list[list[bytes]]:
        return [images for _, images in self.calls]

    @property
    def sizes(self) -> list[int]:
        return [len(images) for images in self.batches]


def no_search(seen: Sequence[ImageResult], gallery: Gallery, query: Query) -> Sequence[Answer]:
    raise AssertionError("nothing is searched")


@contextmanager
def running_queue(
    max_batch: int = 16, max_waiting: int = 100, max_bytes: int = 2**24, search: Any = no_search
) -> Iterator[InferenceQueue]:
    queue = InferenceQueue(search, max_batch, max_waiting, max_bytes)
    queue.start()
    yield queue
    queue.stop()


def run(test: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    async def bounded() -> Result:
        return await asyncio.wait_for(test(), DEADLINE)

    return asyncio.run(bounded())


async def start_computing(queue: InferenceQueue, held: HeldPipeline, image: bytes = b"first") -> asyncio.Task[Any]:
    """Returns a request whose image the networks are busy with until `held.go` is set."""
    held.go.clear()
    held.entered.clear()
    task = asyncio.create_task(queue.describe([image], held, LARGEST))
    await wait_for_async(held.entered.is_set)
    return task


async def add(*requests: Coroutine[Any, Any, Result]) -> list[asyncio.Task[Result]]:
    """Adds requests to the queue, in order. None of them is computed while the networks are busy."""
    tasks = [asyncio.create_task(request) for request in requests]
    await asyncio.sleep(0)  # each runs until it waits for its results
    return tasks


async def results_behind_a_batch(
    queue: InferenceQueue, held: HeldPipeline, *requests: Coroutine[Any, Any, Any]
) -> list[Any]:
    """Adds requests while the networks are busy. Returns the result, or the error, of each."""
    first = await start_computing(queue, held)
    tasks = await add(*requests)
    held.go.set()
    assert (await first)[0].width == len(b"first")
    return await asyncio.gather(*tasks, return_exceptions=True)
