"""Bulk enrolments that wait, run and have ended, in SQL: any worker may go on with what another one left."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, insert, not_, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, NotFound, Overloaded, StorageUnavailable
from indexer.gallery.database import Repository, lock_until_commit
from indexer.gallery.schema import GalleryRow, batches
from search_service.store.schema import JobPartRow, JobResultRow, JobRow

PART_BYTES = 2**20
"""Bytes of a job's file in one row."""

PARTS_AT_ONCE = 16
"""Parts that are written in one transaction: others who write wait for 16 MiB, not for 2 GiB."""

RECEIVING_SECONDS = 600
"""Who writes a job's file, and has written nothing of it for so long, is taken for dead."""

ROOM_LOCK = 0x77686F74
"""Key of the PostgreSQL advisory lock under which jobs are counted before there is one more."""

LONGEST_HOLD = timedelta(minutes=1)
"""For which a job is held, or postponed. One that is held for twice that time from now was taken before the clock was
set back, and is free."""


class JobState(StrEnum):
    RECEIVING = "receiving"
    """Its file is not whole yet: nobody knows of it."""
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    """Its worker was asked to stop."""
    CANCELLED = "cancelled"
    DONE = "done"
    FAILED = "failed"


HELD = (JobState.RUNNING, JobState.CANCELLING)
UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)
ENDED = (JobState.CANCELLED, JobState.DONE, JobState.FAILED)


@dataclass(frozen=True)
class Job:
    """`outcomes` counts the images that something became of, by what."""

    id: str
    """Later jobs have higher ones."""
    gallery: str
    state: JobState
    images: int
    problem: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    outcomes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimedJob:
    """A job in the hands of one worker. Whoever took it over has another `claim`."""

    id: str
    claim: str
    gallery_id: int
    gallery: str
    state: JobState
    """RUNNING or CANCELLING."""
    options: Mapping[str, Any]
    attempts: int
    """How often somebody began with it, this time included, since it last got further."""


@dataclass(frozen=True)
class JobResult:
    """What became of one image. `place` is its row's in the archive, from 1."""

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
    """A job that has not ended. `problem` says why it got no further the last time."""

    id: str
    state: str
    problem: str | None


