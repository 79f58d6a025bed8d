"""Assembles the FastAPI application from its routes, middlewares and background threads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from indexer.supervision import SupervisedThread
from search_service.api import errors, security
from search_service.api.metrics import Metrics
from search_service.api.middleware.stack import add_middlewares
from search_service.api.probe_budget import ProbeBudget
from search_service.api.routes import (
    access,
    console,
    enrollments,
    events,
    faces,
    galleries,
    identities,
    jobs,
    keys,
    webhooks,
)
from search_service.api.routes.health import Readiness, health_router
from search_service.api.routes.openapi import document, failures
from search_service.api.state import State
from search_service.api.threads import Writers
from search_service.background.jobs import JobRunner
from search_service.background.webhooks import Deliverer
from search_service.calibration.thresholds import Thresholds
from search_service.inference_queue import InferenceQueue
from search_service.search import SearchService
from search_service.service_context import ServiceContext

log = logging.getLogger(__name__)

STOP_SECONDS = 12.0
"""How long the background threads may take to stop after the last request was answered. A webhook's receiver may take
ten seconds to answer, and that is recorded. Together with `SHUTDOWN_SECONDS` before and `CLOSE_SECONDS` after, it stays
under the minute after which supervisors kill."""

CLOSE_SECONDS = 7.0
"""How long writing the indexes may take after that. Each takes a fraction of a second, as larger ones are written when
they are built; one that is not written is built from SQL at the next start."""


def create_app(context: ServiceContext, on_stop: Callable[[], object] = lambda: None) -> FastAPI:
    """Returns the service over one home folder.

    Nothing is opened before the application starts. Models and indexes load in the background; `/readyz` shows when
    they are loaded. `on_stop` is called when the last request was answered.
    """
    settings = context.settings
    metrics = Metrics(context)
    context.stopwatch.add_listener(metrics.stage)
    service = SearchService(context, Thresholds(context), metrics.decided)
    limits = settings.max_batch, settings.max_waiting, settings.max_waiting_bytes
    queue = InferenceQueue(service.search_described, *limits, metrics)
    deliverer, budget = Deliverer(context), ProbeBudget(context)
    writers = Writers()
    guard = security.Guard(context)
    readiness = Readiness(context, guard)
    runner = JobRunner(context, queue)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(lambda: context.store)  # migrates the tables before the first request
        context.indexes.serve()
        await guard.start()
        queue.start()
        deliverer.start()
        await run_in_threadpool(budget.start)
        loading = SupervisedThread("loading", readiness.load)
        loading.start()
        runner.start()
        yield
        on_stop()
        readiness.stop()
        parts = runner.stop, queue.stop, deliverer.stop, budget.stop, loading.join
        stops = *parts, lambda: service.settle(STOP_SECONDS)
        # Not on the threads of the requests, all of which may be taken.
        await asyncio.to_thread(stop_together, stops, STOP_SECONDS)
        await asyncio.to_thread(stop_together, [context.close], CLOSE_SECONDS)

    app = FastAPIOffline(
        title="whosthere",
        version="1",
        summary="Who is this, out of the people we enrolled?",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        responses=failures(400, 401, 403, 404, 422, 429),
    )
    app.state.service = State(context, service, queue, metrics, deliverer, budget, writers)
    errors.register(app)
    document(app)
    add_middlewares(app, context, guard, metrics, writers)
    guard.routes.add_public(route for route in app.routes if getattr(route, "path", None) in security.DOCUMENTATION)
    for routes in (galleries, identities, faces, keys, enrollments, jobs, events, webhooks):
        app.include_router(routes.router, dependencies=security.KEY_HEADERS, responses=failures(503))
        guard.routes.add(routes.router.routes)
    for router in (access.access_router(guard), health_router(readiness), console.router):
        app.include_router(router)
        guard.routes.add(router.routes)
    return app


def stop_together(stops: Iterable[Callable[[], object]], seconds: float) -> None:
    """Calls all of them at the same time and waits that long at most. Those that take longer go on in daemon threads
    until the process ends; the next start finds what they left undone."""
    deadline = time.monotonic() + seconds
    stopping = [threading.Thread(target=stop, name="stopping", daemon=True) for stop in stops]
    for thread in stopping:
        thread.start()
    for thread in stopping:
        thread.join(max(0.0, deadline - time.monotonic()))
    unfinished = sum(thread.is_alive() for thread in stopping)
    if unfinished:
        log.warning("%d of %d parts did not stop within %g s", unfinished, len(stopping), seconds)
