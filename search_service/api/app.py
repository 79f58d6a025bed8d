"""The FastAPI application, assembled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from search_service.api import errors, security
from search_service.api.hosts import HostCheck, allowed_hosts
from search_service.api.idempotency import Idempotency
from search_service.api.limits import SAID_BYTES, BodyLimit, is_archive, is_photos, is_said
from search_service.api.metrics import Metrics
from search_service.api.observing import Observed
from search_service.api.paths import EncodedSlashes, PlainText
from search_service.api.routes import enrollments, events, faces, galleries, identities, jobs, keys, webhooks
from search_service.api.routes.health import Readiness, health_router
from search_service.api.routes.openapi import document, failures
from search_service.api.state import State
from search_service.background.jobs import Runner
from search_service.background.webhooks import Deliverer
from search_service.calibration.thresholds import Thresholds
from search_service.inference_queue import InferenceQueue
from search_service.search import SearchService
from search_service.service_context import ServiceContext

log = logging.getLogger(__name__)

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
    context.stopwatch.add_listener(metrics.stage)
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
    guard.routes.add_public(route for route in app.routes if getattr(route, "path", None) in security.DOCUMENTATION)
    for routes in (galleries, identities, faces, keys, enrollments, jobs, events, webhooks):
        app.include_router(routes.router, dependencies=security.KEY_HEADERS, responses=failures(503))
        guard.routes.add(routes.router.routes)
    health = health_router(readiness)
    app.include_router(health)
    guard.routes.add(health.routes)
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
