"""Runs bulk enrollments while the same process answers searches.

The results of a job are committed together with its faces, and only by the worker that holds the lease. So each image
has exactly one result, even if workers die and others continue the job.
"""

from __future__ import annotations

import io
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from typing import IO, Any

from indexer.clock import now
from indexer.enrollment.enroller import Enroller, Result
from indexer.enrollment.reading import FaceDescriber
from indexer.enrollment.rows import Rows
from indexer.enrollment.sources import rows_of_archive
from indexer.errors import (
    Conflict,
    IndexBuilding,
    ModelUnavailable,
    NotFound,
    Overloaded,
    StorageUnavailable,
    WhosthereError,
)
from indexer.files import make_private_folder
from indexer.settings import Settings
from indexer.supervision import SupervisedThread
from indexer.types import Gallery, LivenessMode, Pick
from indexer.vision.batch_errors import describe_error
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import ImageResult
from search_service.inference_queue import InferenceQueue
from search_service.service_context import ServiceContext
from search_service.store.jobs import ClaimedJob, JobRepository, JobResult, JobState

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
"""Duration of a lease: so long a job waits if its worker dies."""

RENEW_SECONDS = 3.0
"""Interval in which a lease is renewed, four times before it expires, and cancellation is noticed."""

POLL_SECONDS = 1.0
"""Interval between two queries for a waiting job."""

SWEEP_SECONDS = 3600.0
"""Interval between two deletions of old jobs and expired idempotent answers."""

RETRY_SECONDS = 60.0
"""Delay before a job is retried after a temporary failure, such as a full disk. Its file is then read again."""

TEMPORARY = StorageUnavailable, ModelUnavailable, Overloaded, OSError, MemoryError
"""Failures after which a job is postponed, because they are not caused by its photos and may pass."""

LONGEST_PAUSE = 1.0
"""Seconds that a photo waits for probes at most, so that a service that is never idle finishes its jobs too."""

MOST_ATTEMPTS = 5
"""Times that a job may be started without progress: one of its images may crash the process each time."""


def spool(settings: Settings) -> IO[bytes]:
    """Opens a temporary file in the home folder, without a name, so that it disappears with the process.

    Raises StorageUnavailable.
    """
    try:
        make_private_folder(settings.home)
        return _Spool(tempfile.TemporaryFile(dir=settings.home, buffering=0))
    except OSError as error:
        raise StorageUnavailable(f"{settings.home} cannot be written to: {error.strerror or error}") from error


class _Spool(io.BufferedRandom):
    """A file that is discarded at the end of its block; a full disk is then no error for data still buffered."""

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.close()


