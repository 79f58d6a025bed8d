"""Bulk enrollments in SQL: any worker can continue a job that another one left."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, case, delete, exists, func, insert, not_, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, NotFound, Overloaded, StorageUnavailable
from indexer.gallery.change_log import gallery_deleted
from indexer.gallery.database import Repository, lock_until_commit
from indexer.gallery.schema import GalleryRow, batches
from search_service.store.job_files import JobFiles
from search_service.store.schema import JobPartRow, JobResultRow, JobRow

RECEIVING_SECONDS = 600
"""Time without a new part after which an upload counts as interrupted."""

ROOM_LOCK = 0x77686F74
"""Key of the PostgreSQL advisory lock held while jobs are counted and one is added."""

MAX_LEASE = timedelta(minutes=1)
"""Longest time for which a job is claimed or postponed. A job locked until more than twice that time from now was
claimed before the clock was set back, and can be claimed again."""


class JobState(StrEnum):
    RECEIVING = "receiving"
    """Its file is being uploaded; it is not listed yet."""
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    """Cancelled while running; its worker will stop."""
    CANCELLED = "cancelled"
    DONE = "done"
    FAILED = "failed"


CLAIMED = (JobState.RUNNING, JobState.CANCELLING)
UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)
FINISHED = (JobState.CANCELLED, JobState.DONE, JobState.FAILED)


@dataclass(frozen=True)
class Job:
    """A bulk enrollment."""

    id: str
    """Ids sort by the time of creation."""
    gallery: str
    state: JobState
    images: int
    problem: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Number of processed images by outcome."""


@dataclass(frozen=True)
class ClaimedJob:
    """A job claimed by one worker."""

    id: str
    claim: str
    """Identifies this claim; a later claim of the same job has another one."""
    gallery_id: int
    gallery: str
    state: JobState
    """RUNNING or CANCELLING."""
    options: Mapping[str, Any]
    attempts: int
    """Number of claims since its last progress, including this one."""


@dataclass(frozen=True)
class JobResult:
    """The result for one image. `place` is the number of its row in the archive, from 1."""

    place: int
    image: str
    external_id: str
    outcome: str
    reason: str | None = None
    face_id: int | None = None
    message: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class UnfinishedJob:
    """A job that is not finished. `problem` is the reason of the last interruption."""

    id: str
    state: str
    problem: str | None


