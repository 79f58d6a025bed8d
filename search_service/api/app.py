"""The FastAPI application, assembled."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from indexer.errors import Conflict, InvalidRequest, NotFound, WhosthereError
from indexer.home import Home
from search_service.api import errors
from search_service.api.hosts import HostCheck, allowed_hosts
from search_service.api.limits import BodyLimit
from search_service.api.paths import EncodedSlashes
from search_service.api.routes import faces, galleries, identities
from search_service.api.routes.openapi import failures
from search_service.api.state import State
from search_service.batching import Batcher
from search_service.search import SearchService

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
"""How long loading waits before it tries again: doubled from the first to the longest."""


def create_app(home: Home) -> FastAPI:
    """The service over one home. Nothing is opened before it starts; models and indexes load in the background,
    and `/readyz` tells when they are there."""
    settings = home.settings
    service = SearchService(home)
    batcher = Batcher(settings.max_batch, settings.max_waiting, settings.max_waiting_bytes)
    readiness = Readiness(home)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(lambda: home.store)  # brings the tables up to date before anybody asks
        batcher.start()
        loading = threading.Thread(target=readiness.load, name="loading", daemon=True)
        loading.start()
        yield
        readiness.stop()
        await run_in_threadpool(batcher.stop)
        await run_in_threadpool(loading.join)
        await run_in_threadpool(service.settle)
        await run_in_threadpool(home.close)

    app = FastAPIOffline(
        title="whosthere",
        version="1",
        summary="Who is this, out of the people we enrolled?",
        lifespan=lifespan,
        responses=failures(400, 403, 404, 422),
    )
    app.state.service = State(home, service, batcher)
    errors.register(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, max_together=settings.max_waiting_bytes)
    app.add_middleware(HostCheck, allowed=allowed_hosts(settings.host, settings.allowed_hosts.split(",")))
    app.middleware("http")(_with_request_id)
    app.add_middleware(EncodedSlashes)
    for routes in (galleries, identities, faces):
        app.include_router(routes.router, responses=failures(503))
    for path, told in (("/healthz", _alive), ("/readyz", readiness.answer)):
        app.add_api_route(path, told, tags=["health"])
        app.add_api_route(path, told, methods=["HEAD"], include_in_schema=False)  # as load balancers ask
    return app


class Readiness:
    """Whether the networks and every gallery's index are loaded. What fails is tried again until it works."""

    def __init__(self, home: Home) -> None:
        self._home = home
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
        self._home.pipeline(self._home.pack).load()
        for gallery in self._home.store.galleries():
            if self._stopping.is_set():
                return
            try:
                self._home.pipeline_of(gallery).load()
                self._home.indexes.of(gallery).caught_up()
            except (Conflict, NotFound, InvalidRequest) as error:
                self._unusable[gallery.id] = error.message

    async def answer(self) -> Response:
        """200 when models and indexes are loaded and the database answers, else 503.

        `galleries` tells of those that cannot be searched, as for another model pack; the service is ready without.
        """
        state, problem = self._state, self._problem
        unusable: dict[str, str] = {}
        if state == "ready":
            known = dict(self._unusable)
            try:
                there = await run_in_threadpool(self._home.store.galleries, 0, None if known else 1)
                unusable = {gallery.name: known[gallery.id] for gallery in there if gallery.id in known}
            except WhosthereError as error:
                state, problem = "failed", error.message
        body: dict[str, Any] = {"status": state}
        body |= {"problem": problem} if problem else {}
        body |= {"galleries": unusable} if unusable else {}
        return JSONResponse(body, 200 if state == "ready" else 503)


async def _alive() -> dict[str, str]:
    """The process runs."""
    return {"status": "alive"}


async def _with_request_id(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    known = errors.request_id(request)
    response = await call(request)
    response.headers.setdefault("X-Request-ID", known)
    return response
