"""The FastAPI application, assembled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from indexer.errors import Conflict, InvalidRequest, NotFound, WhosthereError
from search_service.api import errors, security
from search_service.api.hosts import HostCheck, allowed_hosts
from search_service.api.idempotency import Idempotency
from search_service.api.limits import SAID_BYTES, BodyLimit, is_archive, is_photos, is_said
from search_service.api.metrics import CONTENT_TYPE, Metrics
from search_service.api.observing import Observed
from search_service.api.paths import EncodedSlashes, PlainText
from search_service.api.payloads import AlivePayload, ReadyPayload
from search_service.api.routes import enrollments, events, faces, galleries, identities, jobs, keys, webhooks
from search_service.api.routes.openapi import document, failures
from search_service.api.state import Service, State
from search_service.background.jobs import Runner
from search_service.background.webhooks import Deliverer
from search_service.calibration.thresholds import Thresholds
from search_service.inference_queue import InferenceQueue
from search_service.search import SearchService
from search_service.service_context import ServiceContext

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
"""How long loading waits before it tries again: doubled from the first to the longest."""


STOP_SECONDS = 12.0
"""For what runs in the background to stop, after the last request was answered: a webhook may take ten to answer, and
that is written down. With `SHUTDOWN_SECONDS` before and the indexes to write after, it stays under the minute after
which supervisors kill."""

ARCHIVES_AT_ONCE = 4
"""Archives of the largest size that one process receives at a time, on its disk."""


def create_app(context: ServiceContext) -> FastAPI:
    """The service over one home. Nothing is opened before it starts; models and indexes load in the background,
    and `/readyz` tells when they are there."""
    settings = context.settings
    metrics = Metrics(context)
    context.stopwatch.listen(metrics.stage)
    service = SearchService(context, Thresholds(context), metrics.decided)
    limits = settings.max_batch, settings.max_waiting, settings.max_waiting_bytes
    queue = InferenceQueue(service.search_seen, *limits, metrics)
    deliverer = Deliverer(context)
    guard = security.Guard(context)
    readiness = Readiness(context, guard)
    runner = Runner(context, queue)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(lambda: context.store)  # brings the tables up to date before anybody asks
        await guard.start()
        queue.start()
        deliverer.start()
        loading = threading.Thread(target=readiness.load, name="loading", daemon=True)
        loading.start()
        runner.start()
        yield
        readiness.stop()
        stops = runner.stop, queue.stop, deliverer.stop, loading.join, lambda: service.settle(STOP_SECONDS)
        await run_in_threadpool(stop_together, stops, STOP_SECONDS)
        await run_in_threadpool(context.close)

    app = FastAPIOffline(
        title="whosthere",
        version="1",
        summary="Who is this, out of the people we enrolled?",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        responses=failures(400, 401, 403, 404, 422, 429),
    )
    app.state.service = State(context, service, queue, metrics, deliverer)
    errors.register(app)
    document(app)
    app.add_middleware(Idempotency, context=context)
    for meant, most, together in (
        (is_archive, settings.max_archive_bytes, ARCHIVES_AT_ONCE * settings.max_archive_bytes),
        (is_photos, settings.max_body_bytes, settings.max_waiting_bytes),
        (is_said, min(SAID_BYTES, settings.max_body_bytes), settings.max_waiting_bytes),
    ):
        app.add_middleware(BodyLimit, max_bytes=most, max_together=together, meant=meant)
    app.add_middleware(PlainText)
    app.add_middleware(security.Guarded, guard=guard)
    app.add_middleware(HostCheck, allowed=allowed_hosts(settings.host, settings.allowed_hosts.split(",")))
    app.add_middleware(Observed, metrics=metrics)
    app.add_middleware(EncodedSlashes)
    for routes in (galleries, identities, faces, keys, enrollments, jobs, events, webhooks):
        app.include_router(routes.router, dependencies=security.DECLARED, responses=failures(503))
    plain: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    app.add_api_route("/metrics", _measured, name="metrics", responses=plain, tags=["health"], response_class=Response)
    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": ReadyPayload}}
    for path, told, model, others in (
        ("/healthz", _alive, AlivePayload, {}),
        ("/readyz", readiness.answer, ReadyPayload, not_ready),
    ):
        app.add_api_route(path, told, response_model=model, responses=others, name=path[1:], tags=["health"])
        app.add_api_route(path, told, methods=["HEAD"], include_in_schema=False)  # as load balancers ask
    return app


def stop_together(stops: Iterable[Callable[[], object]], seconds: float) -> None:
    """Calls them side by side. Those that take longer go on until the process ends, and hold it up no more than any
    other thread: what they leave is found by the next start."""
    until = time.monotonic() + seconds
    stopping = [threading.Thread(target=stop, name="stopping", daemon=True) for stop in stops]
    for thread in stopping:
        thread.start()
    for thread in stopping:
        thread.join(max(0.0, until - time.monotonic()))
    left = sum(thread.is_alive() for thread in stopping)
    if left:
        log.warning("%d of %d parts did not stop within %g s", left, len(stopping), seconds)


class Readiness:
    """Whether the networks and every gallery's index are loaded. What fails is tried again until it works."""

    def __init__(self, context: ServiceContext, guard: security.Guard) -> None:
        self._context = context
        self._guard = guard
        self._state = "loading"
        self._problem: str | None = None
        self._unusable: dict[int, str] = {}
        """What is wrong with single galleries, by id: the others are served without them."""
        self._stopping = threading.Event()

    def load(self) -> None:
        """Returns when everything is loaded, or soon after `stop`."""
        wait = FIRST_RETRY_SECONDS
        while not self._stopping.is_set():
            try:
                self._load()
                self._state, self._problem = "ready", None
                return
            except WhosthereError as error:
                log.warning("not ready, trying again in %g s: %s", wait, error.message)
                self._state, self._problem = "failed", error.message
            except Exception:
                log.exception("not ready, trying again in %g s", wait)
                self._state, self._problem = "failed", "loading failed; the service's log has the details"
            self._stopping.wait(wait)
            wait = min(2 * wait, LONGEST_RETRY_SECONDS)

    def stop(self) -> None:
        self._stopping.set()

    def _load(self) -> None:
        self._unusable.clear()
        self._context.pipeline(self._context.pack).load()
        for gallery in self._context.store.galleries.list():
            if self._stopping.is_set():
                return
            try:
                self._context.pipeline_of(gallery).load()
                self._context.indexes.of(gallery).caught_up()
            except (Conflict, NotFound, InvalidRequest) as error:
                self._unusable[gallery.id] = error.message

    async def answer(self, request: Request) -> Response:
        """200 when models and indexes are loaded and the database answers, else 503.

        `galleries` tells of those that cannot be searched, as for another model pack; the service is ready without.
        Where there are keys, that and what the problem is are told to an admin's.
        """
        state, problem = self._state, self._problem
        unusable: dict[str, str] = {}
        if state == "ready":
            known = dict(self._unusable)
            try:
                there = await run_in_threadpool(self._context.store.galleries.list, 0, None if known else 1)
                unusable = {gallery.name: known[gallery.id] for gallery in there if gallery.id in known}
            except WhosthereError as error:
                state, problem = "failed", error.message
        body: dict[str, Any] = {"status": state}
        if (problem or unusable) and not await self._guard.trusts(request):
            problem, unusable = None, {}
        body |= {"problem": problem} if problem else {}
        body |= {"galleries": unusable} if unusable else {}
        return JSONResponse(body, 200 if state == "ready" else 503)


async def _measured(service: Service) -> Response:
    """What Prometheus scrapes: requests, stages, batches, decisions, sizes of galleries."""
    return Response(await service.off_loop(service.metrics.text), media_type=CONTENT_TYPE)


async def _alive() -> dict[str, str]:
    """The process runs."""
    return {"status": "alive"}
