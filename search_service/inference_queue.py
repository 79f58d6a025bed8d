"""The queue of images: requests share batches of the networks and searches, and the event loop never waits.

One thread runs the networks. Images that arrive meanwhile wait, and are its next batch. Nothing waits for a batch to
fill: a single image is computed at once. Requests take turns, one image each, and a batch has few large images, so a
request with many images delays the others by one batch at most. A batch gives way to small images between its slices:
decoding a large image, some tiles or faces of it.

Described images that are to be searched go on to other threads. Those with the same gallery and query are searched
together, with one look at the index and the database; those that arrive during such a search are the next one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

from indexer.errors import Overloaded
from indexer.slices import between_slices
from indexer.supervision import SupervisedThread, notify
from indexer.types import Gallery, Pick
from indexer.vision.batch_errors import isolate_failures
from indexer.vision.batches import MAX_BATCH_PIXELS
from indexer.vision.decode import LARGE_PIXELS, count_pixels
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import FacePipeline, ImageResult
from search_service.search import Answer, Query

log = logging.getLogger(__name__)

SEARCHES_AT_ONCE = 40
"""Different searches that run at the same time: as many as the threads on which Starlette runs other blocking work."""


PATIENCE_SECONDS = 0.2
"""How long a batch runs before it gives way. One of a few small photos ends before: it would otherwise wait for a photo
of many faces that came later."""

MAX_DEPTH = 4
"""Batches that wait for each other at most: small photos are answered while this many of many faces are computed."""


@dataclass(frozen=True)
class Kind:
    """How to process an image. Images of one kind share a batch."""

    pick: Pick | None
    embed: bool = True
    gate: bool = False
    liveness: LivenessCheck | None = None


Question = tuple[Gallery, Query]
"""What the images of one search have in common. A gallery that has changed is a different one."""

Search = Callable[[Sequence[ImageResult], Gallery, Query], Sequence[Answer]]


class Observer(Protocol):
    """Is notified of the queue's work, on any thread."""

    def stage(self, name: str, seconds: float) -> None:
        """A request has spent so many seconds in a stage."""

    def batch(self, images: int) -> None:
        """So many images are computed together."""

    def waiting(self, images: int) -> None:
        """So many images wait now."""


@dataclass(eq=False)
class _Job:
    """One image. `future` belongs to the event loop of its request."""

    image: bytes
    pixels: int
    """As stated in the image's header."""
    pipeline: FacePipeline
    kind: Kind
    question: Question | None
    """What to search for once the image is described; None only describes it."""
    future: asyncio.Future[Any]
    since: float
    """`time.perf_counter` on arrival."""
    result: ImageResult | None = None