class JobRepository(Repository):
    """The jobs of one database's galleries. Thread-safe; each call is one transaction where it says nothing else."""

    # For those who ask

    def create(
        self,
        gallery_id: int,
        images: int,
        options: Mapping[str, Any],
        file: Iterable[bytes],
        most: int | None = None,
    ) -> Job:
        """Writes the file down, PARTS_AT_ONCE of its parts in a transaction; with the last one it is a job.

        Raises NotFound when the gallery was deleted, and as `check_room` does, before anything is written.
        """
        job_id, parts = _new_id(), enumerate(file)
        try:
            self._receive(job_id, gallery_id, images, options, most)
            while some := list(islice(parts, PARTS_AT_ONCE)):
                self._add_parts(job_id, some)
            with self._write() as session:
                _change(session, JobRow.id == job_id, state=JobState.QUEUED, locked_until=None)
        except IntegrityError as error:
            raise NotFound("the gallery was deleted meanwhile", code="gallery_not_found") from error
        except BaseException:
            with suppress(StorageUnavailable), self._write() as session:  # else `sweep` finds it
                session.execute(delete(JobRow).where(JobRow.id == job_id))
            raise
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        with self._read() as session:
            rows = session.execute(_jobs().where(JobRow.id == job_id)).all()
            if not rows:
                raise NotFound(f"there is no job {job_id!r}", code="job_not_found")
            return _read_jobs(session, rows)[0]

    def latest(self, galleries: Sequence[str] | None, before: str | None = None, limit: int | None = None) -> list[Job]:
        """Those of the galleries of these names (None: of all), the latest first, with an id below `before`."""
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
        """Those with a place above `after`, in the order of the archive's rows."""
        wanted = select(JobResultRow).where(JobResultRow.job_id == job_id, JobResultRow.place > after)
        if outcome is not None:
            wanted = wanted.where(JobResultRow.outcome == outcome)
        with self._read() as session:
            return [_result(row) for row in session.scalars(wanted.order_by(JobResultRow.place).limit(limit))]

    def cancel(self, job_id: str) -> Job:
        """One that waits is cancelled at once, one that runs is when its worker stops; one that has ended stays so.
        Raises NotFound."""
        queued = JobRow.state == JobState.QUEUED
        with self._write() as session:
            _change(
                session,
                and_(JobRow.id == job_id, JobRow.state.in_([JobState.QUEUED, JobState.RUNNING])),
                state=case((queued, JobState.CANCELLED), else_=JobState.CANCELLING),
                finished_at=case((queued, now())),
            )
        job = self.get(job_id)
        if job.state in ENDED:
            self._drop_parts(job_id)
        return job

    def count_unfinished(self) -> int:
        """How many wait, run, or are on their way in."""
        with self._read() as session:
            return _unfinished(session)

    def check_room(self, most: int) -> None:
        """Raises Overloaded where so many are unfinished."""
        with self._read() as session:
            _check_room(session, most)

    def list_unfinished(self) -> list[UnfinishedJob]:
        """Those that wait or run, the oldest first."""
        query = select(JobRow.id, JobRow.state, JobRow.problem).where(JobRow.state.in_(UNFINISHED))
        with self._read() as session:
            return [UnfinishedJob(*row) for row in session.execute(query.order_by(JobRow.created_at, JobRow.id))]

    # For workers

    def claim(self, seconds: float) -> ClaimedJob | None:
        """Takes the oldest job that waits, or whose worker let its time run out, for so many seconds, LONGEST_HOLD at
        most."""
        at, claim = now(), secrets.token_hex(16)
        free = or_(
            JobRow.state == JobState.QUEUED,
            and_(
                JobRow.state.in_(HELD),
                or_(JobRow.locked_until < at, JobRow.locked_until > at + 2 * LONGEST_HOLD),
            ),
        )
        oldest = select(JobRow.id).where(free).order_by(JobRow.created_at, JobRow.id).limit(1)
        with self._read() as session:
            if session.scalar(oldest) is None:  # nearly always: nobody is kept from writing for that
                return None
        with self._write() as session:
            taken = session.execute(
                update(JobRow)
                .where(JobRow.id == oldest.scalar_subquery(), free)  # `free` again: another one may have been faster
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

    def parts(self, held: ClaimedJob) -> Iterator[bytes]:
        """Its file."""
        place = 0
        while True:
            wanted = select(JobPartRow.data).where(JobPartRow.job_id == held.id, JobPartRow.place == place)
            with self._read() as session:
                data = session.scalar(wanted)
            if data is None:
                return
            yield data
            place += 1

    def finished_places(self, held: ClaimedJob) -> set[int]:
        """Of the images that something became of already."""
        with self._read() as session:
            return set(session.scalars(select(JobResultRow.place).where(JobResultRow.job_id == held.id)))

    def renew(self, held: ClaimedJob, seconds: float) -> JobState | None:
        """Holds it for so many seconds from now; None when it is no longer held by this claim."""
        with self._write() as session:
            return _change(session, _by(held), locked_until=now() + timedelta(seconds=seconds))

    def put(self, transaction: Session, held: ClaimedJob, results: Sequence[JobResult]) -> JobState:
        """Writes results down in the transaction that commits what they tell of; whether it runs or is to be cancelled.

        Raises Conflict, code `job_lost`, when the job is no longer held by this claim.
        """
        state = _change(transaction, _by(held), attempts=0, problem=None)
        if state is None:
            raise Conflict(f"job {held.id} was taken over or is gone", code="job_lost")
        if results:
            transaction.execute(insert(JobResultRow), [{"job_id": held.id, **_values(one)} for one in results])
        return state

    def finish(self, held: ClaimedJob, state: JobState, problem: str | None = None) -> None:
        """Ends it, and deletes its file. Nothing happens when it is no longer held by this claim."""
        with self._write() as session:
            told = None if problem is None else _storable(problem)
            ended = _change(
                session, _by(held), state=state, problem=told, finished_at=now(), worker=None, locked_until=None
            )
        if ended is not None:
            self._drop_parts(held.id)

    def release(self, held: ClaimedJob) -> None:
        """Lets another worker go on with it at once."""
        with self._write() as session:
            state = case((JobRow.state == JobState.RUNNING, JobState.QUEUED), else_=JobRow.state)
            _change(session, _by(held), state=state, attempts=0, worker=None, locked_until=now())

    def postpone(self, held: ClaimedJob, problem: str, seconds: float) -> None:
        """Lets another worker go on with it after so many seconds, LONGEST_HOLD at most; tells why until then."""
        with self._write() as session:
            until = now() + timedelta(seconds=seconds)
            _change(session, _by(held), problem=_storable(problem), attempts=0, locked_until=until)

    def sweep(self, before: datetime) -> int:
        """Deletes jobs that ended before that time, files of others that have ended, and what never became a job; how
        many jobs. In several transactions."""
        gone = or_(and_(JobRow.state.in_(ENDED), JobRow.finished_at < before), _broken_off())
        with_parts = JobRow.state.in_(ENDED), exists().where(JobPartRow.job_id == JobRow.id)
        with self._read() as session:
            old = list(session.scalars(select(JobRow.id).where(gone)))
            heavy = list(session.scalars(select(JobRow.id).where(*with_parts)))
        for job_id in {*old, *heavy}:
            self._drop_parts(job_id)
        for some in batches(old):
            with self._write() as session:
                session.execute(delete(JobRow).where(JobRow.id.in_(some)))
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

    def _add_parts(self, job_id: str, parts: Sequence[tuple[int, bytes]]) -> None:
        with self._write() as session:
            session.execute(
                insert(JobPartRow), [{"job_id": job_id, "place": place, "data": data} for place, data in parts]
            )
            _change(session, JobRow.id == job_id, locked_until=now())

    def _drop_parts(self, job_id: str) -> None:
        """A few at a time, as they were written."""
        some = select(JobPartRow.place).where(JobPartRow.job_id == job_id).limit(PARTS_AT_ONCE)
        while True:
            with self._write() as session:
                places = list(session.scalars(some))
                session.execute(delete(JobPartRow).where(JobPartRow.job_id == job_id, JobPartRow.place.in_(places)))
            if len(places) < PARTS_AT_ONCE:
                return


def _new_id() -> str:
    """32 hexadecimal digits: milliseconds, then chance."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _unfinished(session: Session) -> int:
    return session.scalar(select(func.count()).where(JobRow.state.not_in(ENDED), not_(_broken_off()))) or 0


def _check_room(session: Session, most: int) -> None:
    waiting = _unfinished(session)
    if waiting >= most:
        raise Overloaded(f"{waiting} bulk enrolments are waiting or running already, {most} at most; try again later")


def _broken_off() -> ColumnElement[bool]:
    """Whoever wrote the file is taken for dead: it never becomes a job."""
    dead = now() - timedelta(seconds=RECEIVING_SECONDS)
    return and_(JobRow.state == JobState.RECEIVING, JobRow.locked_until < dead)


def _by(held: ClaimedJob) -> Any:
    return and_(JobRow.id == held.id, JobRow.worker == held.claim, JobRow.state.in_(HELD))


def _change(session: Session, which: Any, **values: Any) -> JobState | None:
    """The state of the one job that was changed; None where there is none."""
    changed = update(JobRow).where(which).values(**values).returning(JobRow.state)
    state = session.scalar(changed.execution_options(synchronize_session=False))
    return None if state is None else JobState(state)


def _jobs() -> Any:
    wanted = select(JobRow, GalleryRow.name).join(GalleryRow, GalleryRow.id == JobRow.gallery_id)
    return wanted.where(JobRow.state != JobState.RECEIVING)


def _read_jobs(session: Session, rows: Sequence[Any]) -> list[Job]:
    outcomes: dict[str, dict[str, int]] = {}
    counts = select(JobResultRow.job_id, JobResultRow.outcome, func.count())
    for some in batches([row.id for row, _ in rows]):
        found = counts.where(JobResultRow.job_id.in_(some)).group_by(JobResultRow.job_id, JobResultRow.outcome)
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
    """PostgreSQL keeps no NUL in a text, and a manifest may hold one."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _result(row: JobResultRow) -> JobResult:
    return JobResult(
        row.place, row.image, row.external_id, row.outcome, row.reason, row.face_id, row.message, row.details
    )
