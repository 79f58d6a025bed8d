"""The FastAPI application, assembled."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from indexer.errors import NotFound, WhosthereError
from indexer.home import Home
from search_service.api import errors
from search_service.api.limits import BodyLimit
from search_service.api.paths import EncodedSlashes
from search_service.api.payloads import ErrorAnswer
from search_service.api.routes import faces, galleries, identities
from search_service.api.state import State
from search_service.batching import Batcher
from search_service.search import SearchService


def create_app(home: Home) -> FastAPI:
    """The service over one home. Nothing is opened before it starts; models and indexes load in the background,
    and `/readyz` tells when they are there."""
    batcher = Batcher(home.settings.max_batch, home.settings.max_waiting)
    readiness = Readiness(home)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(lambda: home.store)  # brings the tables up to date before anybody asks
        batcher.start()
        loading = threading.Thread(target=readiness.load, name="loading", daemon=True)
        loading.start()
        yield
        await run_in_threadpool(batcher.stop)
        await run_in_threadpool(loading.join)
        await run_in_threadpool(home.close)

    app = FastAPIOffline(
        title="whosthere",
        version="1",
        summary="Who is this, out of the people we enrolled?",
        lifespan=lifespan,
        responses={400: {"model": ErrorAnswer}, 404: {"model": ErrorAnswer}, 422: {"model": ErrorAnswer}},
    )
    app.state.service = State(home, SearchService(home), batcher)
    errors.register(app)
    app.add_middleware(BodyLimit, max_bytes=home.settings.max_body_bytes)
    app.middleware("http")(_with_request_id)
    app.add_middleware(EncodedSlashes)
    for routes in (galleries, identities, faces):
        app.include_router(routes.router)
    for path, told in (("/healthz", _alive), ("/readyz", readiness.answer)):
        app.add_api_route(path, told, tags=["health"])
        app.add_api_route(path, told, methods=["HEAD"], include_in_schema=False)  # as load balancers ask
    return app


class Readiness:
    """Whether the networks and every gallery's index are loaded."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._state = "loading"
        self._problem: str | None = None

    def load(self) -> None:
        try:
            self._home.pipeline(self._home.pack).load()
            for gallery in self._home.store.galleries():
                self._home.pipeline_of(gallery).load()
                with suppress(NotFound):  # somebody deleted it since
                    self._home.indexes.of(gallery).caught_up()
            self._state = "ready"
        except WhosthereError as error:
            self._state, self._problem = "failed", error.message
        except Exception as error:
            self._state, self._problem = "failed", repr(error)
            raise

    async def answer(self) -> Response:
        """200 when models and indexes are loaded and the database answers, else 503."""
        state, problem = self._state, self._problem
        if state == "ready":
            try:
                await run_in_threadpool(self._home.store.galleries, 0, 1)
            except WhosthereError as error:
                state, problem = "failed", error.message
        body: dict[str, Any] = {"status": state} | ({"problem": problem} if problem else {})
        return JSONResponse(body, 200 if state == "ready" else 503)


async def _alive() -> dict[str, str]:
    """The process runs."""
    return {"status": "alive"}


async def _with_request_id(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    known = errors.request_id(request)
    response = await call(request)
    response.headers.setdefault("X-Request-ID", known)
    return response
