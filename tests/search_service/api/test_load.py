"""Many requests at once: the event loop is never blocked, probes share batches, too many get 429."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from indexer.models.packs import SFACE, Pack
from indexer.settings import read_settings
from indexer.types import Pick
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import FacePipeline, ImageResult
from search_service.api import bodies
from search_service.api.permissions import BodyKind
from search_service.demo import PROBES
from search_service.service_context import ServiceContext
from tests import photos as sources
from tests.nearly_equal import assert_nearly_equal
from tests.search_service.api.serving import Running, base64_of, image, ok, refused, running
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for_async

JSON = {"Content-Type": "application/json"}


class Held(FacePipeline):
    """The real networks, which wait before each batch while `go` is not set; `sizes` are the batches'."""

    def __init__(self, home: ServiceContext, loaded: FacePipeline) -> None:
        super().__init__(SFACE, home.files)
        self._networks = loaded._networks
        self.go = threading.Event()
        self.sizes: list[int] = []

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        self._wait(images)
        return super().describe(images, pick, gate, liveness)

    def detect(
        self, images: Sequence[bytes], pick: Pick | None = None, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        self._wait(images)
        return super().detect(images, pick, liveness)

    def _wait(self, images: Sequence[bytes]) -> None:
        self.sizes.append(len(images))
        assert self.go.wait(DEADLINE)


class HeldHome(ServiceContext):
    def __init__(self, place: Path, loaded: FacePipeline, **settings: object) -> None:
        super().__init__(read_settings(SETTINGS, home=place, **settings))
        self.held = Held(self, loaded)

    def pipeline(self, pack: Pack, streams: int = 1) -> FacePipeline:
        return self.held


@contextmanager
def holding(place: Path, loaded: FacePipeline, **settings: object) -> Iterator[tuple[Running, Held]]:
    """A service with the gallery `staff`, in which is `collins`; its networks are held from then on."""
    home = HeldHome(place, loaded, **settings)
    with running(home) as service:
        try:
            home.held.go.set()
            with service.client() as client:
                ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
                path = "/v1/galleries/staff/identities/collins/faces"
                ok(client.post(path, files=image(sources.astronaut())), 201)
            home.held.go.clear()
            home.held.sizes.clear()
            yield service, home.held
        finally:
            home.held.go.set()


def asked(service: Running, test: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def bounded() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=service.url, timeout=DEADLINE, limits=limits) as client:
            await asyncio.wait_for(test(client), DEADLINE)

    asyncio.run(bounded())


async def search(client: httpx.AsyncClient, data: bytes, **values: str) -> httpx.Response:
    return await client.post("/v1/galleries/staff/search", files=image(data), data=values)


def test_other_routes_answer_while_the_networks_are_busy(tmp_path: Path, pipeline: FacePipeline) -> None:
    """If any of them ran on the event loop, the health check would wait forever here."""
    large = sources.encode(sources.enlarged(sources.pixels(sources.astronaut()), 3000, 3000), "JPEG")
    other = sources.aligned_face()

    with holding(tmp_path, pipeline) as (service, held):

        async def test(client: httpx.AsyncClient) -> None:
            face = {"image": base64_of(large)}
            busy = [
                asyncio.create_task(request)
                for request in (
                    search(client, large),
                    search(client, large, all_faces="true"),
                    client.post("/v1/galleries/staff/search", json=face),
                    client.post("/v1/detect", json=face),
                    client.post("/v1/embed", json=face),
                    client.post("/v1/compare", json={"image_a": face["image"], "image_b": face["image"]}),
                    client.post(
                        "/v1/galleries/staff/identities/tom/faces", files=image(other), data={"pick": "largest"}
                    ),
                )
            ]
            await wait_for_async(
                lambda: service.queue._bytes == 7 * len(large) + len(other)
            )  # however they share batches
            for _ in range(3):
                assert ok(await client.get("/healthz")) == {"status": "alive"}
            assert ok(await client.get("/readyz")) == {"status": "ready"}
            assert ok(await client.get("/v1/galleries/staff"))["faces"] == 1
            assert ok(await client.put("/v1/galleries/staff/identities/ana", json={}), 201)["faces"] == 0
            embedding = {"embedding": [1.0] + [0.0] * 127}
            assert ok(await client.post("/v1/galleries/staff/search", json=embedding))["faces"][0]["decision"]
            assert not any(task.done() for task in busy)
            held.go.set()
            answers = [await task for task in busy]
            assert [answer.status_code for answer in answers[:6]] == [200] * 6
            for answer in answers[:3]:
                assert answer.json()["faces"][0]["candidates"][0]["external_id"] == "collins"
            assert answers[5].json()["same"] is True
            assert answers[6].status_code in (201, 422)

        asked(service, test)


def test_probes_that_arrive_together_share_a_batch(tmp_path: Path, pipeline: FacePipeline) -> None:
    with holding(tmp_path, pipeline, max_batch=4) as (service, held):

        async def test(client: httpx.AsyncClient) -> None:
            tasks = [asyncio.create_task(search(client, sources.astronaut()))]
            await wait_for_async(lambda: held.sizes == [1])
            tasks += [asyncio.create_task(search(client, sources.astronaut())) for _ in range(6)]
            await wait_for_async(lambda: len(service.queue._waiting) == 6)
            held.go.set()
            answers = [ok(await task) for task in tasks]
            assert all(answer == answers[0] for answer in answers)

        asked(service, test)
        assert held.sizes == [1, 4, 2]


def test_too_many_waiting_images_are_refused_with_429(tmp_path: Path, pipeline: FacePipeline) -> None:
    with holding(tmp_path, pipeline, max_batch=1, max_waiting=2) as (service, held):

        async def test(client: httpx.AsyncClient) -> None:
            tasks = [asyncio.create_task(search(client, sources.astronaut()))]
            await wait_for_async(lambda: held.sizes == [1])
            tasks += [asyncio.create_task(search(client, sources.astronaut())) for _ in range(2)]
            await wait_for_async(lambda: len(service.queue._waiting) == 2)
            two = {"image_a": ("a", sources.astronaut()), "image_b": ("b", sources.astronaut())}
            for answer in (
                await search(client, sources.astronaut()),
                await client.post("/v1/detect", files=image(sources.astronaut())),
                await client.post("/v1/compare", files=two),
                await client.post("/v1/galleries/staff/identities/tom/faces", files=image(sources.aligned_face())),
            ):
                refused(answer, 429, "overloaded")
                assert answer.headers["retry-after"] == "1"
            assert not any(task.done() for task in tasks)
            held.go.set()
            for task in tasks:
                assert ok(await task)["faces"][0]["decision"] == "match"
            assert ok(await search(client, sources.astronaut()))["faces"][0]["decision"] == "match"
            assert (await client.post("/v1/compare", files=two)).status_code == 200

        asked(service, test)
        assert held.sizes[:3] == [1, 1, 1]


def test_too_many_waiting_bytes_are_refused_with_429(tmp_path: Path, pipeline: FacePipeline) -> None:
    """Bodies that are still being received count as well."""
    data = sources.astronaut()
    with holding(tmp_path, pipeline, max_waiting_bytes=3 * len(data)) as (service, held):

        async def test(client: httpx.AsyncClient) -> None:
            sent = asyncio.Event()

            async def slowly() -> AsyncIterator[bytes]:
                yield bytes(len(data) + 1)
                await sent.wait()

            tasks = [asyncio.create_task(search(client, data))]
            await wait_for_async(lambda: held.sizes == [1])
            slow = asyncio.create_task(client.post("/v1/detect", content=slowly(), headers=JSON))
            await wait_for_async(lambda: service.held_bytes(BodyKind.IMAGES) > 2 * len(data))
            for answer in (
                await search(client, data),
                await client.post("/v1/detect", json={"image": base64_of(data)}),
                await client.post("/v1/embed", content=bytes(len(data)), headers=JSON),
            ):
                assert "bytes" in refused(answer, 429, "overloaded")["message"]
                assert answer.headers["retry-after"] == "1"
            assert ok(await client.put("/v1/galleries/staff/identities/ana", json={}), 201)
            sent.set()
            refused(await slow, 400, "invalid_request")
            held.go.set()
            for task in tasks:
                assert ok(await task)["faces"][0]["decision"] == "match"
            assert ok(await search(client, data))["faces"][0]["decision"] == "match"
            assert ok(await search(client, data + bytes(2 * len(data))))["faces"][0]["decision"] == "match"

        asked(service, test)


def test_json_with_images_is_parsed_off_the_event_loop(
    client: httpx.Client, people: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, threads = bodies._read_json, []

    def noted(body: bytes, fields: Sequence[str]) -> bodies.Body:
        threads.append(threading.current_thread().name)
        return read(body, fields)

    monkeypatch.setattr(bodies, "_read_json", noted)
    ok(client.post(f"{people}/search", json={"image": base64_of(sources.astronaut())}))
    assert len(threads) == 1
    assert threads != ["server"]


def test_a_caller_who_hangs_up_does_not_delay_others(tmp_path: Path, pipeline: FacePipeline) -> None:
    with holding(tmp_path, pipeline) as (service, held):

        async def test(client: httpx.AsyncClient) -> None:
            gone = asyncio.create_task(search(client, sources.astronaut()))
            await wait_for_async(lambda: held.sizes == [1])
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            stays = asyncio.create_task(search(client, sources.astronaut()))
            await wait_for_async(lambda: len(service.queue._waiting) == 1)
            held.go.set()
            assert ok(await stays)["faces"][0]["decision"] == "match"

        asked(service, test)


def test_sixty_four_simultaneous_searches_get_the_same_answers_as_single_ones(
    service: Running, client: httpx.Client, people: str, photos: Path
) -> None:
    probes = [(photos / "probes" / probe.file).read_bytes() for probe in PROBES]
    alone = [ok(client.post(f"{people}/search", files=image(data))) for data in probes]

    async def test(client: httpx.AsyncClient) -> None:
        requests = (client.post(f"{people}/search", files=image(probes[n % len(probes)])) for n in range(64))
        for n, answer in enumerate(await asyncio.gather(*requests)):
            assert_nearly_equal(ok(answer), alone[n % len(probes)], abs_tol=0.02, rel_tol=0.01)

    asked(service, test)
