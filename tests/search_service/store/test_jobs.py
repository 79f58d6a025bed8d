"""Tests of jobs: uploads, claims, results and cancellation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, NotFound, Overloaded
from indexer.gallery.database import open_database
from indexer.gallery.faces import Enrolled
from indexer.gallery.store import Store
from indexer.types import Gallery
from search_service.store.job_files import PARTS_AT_ONCE
from search_service.store.jobs import RECEIVING_SECONDS, ClaimedJob, Job, JobRepository, JobResult, JobState
from search_service.store.schema import JobPartRow, JobResultRow, JobRow
from tests.indexer.gallery.faces import image_hash, make_gallery, new_face
from tests.indexer.gallery.together import in_processes, in_threads
from tests.postgres import Database, execute

LONG = 60.0
"""Seconds: longer than any test, and as long as a job may be claimed (`MAX_LEASE`)."""

FILE = [bytes([n]) * 10 for n in range(2 * PARTS_AT_ONCE + 3)]


@pytest.fixture
def gallery(staff: Gallery) -> Gallery:
    return staff


def make(jobs: JobRepository, gallery: Gallery, images: int = 3) -> Job:
    return jobs.create(gallery.id, images, {"pick": "only"}, FILE)


def claim(jobs: JobRepository, seconds: float = LONG) -> ClaimedJob:
    claimed = jobs.claim(seconds)
    assert claimed is not None
    return claimed


def count(engine: Engine, table: type[JobRow | JobPartRow | JobResultRow]) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def put(engine: Engine, jobs: JobRepository, claimed: ClaimedJob, *results: JobResult) -> None:
    with Session(engine.execution_options(writing=True)) as session, session.begin():
        jobs.put(session, claimed, results)


def upload(engine: Engine, gallery: Gallery, age_seconds: int) -> str:
    """Begins an upload that received its last part so long ago. Returns the job's id."""
    at, job_id = now() - timedelta(seconds=age_seconds), f"upload {age_seconds}"
    row = JobRow(id=job_id, gallery_id=gallery.id, state="receiving", options={}, images=1, attempts=0)
    row.locked_until = row.created_at = at
    with Session(engine.execution_options(writing=True)) as session, session.begin():
        session.add(row)
        session.flush()
        session.add(JobPartRow(job_id=job_id, place=0, data=b"x"))
    return job_id


def test_created_job_has_its_file(jobs: JobRepository, gallery: Gallery) -> None:
    job = make(jobs, gallery)
    assert (job.gallery, job.state, job.images, job.outcomes) == (gallery.name, JobState.QUEUED, 3, {})
    assert (job.started_at, job.finished_at, job.problem) == (None, None, None)
    assert jobs.get(job.id) == job
    claimed = claim(jobs)
    assert (claimed.id, claimed.gallery_id, claimed.gallery) == (job.id, gallery.id, "staff")
    assert claimed.options == {"pick": "only"}
    assert list(jobs.files.read(claimed.id)) == FILE
    assert jobs.get(job.id).state is JobState.RUNNING
    with pytest.raises(NotFound, match="no job 'x'"):
        jobs.get("x")


