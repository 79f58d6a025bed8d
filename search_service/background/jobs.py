"""Bulk enrolments, worked through beside the searches of the same process.

A job's results are committed with the faces that they tell of, by whoever holds the job alone. So each image is told of
exactly once, however often its workers end and whoever goes on with it.
"""

from __future__ import annotations

import io
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import IO, Any

from indexer.clock import now
from indexer.enrollment.enroller import Describes, Enroller, Result
from indexer.enrollment.sources import Row, rows_of_archive
from indexer.errors import Conflict, ModelUnavailable, NotFound, StorageUnavailable, WhosthereError
from indexer.settings import Settings
from indexer.types import Gallery, Pick
from indexer.vision.pipeline import Seen
from search_service.inference_queue import InferenceQueue
from search_service.service_context import ServiceContext
from search_service.store.jobs import ClaimedJob, JobRepository, JobResult, JobState

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
"""How long a job is held for: so long it waits after its worker has died."""

RENEW_SECONDS = 3.0
"""How often that is renewed, four times before it runs out, and a cancelled job noticed."""

POLL_SECONDS = 1.0
"""Between two looks for a job that waits: a query each."""

SWEEP_SECONDS = 3600.0
"""Between two sweeps of jobs that ended days ago, and of answers that are not given again."""

RETRY_SECONDS = 60.0
"""How long a job waits for what may be over soon, such as a full disk: its file is read anew each time."""

LONGEST_PAUSE = 1.0
"""Seconds that a photo lets probes go first: a service that is never idle gets through a job all the same."""

MOST_ATTEMPTS = 5
"""Times that a job may be begun with and get no further: one of its images may end the process each time."""


def spool(settings: Settings) -> IO[bytes]:
    """A file on the disk of everything else that is kept, without a name: it is gone when the process is. Raises
    StorageUnavailable."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        return _Spool(tempfile.TemporaryFile(dir=settings.home, buffering=0))
    except OSError as error:
        raise StorageUnavailable(f"{settings.home} cannot be written to: {error.strerror or error}") from error


class _Spool(io.BufferedRandom):
    """A file that is thrown away at the end of its block: that what is still buffered meets a full disk is no error."""

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.close()


class Runner:
    """Works through one job at a time, on a thread of its own, with one thread of the networks."""

    def __init__(self, context: ServiceContext, queue: InferenceQueue) -> None:
        self._context = context
        self._queue = queue
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._sweep_at = 0.0

    def start(self) -> None:
        """The tables must be there."""
        self._jobs = self._context.jobs
        self._thread.start()

    def stop(self) -> None:
        """Ends after the photo that is looked at, and gives the job back."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self._sweep()
                held = self._jobs.claim(LEASE_SECONDS)
                if held is not None:
                    self._run(held)
                    continue
            except WhosthereError as error:
                log.warning("jobs wait: %s", error.message)
            except Exception:
                log.exception("jobs wait")
            self._stopping.wait(POLL_SECONDS)

    def _sweep(self) -> None:
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            self._jobs.sweep(now() - timedelta(days=self._context.settings.job_days))
            self._context.idempotency.sweep()

    def _run(self, held: ClaimedJob) -> None:
        """Ends the job, or leaves it to whoever claims it next. Raises StorageUnavailable where not even that can be
        written: then it is claimed when its time has run out."""
        if held.attempts > MOST_ATTEMPTS:
            self._jobs.finish(held, JobState.FAILED, f"it was begun {MOST_ATTEMPTS} times and got no further")
            return
        with _Lease(self._jobs, held, self._stopping) as lease:
            try:
                self._enroll(held, lease)
                self._jobs.finish(held, JobState.DONE)
            except _Interrupted:
                if lease.state is JobState.CANCELLING:
                    self._jobs.finish(held, JobState.CANCELLED)
                elif lease.state is not None:
                    self._jobs.release(held)
            except (StorageUnavailable, ModelUnavailable, OSError) as error:
                message = error.message if isinstance(error, WhosthereError) else str(error)
                log.warning("job %s waits: %s", held.id, message)
                self._jobs.postpone(held, message, RETRY_SECONDS)
            except WhosthereError as error:
                if error.code != "job_lost":  # else it is another worker's
                    log.warning("job %s failed: %s", held.id, error.message)
                    self._jobs.finish(held, JobState.FAILED, error.message)
            except Exception:
                log.exception("job %s failed", held.id)
                self._jobs.finish(held, JobState.FAILED, "it failed; the service's log has the details")

    def _enroll(self, held: ClaimedJob, lease: _Lease) -> None:
        """Raises _Interrupted, and whatever goes wrong."""
        lease.check()
        with spool(self._context.settings) as file:
            for part in self._jobs.files.read(held.id):
                lease.check()
                file.write(part)
            rows = rows_of_archive(file)
            while True:
                gallery = self._gallery(held)
                try:
                    self._enroll_rows(held, lease, gallery, rows)
                    return
                except Conflict as error:
                    if error.code != "model_mismatch" or self._gallery(held).fingerprint == gallery.fingerprint:
                        raise

    def _enroll_rows(self, held: ClaimedJob, lease: _Lease, gallery: Gallery, rows: Sequence[Row]) -> None:
        """Those that have no result yet."""
        done = self._jobs.finished_places(held)
        left = [(place, row) for place, row in enumerate(rows, 1) if place not in done]
        places = iter([place for place, _ in left])

        def record(transaction: Any, results: Sequence[Result]) -> None:
            told = [_job_result(next(places), result) for result in results]
            lease.state = self._jobs.put(transaction, held, told)

        pick = Pick(held.options["pick"])
        enrolling = self._enroller(gallery, len(left), lease).enroll([row for _, row in left], pick, record)
        try:
            for _ in enrolling:
                lease.check()
        finally:
            enrolling.close()

    def _gallery(self, held: ClaimedJob) -> Gallery:
        """As it is now. Raises NotFound when it was deleted, whatever has its name by now."""
        gallery = self._context.store.galleries.get(held.gallery)
        if gallery.id != held.gallery_id:
            raise NotFound("the gallery was deleted meanwhile", code="gallery_not_found")
        return gallery

    def _enroller(self, gallery: Gallery, photos: int, lease: _Lease) -> Enroller:
        """Raises as `ServiceContext.pack_of`."""
        context, settings = self._context, self._context.settings
        networks = context.pipeline(context.pack_of(gallery), streams=context.cores)  # each of them one thread
        return Enroller(
            context.store,
            Courteous(networks, self._queue, lease.check),
            gallery,
            settings.max_image_bytes,
            workers=1,
            keep_crops=settings.keep_crops,
            lookalikes=context.lookalikes(gallery, photos),
        )


