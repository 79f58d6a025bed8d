"""Jobs of bulk enrollments report every image exactly once, also after cancellation, failures and killed workers."""

from __future__ import annotations

import asyncio
import errno
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.errors import InvalidRequest
from indexer.settings import read_settings
from indexer.vision.pipeline import ImageResult
from search_service.api.permissions import BodyKind
from search_service.background import jobs as jobs_module
from search_service.background.jobs import CourteousPipeline, JobRunner
from search_service.service_context import ServiceContext
from search_service.store.jobs import JobRepository, JobState
from tests.postgres import Database
from tests.search_service.api.bulk import STAFF, accepted, archive, enroll, finished, packed
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Running, command, ok, refused, running, serving
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for, wait_for_async

CHUNK = 16
"""Photos that are committed together (`indexer.enrollment.CHUNK`)."""

MANY = 42
"""Photos in the fixture `many`."""

Serving = Callable[..., AbstractContextManager[tuple[Running, httpx.Client]]]


class Steps:
    """Lets jobs process a given number of photos."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self.allow = self._permits.release

    def wait(self, check: Callable[[], None]) -> None:
        """Waits for a permit, calling `check` meanwhile."""
        while not self._permits.acquire(timeout=0.01):
            check()

    def first_chunk(self, client: httpx.Client, path: str) -> None:
        """Lets a job commit its first chunk, and waits for that."""
        self.allow(CHUNK)
        wait_for(lambda: ok(client.get(path))["done"] == CHUNK, "the first photos are done")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    steps, describe = Steps(), CourteousPipeline._describe

    def stepped(self: CourteousPipeline, *args: Any) -> ImageResult:
        steps.wait(self._check)
        return describe(self, *args)

    monkeypatch.setattr(CourteousPipeline, "_describe", stepped)
    yield steps
    steps.allow(10_000)


@pytest.fixture
def open_context(tmp_path: Path, models_folder: Path) -> Callable[..., ServiceContext]:
    """Opens contexts over one home folder of this test."""
    folder = new_home(tmp_path, models_folder)
    return lambda **settings: ServiceContext(read_settings(SETTINGS, home=folder, **settings))


@pytest.fixture
def serve(open_context: Callable[..., ServiceContext]) -> Serving:
    """Runs a service with the gallery `staff` over the home folder of this test."""

    @contextmanager
    def serve(**settings: Any) -> Iterator[tuple[Running, httpx.Client]]:
        with running(open_context(**settings)) as service, service.client() as client:
            if client.get(STAFF).status_code == 404:
                ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
            yield service, client

    return serve


def test_jobs_run_on_either_database(database: Database, serve: Serving, people_zip: bytes) -> None:
    with serve(database_url=database.url) as (_, client):
        assert finished(client, enroll(client, people_zip))["enrolled"] == 7


def test_cancelled_job_keeps_what_was_enrolled(
    serve: Serving, steps: Steps, many: Mapping[str, bytes], people_zip: bytes
) -> None:
    with serve() as (_, client):
        path, waiting = enroll(client, packed(many)), enroll(client, people_zip)
        assert ok(client.get(waiting))["state"] == "queued"
        cancelled = ok(client.post(f"{waiting}/cancel"))
        assert (cancelled["state"], cancelled["done"]) == ("cancelled", 0)
        steps.first_chunk(client, path)
        assert ok(client.get(path))["state"] == "running"
        assert ok(client.post(f"{path}/cancel"))["state"] == "cancelling"
        job = finished(client, path, "cancelled")
        assert (job["done"], job["images"]) == (CHUNK, MANY)
        assert ok(client.get(STAFF))["faces"] == job["enrolled"]
        assert ok(client.post(f"{path}/cancel"))["state"] == "cancelled"


def test_more_jobs_than_allowed_are_rejected_with_retry_after(serve: Serving, steps: Steps, people_zip: bytes) -> None:
    with serve(max_jobs=1) as (_, client):
        path = enroll(client, people_zip)
        response = client.post(f"{STAFF}/enrollments", files=archive(people_zip))
        refused(response, 429, "overloaded")
        assert response.headers["retry-after"]
        steps.allow(100)
        finished(client, path)
        finished(client, enroll(client, people_zip))


class Upload:
    """A ZIP that is sent in two parts: the first at once, the second after `go`."""

    def __init__(self, go: asyncio.Event, first: bytes, second: bytes = b"") -> None:
        self._go, self._first, self._second = go, first, second

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        await self._go.wait()
        yield self._second


def post(client: httpx.AsyncClient, body: bytes | Upload) -> asyncio.Task[httpx.Response]:
    headers = {"Content-Type": "application/zip"}
    return asyncio.create_task(client.post(f"{STAFF}/enrollments", content=body, headers=headers))


def test_simultaneous_uploads_do_not_exceed_the_number_of_jobs(serve: Serving, steps: Steps, people_zip: bytes) -> None:
    """All six uploads begin while there is room for two jobs."""
    half = len(people_zip) // 2
    with serve(max_jobs=2) as (service, client):

        async def test() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=service.url, timeout=DEADLINE) as sender:
                go = asyncio.Event()
                posts = [post(sender, Upload(go, people_zip[:half], people_zip[half:])) for _ in range(6)]
                await wait_for_async(lambda: service.held_bytes(BodyKind.ARCHIVE) >= 6 * half)
                go.set()
                return await asyncio.gather(*posts)

        answers = asyncio.run(asyncio.wait_for(test(), DEADLINE))
        taken = [accepted(answer) for answer in answers if answer.status_code == 202]
        assert len(taken) == 2
        for answer in answers:
            if answer.status_code != 202:
                refused(answer, 429, "overloaded")
        steps.allow(100)
        for path in taken:
            finished(client, path)


def test_archives_have_their_own_size_limits(serve: Serving, people_zip: bytes) -> None:
    """One limit for each archive, and one for those received at once: four, of which a lone caller gets three."""
    most = 2**20
    with serve(max_archive_bytes=most) as (service, _):

        async def test() -> None:
            async with httpx.AsyncClient(base_url=service.url, timeout=DEADLINE) as sender:
                refused(await post(sender, bytes(most + 1)), 413, "body_too_large")
                go, three = asyncio.Event(), []
                for count in range(1, 4):
                    three.append(post(sender, Upload(go, bytes(most))))
                    held = count * most
                    await wait_for_async(lambda: service.held_bytes(BodyKind.ARCHIVE) >= held)  # noqa: B023
                refused(await post(sender, people_zip), 429, "overloaded")
                ok(await sender.get("/v1/jobs"))
                go.set()
                for task in three:
                    refused(await task, 400, "invalid_archive")
                accepted(await post(sender, people_zip))

        asyncio.run(asyncio.wait_for(test(), DEADLINE))


def test_deleting_a_gallery_deletes_its_job(
    serve: Serving, steps: Steps, many: Mapping[str, bytes], people_zip: bytes
) -> None:
    with serve() as (_, client):
        path = enroll(client, packed(many))
        steps.first_chunk(client, path)
        ok(client.delete(STAFF))
        refused(client.get(path), 404, "job_not_found")
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)  # another gallery with the same name
        steps.allow(1000)
        assert finished(client, enroll(client, people_zip))["enrolled"] == 7
        assert ok(client.get(STAFF))["faces"] == 7


def test_job_continues_when_its_gallery_is_reembedded(place: Path, steps: Steps, many: Mapping[str, bytes]) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=place, keep_crops=True))
    with running(context) as service, service.client() as client:
        path = enroll(client, packed(many))
        steps.first_chunk(client, path)
        code, printed = command(place, "gallery", "reembed", "staff", "--model", "other")
        assert (code, printed["switched"]) == (0, True)
        steps.allow(1000)
        job = finished(client, path)
        assert (job["enrolled"], job["images"]) == (MANY, MANY)
        gallery = ok(client.get(STAFF))
        assert (gallery["model"], gallery["faces"], gallery["index"]["faces"]) == ("other", 49, 49)


def test_job_fails_after_ending_its_worker_five_times(
    open_context: Callable[..., ServiceContext], people_zip: bytes
) -> None:
    context = open_context()
    gallery, jobs = context.open_gallery("staff"), JobRepository(context.engine)
    job = jobs.create(gallery.id, 7, {"pick": "only"}, [people_zip])
    for attempt in range(1, 6):
        claimed = jobs.claim(-1)
        assert claimed is not None
        assert claimed.attempts == attempt
    with running(context) as service, service.client() as client:
        failed = finished(client, f"/v1/jobs/{job.id}", "failed")
        assert failed["problem"] == "it was started 5 times without finishing"


def enroll_rows_with(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], Exception | None]) -> None:
    """Makes jobs raise what `fault` returns, if anything, before they enroll."""
    original = JobRunner._enroll_rows

    def faulty(self: JobRunner, *arguments: Any) -> None:
        error = fault()
        if error is not None:
            raise error
        original(self, *arguments)

    monkeypatch.setattr(JobRunner, "_enroll_rows", faulty)


def test_failed_job_reports_its_problem_and_the_next_one_runs(
    serve: Serving, people_zip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = iter([RuntimeError("boom"), InvalidRequest("the archive is not as it was")])
    enroll_rows_with(monkeypatch, lambda: next(faults, None))
    with serve() as (_, client):
        paths = [enroll(client, people_zip) for _ in range(3)]
        assert "log has the details" in finished(client, paths[0], "failed")["problem"]
        assert finished(client, paths[1], "failed")["problem"] == "the archive is not as it was"
        assert finished(client, paths[2])["enrolled"] == 7


def test_job_waits_and_reports_why_while_the_disk_is_full(
    serve: Serving, people_zip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "RETRY_SECONDS", 0.5)
    full = threading.Event()
    full.set()
    enroll_rows_with(monkeypatch, lambda: OSError(errno.ENOSPC, "No space left on device") if full.is_set() else None)
    with serve() as (_, client):
        path = enroll(client, people_zip)
        wait_for(lambda: "No space" in (ok(client.get(path))["problem"] or ""), "the job reports why it waits")
        full.clear()
        job = finished(client, path)
        assert (job["enrolled"], job["problem"]) == (7, None)


def test_old_jobs_are_deleted(serve: Serving, people_zip: bytes) -> None:
    with serve(job_days=0) as (_, client):
        path = enroll(client, people_zip)
        finished(client, path)
    with serve(job_days=0) as (_, client):
        wait_for(lambda: client.get(path).status_code == 404, "the job is deleted")
        assert ok(client.get(STAFF))["faces"] == 7


def test_job_of_a_stopped_service_continues_after_the_next_start(
    serve: Serving, open_context: Callable[..., ServiceContext], steps: Steps, many: Mapping[str, bytes]
) -> None:
    with serve() as (_, client):
        path = enroll(client, packed(many))
        steps.first_chunk(client, path)
    context = open_context()
    job = JobRepository(context.engine).get(path.rsplit("/", 1)[1])
    assert (job.state, sum(job.outcomes.values())) == (JobState.QUEUED, CHUNK)
    context.close()
    steps.allow(1000)
    with serve() as (_, client):
        assert finished(client, path)["enrolled"] == MANY


def test_job_of_a_killed_service_reports_every_image_once(
    tmp_path: Path, models_folder: Path, many: Mapping[str, bytes]
) -> None:
    home = new_home(tmp_path, models_folder)
    with serving(home, tmp_path / "first.log") as first:
        first.ready()
        ok(first.client.post("/v1/galleries", json={"name": "staff"}), 201)
        path = enroll(first.client, packed(many))
        wait_for(lambda: ok(first.client.get(path))["done"] > 0, "the first photos are done")
        first.end(signal.SIGKILL)
    with serving(home, tmp_path / "second.log") as second:
        before = ok(second.client.get(path, params={"limit": 1000}))
        assert before["state"] == "running"
        job = finished(second.client, path)
        assert 0 < len(before["results"]) < MANY, "it was killed in the middle"
        assert job["results"][: len(before["results"])] == before["results"]
        assert [one["image"] for one in job["results"]] == sorted(many)
        assert (job["enrolled"], job["images"]) == (MANY, MANY)
        assert len({one["face_id"] for one in job["results"]}) == MANY
        second.ready()
        assert ok(second.client.get(STAFF))["faces"] == MANY
    assert not [path.name for path in home.iterdir() if path.name.startswith("tmp")]
    assert command(home, "doctor")[0] == 0


def test_two_services_run_no_job_twice(
    tmp_path: Path, models_folder: Path, people_zip: bytes, many: Mapping[str, bytes]
) -> None:
    home = new_home(tmp_path, models_folder)
    with serving(home, tmp_path / "one.log") as one, serving(home, tmp_path / "two.log") as two:
        paths = []
        for n in range(4):
            ok(one.client.post("/v1/galleries", json={"name": f"g{n}"}), 201)
            data = people_zip if n % 2 else packed(many)
            paths.append(enroll((one, two)[n % 2].client, data, f"/v1/galleries/g{n}"))
        for n, path in enumerate(paths):
            job = finished(two.client, path)
            assert job["enrolled"] == job["images"] == (7 if n % 2 else MANY)
            assert ok(two.client.get(f"/v1/galleries/g{n}"))["faces"] == job["images"]
