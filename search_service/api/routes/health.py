"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import logging
import threading
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from indexer.errors import Conflict, IndexBuilding, InvalidRequest, NotFound, WhosthereError
from indexer.types import Gallery
from search_service.api.metrics import CONTENT_TYPE
from search_service.api.models.base import AlivePayload, ReadyPayload
from search_service.api.permissions import public, requires
from search_service.api.security import Guard
from search_service.api.state import Service
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
"""How long loading waits before it tries again: doubled from the first to the longest."""


STOP_CHECK_SECONDS = 0.5
"""How long loading waits for a build before it looks whether the service stops."""


class Readiness:
    """Loads the networks and every gallery's index, and knows whether that is done. A failure is retried until it
    succeeds."""

    def __init__(self, context: ServiceContext, guard: Guard) -> None:
        self._context = context
        self._guard = guard
        self._state = "loading"
        self._problem: str | None = None
        self._unusable: dict[int, str] = {}
        """Why single galleries cannot be searched, by id; the others are served."""
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
        liveness = self._context.liveness_check(self._context.search_liveness())
        if liveness is not None:
            liveness.model.load()
        for gallery in self._context.store.galleries.list():
            if self._stopping.is_set():
                return
            try:
                self._context.pipeline_of(gallery).load()
                self._load_index(gallery)
            except (Conflict, NotFound, InvalidRequest) as error:
                self._unusable[gallery.id] = error.message

    def _load_index(self, gallery: Gallery) -> None:
        """Waits until the gallery's index is loaded or built, or until `stop`."""
        while not self._stopping.is_set():
            try:
                self._context.indexes.get(gallery).catch_up(STOP_CHECK_SECONDS)
                return
            except IndexBuilding:
                continue

    async def answer(self, request: Request) -> Response:
        """200 when models and indexes are loaded and the database answers, else 503.

        `galleries` names those that cannot be searched, for example because their model pack is missing; the service is
        ready without them. Once there are API keys, only callers with the scope `admin` see problems and galleries.
        """
        state, problem = self._state, self._problem
        unusable: dict[str, str] = {}
        if state == "ready":
            known = dict(self._unusable)
            try:
                found = await self._guard.threads.run(self._context.store.galleries.list, 0, None if known else 1)
                unusable = {gallery.name: known[gallery.id] for gallery in found if gallery.id in known}
            except WhosthereError as error:
                state, problem = "failed", error.message
        body: dict[str, Any] = {"status": state}
        if (problem or unusable) and not await self._guard.trusts(request):
            problem, unusable = None, {}
        body |= {"problem": problem} if problem else {}
        body |= {"galleries": unusable} if unusable else {}
        return JSONResponse(body, 200 if state == "ready" else 503)


def health_router(readiness: Readiness) -> APIRouter:
    """Returns the routes for load balancers and Prometheus. The first two reveal nothing and need no key."""
    router = APIRouter(tags=["health"])
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    # Counts of every gallery, open to any key for all of them, so that a scraper holds no admin's key.
    key_for_all = [requires(Scope.SEARCH, every_gallery=True)]
    router.add_api_route(
        "/metrics", _metrics, dependencies=key_for_all, name="metrics", responses=text, response_class=Response
    )
    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": ReadyPayload}}
    for path, answer, model, others in (
        ("/healthz", _alive, AlivePayload, {}),
        ("/readyz", readiness.answer, ReadyPayload, not_ready),
    ):
        anyone = [public()]
        router.add_api_route(path, answer, dependencies=anyone, response_model=model, responses=others, name=path[1:])
        router.add_api_route(path, answer, dependencies=anyone, methods=["HEAD"], include_in_schema=False)
    return router


async def _metrics(service: Service) -> Response:
    """Metrics in Prometheus' text format: requests, stages, batches, decisions, sizes of galleries."""
    return Response(await service.off_loop(service.metrics.text), media_type=CONTENT_TYPE)


async def _alive() -> dict[str, str]:
    """The process runs."""
    return {"status": "alive"}