class Courteous:
    """Networks that look at one photo at a time, and let probes that wait go first; `check` is asked before each."""

    def __init__(self, networks: Describes, queue: InferenceQueue, check: Callable[[], None]) -> None:
        self._networks = networks
        self._queue = queue
        self._check = check

    def load(self) -> None:
        self._networks.load()

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[Seen]:
        return [self._describe(image, pick, gate) for image in images]

    def _describe(self, image: bytes, pick: Pick | None, gate: bool) -> Seen:
        self._queue.wait_until_idle(LONGEST_PAUSE)
        self._check()
        (seen,) = self._networks.describe([image], pick, gate)
        return seen


class _Interrupted(WhosthereError):
    """The job is to be gone on with no further here."""


class _Lease:
    """Holds a job while one works on it, by a thread of its own: a photo may take longer than it is held for."""

    def __init__(self, jobs: JobRepository, held: ClaimedJob, stopping: threading.Event) -> None:
        self._jobs = jobs
        self._held = held
        self._stopping = stopping
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="job-lease", daemon=True)
        self.state: JobState | None = held.state
        """None when it is no longer held."""

    def __enter__(self) -> _Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raises _Interrupted."""
        if self._stopping.is_set() or self.state is not JobState.RUNNING:
            raise _Interrupted("the job goes on elsewhere or not at all")

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS) and self.state is not None:
            with suppress(StorageUnavailable):  # tried again; what is committed asks who holds it anyway
                self.state = self._jobs.renew(self._held, LEASE_SECONDS)


def _job_result(place: int, result: Result) -> JobResult:
    return JobResult(
        place,
        result.image,
        result.external_id,
        str(result.outcome),
        None if result.reason is None else str(result.reason),
        result.face_id,
        result.message,
        result.details,
    )
