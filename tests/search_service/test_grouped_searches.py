"""Probes that arrive together are searched together, over a real gallery and its index."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from indexer.errors import Conflict, ModelUnavailable, NotFound, Overloaded, RejectedImage
from indexer.models.packs import SFACE
from indexer.types import Gallery, Pick, Reason
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import ImageResult
from search_service.api.models.probes import answer_payload
from search_service.calibration.thresholds import Thresholds
from search_service.inference_queue import InferenceQueue
from search_service.search import Answer, Query, SearchService
from search_service.service_context import ServiceContext
from tests.indexer.gallery.faces import face, new_face, vector
from tests.search_service.queueing import LARGEST, HeldPipeline, add, results_behind_a_batch, run, running_queue
from tests.waiting import DEADLINE, wait_for_async

PEOPLE = 12
QUERY = Query()
NOBODY = b"nobody"
WRONG_SIZE = b"wrong size"


def described(image: bytes) -> ImageResult:
    """Returns the face of person N for the image `N`."""
    if image == NOBODY:
        return ImageResult(rejection=RejectedImage("nobody", code=Reason.NO_FACE))
    if image == WRONG_SIZE:
        return ImageResult((face(np.ones(3, np.float32)),))
    return ImageResult((face(vector(int(image), SFACE.dim)),)) if image.isdigit() else ImageResult(width=len(image))


class People(HeldPipeline):
    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        super().describe(images, pick, gate, liveness)
        return [described(image) for image in images]


class ObservedSearch:
    """A real search that records its probes, and waits while `go` is not set."""

    def __init__(self, context: ServiceContext) -> None:
        self.service = SearchService(context, Thresholds(context))
        self.sizes: list[int] = []
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def search(self, seen: Sequence[ImageResult], gallery: Gallery, query: Query) -> Sequence[Answer]:
        self.sizes.append(len(seen))
        self.entered.set()
        assert self.go.wait(DEADLINE)
        return self.service.search_described(seen, gallery, query)


@pytest.fixture
def gallery(context: ServiceContext) -> Gallery:
    gallery = context.store.galleries.create("staff", SFACE.name, SFACE.fingerprint, SFACE.dim)
    context.store.faces.enroll(gallery, [new_face(f"p-{n}", n, embedding=vector(n, SFACE.dim)) for n in range(PEOPLE)])
    return context.store.galleries.get("staff")


@pytest.fixture
def people() -> Iterator[People]:
    people = People()
    yield people
    people.go.set()


@pytest.fixture
def observed(context: ServiceContext) -> Iterator[ObservedSearch]:
    observed = ObservedSearch(context)
    yield observed
    observed.go.set()


@pytest.fixture
def queue(observed: ObservedSearch) -> Iterator[InferenceQueue]:
    with running_queue(search=observed.search) as queue:
        yield queue
        observed.go.set()


def found(answers: list[Answer]) -> str:
    (answer,) = answers
    return answer.faces[0].candidates[0].identity.external_id


def payload(answer: Answer) -> dict[str, Any]:
    return answer_payload(answer, [None]).model_dump()


async def start_searching(
    queue: InferenceQueue, observed: ObservedSearch, people: People, gallery: Gallery
) -> asyncio.Task[list[Answer]]:
    """Returns a request whose search has begun, and continues when `observed.go` is set."""
    observed.go.clear()
    task = asyncio.create_task(queue.search([b"0"], people, gallery, QUERY))
    await wait_for_async(observed.entered.is_set)
    return task


def test_probes_that_arrive_together_are_searched_together_and_answered_as_alone(
    queue: InferenceQueue, observed: ObservedSearch, people: People, gallery: Gallery
) -> None:
    images = [*(b"%d" % n for n in range(PEOPLE + 2)), NOBODY]
    alone = [payload(*observed.service.search_described([described(image)], gallery, QUERY)) for image in images]
    requests = (queue.search([image], people, gallery, QUERY) for image in images)
    assert [payload(*answers) for answers in run(lambda: results_behind_a_batch(queue, people, *requests))] == alone
    assert observed.sizes == [len(images)]
    assert [one["faces"][0]["candidates"][0]["external_id"] for one in alone[:2]] == ["p-0", "p-1"]


def test_images_of_one_request_are_answered_in_order(queue: InferenceQueue, people: People, gallery: Gallery) -> None:
    images = [b"%d" % (n % PEOPLE) for n in range(20)]
    answers = run(lambda: queue.search(images, people, gallery, QUERY))
    assert [found([answer]) for answer in answers] == [f"p-{n % PEOPLE}" for n in range(20)]


def test_probes_that_arrive_during_a_search_are_the_next_one(
    queue: InferenceQueue, observed: ObservedSearch, people: People, gallery: Gallery
) -> None:
    async def test() -> None:
        tasks = [await start_searching(queue, observed, people, gallery)]
        for n in range(1, 4):
            tasks += await add(queue.search([b"%d" % n], people, gallery, QUERY))
        await wait_for_async(lambda: [len(jobs) for jobs in queue._described.values()] == [3])
        observed.go.set()
        assert [found(answers) for answers in await asyncio.gather(*tasks)] == [f"p-{n}" for n in range(4)]

    run(test)
    assert observed.sizes == [1, 3]


def test_search_with_a_different_query_does_not_wait(
    queue: InferenceQueue, observed: ObservedSearch, people: People, gallery: Gallery
) -> None:
    async def test() -> None:
        first = await start_searching(queue, observed, people, gallery)
        (other,) = await add(queue.search([b"0"], people, gallery, Query(top_k=1)))
        await wait_for_async(lambda: len(observed.sizes) == 2)
        observed.go.set()
        assert [len((await one)[0].faces[0].candidates) for one in (first, other)] == [5, 1]

    run(test)


def test_networks_compute_during_a_search(
    queue: InferenceQueue, observed: ObservedSearch, people: People, gallery: Gallery
) -> None:
    async def test() -> None:
        first = await start_searching(queue, observed, people, gallery)
        assert (await queue.describe([b"image"], people, LARGEST))[0].width == 5
        observed.go.set()
        await first

    run(test)


def test_cancelled_requests_take_nothing_from_the_others(
    queue: InferenceQueue, observed: ObservedSearch, people: People, gallery: Gallery
) -> None:
    async def test() -> None:
        begun = await start_searching(queue, observed, people, gallery)
        gone, kept = await add(*(queue.search([b"%d" % n], people, gallery, QUERY) for n in (1, 2)))
        await wait_for_async(lambda: sum(map(len, queue._described.values())) == 2)
        for task in (begun, gone):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        observed.go.set()
        assert found(await kept) == "p-2"

    run(test)
    assert observed.sizes == [1, 1]


def test_only_the_request_whose_probe_fails_gets_the_error(
    queue: InferenceQueue, people: People, gallery: Gallery
) -> None:
    requests = (queue.search([image], people, gallery, QUERY) for image in (b"0", WRONG_SIZE, b"2"))
    first, failed, last = run(lambda: results_behind_a_batch(queue, people, *requests))
    assert [found(answers) for answers in (first, last)] == ["p-0", "p-2"]
    assert isinstance(failed, Exception)


def test_error_of_the_networks_reaches_the_search(
    queue: InferenceQueue, observed: ObservedSearch, people: People, gallery: Gallery
) -> None:
    with pytest.raises(ModelUnavailable):
        run(lambda: queue.search([b"0"], people, gallery, Query(pick=Pick.CENTER)))
    assert observed.sizes == []


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "re-embedded"])
def test_error_of_the_gallery_reaches_all_its_requests_and_no_later_ones(
    context: ServiceContext,
    queue: InferenceQueue,
    observed: ObservedSearch,
    people: People,
    gallery: Gallery,
    is_deleted: bool,
) -> None:
    if is_deleted:
        other = context.store.galleries.create("other", SFACE.name, SFACE.fingerprint, SFACE.dim)
        context.store.galleries.delete("other")
    else:
        other = replace(gallery, fingerprint="of another pack")

    async def test() -> None:
        requests = (queue.search([b"%d" % n], people, other, QUERY) for n in range(3))
        errors = await results_behind_a_batch(queue, people, *requests)
        assert {type(error) for error in errors} == {NotFound if is_deleted else Conflict}
        assert found(await queue.search([b"1"], people, gallery, QUERY)) == "p-1"

    run(test)
    assert observed.sizes == [3, 1]  # none is repeated alone


@pytest.mark.parametrize("error", [SystemExit(), StopIteration()])
def test_searches_go_on_after_every_exception(
    observed: ObservedSearch, people: People, gallery: Gallery, error: BaseException
) -> None:
    errors = [error, error]

    def search(seen: Sequence[ImageResult], gallery: Gallery, query: Query) -> Sequence[Answer]:
        if errors:
            raise errors.pop()
        return observed.search(seen, gallery, query)

    async def test(queue: InferenceQueue) -> None:
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await queue.search([b"1"], people, gallery, QUERY)
        errors.clear()
        assert found(await queue.search([b"1"], people, gallery, QUERY)) == "p-1"

    with running_queue(search=search) as queue:
        run(lambda: test(queue))


def test_search_that_no_thread_can_be_started_for_is_refused_and_the_next_one_answered(
    queue: InferenceQueue, people: People, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", _no_thread)
            with pytest.raises(Overloaded, match="can't start new thread"):
                await queue.search([b"1"], people, gallery, QUERY)
        assert found(await queue.search([b"1"], people, gallery, QUERY)) == "p-1"

    run(test)


def _no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_stop_finishes_searches_and_nothing_is_kept_of_them(
    observed: ObservedSearch, people: People, gallery: Gallery
) -> None:
    async def test(queue: InferenceQueue) -> None:
        request = await start_searching(queue, observed, people, gallery)
        stopping = asyncio.create_task(asyncio.to_thread(queue.stop))
        await wait_for_async(lambda: not queue._networks.is_alive())
        assert not stopping.done()
        observed.go.set()
        await stopping
        assert found(await request) == "p-0"
        assert not queue._described

    with running_queue(search=observed.search) as queue:
        run(lambda: test(queue))
