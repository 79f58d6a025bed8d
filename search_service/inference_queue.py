"""Probes that arrive together share a batch, and the event loop never waits for a network.

One thread runs the networks. While it computes, arriving images wait; what waits when it is done is its next batch.
Nobody waits for a batch to fill: alone, an image is computed at once. Requests take turns, an image each, and a batch
has few large images: a request of many keeps the others waiting for a batch at most.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from indexer.errors import Overloaded
from indexer.types import Pick
from indexer.vision.batch_errors import isolate_failures
from indexer.vision.decode import pixels_said
from indexer.vision.pipeline import PIXELS_AT_ONCE, FacePipeline, Seen


@dataclass(frozen=True)
class Kind:
    """What is to be done with an image; images of one kind share a batch."""

    pick: Pick | None
    embed: bool = True
    gate: bool = False


@dataclass(frozen=True, eq=False)
class _Waiting:
    image: bytes
    pipeline: FacePipeline
    kind: Kind
    future: asyncio.Future[Seen]
    loop: asyncio.AbstractEventLoop
    since: float
    """The time of `time.perf_counter` when it came."""
    pixels: int
    """That it says it has."""


class Watch(Protocol):
    """Hears how it goes, on whatever thread."""

    def stage(self, name: str, seconds: float) -> None: ...

    def batch(self, images: int) -> None:
        """So many are computed together."""
        ...

    def waiting(self, images: int) -> None:
        """So many wait now."""
        ...


class Batcher:
    """Runs images through pipelines in batches of `max_batch`.

    Refuses more than `max_waiting` images at a time, and more than `max_bytes` of those that wait and are computed.
    """

    def __init__(self, max_batch: int, max_waiting: int, max_bytes: int, watch: Watch | None = None) -> None:
        self._watch = watch
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._waiting: deque[deque[_Waiting]] = deque()
        """The images of each request, none empty; whose turn it is comes first."""
        self._count = 0
        """Images that wait."""
        self._bytes = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="networks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finishes what was taken, then ends."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    async def describe(self, images: Sequence[bytes], pipeline: FacePipeline, kind: Kind) -> list[Seen]:
        """One answer an image, in order. Raises Overloaded at once when too much is waiting already."""
        loop = asyncio.get_running_loop()
        since = time.perf_counter()
        taken = [
            _Waiting(image, pipeline, kind, loop.create_future(), loop, since, pixels_said(image)) for image in images
        ]
        size = sum(map(len, images))
        with self._changed:
            if self._stopping:
                raise Overloaded("the service is stopping; ask another one, or again soon")
            if self._count and self._count + len(taken) > self._max_waiting:
                raise Overloaded(
                    f"{self._count} images are waiting already, {self._max_waiting} at most; try again soon"
                )
            if self._bytes and self._bytes + size > self._max_bytes:
                raise Overloaded(
                    f"images of {self._bytes:,} bytes are waiting already, {self._max_bytes:,} at most; try again soon"
                )
            self._bytes += size
            self._count += len(taken)
            if taken:
                self._waiting.append(deque(taken))
            self._changed.notify_all()
        return list(await asyncio.gather(*(one.future for one in taken)))

    def wait_until_idle(self, seconds: float) -> None:
        """Returns when no image waits or is computed, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                batch = self._next_batch()
                self._count -= len(batch)
                left = self._count
            self._tell(batch, left)
            size = sum(len(one.image) for one in batch)
            _run_all(batch)
            batch.clear()  # its images are not kept until the next one comes
            with self._changed:
                self._bytes -= size
                self._changed.notify_all()

    def _next_batch(self) -> list[_Waiting]:
        """An image of each request in turn, as many as `max_batch` and PIXELS_AT_ONCE allow, or one that is larger.
        Whose next image does not fit is the first next time."""
        batch: list[_Waiting] = []
        pixels = 0
        passed: deque[deque[_Waiting]] = deque()
        while self._waiting and len(batch) < self._max_batch:
            request = self._waiting.popleft()
            if batch and pixels + request[0].pixels > PIXELS_AT_ONCE:
                passed.append(request)
                continue
            batch.append(request.popleft())
            pixels += batch[-1].pixels
            if request:
                self._waiting.append(request)
        self._waiting.extendleft(reversed(passed))
        return batch

    def _tell(self, batch: Sequence[_Waiting], left: int) -> None:
        if self._watch is None:
            return
        begun = time.perf_counter()
        self._watch.batch(len(batch))
        self._watch.waiting(left)
        for one in batch:
            self._watch.stage("queue", begun - one.since)


def _run_all(batch: Sequence[_Waiting]) -> None:
    wanted = [one for one in batch if not one.future.cancelled()]
    ordered = sorted(wanted, key=lambda one: (id(one.pipeline), str(one.kind)))
    for _, group in groupby(ordered, key=lambda one: (id(one.pipeline), one.kind)):
        _run(list(group))


def _run(group: Sequence[_Waiting]) -> None:
    """Whatever goes wrong is told to those who asked, and the thread goes on."""
    pipeline, kind = group[0].pipeline, group[0].kind

    def ask(images: Sequence[bytes]) -> Sequence[Seen]:
        return pipeline.describe(images, kind.pick, kind.gate) if kind.embed else pipeline.detect(images)

    answers: Sequence[Seen | Exception]
    try:
        answers = isolate_failures([one.image for one in group], ask)
    except Exception as error:
        answers = [error] * len(group)
    told = list(zip(group, answers, strict=True))
    for loop in {one.loop for one in group}:  # all at once: whoever is woken together goes on together
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_tell, [(one, answer) for one, answer in told if one.loop is loop])


def _tell(told: Sequence[tuple[_Waiting, Seen | Exception]]) -> None:
    for one, answer in told:
        if one.future.done():
            continue
        if isinstance(answer, Exception):
            one.future.set_exception(answer)
        else:
            one.future.set_result(answer)