class JobRunner:
    """Runs one job at a time, on a thread of its own, with one thread of the networks."""

    def __init__(self, context: ServiceContext, queue: InferenceQueue) -> None:
        self._context = context
        self._queue = queue
        self._stopping = threading.Event()
        self._thread = SupervisedThread("jobs", self._work)
        self._sweep_at = 0.0

    def start(self) -> None:
        """Starts the thread. The database must be migrated."""
        self._jobs = self._context.jobs
        self._thread.start()

    def stop(self) -> None:
        """Ends after the current photo, and releases the job."""
        self._stopping.set()
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
        """Finishes the job, or leaves it for another worker.

        Raises StorageUnavailable if that cannot be written; the job is then claimed again when its lease expires.
        """
        if held.attempts > MOST_ATTEMPTS:
            self._jobs.finish(held, JobState.FAILED, f"it was started {MOST_ATTEMPTS} times without finishing")
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
            except TEMPORARY as error:
                message = error.message if isinstance(error, WhosthereError) else describe_error(error)
                log.warning("job %s waits: %s", held.id, message)
                self._jobs.postpone(held, message, _retry_seconds(error))
            except WhosthereError as error:
                if error.code != "job_lost":  # otherwise another worker holds it
                    log.warning("job %s failed: %s", held.id, error.message)
                    self._jobs.finish(held, JobState.FAILED, error.message)
            except Exception:
                log.exception("job %s failed", held.id)
                self._jobs.finish(held, JobState.FAILED, "it failed; the service's log has the details")

    def _enroll(self, held: ClaimedJob, lease: _Lease) -> None:
        """Enrolls the photos of the job. Raises _Interrupted, and any error of enrollment."""
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

    def _enroll_rows(self, held: ClaimedJob, lease: _Lease, gallery: Gallery, rows: Rows) -> None:
        """Enrolls the rows that have no result yet."""
        done = self._jobs.finished_places(held)
        remaining = [place for place in range(1, len(rows) + 1) if place not in done]
        places = iter(remaining)

        def record(transaction: Any, results: Sequence[Result]) -> None:
            finished = [_job_result(next(places), result) for result in results]
            lease.state = self._jobs.put(transaction, held, finished)

        pick = Pick(held.options["pick"])
        enroller = self._enroller(held, gallery, len(remaining), lease)
        with closing(enroller.enroll(rows.at(place - 1 for place in remaining), pick, record)) as enrolling:
            for _ in enrolling:
                lease.check()

    def _gallery(self, held: ClaimedJob) -> Gallery:
        """Returns the current gallery. Raises NotFound if it was deleted, even if another one has its name."""
        gallery = self._context.store.galleries.get(held.gallery)
        if gallery.id != held.gallery_id:
            raise NotFound("the gallery was deleted meanwhile", code="gallery_not_found")
        return gallery

    def _enroller(self, held: ClaimedJob, gallery: Gallery, photos: int, lease: _Lease) -> Enroller:
        """Raises the same errors as `ServiceContext.pack_of` and `ServiceContext.liveness_check`."""
        context, settings = self._context, self._context.settings
        wanted = LivenessMode(held.options["liveness"]) if "liveness" in held.options else None
        networks = context.pipeline(context.pack_of(gallery), streams=context.cores)  # with one thread each
        return Enroller(
            context.store,
            CourteousPipeline(networks, self._queue, lease.check),
            gallery,
            settings.max_image_bytes,
            workers=1,
            keep_crops=settings.keep_crops,
            checks=context.face_checks(gallery, photos),
            liveness=context.liveness_check(context.enrollment_liveness(wanted), context.cores),
        )


class CourteousPipeline:
    """Describes one photo at a time, after probes that wait; `check` is called before each photo."""

    def __init__(self, networks: FaceDescriber, queue: InferenceQueue, check: Callable[[], None]) -> None:
        self._networks = networks
        self._queue = queue
        self._check = check

    def load(self) -> None:
        self._networks.load()

    def check(self) -> None:
        self._networks.check()

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        return [self._describe(image, pick, gate, liveness) for image in images]

    def _describe(self, image: bytes, pick: Pick | None, gate: bool, liveness: LivenessCheck | None) -> ImageResult:
        self._queue.wait_until_idle(LONGEST_PAUSE)
        self._check()
        (seen,) = self._networks.describe([image], pick, gate, liveness)
        return seen


class _Interrupted(WhosthereError):
    """This worker must not continue the job."""


class _Lease:
    """Renews the lease of a job on a thread of its own, because a photo may take longer than the lease."""

    def __init__(self, jobs: JobRepository, held: ClaimedJob, stopping: threading.Event) -> None:
        self._jobs = jobs
        self._held = held
        self._stopping = stopping
        self._over = threading.Event()
        self._thread = SupervisedThread("job-lease", self._renew)
        self.state: JobState | None = held.state
        """None when the lease is lost."""

    def __enter__(self) -> _Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raises _Interrupted if the job is cancelled, lost, or the service stops."""
        if self._stopping.is_set() or self.state is not JobState.RUNNING:
            raise _Interrupted("the job continues elsewhere or not at all")

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS) and self.state is not None:
            with suppress(StorageUnavailable):  # retried; every commit checks the lease anyway
                self.state = self._jobs.renew(self._held, LEASE_SECONDS)


def _retry_seconds(error: Exception) -> float:
    """Returns the delay before a job is retried: shorter while the index of its gallery is built."""
    known = error.details.get("retry_after_seconds") if isinstance(error, IndexBuilding) else None
    return known if isinstance(known, int) else RETRY_SECONDS


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