class InferenceQueue:
    """Describes images in batches of at most `max_batch`, and searches those that are probes.

    Refuses more than `max_waiting` images at a time, and more than `max_bytes` that wait or are computed.
    """

    def __init__(
        self, search: Search, max_batch: int, max_waiting: int, max_bytes: int, observer: Observer | None = None
    ) -> None:
        self._search = search
        self._observer = observer
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._waiting: deque[deque[_Job]] = deque()
        """The images of each request, none empty; the request whose turn it is comes first."""
        self._count = 0
        """Images that wait."""
        self._bytes = 0
        """Of images that wait or are computed."""
        self._stopping = False
        self._described: dict[Question, list[_Job]] = {}
        """Images to be searched. Each key has a thread that searches, also while its list is empty."""
        self._networks = SupervisedThread("networks", self._run_networks)
        self._searches = ThreadPoolExecutor(SEARCHES_AT_ONCE, thread_name_prefix="search")

    def start(self) -> None:
        self._networks.start()

    def stop(self) -> None:
        """Finishes the images that were accepted, then ends."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._networks.join()
        self._searches.shutdown()

    async def describe(self, images: Sequence[bytes], pipeline: FacePipeline, kind: Kind) -> list[ImageResult]:
        """Returns one description for each image, in order. Raises Overloaded at once if too many are waiting."""
        return await self._add(images, pipeline, kind, None)

    async def search(
        self,
        images: Sequence[bytes],
        pipeline: FacePipeline,
        gallery: Gallery,
        query: Query,
        liveness: LivenessCheck | None = None,
    ) -> list[Answer]:
        """Returns one answer for each image, in order. `liveness` is what the query needs.

        Raises Overloaded at once if too many are waiting, and the errors of the pipeline and the search, but none that
        another request's image causes.
        """
        return await self._add(images, pipeline, Kind(query.pick, liveness=liveness), (gallery, query))

    def wait_until_idle(self, seconds: float) -> None:
        """Returns when no image waits or is computed, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, seconds)

    async def _add(
        self, images: Sequence[bytes], pipeline: FacePipeline, kind: Kind, question: Question | None
    ) -> list[Any]:
        loop, since = asyncio.get_running_loop(), time.perf_counter()
        jobs = [
            _Job(image, count_pixels(image), pipeline, kind, question, loop.create_future(), since) for image in images
        ]
        size = sum(map(len, images))
        with self._changed:
            if self._stopping:
                raise Overloaded("the service is stopping; ask another one, or again soon")
            if self._count and self._count + len(jobs) > self._max_waiting:
                raise Overloaded(
                    f"{self._count} images are waiting already, {self._max_waiting} at most; try again soon"
                )
            if self._bytes and self._bytes + size > self._max_bytes:
                raise Overloaded(
                    f"images of {self._bytes:,} bytes are waiting already, {self._max_bytes:,} at most; try again soon"
                )
            self._bytes += size
            self._count += len(jobs)
            if jobs:
                self._waiting.append(deque(jobs))
            self._changed.notify_all()
        return list(await asyncio.gather(*(job.future for job in jobs)))

    def _run_networks(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                batch = self._next_batch()
            self._compute(batch)

    def _give_way(self, begun: float, depth: int) -> None:
        """Computes a batch of small images that wait, between the slices of one that began PATIENCE_SECONDS ago."""
        if time.monotonic() - begun < PATIENCE_SECONDS or depth == MAX_DEPTH:
            return
        with self._changed:
            batch = self._next_batch(LARGE_PIXELS)
        if batch:
            self._compute(batch, depth + 1)

    def _compute(self, batch: list[_Job], depth: int = 0) -> None:
        """Describes images, which are then answered or searched, and forgets them. `depth` counts the batches that wait
        for them meanwhile."""
        size = sum(len(job.image) for job in batch)
        with _answering(batch), between_slices(partial(self._give_way, time.monotonic(), depth)):
            self._observe(batch)
            self._describe(batch)
        batch.clear()  # no image is kept until the next batch
        with self._changed:
            self._bytes -= size
            self._changed.notify_all()

    def _next_batch(self, most_pixels: float = math.inf) -> list[_Job]:
        """Takes an image of each request in turn, as many as `max_batch` and MAX_BATCH_PIXELS allow, or a larger one.

        A request whose next image does not fit is first next time. Images of more than `most_pixels` wait.
        """
        batch: list[_Job] = []
        pixels = 0
        skipped: deque[deque[_Job]] = deque()
        while self._waiting and len(batch) < self._max_batch:
            request = self._waiting.popleft()
            size = request[0].pixels
            if size > most_pixels or (batch and pixels + size > MAX_BATCH_PIXELS):
                skipped.append(request)
                continue
            batch.append(request.popleft())
            pixels += batch[-1].pixels
            if request:
                self._waiting.append(request)
        self._waiting.extendleft(reversed(skipped))
        self._count -= len(batch)
        return batch

    def _observe(self, batch: Sequence[_Job]) -> None:
        if self._observer is None:
            return
        began = time.perf_counter()
        notify(self._observer.batch, len(batch))
        notify(self._observer.waiting, self._count)
        for job in batch:
            notify(self._observer.stage, "queue", began - job.since)

    def _describe(self, batch: Sequence[_Job]) -> None:
        """Describes the images of each pipeline and kind together, and starts their searches.

        Images of which one face is wanted are first, as all faces of an image take longer.
        """
        wanted = [job for job in batch if not job.future.cancelled()]
        ordered = sorted(wanted, key=lambda job: (job.kind.pick is None, id(job.pipeline), str(job.kind)))
        for (_, kind), group in groupby(ordered, key=lambda job: (id(job.pipeline), job.kind)):
            jobs = list(group)
            self._run(jobs, partial(_described, pipeline=jobs[0].pipeline, kind=kind))
            self._start_searches(jobs)

    def _start_searches(self, jobs: Sequence[_Job]) -> None:
        """Gives described images to the threads that search."""
        idle = []
        with self._changed:
            for job in jobs:
                if job.result is not None and job.question is not None:
                    if job.question not in self._described:
                        self._described[job.question] = []
                        idle.append(job.question)
                    self._described[job.question].append(job)
        for question in idle:
            try:
                self._searches.submit(self._search_described, question)
            except (RuntimeError, MemoryError) as error:  # no thread can be started now
                with self._changed:
                    unsearched = self._described.pop(question, [])
                refusal = Overloaded(f"the search cannot be started: {error}; try again soon")
                _answer((job.future, refusal) for job in unsearched)

    def _search_described(self, question: Question) -> None:
        """Searches until no more images with this question are described."""
        while True:
            with self._changed:
                jobs = self._described.pop(question, [])
                if not jobs:
                    return
                self._described[question] = []
            wanted = [job for job in jobs if not job.future.cancelled()]
            with _answering(wanted):
                self._run(
                    wanted,
                    lambda some: self._search([job.result for job in some if job.result is not None], *question),
                )

    def _run(self, jobs: Sequence[_Job], step: Callable[[Sequence[_Job]], Sequence[ImageResult | Answer]]) -> None:
        """Runs a step of the jobs together. Each job gets its own result or error, and the thread goes on."""
        results: Sequence[ImageResult | Answer | BaseException]
        try:
            results = isolate_failures(jobs, step)
        except BaseException as error:
            results = [error] * len(jobs)
        finished = []
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, ImageResult) and job.question is not None:
                job.result, job.image = result, b""
            else:
                finished.append((job.future, result))
        _answer(finished)


