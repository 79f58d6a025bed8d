"""Bulk enrolment over HTTP: refused at once or told of to the last image, whatever happens to who works on it."""

from __future__ import annotations

import asyncio
import errno
import io
import signal
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from indexer.errors import InvalidRequest
from indexer.settings import read_settings
from indexer.types import Pick
from indexer.vision.pipeline import ImageResult
from search_service.api.permissions import BodyKind
from search_service.background import jobs as jobs_module
from search_service.background.jobs import CourteousPipeline, JobRunner
from search_service.service_context import ServiceContext
from search_service.store.jobs import JobRepository, JobState
from tests import photos as sources
from tests.postgres import Database
from tests.search_service.api.conftest import MAX_BODY_BYTES, new_home
from tests.search_service.api.serving import command, ok, refused, running, serving
from tests.search_service.api.test_reembed import place as place
from tests.search_service.api.test_reembed import two_packs as two_packs
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for, wait_for_async

CHUNK = 16
"""Photos that are committed together (`indexer.enrollment.CHUNK`)."""

FIELDS = {
    "id",
    "gallery",
    "state",
    "images",
    "done",
    "enrolled",
    "unchanged",
    "rejected",
    "created_at",
    "started_at",
    "finished_at",
    "problem",
}


@pytest.fixture(scope="session")
def people_zip(photos: Path) -> bytes:
    """The demo's seven people, a folder each."""
    return packed({f"{path.parent.name}/{path.name}": path.read_bytes() for path in photos.glob("photos/*/*.jpg")})


@pytest.fixture(scope="session")
def many(photos: Path) -> Mapping[str, bytes]:
    """42 files of the same people, no two of the same bytes."""
    files = {}
    for path in sorted(photos.glob("photos/*/*.jpg")):
        with Image.open(path) as photo:
            for quality in range(90, 96):
                files[f"{path.parent.name}/{quality}.jpg"] = sources.encode(photo, "JPEG", quality=quality)
    assert len(set(files.values())) == 42
    return files


def packed(files: Mapping[str, bytes], **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def sent(data: bytes) -> dict[str, tuple[str, bytes]]:
    return {"archive": ("people.zip", data)}


def accepted(response: httpx.Response) -> str:
    """The path of the job."""
    job = ok(response, 202)
    assert set(job) == FIELDS
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["done"], job["enrolled"], job["problem"]) == (0, 0, None)
    return response.headers["location"]


def finished(client: httpx.Client, path: str, state: str = "done") -> dict[str, Any]:
    """The job with all its results, after it has ended."""
    wait_for(lambda: ok(client.get(path))["finished_at"] is not None, f"{path} ends")
    job: dict[str, Any] = ok(client.get(path, params={"limit": 1000}))
    assert job["state"] == state, job
    assert job["cursor"] is None
    assert job["done"] == job["enrolled"] + job["unchanged"] + job["rejected"] == len(job["results"])
    return job


