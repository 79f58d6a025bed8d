"""Images of several requests share the batches of the networks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from indexer.errors import InvalidVector, ModelUnavailable, Overloaded
from indexer.types import Pick
from indexer.vision.batches import MAX_BATCH_PIXELS
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import FacePipeline, ImageResult
from search_service.inference_queue import InferenceQueue, Kind
from tests import photos
from tests.search_service.queueing import (
    BAD,
    DETECT,
    LARGEST,
    HeldPipeline,
    add,
    no_search,
    results_behind_a_batch,
    run,
    running_queue,
    start_computing,
)
from tests.waiting import wait_for_async


@pytest.fixture
def held() -> Iterator[HeldPipeline]:
    pipeline = HeldPipeline()
    yield pipeline
    pipeline.go.set()


@pytest.fixture
def queue() -> Iterator[InferenceQueue]:
    with running_queue() as queue:
        yield queue


def widths(results: Sequence[Sequence[ImageResult]]) -> list[list[int]]:
    return [[seen.width for seen in result] for result in results]


# Batches


def test_single_image_is_computed_at_once(queue: InferenceQueue, held: HeldPipeline) -> None:
    async def test() -> None:
        for _ in range(3):
            (seen,) = await queue.describe([b"x"], held, LARGEST)
            assert seen.width == 1

    run(test)
    assert held.sizes == [1, 1, 1]


def test_images_that_arrive_while_the_networks_are_busy_are_the_next_batch(
    queue: InferenceQueue, held: HeldPipeline
) -> None:
    requests = (queue.describe([b"x" * n], held, LARGEST) for n in range(1, 8))
    assert widths(run(lambda: results_behind_a_batch(queue, held, *requests))) == [[n] for n in range(1, 8)]
    assert held.sizes == [1, 7]


def test_images_of_one_request_are_answered_in_order(queue: InferenceQueue, held: HeldPipeline) -> None:
    sizes = [5, 1, 9, 3, 3, 2, 8, 40, 7, 6, 30, 11, 13, 12, 4, 10, 21, 20, 25, 24]
    assert widths([run(lambda: queue.describe([b"x" * n for n in sizes], held, LARGEST))]) == [sizes]
    assert held.sizes == [16, 4]


def test_request_without_images_has_no_results(queue: InferenceQueue, held: HeldPipeline) -> None:
    assert run(lambda: queue.describe([], held, LARGEST)) == []
    assert held.calls == []


def test_requests_take_turns(held: HeldPipeline) -> None:
    """A door's single image does not wait for the eight of an earlier request."""
    with running_queue(max_batch=4) as queue:
        images = [[b"m%d" % n for n in range(8)], [b"a"], [b"b"]]
        run(lambda: results_behind_a_batch(queue, held, *(queue.describe(some, held, LARGEST) for some in images)))
    assert held.batches[1:] == [[b"m0", b"a", b"b", b"m1"], [b"m2", b"m3", b"m4", b"m5"], [b"m6", b"m7"]]


def test_batch_has_few_large_images_and_small_ones_overtake_them(queue: InferenceQueue, held: HeldPipeline) -> None:
    large = photos.encode(np.zeros((5000, 6000, 3), np.uint8), "PNG", compress_level=1)
    huge = photos.encode(np.zeros((7000, 7000, 3), np.uint8), "PNG", compress_level=1)
    assert 30_000_000 < MAX_BATCH_PIXELS < 49_000_000
    requests = (queue.describe(images, held, LARGEST) for images in ([large, large, huge], [large], [b"small"]))
    run(lambda: results_behind_a_batch(queue, held, *requests))
    assert held.batches[1:] == [[large, b"small"], [large], [large], [huge]]


def test_kinds_do_not_share_a_batch(queue: InferenceQueue, held: HeldPipeline) -> None:
    kinds = [LARGEST, DETECT, Kind(None), Kind(Pick.ONLY, gate=True), Kind(Pick.LARGEST, gate=True)]
    names = ["largest/False", "detect", "None/False", "only/True", "largest/True"]
    requests = (queue.describe([b"x" * n], held, kinds[n % 5]) for n in range(15))
    results = run(lambda: results_behind_a_batch(queue, held, *requests))
    assert [(seen.width, seen.height) for (seen,) in results] == [(n, len(names[n % 5])) for n in range(15)]
    calls = sorted((kind, [len(image) for image in images]) for kind, images in held.calls[1:])
    assert calls == sorted((names[k], [k, k + 5, k + 10]) for k in range(5))


def test_pipelines_do_not_share_a_batch(queue: InferenceQueue, held: HeldPipeline) -> None:
    other = HeldPipeline()
    requests = (queue.describe([bytes([n])], (held, other)[n % 2], LARGEST) for n in range(6))
    run(lambda: results_behind_a_batch(queue, held, *requests))
    assert held.batches[1:] == [[b"\0", b"\2", b"\4"]]
    assert other.batches == [[b"\1", b"\3", b"\5"]]