def _described(jobs: Sequence[_Job], pipeline: FacePipeline, kind: Kind) -> list[ImageResult]:
    images = [job.image for job in jobs]
    return pipeline.describe(images, kind.pick, kind.gate, kind.liveness) if kind.embed else pipeline.detect(images)


@contextmanager
def _answering(jobs: Sequence[_Job]) -> Iterator[None]:
    """Answers the jobs with the error if the block raises one, so that no request waits forever."""
    try:
        yield
    except BaseException as error:
        log.exception("%d images could not be processed", len(jobs))
        _answer((job.future, error) for job in jobs)


_Finished = tuple[asyncio.Future[Any], ImageResult | Answer | BaseException]


def _answer(finished: Iterable[_Finished]) -> None:
    """Gives the requests their results or errors, each in its own event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[_Finished]] = {}
    for future, result in finished:
        loops.setdefault(future.get_loop(), []).append((future, result))
    for loop, own in loops.items():  # requests that are answered together go on together
        with suppress(RuntimeError):  # the loop is closed: nothing waits any more
            loop.call_soon_threadsafe(_resolve, own)


def _resolve(finished: Sequence[_Finished]) -> None:
    for future, result in finished:
        if future.done():
            continue
        if isinstance(result, StopIteration) or (
            isinstance(result, BaseException) and not isinstance(result, Exception)
        ):  # a future refuses the first, and the others would end the event loop
            future.set_exception(RuntimeError(f"an image could not be processed: {result!r}"))
        elif isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