class Steps:
    """Photos of jobs are looked at as often as they are let."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self.let = self._permits.release

    def wait(self, check: Callable[[], None]) -> None:
        """Until it is let; `check` is asked meanwhile."""
        while not self._permits.acquire(timeout=0.01):
            check()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    steps, look = Steps(), CourteousPipeline._describe

    def stepped(self: CourteousPipeline, image: bytes, pick: Pick | None, gate: bool) -> ImageResult:
        steps.wait(self._check)
        return look(self, image, pick, gate)

    monkeypatch.setattr(CourteousPipeline, "_describe", stepped)
    yield steps
    steps.let(10_000)


@pytest.fixture
def own(tmp_path: Path, models_folder: Path) -> Callable[..., ServiceContext]:
    """Homes over one place, shared with nobody else."""
    folder = new_home(tmp_path, models_folder)
    return lambda **settings: ServiceContext(read_settings(SETTINGS, home=folder, **settings))


def test_a_zip_becomes_a_job(client: httpx.Client, gallery: str, people_zip: bytes) -> None:
    path = accepted(client.post(f"{gallery}/enrollments", files=sent(people_zip)))
    job = finished(client, path)
    assert set(job) == FIELDS | {"results", "cursor"}
    assert (job["images"], job["enrolled"], job["rejected"]) == (7, 7, 0)
    assert job["gallery"] == gallery.rsplit("/", 1)[1]
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert {tuple(sorted(one)) for one in job["results"]} == {
        ("details", "external_id", "face_id", "image", "message", "outcome", "reason")
    }
    for one in job["results"]:
        assert one["external_id"] == one["image"].split("/")[0]
        assert ok(client.get(f"{gallery}/faces/{one['face_id']}"))["external_id"] == one["external_id"]
    again = finished(client, accepted(client.post(f"{gallery}/enrollments", files=sent(people_zip))))
    assert (again["enrolled"], again["unchanged"]) == (0, 7)
    assert ok(client.get(gallery))["faces"] == 7


def test_the_zip_may_be_the_body_itself(client: httpx.Client, gallery: str) -> None:
    """Larger than any other body may be, with a manifest in it, and a choice of face in the address."""
    manifest = b"image,external_id,name,floor\ngroup.jpg,ana,Ana,3\nastronaut.png,ben,Ben,\nnowhere.jpg,cem,,\n"
    files = {
        "manifest.csv": manifest,
        "group.jpg": sources.six_people(),
        "astronaut.png": sources.astronaut(),
        "notes.bin": bytes(MAX_BODY_BYTES),
    }
    job = finished(
        client,
        accepted(
            client.post(
                f"{gallery}/enrollments",
                content=packed(files),
                params={"pick": "largest"},
                headers={"Content-Type": "application/zip"},
            )
        ),
    )
    assert [(one["external_id"], one["outcome"], one["reason"]) for one in job["results"]] == [
        ("ana", "enrolled", None),
        ("ben", "enrolled", None),
        ("cem", "rejected", "unreadable_image"),
    ]
    assert ok(client.get(f"{gallery}/identities/ana"))["metadata"] == {"floor": "3"}


def test_images_and_a_manifest_one_by_one(client: httpx.Client, gallery: str, many: Mapping[str, bytes]) -> None:
    names = sorted(many)[::6]
    rows = "\n".join(f"{name};{name.split('/')[0]};Somebody" for name in names)
    files = [("images", (name, many[name])) for name in names]
    files.insert(2, ("manifest", ("staff.csv", f"image;external_id;name\n{rows}\n".encode())))
    job = finished(client, accepted(client.post(f"{gallery}/enrollments", files=files, data={"pick": "only"})))
    assert [one["image"] for one in job["results"]] == names
    assert job["enrolled"] == 7
    assert ok(client.get(f"{gallery}/identities/collins"))["name"] == "Somebody"
    loose = [("images", ("ana_1.jpg", sources.astronaut())), ("images", ("cat.png", sources.no_faces()[-1]))]
    job = finished(client, accepted(client.post(f"{gallery}/enrollments", files=loose)))
    assert [(one["external_id"], one["reason"]) for one in job["results"]] == [
        ("ana", "looks_like_another_identity"),
        ("cat", "no_face"),
    ]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (sent(b"no ZIP"), "not a ZIP"),
        (sent(packed({})), "no images"),
        (sent(packed({"notes.txt": b"x"})), "no images"),
        (sent(packed({"../a.jpg": b"x"})), "points out"),
        (sent(packed({"a.jpg": bytes(2**27)}, compression=zipfile.ZIP_DEFLATED)), "decompressed 134,217,728"),
        ({"manifest": ("m.csv", b"image,external_id\n")}, "no images"),
    ],
)
def test_what_is_no_archive_is_no_job(client: httpx.Client, gallery: str, files: Any, says: str) -> None:
    error = refused(client.post(f"{gallery}/enrollments", files=files), 400, "invalid_archive")
    assert says in error["message"]
    assert ok(client.get("/v1/jobs", params={"gallery": gallery.rsplit("/", 1)[1]}))["jobs"] == []


@pytest.mark.parametrize(
    ("files", "data", "says"),
    [
        ({}, {"pick": "only"}, "multipart/form-data"),
        (sent(packed({"manifest.csv": b"photo\nx"})), {}, "no column 'image'"),
        (sent(packed({"a.jpg": b"x"})), {"pick": "best"}, "pick is 'best'"),
        (sent(packed({"a.jpg": b"x"})), {"pick": "x" * 2000}, "more than 1,000 bytes"),
        (sent(packed({"a.jpg": b"x"})), {"pike": "only"}, "a field 'pike'"),
        ({"image": ("a.jpg", b"x")}, {}, "a field 'image'"),
        ([("images", ("a.jpg", b"x")), ("images", ("a.jpg", b"y"))], {}, "named 'a.jpg'"),
        ([("images", ("a.jpg", b"x")), ("archive", ("a.zip", b"y"))], {}, "one or the other"),
        ([("archive", ("a.zip", b"y")), ("images", ("a.jpg", b"x"))], {}, "one or the other"),
        ([("archive", ("a.zip", b"y")), ("archive", ("b.zip", b"x"))], {}, "one or the other"),
    ],
)
def test_forms_that_make_no_sense(client: httpx.Client, gallery: str, files: Any, data: Any, says: str) -> None:
    error = refused(client.post(f"{gallery}/enrollments", files=files, data=data), 400, "invalid_request")
    assert says in error["message"]
    assert ok(client.get("/v1/jobs", params={"gallery": gallery.rsplit("/", 1)[1]}))["jobs"] == []


def test_an_encrypted_one(client: httpx.Client, gallery: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", b"x")
        archive.filelist[0].flag_bits |= 1
    response = client.post(f"{gallery}/enrollments", files=sent(file.getvalue()))
    assert "encrypted" in refused(response, 400, "invalid_archive")["message"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("", b""),
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=" + "b" * 1000, b"x"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"no boundary"),
        ("multipart/form-data; boundary=b", b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\ncut short',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="archive"\r\n\r\nas text\r\n--b--\r\n',
        ),
    ],
)
def test_bodies_that_are_something_else(client: httpx.Client, gallery: str, kind: str, body: bytes) -> None:
    headers = {"Content-Type": kind} if kind else {}
    refused(client.post(f"{gallery}/enrollments", content=body, headers=headers), 400, "invalid_request")


def test_what_is_not_there(client: httpx.Client, gallery: str, people_zip: bytes) -> None:
    refused(client.post("/v1/galleries/nobody/enrollments", files=sent(people_zip)), 404, "gallery_not_found")
    refused(client.get("/v1/jobs/nothing"), 404, "job_not_found")
    refused(client.post("/v1/jobs/nothing/cancel"), 404, "job_not_found")
    refused(client.get("/v1/jobs", params={"gallery": "nobody"}), 404, "gallery_not_found")
    refused(client.get("/v1/jobs", params={"cursor": "x"}), 400, "invalid_request")


def test_the_same_request_twice_is_one_job(client: httpx.Client, gallery: str, people_zip: bytes) -> None:
    headers = {"Idempotency-Key": gallery}
    paths = {accepted(client.post(f"{gallery}/enrollments", files=sent(people_zip), headers=headers)) for _ in range(2)}
    assert len(paths) == 1
    assert finished(client, paths.pop())["enrolled"] == 7
    assert len(ok(client.get("/v1/jobs", params={"gallery": gallery.rsplit("/", 1)[1]}))["jobs"]) == 1


def test_pages_and_filters(client: httpx.Client, gallery: str, many: Mapping[str, bytes]) -> None:
    name = gallery.rsplit("/", 1)[1]
    files = {f"{n}.jpg": data for n, data in enumerate([*many.values()][:3])} | {"cat.png": sources.no_faces()[-1]}
    paths = [accepted(client.post(f"{gallery}/enrollments", files=sent(packed(files)))) for _ in range(3)]
    whole = [finished(client, path) for path in paths]
    first = ok(client.get(paths[0], params={"limit": 3}))
    rest = ok(client.get(paths[0], params={"limit": 3, "cursor": first["cursor"]}))
    assert first["results"] + rest["results"] == whole[0]["results"]
    assert rest["cursor"] is None
    rejected = ok(client.get(paths[0], params={"outcome": "rejected"}))["results"]
    assert rejected == [one for one in whole[0]["results"] if one["outcome"] == "rejected"]
    assert "no_face" in {one["reason"] for one in rejected}
    listed = ok(client.get("/v1/jobs", params={"gallery": name, "limit": 2}))
    more = ok(client.get("/v1/jobs", params={"gallery": name, "limit": 2, "cursor": listed["cursor"]}))
    assert more["cursor"] is None
    told = [{key: job[key] for key in FIELDS} for job in reversed(whole)]
    assert listed["jobs"] + more["jobs"] == told
    assert [job for job in ok(client.get("/v1/jobs"))["jobs"] if job["gallery"] == name] == told


def test_on_either_database(database: Database, own: Callable[..., ServiceContext], people_zip: bytes) -> None:
    with running(own(database_url=database.url)) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        path = accepted(client.post("/v1/galleries/staff/enrollments", files=sent(people_zip)))
        assert finished(client, path)["enrolled"] == 7


def test_cancelled(
    own: Callable[..., ServiceContext], steps: Steps, many: Mapping[str, bytes], people_zip: bytes
) -> None:
    """What was enrolled stays, and a job that waits does not wait on."""
    with running(own()) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        path = accepted(client.post("/v1/galleries/staff/enrollments", files=sent(packed(many))))
        waiting = accepted(client.post("/v1/galleries/staff/enrollments", files=sent(people_zip)))
        assert ok(client.get(waiting))["state"] == "queued"
        cancelled = ok(client.post(f"{waiting}/cancel"))
        assert (cancelled["state"], cancelled["done"]) == ("cancelled", 0)
        steps.let(CHUNK)
        wait_for(lambda: ok(client.get(path))["done"] == CHUNK, "the first photos are done")
        assert ok(client.get(path))["state"] == "running"
        assert ok(client.post(f"{path}/cancel"))["state"] == "cancelling"
        job = finished(client, path, "cancelled")
        assert (job["done"], job["images"]) == (CHUNK, 42)
        assert ok(client.get("/v1/galleries/staff"))["faces"] == job["enrolled"]
        assert ok(client.post(f"{path}/cancel"))["state"] == "cancelled"


def test_too_many_are_told_to_come_again(own: Callable[..., ServiceContext], steps: Steps, people_zip: bytes) -> None:
    with running(own(max_jobs=1)) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        path = accepted(client.post("/v1/galleries/staff/enrollments", files=sent(people_zip)))
        response = client.post("/v1/galleries/staff/enrollments", files=sent(people_zip))
        refused(response, 429, "overloaded")
        assert response.headers["retry-after"]
        steps.let(100)
        finished(client, path)
        finished(client, accepted(client.post("/v1/galleries/staff/enrollments", files=sent(people_zip))))


def test_of_those_that_come_at_once_no_more_are_taken(
    own: Callable[..., ServiceContext], steps: Steps, people_zip: bytes
) -> None:
    """All are let in, while there is room for any of them."""
    half = len(people_zip) // 2
    with running(own(max_jobs=2)) as service:

        async def slow(go: asyncio.Event) -> AsyncIterator[bytes]:
            yield people_zip[:half]
            await go.wait()
            yield people_zip[half:]

        async def test() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=service.url, timeout=DEADLINE) as client:
                ok(await client.post("/v1/galleries", json={"name": "staff"}), 201)
                path, zipped = "/v1/galleries/staff/enrollments", {"Content-Type": "application/zip"}
                go = asyncio.Event()
                posts = [asyncio.create_task(client.post(path, content=slow(go), headers=zipped)) for _ in range(6)]
                await wait_for_async(lambda: service.held_bytes(BodyKind.ARCHIVE) >= 6 * half)
                go.set()
                return await asyncio.gather(*posts)

        answers = asyncio.run(asyncio.wait_for(test(), DEADLINE))
        taken = [accepted(answer) for answer in answers if answer.status_code == 202]
        assert len(taken) == 2
        for answer in answers:
            if answer.status_code != 202:
                refused(answer, 429, "overloaded")
        steps.let(100)
        with service.client() as client:
            for path in taken:
                finished(client, path)


def test_archives_have_a_limit_of_their_own(own: Callable[..., ServiceContext], people_zip: bytes) -> None:
    """A small one here: for each, and for those that are received at a time."""
    most = 2**20
    with running(own(max_archive_bytes=most)) as service:

        async def slow(started: asyncio.Event, go: asyncio.Event) -> AsyncIterator[bytes]:
            yield bytes(most)
            started.set()
            await go.wait()

        async def test() -> None:
            async with httpx.AsyncClient(base_url=service.url, timeout=DEADLINE) as client:
                ok(await client.post("/v1/galleries", json={"name": "staff"}), 201)
                path, zipped = "/v1/galleries/staff/enrollments", {"Content-Type": "application/zip"}
                refused(await client.post(path, content=bytes(most + 1), headers=zipped), 413, "body_too_large")
                go = asyncio.Event()
                four = []
                for _ in range(4):
                    started = asyncio.Event()
                    four.append(asyncio.create_task(client.post(path, content=slow(started, go), headers=zipped)))
                    await started.wait()
                await wait_for_async(lambda: service.held_bytes(BodyKind.ARCHIVE) >= 4 * most)
                refused(await client.post(path, content=people_zip, headers=zipped), 429, "overloaded")
                ok(await client.get("/v1/jobs"))
                go.set()
                for task in four:
                    refused(await task, 400, "invalid_archive")
                accepted(await client.post(path, content=people_zip, headers=zipped))

        asyncio.run(asyncio.wait_for(test(), DEADLINE))


def test_a_gallery_that_goes_takes_its_job_along(
    own: Callable[..., ServiceContext], steps: Steps, many: Mapping[str, bytes], people_zip: bytes
) -> None:
    with running(own()) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        path = accepted(client.post("/v1/galleries/staff/enrollments", files=sent(packed(many))))
        steps.let(CHUNK)
        wait_for(lambda: ok(client.get(path))["done"] == CHUNK, "the first photos are done")
        ok(client.delete("/v1/galleries/staff"))
        refused(client.get(path), 404, "job_not_found")
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)  # another one of that name
        steps.let(1000)
        job = finished(client, accepted(client.post("/v1/galleries/staff/enrollments", files=sent(people_zip))))
        assert job["enrolled"] == 7
        assert ok(client.get("/v1/galleries/staff"))["faces"] == 7


def test_a_gallery_that_is_reembedded_meanwhile(place: Path, steps: Steps, many: Mapping[str, bytes]) -> None:
    with (
        running(ServiceContext(read_settings(SETTINGS, home=place, keep_crops=True))) as service,
        service.client() as client,
    ):
        path = accepted(client.post("/v1/galleries/staff/enrollments", files=sent(packed(many))))
        steps.let(CHUNK)
        wait_for(lambda: ok(client.get(path))["done"] == CHUNK, "the first photos are done")
        code, said = command(place, "gallery", "reembed", "staff", "--model", "other")
        assert (code, said["switched"]) == (0, True)
        steps.let(1000)
        job = finished(client, path)
        assert (job["enrolled"], job["images"]) == (42, 42)
        told = ok(client.get("/v1/galleries/staff"))
        assert (told["model"], told["faces"], told["index"]["faces"]) == ("other", 49, 49)


def test_what_ends_every_worker_is_given_up(own: Callable[..., ServiceContext], people_zip: bytes) -> None:
    home = own()
    gallery = home.open_gallery("staff")
    with zipfile.ZipFile(io.BytesIO(people_zip)) as archive:
        images = len(archive.namelist())
    jobs = JobRepository(home.engine)
    job = jobs.create(gallery.id, images, {"pick": "only"}, [people_zip])
    for attempt in range(1, 6):
        held = jobs.claim(-1)
        assert held is not None
        assert held.attempts == attempt
    with running(home) as service, service.client() as client:
        told = finished(client, f"/v1/jobs/{job.id}", "failed")
        assert told["problem"] == "it was started 5 times without finishing"


def test_what_fails_by_itself_is_told_and_the_next_one_runs(
    own: Callable[..., ServiceContext], people_zip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the program here, which no image is to blame for."""
    work = JobRunner._enroll_rows
    faults = iter([RuntimeError("boom"), InvalidRequest("the archive is not as it was")])

    def faulty(self: JobRunner, *arguments: Any) -> None:
        for fault in faults:
            raise fault
        work(self, *arguments)

    monkeypatch.setattr(JobRunner, "_enroll_rows", faulty)
    with running(own()) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        paths = [accepted(client.post("/v1/galleries/staff/enrollments", files=sent(people_zip))) for _ in range(3)]
        assert "log has the details" in finished(client, paths[0], "failed")["problem"]
        assert finished(client, paths[1], "failed")["problem"] == "the archive is not as it was"
        assert finished(client, paths[2])["enrolled"] == 7