def test_interrupted_upload_creates_no_job(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    def broken() -> Iterator[bytes]:
        yield from FILE
        assert count(engine, JobPartRow) >= PARTS_AT_ONCE, "parts are stored while they are received"
        assert (jobs.latest(None), jobs.claim(LONG)) == ([], None)
        raise OSError("the disk failed")

    with pytest.raises(OSError, match="failed"):
        jobs.create(gallery.id, 3, {}, broken())
    assert (count(engine, JobRow), count(engine, JobPartRow)) == (0, 0)


def test_abandoned_upload_is_swept(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    upload(engine, gallery, RECEIVING_SECONDS + 1)
    slow = upload(engine, gallery, RECEIVING_SECONDS // 2)
    assert jobs.sweep(now() - timedelta(days=30)) == 1
    with Session(engine) as session:
        assert session.scalars(select(JobRow.id)).all() == [slow]
    assert count(engine, JobPartRow) == 1


def test_abandoned_upload_does_not_count_as_unfinished(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    upload(engine, gallery, RECEIVING_SECONDS + 1)
    upload(engine, gallery, RECEIVING_SECONDS // 2)
    jobs.check_room(2)
    with pytest.raises(Overloaded, match="1 bulk enrollments are waiting or running, the limit is 1"):
        jobs.check_room(1)


def test_number_of_unfinished_jobs_is_limited(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    def create() -> Job | None:
        try:
            return jobs.create(gallery.id, 3, {}, FILE, most=3)
        except Overloaded:
            return None

    first, *rest = [job for job in in_threads([create] * 8) if job is not None]
    assert len(rest) == 2
    assert (count(engine, JobRow), count(engine, JobPartRow)) == (3, 3 * len(FILE))
    jobs.cancel(first.id)
    assert create() is not None
    assert create() is None


def test_concurrent_uploads_respect_the_limit(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    """Each upload waits after counting, so that both would count the same jobs without a lock."""
    both = threading.Barrier(2)

    def counted(*results: Any) -> None:
        if "count" in results[2]:
            with suppress(threading.BrokenBarrierError):
                both.wait(0.5)

    def create() -> bool:
        try:
            return bool(jobs.create(gallery.id, 3, {}, FILE, most=1).id)
        except Overloaded:
            return False

    event.listen(engine, "after_cursor_execute", counted)
    assert sorted(in_threads([create] * 2)) == [False, True]


def test_gallery_deleted_during_upload_raises_not_found(
    jobs: JobRepository, gallery: Gallery, store: Store, engine: Engine
) -> None:
    def file() -> Iterator[bytes]:
        yield from FILE
        store.galleries.delete(gallery.name)
        yield from FILE

    with pytest.raises(NotFound) as caught:
        jobs.create(gallery.id, 3, {}, file())
    assert caught.value.code == "gallery_not_found"
    assert (count(engine, JobRow), count(engine, JobPartRow)) == (0, 0)


def test_deleting_a_gallery_deletes_its_jobs(
    jobs: JobRepository, gallery: Gallery, store: Store, engine: Engine
) -> None:
    job = make(jobs, gallery)
    claimed = claim(jobs)
    put(engine, jobs, claimed, JobResult(1, "a.jpg", "ana", "enrolled"))
    store.galleries.delete(gallery.name)
    with pytest.raises(NotFound):
        jobs.get(job.id)
    assert [count(engine, table) for table in (JobRow, JobPartRow, JobResultRow)] == [0, 0, 0]
    assert jobs.renew(claimed, LONG) is None
    jobs.finish(claimed, JobState.DONE)
    with pytest.raises(Conflict) as caught:
        put(engine, jobs, claimed)
    assert caught.value.code == "job_lost"


def test_oldest_job_is_claimed_first(jobs: JobRepository, gallery: Gallery) -> None:
    created = [make(jobs, gallery).id for _ in range(3)]
    assert [claim(jobs).id for _ in range(3)] == created
    assert jobs.claim(LONG) is None


def test_job_with_expired_lease_is_claimed_again(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    job = make(jobs, gallery)
    dead = claim(jobs, seconds=-1)
    put(engine, jobs, dead, JobResult(2, "b.jpg", "ben", "enrolled", face_id=7))
    started = jobs.get(job.id).started_at
    alive = claim(jobs)
    assert (alive.id, alive.attempts, jobs.finished_places(alive)) == (job.id, 1, {2})
    assert jobs.get(job.id).started_at == started
    assert jobs.claim(LONG) is None
    with pytest.raises(Conflict, match="claimed by another worker") as caught:
        put(engine, jobs, dead, JobResult(3, "c.jpg", "cem", "enrolled"))
    assert caught.value.code == "job_lost"
    assert jobs.renew(dead, LONG) is None
    jobs.finish(dead, JobState.FAILED)
    jobs.release(dead)
    jobs.postpone(dead, "late", LONG)
    now = jobs.get(job.id)
    assert (now.state, now.problem) == (JobState.RUNNING, None)
    assert list(jobs.files.read(alive.id)) == FILE
    assert jobs.renew(alive, LONG) is JobState.RUNNING


def test_job_claimed_before_clock_was_set_back_is_free(jobs: JobRepository, gallery: Gallery) -> None:
    make(jobs, gallery)
    ahead = claim(jobs, seconds=86_400)
    assert claim(jobs).claim != ahead.claim
    assert jobs.claim(LONG) is None


def test_results_are_committed_with_the_faces(
    jobs: JobRepository, gallery: Gallery, store: Store, engine: Engine
) -> None:
    make(jobs, gallery)
    dead, alive = claim(jobs, seconds=-1), claim(jobs)

    def enroll(claimed: ClaimedJob) -> None:
        def put_result(session: Session, enrolled: list[Enrolled]) -> None:
            [one] = enrolled
            jobs.put(session, claimed, [JobResult(1, "a.jpg", "ana", str(one.outcome), face_id=one.face_id)])

        store.faces.enroll(gallery, [new_face("ana", 1)], on_enrolled=put_result)

    with pytest.raises(Conflict, match="claimed by another worker"):
        enroll(dead)
    assert (store.galleries.counts(gallery.id), store.changes.last(gallery.id)) == ((0, 0), 0)
    enroll(alive)
    assert store.galleries.counts(gallery.id) == (1, 1)
    [result] = jobs.results(alive.id)
    assert result.outcome == "enrolled"
    assert store.faces.get(gallery.id, result.face_id or 0).image_sha256 == image_hash(1)


def test_attempts_are_counted_until_progress(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    make(jobs, gallery)
    assert [claim(jobs, seconds=-1).attempts for _ in range(3)] == [1, 2, 3]
    claimed = claim(jobs, seconds=-1)
    put(engine, jobs, claimed)
    claimed = claim(jobs)
    assert claimed.attempts == 1
    jobs.release(claimed)
    assert claim(jobs).attempts == 1


def test_released_job_is_claimed_at_once(jobs: JobRepository, gallery: Gallery) -> None:
    job = make(jobs, gallery)
    jobs.release(claim(jobs))
    assert jobs.get(job.id).state is JobState.QUEUED
    again = claim(jobs)
    jobs.cancel(job.id)
    jobs.release(again)
    assert claim(jobs).state is JobState.CANCELLING


def test_postponed_job_waits_and_shows_its_problem(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    job = make(jobs, gallery)
    claimed = claim(jobs)
    jobs.postpone(claimed, "no model", LONG)
    assert jobs.claim(LONG) is None
    assert (jobs.get(job.id).state, jobs.get(job.id).problem) == (JobState.RUNNING, "no model")
    for _ in range(10):
        jobs.postpone(claimed, "no model", -1)
        claimed = claim(jobs)
        assert claimed.attempts == 1, "a postponed job does not count attempts"
    put(engine, jobs, claimed)
    assert jobs.get(job.id).problem is None


def test_nul_in_results_and_problems_is_replaced(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    """PostgreSQL cannot store NUL, which a manifest may contain."""
    job = make(jobs, gallery)
    claimed = claim(jobs)
    result = JobResult(1, "a\0.jpg", "\0", "rejected", "invalid_row", message="\0", details={"x": "\0"})
    put(engine, jobs, claimed, result)
    assert jobs.results(job.id) == [replace(result, image="a\ufffd.jpg", external_id="\ufffd", message="\ufffd")]
    jobs.finish(claimed, JobState.FAILED, "\0")
    assert jobs.get(job.id).problem == "\ufffd"


def test_finished_job_loses_its_file(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    job = make(jobs, gallery)
    claimed = claim(jobs)
    results = [
        JobResult(1, "a.jpg", "ana", "enrolled", face_id=5, message="like ben", details={"external_id": "ben"}),
        JobResult(2, "b.jpg", "ben", "rejected", "no_face", message="no face was found"),
        JobResult(3, "c.jpg", "ana", "rejected", "no_face"),
    ]
    put(engine, jobs, claimed, *results[:2])
    put(engine, jobs, claimed, results[2])
    jobs.finish(claimed, JobState.DONE)
    ended = jobs.get(job.id)
    assert (ended.state, ended.outcomes) == (JobState.DONE, {"enrolled": 1, "rejected": 2})
    assert ended.finished_at is not None
    assert ended.started_at is not None
    assert ended.created_at <= ended.started_at <= ended.finished_at
    assert jobs.results(job.id) == results
    assert jobs.results(job.id, "rejected") == results[1:]
    assert jobs.results(job.id, "rejected", after=2) == results[2:]
    assert jobs.results(job.id, limit=1) == results[:1]
    assert (jobs.list_unfinished(), jobs.claim(LONG), count(engine, JobPartRow)) == ([], None, 0)
    assert jobs.cancel(job.id).state is JobState.DONE


def test_queued_job_is_cancelled_at_once(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    job = make(jobs, gallery)
    cancelled = jobs.cancel(job.id)
    assert (cancelled.state, cancelled.started_at) == (JobState.CANCELLED, None)
    assert cancelled.finished_at is not None
    assert (jobs.claim(LONG), count(engine, JobPartRow)) == (None, 0)
    assert jobs.cancel(job.id) == cancelled
    with pytest.raises(NotFound):
        jobs.cancel("x")


def test_running_job_is_cancelled_by_its_worker(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    job = make(jobs, gallery)
    claimed = claim(jobs)
    assert jobs.cancel(job.id).state is JobState.CANCELLING
    assert jobs.cancel(job.id).finished_at is None
    assert jobs.renew(claimed, -1) is JobState.CANCELLING
    put(engine, jobs, claimed, JobResult(1, "a.jpg", "ana", "enrolled"))
    successor = claim(jobs)
    assert (successor.id, successor.state) == (job.id, JobState.CANCELLING)
    jobs.finish(successor, JobState.CANCELLED)
    ended = jobs.get(job.id)
    assert (ended.state, ended.outcomes) == (JobState.CANCELLED, {"enrolled": 1})
    assert ended.finished_at is not None
    assert count(engine, JobPartRow) == 0


def test_jobs_are_listed_latest_first(jobs: JobRepository, gallery: Gallery, store: Store, engine: Engine) -> None:
    other = make_gallery(store, "guests")
    created = [make(jobs, one).id for one in (gallery, other, gallery, other, gallery)]
    order = sorted(created, reverse=True)
    put(engine, jobs, claim(jobs), JobResult(1, "a.jpg", "ana", "enrolled"))
    listed = jobs.latest(None)
    assert [job.id for job in listed] == order
    assert {job.id: job.outcomes for job in listed if job.outcomes} == {created[0]: {"enrolled": 1}}
    assert [job.id for job in jobs.latest(None, before=order[1], limit=2)] == order[2:4]
    assert {job.id for job in jobs.latest(["guests"])} == {created[1], created[3]}
    assert jobs.latest([]) == []


def test_sweep_deletes_old_jobs_and_remaining_files(jobs: JobRepository, gallery: Gallery, engine: Engine) -> None:
    old, young, waiting = (make(jobs, gallery).id for _ in range(3))
    for _ in range(2):
        claimed = claim(jobs)
        put(engine, jobs, claimed, JobResult(1, "a.jpg", "ana", "enrolled"))
        jobs.finish(claimed, JobState.DONE)
    execute(engine, f"UPDATE jobs SET finished_at = '2020-01-01 00:00:00.000000' WHERE id = '{old}'")
    execute(engine, f"INSERT INTO job_parts (job_id, place, data) VALUES ('{young}', 5, :data)", {"data": b"x"})
    assert jobs.sweep(now() - timedelta(days=30)) == 1
    assert {job.id for job in jobs.latest(None)} == {young, waiting}
    assert (count(engine, JobResultRow), count(engine, JobPartRow)) == (1, len(FILE))


def claim_all(url: str) -> list[str]:
    engine = open_database(url)
    try:
        jobs, mine, misses = JobRepository(engine), [], 0
        while misses < 20:
            claimed = jobs.claim(LONG)
            misses += claimed is None
            mine += [claimed.id] if claimed else []
        return mine
    finally:
        engine.dispose()


def test_concurrent_workers_claim_different_jobs(jobs: JobRepository, gallery: Gallery, database: Database) -> None:
    created = sorted(make(jobs, gallery).id for _ in range(20))
    claimed = in_processes(claim_all, [(database.url,)] * 3)
    assert sorted(job for mine in claimed for job in mine) == created
    again = make(jobs, gallery)
    threads = in_threads([lambda: claim_all(database.url)] * 4)
    assert [job for mine in threads for job in mine] == [again.id]