def test_event_loops_of_several_threads_share_a_batch(queue: InferenceQueue, held: HeldPipeline) -> None:
    found: dict[int, int] = {}

    def ask(n: int) -> None:
        (seen,) = run(lambda: queue.describe([b"x" * n], held, LARGEST))
        found[n] = seen.width

    async def test() -> None:
        first = await start_computing(queue, held)
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 5)]
        for thread in threads:
            thread.start()
        await wait_for_async(lambda: queue._count == 4)
        held.go.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await first

    run(test)
    assert found == {1: 1, 2: 2, 3: 3, 4: 4}
    assert held.sizes == [1, 4]


def test_shared_batch_gives_the_results_of_the_pipeline_alone(queue: InferenceQueue, pipeline: FacePipeline) -> None:
    images = [photos.astronaut(), b"no image", photos.no_faces()[0], photos.six_people(), photos.astronaut()]
    kinds = [LARGEST, LARGEST, Kind(Pick.CENTER), Kind(None), Kind(Pick.ONLY, gate=True)]

    async def test() -> list[list[ImageResult]]:
        return await asyncio.gather(
            *(queue.describe([image], pipeline, kind) for image, kind in zip(images, kinds, strict=True)),
            queue.describe([images[3]], pipeline, DETECT),
        )

    *described, (detected,) = run(test)
    for image, kind, (seen,) in zip(images, kinds, described, strict=True):
        (alone,) = pipeline.describe([image], kind.pick, kind.gate)
        assert (seen.rejection and seen.rejection.code) == (alone.rejection and alone.rejection.code)
        assert len(seen.faces) == len(alone.faces)
        for face, expected in zip(seen.faces, alone.faces, strict=True):
            np.testing.assert_allclose(face.detection.landmarks, expected.detection.landmarks, atol=0.05)
            assert float(face.embedding @ expected.embedding) > 0.999
    codes = [seen.rejection.code if seen.rejection else None for (seen,) in described]
    assert codes == [None, "unreadable_image", "no_face", None, None]
    assert [face.embedding.size for face in detected.faces] == [0] * 6


# Failures


def test_failure_of_a_group_reaches_only_its_own_requests(queue: InferenceQueue, held: HeldPipeline) -> None:
    async def test() -> None:
        requests = ([b"x", b"y"], BAD), ([b"x", b"y"], BAD), ([b"abc"], LARGEST)
        results = await results_behind_a_batch(
            queue, held, *(queue.describe(images, held, kind) for images, kind in requests)
        )
        assert [type(result) for result in results] == [ModelUnavailable, ModelUnavailable, list]
        assert (await queue.describe([b"on"], held, LARGEST))[0].width == 2

    run(test)


