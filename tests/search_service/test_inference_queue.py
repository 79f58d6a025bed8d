from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from indexer.errors import InvalidVector, ModelUnavailable, Overloaded
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Pick
from indexer.vision.pipeline import PIXELS_AT_ONCE, FacePipeline, Seen
from search_service.inference_queue import Batcher, Kind
from tests import photos
from tests.waiting import DEADLINE, wait_for_async

LARGEST = Kind(Pick.LARGEST)
DETECT = Kind(None, embed=False)
BAD = Kind(Pick.CENTER)
"""What `Held` fails on."""

Result = TypeVar("Result")


class Held(FacePipeline):
    """Does nothing, for speed: an image's width is its number of bytes. Waits while `go` is not set."""

    def __init__(self, name: str = "held") -> None:
        super().__init__(SFACE, ModelFiles(Path("nowhere")))
        self.name = name
        self.calls: list[tuple[str, list[bytes]]] = []
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[Seen]:
        return self._answer(f"{pick}/{gate}", images, fail=pick is Pick.CENTER)

    def detect(self, images: Sequence[bytes], pick: Pick | None = None) -> list[Seen]:
        return self._answer("detect", images, fail=False)

    def _answer(self, kind: str, images: Sequence[bytes], fail: bool) -> list[Seen]:
        self.calls.append((kind, list(images)))
        self.entered.set()
        assert self.go.wait(DEADLINE)
        if fail:
            raise ModelUnavailable("out of order")
        return [Seen(width=len(data), height=len(kind)) for data in images]

    @property
    def sizes(self) -> list[int]:
        return [len(images) for _, images in self.calls]


@pytest.fixture
def held() -> Iterator[Held]:
    pipeline = Held()
    yield pipeline
    pipeline.go.set()


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    yield from started(Batcher(max_batch=16, max_waiting=100, max_bytes=2**24))


def started(batcher: Batcher) -> Iterator[Batcher]:
    batcher.start()
    yield batcher
    batcher.stop()