class JobRepository(Repository):
    """The jobs of one database's galleries. Thread-safe; each call is one transaction unless noted."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.files = JobFiles(engine)

    def create(
        self,
        gallery_id: int,
        images: int,
        options: Mapping[str, Any],
        file: Iterable[bytes],
        most: int | None = None,
    ) -> Job:
        """Stores the file, in several transactions, and then queues the job.

        Args:
            gallery_id: The gallery.
            images: Number of images in the file.
            options: The enrollment's options.
            file: The archive in parts of `job_files.PART_BYTES`.
            most: Limit of unfinished jobs, checked before anything is stored.

        Raises:
            NotFound: The gallery was deleted.
            Overloaded: There are `most` unfinished jobs already.
        """
        job_id = _new_id()
        try:
            self._receive(job_id, gallery_id, images, options, most)
            self.files.write(job_id, file)
            with self._write() as session:
                _change(session, JobRow.id == job_id, state=JobState.QUEUED, locked_until=None)
        except IntegrityError as error:
            raise gallery_deleted() from error
        except BaseException:
            with suppress(StorageUnavailable), self._write() as session:  # otherwise `sweep` deletes it
                session.execute(delete(JobRow).where(JobRow.id == job_id))
            raise
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """Returns the job. Raises NotFound."""
        with self._read() as session:
            rows = session.execute(_jobs().where(JobRow.id == job_id)).all()
            if not rows:
                raise NotFound(f"there is no job {job_id!r}", code="job_not_found")
            return _read_jobs(session, rows)[0]

    def latest(self, galleries: Sequence[str] | None, before: str | None = None, limit: int | None = None) -> list[Job]:
        """Returns jobs of the galleries of these names (None for all) with an id below `before`, latest first."""
        wanted = _jobs().order_by(JobRow.id.desc()).limit(limit)
        if galleries is not None:
            wanted = wanted.where(GalleryRow.name.in_(galleries))
        if before is not None:
            wanted = wanted.where(JobRow.id < before)
        with self._read() as session:
            return _read_jobs(session, session.execute(wanted).all())

    def results(
        self, job_id: str, outcome: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[JobResult]:
        """Returns results with a place above `after`, in the order of the archive's rows."""
        wanted = select(JobResultRow).where(JobResultRow.job_id == job_id, JobResultRow.place > after)
        if outcome is not None:
            wanted = wanted.where(JobResultRow.outcome == outcome)
        with self._read() as session:
            return [_result(row) for row in session.scalars(wanted.order_by(JobResultRow.place).limit(limit))]

    def cancel(self, job_id: str) -> Job:
        """Cancels a queued job at once and a running one when its worker stops; a finished job stays as it is.

        Raises NotFound.
        """
        queued = JobRow.state == JobState.QUEUED
        with self._write() as session:
            _change(
                session,
                and_(JobRow.id == job_id, JobRow.state.in_([JobState.QUEUED, JobState.RUNNING])),
                state=case((queued, JobState.CANCELLED), else_=JobState.CANCELLING),
                finished_at=case((queued, now())),
            )
        job = self.get(job_id)
        if job.state in FINISHED:
            self.files.delete(job_id)
        return job

    def check_room(self, most: int) -> None:
        """Raises Overloaded if `most` jobs are queued, running or being uploaded."""
        with self._read() as session:
            _check_room(session, most)

    def list_unfinished(self) -> list[UnfinishedJob]:
        """Returns queued and running jobs, oldest first."""
        query = select(JobRow.id, JobRow.state, JobRow.problem).where(JobRow.state.in_(UNFINISHED))
        with self._read() as session:
            return [UnfinishedJob(*row) for row in session.execute(query.order_by(JobRow.created_at, JobRow.id))]

    def claim(self, seconds: float) -> ClaimedJob | None:
        """Claims the oldest job that is queued or whose lease has expired, for `seconds` (MAX_LEASE at most)."""
        at, claim = now(), secrets.token_hex(16)
        free = or_(
            JobRow.state == JobState.QUEUED,
            and_(
                JobRow.state.in_(CLAIMED),
                or_(JobRow.locked_until < at, JobRow.locked_until > at + 2 * MAX_LEASE),
            ),
        )
        oldest = select(JobRow.id).where(free).order_by(JobRow.created_at, JobRow.id).limit(1)
        with self._read() as session:
            if session.scalar(oldest) is None:  # the usual case, without a write lock
                return None
        with self._write() as session:
            taken = session.execute(
                update(JobRow)
                .where(JobRow.id == oldest.scalar_subquery(), free)  # `free` again: another worker may have been faster
                .values(
                    state=case((JobRow.state == JobState.CANCELLING, JobState.CANCELLING), else_=JobState.RUNNING),
                    worker=claim,
                    locked_until=at + timedelta(seconds=seconds),
                    started_at=func.coalesce(JobRow.started_at, at),
                    attempts=JobRow.attempts + 1,
                )
                .returning(JobRow.id, JobRow.gallery_id, JobRow.state, JobRow.options, JobRow.attempts)
                .execution_options(synchronize_session=False)
            ).one_or_none()
            if taken is None:
                return None
            name = session.scalar(select(GalleryRow.name).where(GalleryRow.id == taken.gallery_id)) or ""
        return ClaimedJob(taken.id, claim, taken.gallery_id, name, JobState(taken.state), taken.options, taken.attempts)

    def finished_places(self, job: ClaimedJob) -> set[int]:
        """Returns the places of the images that have a result."""
        with self._read() as session:
            return set(session.scalars(select(JobResultRow.place).where(JobResultRow.job_id == job.id)))

    def renew(self, job: ClaimedJob, seconds: float) -> JobState | None:
        """Extends the lease to `seconds` from now and returns the state; None if the claim was lost."""
        with self._write() as session:
            return _change(session, _claimed_by(job), locked_until=now() + timedelta(seconds=seconds))

    def put(self, transaction: Session, job: ClaimedJob, results: Sequence[JobResult]) -> JobState:
        """Stores results in the transaction that enrolls the faces and returns the state: RUNNING or CANCELLING.

        Raises:
            Conflict: With code `job_lost` if the claim was lost.
        """
        state = _change(transaction, _claimed_by(job), attempts=0, problem=None)
        if state is None:
            raise Conflict(f"job {job.id} was claimed by another worker or deleted", code="job_lost")
        if results:
            transaction.execute(insert(JobResultRow), [{"job_id": job.id, **_values(result)} for result in results])
        return state

    def finish(self, job: ClaimedJob, state: JobState, problem: str | None = None) -> None:
        """Finishes the job and deletes its file; without effect if the claim was lost."""
        with self._write() as session:
            values = {"problem": None if problem is None else _storable(problem), "finished_at": now()}
            finished = _change(session, _claimed_by(job), state=state, **values, worker=None, locked_until=None)
        if finished is not None:
            self.files.delete(job.id)

    def release(self, job: ClaimedJob) -> None:
        """Allows another worker to continue the job at once."""
        with self._write() as session:
            state = case((JobRow.state == JobState.RUNNING, JobState.QUEUED), else_=JobRow.state)
            _change(session, _claimed_by(job), state=state, attempts=0, worker=None, locked_until=now())

    def postpone(self, job: ClaimedJob, problem: str, seconds: float) -> None:
        """Allows another worker to continue the job after `seconds`, MAX_LEASE at most, and shows `problem`."""
        with self._write() as session:
            until = now() + timedelta(seconds=seconds)
            _change(session, _claimed_by(job), problem=_storable(problem), attempts=0, locked_until=until)

    def sweep(self, before: datetime) -> int:
        """Deletes jobs that finished before that time, interrupted uploads, and remaining files of finished jobs.

        Uses several transactions and returns the number of deleted jobs.
        """
        expired = or_(and_(JobRow.state.in_(FINISHED), JobRow.finished_at < before), _is_interrupted())
        with_parts = JobRow.state.in_(FINISHED), exists().where(JobPartRow.job_id == JobRow.id)
        with self._read() as session:
            old = list(session.scalars(select(JobRow.id).where(expired)))
            heavy = list(session.scalars(select(JobRow.id).where(*with_parts)))
        for job_id in {*old, *heavy}:
            self.files.delete(job_id)
        for batch in batches(old):
            with self._write() as session:
                session.execute(delete(JobRow).where(JobRow.id.in_(batch)))
        return len(old)

    def _receive(self, job_id: str, gallery_id: int, images: int, options: Mapping[str, Any], most: int | None) -> None:
        with self._write() as session:
            if most is not None:
                lock_until_commit(session.connection(), ROOM_LOCK)
                _check_room(session, most)
            session.add(
                JobRow(
                    id=job_id,
                    gallery_id=gallery_id,
                    state=JobState.RECEIVING,
                    options=dict(options),
                    images=images,
                    attempts=0,
                    locked_until=now(),
                    created_at=now(),
                )
            )