class FragilePipeline(HeldPipeline):
    """Fails on the images `bad` and `void`, and omits the image `short`."""

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        seen = super().describe([image for image in images if image != b"short"], pick, gate, liveness)
        if b"void" in images:
            raise InvalidVector("an embedding has no direction")
        return [ImageResult(width=1 // (image != b"bad") * one.width) for image, one in zip(images, seen, strict=False)]


@pytest.mark.parametrize(("image", "error"), [(b"bad", ZeroDivisionError), (b"void", InvalidVector)])
def test_only_the_request_whose_image_fails_gets_the_error(
    queue: InferenceQueue, image: bytes, error: type[Exception]
) -> None:
    held = FragilePipeline()
    requests = (queue.describe([data], held, LARGEST) for data in (b"a", image, b"ccc"))
    one, failed, three = run(lambda: results_behind_a_batch(queue, held, *requests))
    assert isinstance(failed, error)
    assert widths([one, three]) == [[1], [3]]
    assert held.sizes == [1, 3, 1, 1, 1]


def test_too_few_results_are_an_error_and_the_queue_goes_on(queue: InferenceQueue) -> None:
    held = FragilePipeline()

    async def test() -> None:
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            await queue.describe([b"short"], held, LARGEST)
        assert (await queue.describe([b"on"], held, LARGEST))[0].width == 2

    run(test)


class EndingPipeline(HeldPipeline):
    """Raises the next of `errors`, which no pipeline should."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__()
        self.errors = list(errors)

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        if self.errors:
            raise self.errors.pop()
        return super().describe(images, pick, gate, liveness)


@pytest.mark.parametrize("error", [SystemExit(), StopIteration(), KeyboardInterrupt()])
def test_thread_of_the_networks_survives_every_exception(queue: InferenceQueue, error: BaseException) -> None:
    ending = EndingPipeline(error, error)

    async def test() -> None:
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await queue.describe([b"x"], ending, LARGEST)
        ending.errors.clear()
        assert (await queue.describe([b"on"], ending, LARGEST))[0].width == 2

    run(test)
    assert queue._bytes == 0


# Cancelled requests


@pytest.mark.parametrize("others", [[b"stays"], []], ids=["with others", "alone"])
def test_request_cancelled_while_it_waits_is_not_computed(
    queue: InferenceQueue, held: HeldPipeline, others: list[bytes]
) -> None:
    async def test() -> None:
        first = await start_computing(queue, held)
        gone, *stay = await add(*(queue.describe(some, held, LARGEST) for some in ([b"gone", b"gone too"], others)))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        held.go.set()
        await asyncio.gather(first, *stay)
        await wait_for_async(lambda: not queue._waiting)

    run(test)
    assert held.batches == [[b"first"], *([others] if others else [])]


def test_request_cancelled_while_it_is_computed_affects_no_other(queue: InferenceQueue, held: HeldPipeline) -> None:
    async def test() -> None:
        first = await start_computing(queue, held)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        (later,) = await add(queue.describe([b"later"], held, LARGEST))
        held.go.set()
        assert widths([await later]) == [[5]]

    run(test)


def test_closed_event_loop_does_not_stop_the_queue(queue: InferenceQueue, held: HeldPipeline) -> None:
    async def leave() -> None:
        await start_computing(queue, held)

    run(leave)  # cancels the request and closes its loop, while the networks compute
    held.go.set()
    assert run(lambda: queue.describe([b"next"], held, LARGEST))[0].width == 4


# Limits


def test_more_than_max_waiting_images_are_refused_at_once_and_whole(held: HeldPipeline) -> None:
    async def test(queue: InferenceQueue) -> None:
        first = await start_computing(queue, held)
        taken = await add(queue.describe([b"a", b"b"], held, LARGEST))
        with pytest.raises(Overloaded, match="2 images are waiting already, 3 at most"):
            await queue.describe([b"c", b"d"], held, LARGEST)
        taken += await add(queue.describe([b"e"], held, LARGEST))
        with pytest.raises(Overloaded, match="3 images are waiting already"):
            await queue.describe([b"f"], held, LARGEST)
        held.go.set()
        await asyncio.gather(first, *taken)
        assert (await queue.describe([b"again"], held, LARGEST))[0].width == 5

    with running_queue(max_batch=2, max_waiting=3) as queue:
        run(lambda: test(queue))
    assert held.batches == [[b"first"], [b"a", b"e"], [b"b"], [b"again"]]


def test_more_than_max_bytes_are_refused_at_once_and_whole(held: HeldPipeline) -> None:
    """Images that are computed count as well: they are in memory."""

    async def test(queue: InferenceQueue) -> None:
        first = await start_computing(queue, held, b"x" * 4)
        (taken,) = await add(queue.describe([b"x" * 3, b"x" * 2], held, LARGEST))
        with pytest.raises(Overloaded, match="images of 9 bytes are waiting already, 10 at most"):
            await queue.describe([b"x", b"x"], held, LARGEST)
        (last,) = await add(queue.describe([b"x"], held, LARGEST))
        last.cancel()  # stays in memory until its turn
        with pytest.raises(Overloaded, match="images of 10 bytes"):
            await queue.describe([b"x"], held, LARGEST)
        held.go.set()
        await asyncio.gather(first, taken)
        await wait_for_async(lambda: queue._bytes == 0)
        assert (await queue.describe([b"x" * 11], held, LARGEST))[0].width == 11  # it could never be taken otherwise

    with running_queue(max_batch=2, max_bytes=10) as queue:
        run(lambda: test(queue))


def test_two_images_are_accepted_by_an_idle_queue_for_one(held: HeldPipeline) -> None:
    """A comparison could never be answered otherwise."""
    with running_queue(max_waiting=1) as queue:
        assert len(run(lambda: queue.describe([b"a", b"b"], held, LARGEST))) == 2


# Stopping


def test_stop_finishes_accepted_images_and_accepts_no_more(held: HeldPipeline) -> None:
    async def test(queue: InferenceQueue) -> None:
        first = await start_computing(queue, held)
        taken = await add(*(queue.describe([b"x" * n], held, LARGEST) for n in range(1, 6)))
        stopping = asyncio.create_task(asyncio.to_thread(queue.stop))
        await wait_for_async(lambda: queue._stopping)
        with pytest.raises(Overloaded, match="stopping"):
            await queue.describe([b"late"], held, LARGEST)
        assert not stopping.done()
        held.go.set()
        await stopping
        assert widths(await asyncio.gather(first, *taken)) == [[5], [1], [2], [3], [4], [5]]

    with running_queue(max_batch=2) as queue:
        run(lambda: test(queue))
    assert held.sizes == [1, 2, 2, 1]


@pytest.mark.parametrize("is_started", [True, False])
def test_queue_may_be_stopped_twice_or_without_start(is_started: bool) -> None:
    queue = InferenceQueue(no_search, max_batch=1, max_waiting=1, max_bytes=2**24)
    if is_started:
        queue.start()
    queue.stop()
    queue.stop()
    assert not queue._networks.is_alive()
