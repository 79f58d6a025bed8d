"""While the index of one gallery is built, its requests get 503 at once and nothing else waits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from indexer.models.packs import SFACE
from indexer.settings import read_settings
from indexer.types import Gallery
from indexer.vectors import builds
from search_service.service_context import ServiceContext
from tests import photos as sources
from tests.indexer.gallery.faces import new_face, vector
from tests.indexer.vectors.held_builds import HeldEngine
from tests.search_service.api.bulk import enroll, finished
from tests.search_service.api.conftest import new_home
from tests.search_service.api.guarded import create_keys
from tests.search_service.api.serving import Running, image, ok, refused, running
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for

CALLERS = 60
"""More than the service has threads."""

PEOPLE = 20

LARGE, SMALL = "/v1/galleries/large", "/v1/galleries/small"

PROBE = {"embedding": vector(3, SFACE.dim).tolist()}


class HeldContext(ServiceContext):
    """A context whose index builds a test holds open."""

    def __init__(self, home: Path) -> None:
        super().__init__(read_settings(SETTINGS, home=home))
        self.held = HeldEngine()
        self._vectors = self.held

    def fill(self, name: str) -> Gallery:
        """Creates a gallery with people, as another process would."""
        gallery = self.store.galleries.create(name, SFACE.name, SFACE.fingerprint, SFACE.dim)
        faces = [new_face(f"p{i}", i, embedding=vector(i, SFACE.dim)) for i in range(PEOPLE)]
        self.store.faces.enroll(gallery, faces)
        return gallery


@pytest.fixture
def context(tmp_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> HeldContext:
    monkeypatch.setattr(builds, "PATIENCE_S", 0.0)
    return HeldContext(new_home(tmp_path, models_folder))


@pytest.fixture
def service(context: HeldContext) -> Iterator[Running]:
    """A ready service with the gallery `small`."""
    context.fill("small")
    with running(context) as service:
        yield service.ready()


@pytest.fixture
def client(service: Running) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def retry_after(response: httpx.Response) -> int:
    """Returns the seconds that a request refused because of a build should wait."""
    error = refused(response, 503, "index_building")
    seconds = int(response.headers["retry-after"])
    assert error["details"] == {"retry_after_seconds": seconds}
    return seconds


def test_many_searches_during_a_build_are_refused_and_other_galleries_answered(
    context: HeldContext, client: httpx.Client
) -> None:
    large = context.fill("large")
    client.headers["Authorization"] = f"Bearer {create_keys(context)['admin']}"
    with context.held.holding(large), ThreadPoolExecutor(CALLERS) as pool:
        for _ in range(2):
            answers = pool.map(lambda _: client.post(f"{LARGE}/search", json=PROBE), range(CALLERS))
            assert min(map(retry_after, answers)) >= 1
        assert context.held.begun.wait(DEADLINE)
        found = ok(client.post(f"{SMALL}/search", json=PROBE))
        assert found["faces"][0]["candidates"][0]["external_id"] == "p3"
        assert ok(client.get("/readyz")) == {"status": "ready"}
        assert ok(client.get("/healthz")) == {"status": "alive"}
        retry_after(client.get(LARGE))
        ok(client.get(f"{LARGE}/identities"))
    wait_for(lambda: client.post(f"{LARGE}/search", json=PROBE).status_code == 200, "the index is built")
    assert ok(client.get(LARGE))["index"]["faces"] == PEOPLE


def test_enrollment_during_a_build_is_refused_and_stores_nothing(context: HeldContext, client: httpx.Client) -> None:
    """It cannot be compared with the people who are enrolled."""
    large, files = context.fill("large"), image(sources.astronaut())
    with context.held.holding(large):
        for _ in range(2):
            retry_after(client.post(f"{LARGE}/identities/eileen/faces", files=files))
        retry_after(client.post(f"{LARGE}/search", files=files))
        refused(client.get(f"{LARGE}/identities/eileen"), 404, "identity_not_found")
    wait_for(lambda: client.get(LARGE).status_code == 200, "the index is built")
    face = ok(client.post(f"{LARGE}/identities/eileen/faces", files=files), 201)["face_id"]
    found = ok(client.post(f"{LARGE}/search", files=files))
    assert found["faces"][0]["candidates"][0]["face_id"] == face


def test_deletion_during_a_build_succeeds(context: HeldContext, client: httpx.Client) -> None:
    large = context.fill("large")
    with context.held.holding(large):
        retry_after(client.get(LARGE))
        ok(client.delete(f"{LARGE}/identities/p3"))
    wait_for(lambda: client.get(LARGE).status_code == 200, "the index is built")
    assert ok(client.get(LARGE))["index"]["faces"] == PEOPLE - 1
    found = ok(client.post(f"{LARGE}/search", json=PROBE))
    assert "p3" not in {one["external_id"] for one in found["faces"][0]["candidates"]}


def test_job_waits_for_the_build(context: HeldContext, client: httpx.Client, people_zip: bytes) -> None:
    large = context.fill("large")
    with context.held.holding(large):
        path = enroll(client, people_zip, LARGE)
        wait_for(lambda: ok(client.get(path))["problem"] is not None, "the job is postponed")
        job = ok(client.get(path))
        assert "is being built" in job["problem"]
        assert job["done"] == 0
    assert finished(client, path)["enrolled"] == 7


def test_readyz_answers_while_the_first_index_is_built(context: HeldContext) -> None:
    """Ready means that everything is loaded."""
    large = context.fill("large")
    context.fill("small")
    with running(context) as service, service.client() as client:
        with context.held.holding(large):
            assert context.held.begun.wait(DEADLINE)
            loading = client.get("/readyz")
            assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
            assert ok(client.get("/healthz")) == {"status": "alive"}
            assert len(ok(client.get("/v1/galleries"))["galleries"]) == 2
        wait_for(lambda: client.get("/readyz").status_code == 200, "it is ready")


@pytest.mark.parametrize("is_ready", [True, False])
def test_stopping_does_not_wait_for_a_build(context: HeldContext, is_ready: bool) -> None:
    """A build that starts with the service, or one that a search starts later."""
    large = None if is_ready else context.fill("large")
    service = Running(context)
    if large is None:
        service.start()
        with service.client() as client:
            wait_for(lambda: client.get("/readyz").status_code == 200, "it is ready")
        large = context.fill("large")
        with context.held.holding(large):
            with service.client() as client:
                retry_after(client.post(f"{LARGE}/search", json=PROBE))
            assert context.held.begun.wait(DEADLINE)
            service.stop()
    else:
        with context.held.holding(large):
            service.start()
            assert context.held.begun.wait(DEADLINE)
            service.stop()
    assert not (context.settings.indexes_folder / f"{large.id}.index").exists()