def _new_id() -> str:
    """Returns 32 hexadecimal digits: the time in milliseconds, then random digits."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _check_room(session: Session, most: int) -> None:
    unfinished = select(func.count()).where(JobRow.state.not_in(FINISHED), not_(_is_interrupted()))
    waiting = session.scalar(unfinished) or 0
    if waiting >= most:
        raise Overloaded(f"{waiting} bulk enrollments are waiting or running, the limit is {most}; try again later")


def _is_interrupted() -> ColumnElement[bool]:
    """Returns the condition for an upload that stopped before its job was queued."""
    limit = now() - timedelta(seconds=RECEIVING_SECONDS)
    return and_(JobRow.state == JobState.RECEIVING, JobRow.locked_until < limit)


def _claimed_by(job: ClaimedJob) -> Any:
    return and_(JobRow.id == job.id, JobRow.worker == job.claim, JobRow.state.in_(CLAIMED))


def _change(session: Session, which: Any, **values: Any) -> JobState | None:
    """Changes one job and returns its state; None if no job matches."""
    changed = update(JobRow).where(which).values(**values).returning(JobRow.state)
    state = session.scalar(changed.execution_options(synchronize_session=False))
    return None if state is None else JobState(state)


def _jobs() -> Any:
    wanted = select(JobRow, GalleryRow.name).join(GalleryRow, GalleryRow.id == JobRow.gallery_id)
    return wanted.where(JobRow.state != JobState.RECEIVING)


def _read_jobs(session: Session, rows: Sequence[Any]) -> list[Job]:
    outcomes: dict[str, dict[str, int]] = {}
    counts = select(JobResultRow.job_id, JobResultRow.outcome, func.count())
    for batch in batches([row.id for row, _ in rows]):
        found = counts.where(JobResultRow.job_id.in_(batch)).group_by(JobResultRow.job_id, JobResultRow.outcome)
        for job_id, outcome, count in session.execute(found):
            outcomes.setdefault(job_id, {})[outcome] = count
    return [
        Job(
            row.id,
            name,
            JobState(row.state),
            row.images,
            row.problem,
            row.created_at,
            row.started_at,
            row.finished_at,
            outcomes.get(row.id, {}),
        )
        for row, name in rows
    ]


def _values(result: JobResult) -> dict[str, Any]:
    texts = {name: _storable(value) for name, value in vars(result).items() if isinstance(value, str)}
    return {**vars(result), **texts, "details": dict(result.details)}


def _storable(text: str) -> str:
    """Replaces NUL, which PostgreSQL cannot store and a manifest may contain."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _result(row: JobResultRow) -> JobResult:
    return JobResult(
        row.place, row.image, row.external_id, row.outcome, row.reason, row.face_id, row.message, row.details
    )
