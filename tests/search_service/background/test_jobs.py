"""Photos of a job let probes go first, but not for ever, and are given up as soon as that is said.

And what is swept beside them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict
from indexer.settings import read_settings
from indexer.types import Pick
from indexer.vision.pipeline import Seen
from search_service.background import jobs
from search_service.background.jobs import Courteous, Runner
from search_service.inference_queue import InferenceQueue
from search_service.service_context import ServiceContext
from search_service.store.idempotency import Pending
from search_service.store.schema import AnswerRow
from tests.search_service.queueing import LARGEST, HeldPipeline, running_queue
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for, wait_for_async


@pytest.fixture
def queue() -> Iterator[InferenceQueue]:
    with running_queue(max_batch=1) as queue:
        yield queue


@pytest.fixture
def probes() -> Iterator[HeldPipeline]:
    pipeline = HeldPipeline()
    yield pipeline
    pipeline.go.set()


class Networks:
    """Notes for each photo of the job how many probes were begun with before it."""

    def __init__(self, probes: HeldPipeline) -> None:
        self._probes = probes
        self.before: list[int] = []

    def load(self) -> None: ...

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[Seen]:
        assert (len(images), pick, gate) == (1, Pick.ONLY, True)
        self.before.append(len(self._probes.calls))
        return [Seen(width=len(image)) for image in images]


def beside_two_probes(
    queue: InferenceQueue, probes: HeldPipeline, networks: Networks, until: Callable[[], bool]
) -> None:
    """Two photos of a job, asked for while one probe is computed and another waits; probes go on from `until` on."""
    courteous = Courteous(networks, queue, lambda: None)
    seen: list[Seen] = []

    async def test() -> None:
        probes.go.clear()
        searches = [asyncio.create_task(queue.describe([b"probe"], probes, LARGEST)) for _ in range(2)]
        await asyncio.to_thread(probes.entered.wait, DEADLINE)
        job = threading.Thread(target=lambda: seen.extend(courteous.describe([b"a", b"bc"], Pick.ONLY, gate=True)))
        job.start()
        await wait_for_async(until)
        probes.go.set()
        await asyncio.gather(*searches)
        await asyncio.to_thread(job.join)

    asyncio.run(asyncio.wait_for(test(), DEADLINE))
    assert [one.width for one in seen] == [1, 2]


def test_old_answers_are_swept(queue: InferenceQueue, tmp_path: Path) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    for key in ("old", "young"):
        home.idempotency.claim("", key)
    with Session(home.engine) as session, session.begin():
        session.execute(update(AnswerRow).where(AnswerRow.key == "old").values(expires_at=now()))
    runner = Runner(home, queue)
    runner.start()

    def kept() -> list[str]:
        with Session(home.engine) as session:
            return list(session.scalars(select(AnswerRow.key)))

    wait_for(lambda: kept() == ["young"], "the old one is swept")
    runner.stop()
    assert isinstance(home.idempotency.claim("", "young"), Pending)
    home.close()


def test_probes_go_first(queue: InferenceQueue, probes: HeldPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LONGEST_PAUSE", DEADLINE)
    networks = Networks(probes)
    waiters = queue._changed._waiters  # type: ignore[attr-defined]
    beside_two_probes(queue, probes, networks, lambda: len(waiters) == 1)
    assert networks.before == [2, 2]


def test_a_service_that_is_never_idle_gets_through_a_job(
    queue: InferenceQueue, probes: HeldPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LONGEST_PAUSE", 0.01)
    networks = Networks(probes)
    beside_two_probes(queue, probes, networks, lambda: len(networks.before) == 2)
    assert networks.before == [1, 1]


def test_it_is_asked_before_each_photo_whether_it_goes_on(queue: InferenceQueue, probes: HeldPipeline) -> None:
    networks = Networks(probes)

    def check() -> None:
        if networks.before:
            raise Conflict("taken over")

    with pytest.raises(Conflict, match="taken over"):
        Courteous(networks, queue, check).describe([b"a", b"b", b"c"], Pick.ONLY, gate=True)
    assert len(networks.before) == 1
