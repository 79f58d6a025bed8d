"""Photos of a job wait for probes, but not forever, and stop when the job does. Old answers are deleted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from indexer import supervision
from indexer.clock import now
from indexer.errors import Conflict
from indexer.types import Pick
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import ImageResult
from search_service.background import jobs
from search_service.background.jobs import CourteousPipeline, JobRunner
from search_service.inference_queue import InferenceQueue
from search_service.service_context import ServiceContext
from search_service.store.idempotency import Pending
from search_service.store.jobs import ClaimedJob, JobState
from search_service.store.schema import AnswerRow
from tests.indexer.gallery.faces import make_gallery
from tests.search_service.queueing import LARGEST, HeldPipeline, running_queue
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
    """Records for each photo of the job how many probes were started before it."""

    def __init__(self, probes: HeldPipeline) -> None:
        self._probes = probes
        self.before: list[int] = []

    def load(self) -> None: ...

    def check(self) -> None: ...

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        assert (len(images), pick, gate) == (1, Pick.ONLY, True)
        self.before.append(len(self._probes.calls))
        return [ImageResult(width=len(image)) for image in images]


def describe_during_two_probes(
    queue: InferenceQueue, probes: HeldPipeline, networks: Networks, until: Callable[[], bool]
) -> None:
    """Describes two photos of a job while one probe is computed and another waits, both until `until` holds."""
    pipeline = CourteousPipeline(networks, queue, lambda: None)
    seen: list[ImageResult] = []

    async def test() -> None:
        probes.go.clear()
        searches = [asyncio.create_task(queue.describe([b"probe"], probes, LARGEST)) for _ in range(2)]
        await asyncio.to_thread(probes.entered.wait, DEADLINE)
        job = threading.Thread(target=lambda: seen.extend(pipeline.describe([b"a", b"bc"], Pick.ONLY, gate=True)))
        job.start()
        await wait_for_async(until)
        probes.go.set()
        await asyncio.gather(*searches)
        await asyncio.to_thread(job.join)

    asyncio.run(asyncio.wait_for(test(), DEADLINE))
    assert [one.width for one in seen] == [1, 2]


def test_expired_answers_are_deleted(queue: InferenceQueue, context: ServiceContext) -> None:
    for key in ("old", "young"):
        context.idempotency.claim("", key)
    with Session(context.engine) as session, session.begin():
        session.execute(update(AnswerRow).where(AnswerRow.key == "old").values(expires_at=now()))
    runner = JobRunner(context, queue)
    runner.start()

    def kept() -> list[str]:
        with Session(context.engine) as session:
            return list(session.scalars(select(AnswerRow.key)))

    wait_for(lambda: kept() == ["young"], "the old one to be deleted")
    runner.stop()
    assert isinstance(context.idempotency.claim("", "young"), Pending)


def test_jobs_go_on_after_every_exception(
    queue: InferenceQueue, context: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "RESTART_SECONDS", 0.01)
    claims: list[str] = []

    def claim(seconds: float) -> None:
        claims.append("claim")
        if len(claims) == 1:
            raise SystemExit

    monkeypatch.setattr(context.jobs, "claim", claim)
    runner = JobRunner(context, queue)
    runner.start()
    wait_for(lambda: len(claims) > 1, "the thread to go on")
    runner.stop()


def test_lease_is_renewed_after_an_unexpected_error(
    queue: InferenceQueue, context: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "RESTART_SECONDS", 0.01)
    monkeypatch.setattr(jobs, "RENEW_SECONDS", 0.01)
    gallery = make_gallery(context.store)
    context.jobs.create(gallery.id, 1, {"pick": "only"}, [b"no archive"])
    renewals: list[str] = []
    renew = context.jobs.renew

    def failing_once(held: ClaimedJob, seconds: float) -> JobState | None:
        renewals.append(held.id)
        if len(renewals) == 1:
            raise ValueError("a bug")
        return renew(held, seconds)

    def read_slowly(job_id: str) -> Iterator[bytes]:
        wait_for(lambda: len(renewals) > 2, "the lease to be renewed again")
        return iter([])

    monkeypatch.setattr(context.jobs, "renew", failing_once)
    monkeypatch.setattr(context.jobs.files, "read", read_slowly)
    runner = JobRunner(context, queue)
    runner.start()
    wait_for(lambda: not context.jobs.list_unfinished(), "the job to end")
    runner.stop()


def test_probes_precede_photos_of_a_job(
    queue: InferenceQueue, probes: HeldPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LONGEST_PAUSE", DEADLINE)
    networks = Networks(probes)
    waiters = queue._changed._waiters  # type: ignore[attr-defined]
    describe_during_two_probes(queue, probes, networks, lambda: len(waiters) == 1)
    assert networks.before == [2, 2]


def test_service_that_is_never_idle_finishes_jobs(
    queue: InferenceQueue, probes: HeldPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LONGEST_PAUSE", 0.01)
    networks = Networks(probes)
    describe_during_two_probes(queue, probes, networks, lambda: len(networks.before) == 2)
    assert networks.before == [1, 1]


def test_job_is_checked_before_each_photo(queue: InferenceQueue, probes: HeldPipeline) -> None:
    networks = Networks(probes)

    def check() -> None:
        if networks.before:
            raise Conflict("taken over")

    with pytest.raises(Conflict, match="taken over"):
        CourteousPipeline(networks, queue, check).describe([b"a", b"b", b"c"], Pick.ONLY, gate=True)
    assert len(networks.before) == 1