def test_what_may_be_over_soon_is_waited_for(
    own: Callable[..., ServiceContext], people_zip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full here for a while; the job tells so."""
    monkeypatch.setattr(jobs_module, "RETRY_SECONDS", 0.5)
    full, work = threading.Event(), JobRunner._enroll_rows
    full.set()

    def faulty(self: JobRunner, *arguments: Any) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        work(self, *arguments)

    monkeypatch.setattr(JobRunner, "_enroll_rows", faulty)
    with running(own()) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        path = accepted(client.post("/v1/galleries/staff/enrollments", files=sent(people_zip)))
        wait_for(lambda: "No space" in (ok(client.get(path))["problem"] or ""), "it tells why it waits")
        full.clear()
        job = finished(client, path)
        assert (job["enrolled"], job["problem"]) == (7, None)


def test_old_jobs_are_swept(own: Callable[..., ServiceContext], people_zip: bytes) -> None:
    with running(own(job_days=0)) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        path = accepted(client.post("/v1/galleries/staff/enrollments", files=sent(people_zip)))
        finished(client, path)
    with running(own(job_days=0)) as service, service.client() as client:
        wait_for(lambda: client.get(path).status_code == 404, "it is swept")
        assert ok(client.get("/v1/galleries/staff"))["faces"] == 7


def test_stopped_gracefully_it_waits_for_the_next_worker(
    own: Callable[..., ServiceContext], steps: Steps, many: Mapping[str, bytes]
) -> None:
    with running(own()) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        path = accepted(client.post("/v1/galleries/staff/enrollments", files=sent(packed(many))))
        steps.let(CHUNK)
        wait_for(lambda: ok(client.get(path))["done"] == CHUNK, "the first photos are done")
    home = own()
    job = JobRepository(home.engine).get(path.rsplit("/", 1)[1])
    assert (job.state, sum(job.outcomes.values())) == (JobState.QUEUED, CHUNK)
    home.close()
    steps.let(1000)
    with running(own()) as service, service.client() as client:
        assert finished(client, path)["enrolled"] == 42


def test_killed_in_the_middle_every_image_is_told_of_once(
    tmp_path: Path, models_folder: Path, many: Mapping[str, bytes]
) -> None:
    home = new_home(tmp_path, models_folder)
    with serving(home, tmp_path / "first.log") as serve:
        serve.ready()
        ok(serve.client.post("/v1/galleries", json={"name": "staff"}), 201)
        path = accepted(serve.client.post("/v1/galleries/staff/enrollments", files=sent(packed(many))))
        wait_for(lambda: ok(serve.client.get(path))["done"] > 0, "the first photos are done")
        serve.end(signal.SIGKILL)
    with serving(home, tmp_path / "second.log") as serve:
        before = ok(serve.client.get(path, params={"limit": 1000}))
        assert before["state"] == "running"
        job = finished(serve.client, path)
        assert 0 < len(before["results"]) < 42, "it was killed in the middle"
        assert job["results"][: len(before["results"])] == before["results"]
        assert [one["image"] for one in job["results"]] == sorted(many)
        assert (job["enrolled"], job["images"]) == (42, 42)
        assert len({one["face_id"] for one in job["results"]}) == 42
        serve.ready()
        assert ok(serve.client.get("/v1/galleries/staff"))["faces"] == 42
    assert not [path.name for path in home.iterdir() if path.name.startswith("tmp")]
    assert command(home, "doctor")[0] == 0


def test_two_workers_and_no_job_run_twice(
    tmp_path: Path, models_folder: Path, people_zip: bytes, many: Mapping[str, bytes]
) -> None:
    home = new_home(tmp_path, models_folder)
    with serving(home, tmp_path / "one.log") as one, serving(home, tmp_path / "two.log") as two:
        paths = []
        for n in range(4):
            ok(one.client.post("/v1/galleries", json={"name": f"g{n}"}), 201)
            files = sent(people_zip if n % 2 else packed(many))
            paths.append(accepted((one, two)[n % 2].client.post(f"/v1/galleries/g{n}/enrollments", files=files)))
        for n, path in enumerate(paths):
            job = finished(two.client, path)
            assert job["enrolled"] == job["images"] == (7 if n % 2 else 42)
            assert ok(two.client.get(f"/v1/galleries/g{n}"))["faces"] == job["images"]