def run(test: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    async def bounded() -> Result:
        return await asyncio.wait_for(test(), DEADLINE)

    return asyncio.run(bounded())


async def computing(batcher: Batcher, held: Held, image: bytes = b"first") -> asyncio.Task[list[Seen]]:
    """A task whose image the networks are busy with, until `held.go` is set."""
    held.go.clear()
    held.entered.clear()
    task = asyncio.create_task(batcher.describe([image], held, LARGEST))
    await wait_for_async(held.entered.is_set)
    return task


async def waiting(batcher: Batcher, count: int) -> None:
    await wait_for_async(lambda: batcher._count == count)


def test_an_image_alone_is_computed_at_once(batcher: Batcher, held: Held) -> None:
    async def test() -> None:
        for _ in range(3):
            (seen,) = await batcher.describe([b"x"], held, LARGEST)
            assert seen.width == 1

    run(test)
    assert held.sizes == [1, 1, 1]


def test_images_that_arrive_while_the_networks_are_busy_are_the_next_batch(batcher: Batcher, held: Held) -> None:
    async def test() -> None:
        first = await computing(batcher, held)
        later = [asyncio.create_task(batcher.describe([b"x" * n], held, LARGEST)) for n in range(1, 8)]
        await waiting(batcher, 7)
        held.go.set()
        assert (await first)[0].width == 5
        assert [(await task)[0].width for task in later] == [1, 2, 3, 4, 5, 6, 7]

    run(test)
    assert held.sizes == [1, 7]


def test_one_callers_images_are_answered_in_their_order(batcher: Batcher, held: Held) -> None:
    sizes = [5, 1, 9, 3, 3, 2, 8, 40, 7, 6, 30, 11, 13, 12, 4, 10, 21, 20, 25, 24]

    async def test() -> list[Seen]:
        return await batcher.describe([b"x" * n for n in sizes], held, LARGEST)

    assert [seen.width for seen in run(test)] == sizes
    assert held.sizes == [16, 4]


def test_no_images_are_no_answers(batcher: Batcher, held: Held) -> None:
    assert run(lambda: batcher.describe([], held, LARGEST)) == []
    assert held.calls == []


def test_a_batch_has_max_batch_images_at_most(held: Held) -> None:
    for batcher in started(Batcher(max_batch=4, max_waiting=100, max_bytes=2**24)):

        async def test(batcher: Batcher = batcher) -> None:
            first = await computing(batcher, held)
            later = [asyncio.create_task(batcher.describe([b"x"], held, LARGEST)) for _ in range(10)]
            await waiting(batcher, 10)
            held.go.set()
            await asyncio.gather(first, *later)

        run(test)
    assert held.sizes == [1, 4, 4, 2]


def test_requests_take_turns(held: Held) -> None:
    """A door's one image is not behind the twelve of a request that came before it."""
    for batcher in started(Batcher(max_batch=4, max_waiting=100, max_bytes=2**24)):

        async def test(batcher: Batcher = batcher) -> None:
            first = await computing(batcher, held)
            many = asyncio.create_task(batcher.describe([b"m%d" % n for n in range(8)], held, LARGEST))
            await waiting(batcher, 8)
            few = [asyncio.create_task(batcher.describe([name], held, LARGEST)) for name in (b"a", b"b")]
            await waiting(batcher, 10)
            held.go.set()
            await asyncio.gather(first, many, *few)

        run(test)
    assert [images for _, images in held.calls[1:]] == [
        [b"m0", b"a", b"b", b"m1"],
        [b"m2", b"m3", b"m4", b"m5"],
        [b"m6", b"m7"],
    ]


def test_a_batch_has_few_large_images_and_the_small_go_past_them(batcher: Batcher, held: Held) -> None:
    large = photos.encode(np.zeros((5000, 6000, 3), np.uint8), "PNG", compress_level=1)
    huge = photos.encode(np.zeros((7000, 7000, 3), np.uint8), "PNG", compress_level=1)
    assert 30_000_000 < PIXELS_AT_ONCE < 49_000_000

    async def test() -> None:
        first = await computing(batcher, held)
        tasks = [
            asyncio.create_task(batcher.describe(images, held, LARGEST))
            for images in ([large, large, huge], [large], [b"small"])
        ]
        await waiting(batcher, 5)
        held.go.set()
        await asyncio.gather(first, *tasks)

    run(test)
    assert [images for _, images in held.calls[1:]] == [[large, b"small"], [large], [large], [huge]]


def test_kinds_never_share_a_call_and_each_is_answered_as_it_asked(batcher: Batcher, held: Held) -> None:
    kinds = [LARGEST, DETECT, Kind(None), Kind(Pick.ONLY, gate=True), Kind(Pick.LARGEST, gate=True)]
    called = ["largest/False", "detect", "None/False", "only/True", "largest/True"]

    async def test() -> None:
        first = await computing(batcher, held)
        tasks = [asyncio.create_task(batcher.describe([b"x" * n], held, kinds[n % 5])) for n in range(15)]
        await waiting(batcher, 15)
        held.go.set()
        await first
        for n, task in enumerate(tasks):
            (seen,) = await task
            assert (seen.width, seen.height) == (n, len(called[n % 5]))

    run(test)
    assert sorted((kind, [len(i) for i in images]) for kind, images in held.calls[1:]) == sorted(
        (called[k], [k, k + 5, k + 10]) for k in range(5)
    )


def test_pipelines_never_share_a_call(batcher: Batcher, held: Held) -> None:
    other = Held("other")

    async def test() -> None:
        first = await computing(batcher, held)
        tasks = [asyncio.create_task(batcher.describe([bytes([n])], (held, other)[n % 2], LARGEST)) for n in range(6)]
        await waiting(batcher, 6)
        held.go.set()
        await asyncio.gather(first, *tasks)

    run(test)
    assert held.calls[1:] == [("largest/False", [b"\0", b"\2", b"\4"])]
    assert other.calls == [("largest/False", [b"\1", b"\3", b"\5"])]


def test_a_failure_reaches_its_own_group_alone_and_the_networks_go_on(batcher: Batcher, held: Held) -> None:
    async def test() -> None:
        first = await computing(batcher, held)
        bad = [asyncio.create_task(batcher.describe([b"x", b"y"], held, BAD)) for _ in range(2)]
        good = asyncio.create_task(batcher.describe([b"abc"], held, LARGEST))
        await waiting(batcher, 5)
        held.go.set()
        for result in await asyncio.gather(*bad, return_exceptions=True):
            assert isinstance(result, ModelUnavailable)
        assert (await first)[0].width == 5
        assert (await good)[0].width == 3
        assert (await batcher.describe([b"on"], held, LARGEST))[0].width == 2

    run(test)


def test_what_was_cancelled_while_it_waited_is_not_computed(batcher: Batcher, held: Held) -> None:
    async def test() -> None:
        first = await computing(batcher, held)
        gone = asyncio.create_task(batcher.describe([b"gone", b"gone too"], held, LARGEST))
        stays = asyncio.create_task(batcher.describe([b"stays"], held, LARGEST))
        await waiting(batcher, 3)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        held.go.set()
        assert (await stays)[0].width == 5
        await first

    run(test)
    assert [images for _, images in held.calls] == [[b"first"], [b"stays"]]


def test_what_is_cancelled_while_it_is_computed_hurts_nobody(batcher: Batcher, held: Held) -> None:
    async def test() -> None:
        first = await computing(batcher, held)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        later = asyncio.create_task(batcher.describe([b"later"], held, LARGEST))
        await waiting(batcher, 1)
        held.go.set()
        assert (await later)[0].width == 5

    run(test)


def test_a_batch_of_which_everything_was_cancelled_is_no_call(batcher: Batcher, held: Held) -> None:
    async def test() -> None:
        first = await computing(batcher, held)
        gone = [asyncio.create_task(batcher.describe([b"gone"], held, LARGEST)) for _ in range(3)]
        await waiting(batcher, 3)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        held.go.set()
        await first
        await wait_for_async(lambda: not batcher._waiting)

    run(test)
    assert held.sizes == [1]


def test_more_than_max_waiting_is_refused_at_once_and_whole(held: Held) -> None:
    for batcher in started(Batcher(max_batch=2, max_waiting=3, max_bytes=2**24)):

        async def test(batcher: Batcher = batcher) -> None:
            first = await computing(batcher, held)
            taken = asyncio.create_task(batcher.describe([b"a", b"b"], held, LARGEST))
            await waiting(batcher, 2)
            with pytest.raises(Overloaded, match="2 images are waiting already, 3 at most"):
                await batcher.describe([b"c", b"d"], held, LARGEST)
            last = asyncio.create_task(batcher.describe([b"e"], held, LARGEST))
            await waiting(batcher, 3)
            with pytest.raises(Overloaded, match="3 images are waiting already"):
                await batcher.describe([b"f"], held, LARGEST)
            held.go.set()
            assert len(await taken) == 2
            await asyncio.gather(first, last)
            assert (await batcher.describe([b"again"], held, LARGEST))[0].width == 5

        run(test)
    assert [images for _, images in held.calls] == [[b"first"], [b"a", b"e"], [b"b"], [b"again"]]


def test_more_than_max_bytes_is_refused_at_once_and_whole(held: Held) -> None:
    """Those being computed count too: they are in memory."""
    for batcher in started(Batcher(max_batch=2, max_waiting=100, max_bytes=10)):

        async def test(batcher: Batcher = batcher) -> None:
            first = await computing(batcher, held, b"x" * 4)
            taken = asyncio.create_task(batcher.describe([b"x" * 3, b"x" * 2], held, LARGEST))
            await waiting(batcher, 2)
            with pytest.raises(Overloaded, match="images of 9 bytes are waiting already, 10 at most"):
                await batcher.describe([b"x", b"x"], held, LARGEST)
            last = asyncio.create_task(batcher.describe([b"x"], held, LARGEST))
            await waiting(batcher, 3)
            last.cancel()  # is in memory until its turn comes
            with pytest.raises(Overloaded, match="images of 10 bytes"):
                await batcher.describe([b"x"], held, LARGEST)
            held.go.set()
            await asyncio.gather(first, taken)
            await wait_for_async(lambda: batcher._bytes == 0)
            assert (await batcher.describe([b"x" * 11], held, LARGEST))[0].width == 11  # else never

        run(test)


@pytest.mark.parametrize(("image", "error"), [(b"bad", ZeroDivisionError), (b"void", InvalidVector)])
def test_only_what_fails_unexpectedly_gets_the_error(batcher: Batcher, image: bytes, error: type[Exception]) -> None:
    held = Fragile()

    async def test() -> None:
        first = await computing(batcher, held)
        tasks = [asyncio.create_task(batcher.describe([data], held, LARGEST)) for data in (b"a", image, b"ccc")]
        await waiting(batcher, 3)
        held.go.set()
        one, bad, three = await asyncio.gather(*tasks, return_exceptions=True)
        await first
        assert isinstance(bad, error)
        assert [seen[0].width for seen in (one, three) if isinstance(seen, list)] == [1, 3]

    run(test)
    assert held.sizes == [1, 3, 1, 1, 1]


def test_too_few_answers_are_a_failure_and_the_networks_go_on(batcher: Batcher) -> None:
    held = Fragile()

    async def test() -> None:
        with pytest.raises(RuntimeError, match="answered 0 times to 1"):
            await batcher.describe([b"short"], held, LARGEST)
        assert (await batcher.describe([b"on"], held, LARGEST))[0].width == 2

    run(test)


class Fragile(Held):
    """Fails on the images `bad` and `void`, and forgets the image `short`."""

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[Seen]:
        seen = super().describe([image for image in images if image != b"short"], pick, gate)
        if b"void" in images:
            raise InvalidVector("an embedding has no direction")
        return [Seen(width=1 // (image != b"bad") * one.width) for image, one in zip(images, seen, strict=False)]


def test_two_images_are_taken_where_one_may_wait_and_none_does(held: Held) -> None:
    """Else a comparison would be refused for ever."""
    for batcher in started(Batcher(max_batch=16, max_waiting=1, max_bytes=2**24)):
        assert len(run(lambda batcher=batcher: batcher.describe([b"a", b"b"], held, LARGEST))) == 2  # type: ignore[misc]


def test_stop_finishes_what_was_taken_and_takes_nothing_more(held: Held) -> None:
    batcher = Batcher(max_batch=2, max_waiting=100, max_bytes=2**24)
    batcher.start()

    async def test() -> None:
        first = await computing(batcher, held)
        taken = [asyncio.create_task(batcher.describe([b"x" * n], held, LARGEST)) for n in range(1, 6)]
        await waiting(batcher, 5)
        stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
        await wait_for_async(lambda: batcher._stopping)
        with pytest.raises(Overloaded, match="stopping"):
            await batcher.describe([b"late"], held, LARGEST)
        assert not stopping.done()
        held.go.set()
        await stopping
        assert [(await task)[0].width for task in (first, *taken)] == [5, 1, 2, 3, 4, 5]

    run(test)
    assert not batcher._thread.is_alive()
    assert held.sizes == [1, 2, 2, 1]


def test_stop_is_patient_with_who_calls_it_twice_or_never_started() -> None:
    never = Batcher(max_batch=1, max_waiting=1, max_bytes=2**24)
    never.stop()
    twice = Batcher(max_batch=1, max_waiting=1, max_bytes=2**24)
    twice.start()
    twice.stop()
    twice.stop()
    assert not twice._thread.is_alive()


def test_event_loops_of_several_threads_share_a_batch(batcher: Batcher, held: Held) -> None:
    widths: dict[int, int] = {}

    def ask(n: int) -> None:
        (seen,) = run(lambda: batcher.describe([b"x" * n], held, LARGEST))
        widths[n] = seen.width

    async def test() -> None:
        first = await computing(batcher, held)
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 5)]
        for thread in threads:
            thread.start()
        await waiting(batcher, 4)
        held.go.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await first

    run(test)
    assert widths == {1: 1, 2: 2, 3: 3, 4: 4}
    assert held.sizes == [1, 4]


def test_a_loop_that_is_gone_does_not_stop_the_networks(batcher: Batcher, held: Held) -> None:
    async def leave() -> None:
        await computing(batcher, held)

    run(leave)  # cancels the task and closes its loop, while the networks compute
    held.go.set()
    assert run(lambda: batcher.describe([b"next"], held, LARGEST))[0].width == 4


@pytest.mark.numeric
def test_a_shared_batch_answers_as_the_pipeline_alone_does(batcher: Batcher, pipeline: FacePipeline) -> None:
    images = [photos.astronaut(), b"no image", photos.no_faces()[0], photos.six_people(), photos.astronaut()]
    kinds = [LARGEST, LARGEST, Kind(Pick.CENTER), Kind(None), Kind(Pick.ONLY, gate=True)]

    async def test() -> list[list[Seen]]:
        return await asyncio.gather(
            *(batcher.describe([image], pipeline, kind) for image, kind in zip(images, kinds, strict=True)),
            batcher.describe([images[3]], pipeline, DETECT),
        )

    *described, (detected,) = run(test)
    for image, kind, (seen,) in zip(images, kinds, described, strict=True):
        (alone,) = pipeline.describe([image], kind.pick, kind.gate)
        assert (seen.rejection is None) == (alone.rejection is None)
        assert len(seen.faces) == len(alone.faces)
        for face, expected in zip(seen.faces, alone.faces, strict=True):
            np.testing.assert_allclose(face.detection.landmarks, expected.detection.landmarks, atol=0.05)
            assert float(face.embedding @ expected.embedding) > 0.999
    assert [seen.rejection.code if seen.rejection else None for (seen,) in described] == [
        None,
        "unreadable_image",
        "no_face",
        None,
        None,
    ]
    assert [face.embedding.size for face in detected.faces] == [0] * 6
