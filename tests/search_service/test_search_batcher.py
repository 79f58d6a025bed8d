"""Probes that come together, over a real gallery and its index."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from indexer.errors import Conflict, NotFound, RejectedImage
from indexer.models.packs import SFACE
from indexer.types import Gallery, Reason
from indexer.vision.pipeline import Seen
from search_service.api.payloads import answer_payload
from search_service.calibration.thresholds import Thresholds
from search_service.search import Answer, Query, SearchService
from search_service.search_batcher import Gathering
from search_service.service_context import ServiceContext
from tests.indexer.gallery.faces import face, new_face, vector
from tests.waiting import DEADLINE, wait_for_async

PEOPLE = 12
QUERY = Query()


class Watched:
    """A real search that says whom it was asked for together, and waits while `go` is not set."""

    def __init__(self, home: ServiceContext) -> None:
        self.service = SearchService(home, Thresholds(home))
        self.sizes: list[int] = []
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def search(self, seen: Sequence[Seen], gallery: Gallery, query: Query) -> Sequence[Answer]:
        self.sizes.append(len(seen))
        self.entered.set()
        assert self.go.wait(DEADLINE)
        return self.service.search_seen(seen, gallery, query)


@pytest.fixture
def gallery(home: ServiceContext) -> Gallery:
    gallery = home.store.galleries.create("staff", SFACE.name, SFACE.fingerprint, SFACE.dim)
    home.store.faces.enroll(gallery, [new_face(f"p-{n}", n, embedding=vector(n, SFACE.dim)) for n in range(PEOPLE)])
    return home.store.galleries.get("staff")


@pytest.fixture
def watched(home: ServiceContext) -> Iterator[Watched]:
    watched = Watched(home)
    yield watched
    watched.go.set()


def probe(person: int) -> Seen:
    return Seen((face(vector(person, SFACE.dim)),))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), DEADLINE)

    asyncio.run(bounded())


async def searching(gathering: Gathering, watched: Watched, gallery: Gallery, seen: Seen) -> asyncio.Task[Answer]:
    """A task whose search has begun, and goes on until `watched.go` is set."""
    watched.go.clear()
    task = asyncio.create_task(gathering.search_seen(seen, gallery, QUERY))
    await wait_for_async(watched.entered.is_set)
    return task


def told(answer: Answer) -> dict[str, Any]:
    return answer_payload(answer, [None]).model_dump()


def test_who_comes_together_is_searched_together_and_answered_as_alone(watched: Watched, gallery: Gallery) -> None:
    probes = [*map(probe, range(PEOPLE + 3)), Seen(rejection=RejectedImage("nobody", code=Reason.NO_FACE))]
    alone = [told(watched.service.search_seen([one], gallery, QUERY)[0]) for one in probes]

    async def test() -> None:
        gathering = Gathering(watched.search)
        answers = await asyncio.gather(*(gathering.search_seen(one, gallery, QUERY) for one in probes))
        assert [told(answer) for answer in answers] == alone

    run(test)
    assert watched.sizes == [len(probes)]
    assert [one["faces"][0]["candidates"][0]["external_id"] for one in alone[:2]] == ["p-0", "p-1"]


def test_who_comes_meanwhile_is_searched_next(watched: Watched, gallery: Gallery) -> None:
    async def test() -> None:
        gathering = Gathering(watched.search)
        first = await searching(gathering, watched, gallery, probe(0))
        later = []
        for n in range(1, 4):
            later.append(asyncio.create_task(gathering.search_seen(probe(n), gallery, QUERY)))
            await asyncio.sleep(0)  # it is in the queue now
        watched.go.set()
        answers = [await first, *[await one for one in later]]
        assert [answer.faces[0].candidates[0].identity.external_id for answer in answers] == [
            f"p-{n}" for n in range(4)
        ]

    run(test)
    assert watched.sizes == [1, 3]


def test_another_question_does_not_wait(watched: Watched, gallery: Gallery) -> None:
    async def test() -> None:
        gathering = Gathering(watched.search)
        first = await searching(gathering, watched, gallery, probe(0))
        other = asyncio.create_task(gathering.search_seen(probe(0), gallery, Query(top_k=1)))
        await wait_for_async(lambda: len(watched.sizes) == 2)
        watched.go.set()
        assert [len((await one).faces[0].candidates) for one in (first, other)] == [5, 1]

    run(test)


def test_who_hangs_up_takes_nothing_from_the_others(watched: Watched, gallery: Gallery) -> None:
    async def test() -> None:
        gathering = Gathering(watched.search)
        begun = await searching(gathering, watched, gallery, probe(0))
        gone, kept = (asyncio.create_task(gathering.search_seen(probe(n), gallery, QUERY)) for n in (1, 2))
        await asyncio.sleep(0)  # both are in the queue now
        for task in (begun, gone):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        watched.go.set()
        assert (await kept).faces[0].candidates[0].identity.external_id == "p-2"

    run(test)


def test_what_is_wrong_with_one_probe_is_told_to_that_one(watched: Watched, gallery: Gallery) -> None:
    bad = Seen((face(np.ones(3, np.float32)),))

    async def test() -> None:
        gathering = Gathering(watched.search)
        asked = (gathering.search_seen(one, gallery, QUERY) for one in (probe(0), bad, probe(2)))
        first, failed, last = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(first, Answer)
        assert isinstance(last, Answer)
        assert [one.faces[0].candidates[0].identity.external_id for one in (first, last)] == ["p-0", "p-2"]
        assert isinstance(failed, Exception)

    run(test)


@pytest.mark.parametrize("gone", [True, False], ids=["deleted", "re-embedded"])
def test_what_is_wrong_with_the_gallery_is_told_to_all_and_the_next_are_answered(
    home: ServiceContext, watched: Watched, gallery: Gallery, gone: bool
) -> None:
    if gone:
        other = home.store.galleries.create("other", SFACE.name, SFACE.fingerprint, SFACE.dim)
        home.store.galleries.delete("other")
    else:
        other = Gallery(**{**gallery.__dict__, "fingerprint": "of another pack"})

    async def test() -> None:
        gathering = Gathering(watched.search)
        asked = (gathering.search_seen(probe(n), other, QUERY) for n in range(3))
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(error) for error in errors} == {NotFound if gone else Conflict}
        assert (await gathering.search_seen(probe(1), gallery, QUERY)).faces

    run(test)
    assert watched.sizes == [3, 1]  # nobody is asked for again alone


def test_it_keeps_nothing_of_what_was_answered(watched: Watched, gallery: Gallery) -> None:
    gathering = Gathering(watched.search)
    run(lambda: _search_once(gathering, gallery))
    assert not gathering._coming
    assert not gathering._turns


async def _search_once(gathering: Gathering, gallery: Gallery) -> None:
    await gathering.search_seen(probe(0), gallery, QUERY)
