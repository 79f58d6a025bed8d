"""The client for asyncio, for one event loop. `sync_client.py` is generated from this file by `make client`."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack

import httpx

from search_service.client.calls import GalleryCalls, IdentityCalls, ServiceCalls
from search_service.client.options import EnrollOptions
from search_service.client.request_bodies import Photo
from search_service.client.retry import (
    Api,
    NoAnswer,
    Options,
    Pages,
    Pause,
    Reply,
    Retries,
    Send,
    Steps,
    base_url,
    no_answer,
)
from search_service.client.service_calls import JobCalls, KeyCalls, WebhookCalls

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")


class Connection:
    """The address of the service and the HTTP client that sends its requests."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._base = base_url(url)
        self._http = http

    async def run(self, steps: Steps[T]) -> T:
        """Executes the steps and returns their result."""
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._take(step))
        except StopIteration as end:
            result: T = end.value
            return result

    async def each(self, pages: Pages[T]) -> AsyncIterator[T]:
        cursor: str | None = None
        while True:
            page = await self.run(pages.page(cursor))
            for entry in page.entries:
                yield entry
            if page.cursor is None:
                return
            cursor = page.cursor

    async def close(self) -> None:
        await self._http.aclose()

    async def _take(self, step: Send | Pause) -> Reply | NoAnswer | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        request = step.request
        try:
            response = await self._http.request(
                request.method,
                self._base + request.path,
                params=request.params,
                content=request.body.async_chunks() if request.body else None,
                headers=step.headers,
                timeout=step.timeout_seconds,
            )
        except httpx.RequestError as error:
            return no_answer(error)
        return Reply(response.status_code, response.headers, response.content)


class Handle(Generic[C]):
    """An object of the service. Creating a handle sends no request."""

    def __init__(self, connection: Connection, calls: C) -> None:
        self._connection = connection
        self._calls = calls


def _answered(
    call: Callable[Concatenate[C, P], Steps[T]],
) -> Callable[Concatenate[Handle[C], P], Coroutine[Any, Any, T]]:
    """Turns a call into a method that returns its answer."""

    @wraps(call)
    async def method(handle: Handle[C], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await handle._connection.run(call(handle._calls, *args, **kwargs))  # noqa: SLF001 (becomes a method)

    return method


def _listed(call: Callable[Concatenate[C, P], Pages[T]]) -> Callable[Concatenate[Handle[C], P], AsyncIterator[T]]:
    """Turns a call into a method that yields entries, and requests pages as they are needed."""

    @wraps(call)
    def method(handle: Handle[C], /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return handle._connection.each(call(handle._calls, *args, **kwargs))  # noqa: SLF001 (becomes a method)

    return method


class AsyncJobHandle(Handle[JobCalls]):
    """A bulk enrollment."""

    show = _answered(JobCalls.show)
    wait = _answered(JobCalls.wait)
    cancel = _answered(JobCalls.cancel)
    rows = _listed(JobCalls.rows)

    @property
    def id(self) -> str:
        return self._calls.id


class AsyncIdentityHandle(Handle[IdentityCalls]):
    """An identity of a gallery, which need not exist yet."""

    show = _answered(IdentityCalls.show)
    changed = _answered(IdentityCalls.changed)
    put = _answered(IdentityCalls.put)
    update = _answered(IdentityCalls.update)
    delete = _answered(IdentityCalls.delete)
    merge = _answered(IdentityCalls.merge)
    faces = _listed(IdentityCalls.faces)

    @property
    def external_id(self) -> str:
        return self._calls.external_id


class AsyncGalleryHandle(Handle[GalleryCalls]):
    """A gallery, which need not exist yet."""

    create = _answered(GalleryCalls.create)
    show = _answered(GalleryCalls.show)
    delete = _answered(GalleryCalls.delete)
    search = _answered(GalleryCalls.search)
    search_each = _answered(GalleryCalls.search_each)
    search_frames = _answered(GalleryCalls.search_frames)
    search_embedding = _answered(GalleryCalls.search_embedding)
    identities = _listed(GalleryCalls.identities)
    create_identity = _answered(GalleryCalls.create_identity)
    enroll = _answered(GalleryCalls.enroll)
    enroll_each = _answered(GalleryCalls.enroll_each)
    face = _answered(GalleryCalls.face)
    face_crop = _answered(GalleryCalls.face_crop)
    delete_face = _answered(GalleryCalls.delete_face)
    duplicates = _answered(GalleryCalls.duplicates)
    calibrate = _answered(GalleryCalls.calibrate)
    _archive = _answered(GalleryCalls.enroll_archive)
    _many = _answered(GalleryCalls.enroll_many)

    @property
    def name(self) -> str:
        return self._calls.name

    def identity(self, external_id: str) -> AsyncIdentityHandle:
        return AsyncIdentityHandle(self._connection, IdentityCalls(self._calls.api, self.name, external_id))

    async def enroll_archive(self, path: str | os.PathLike[str], **options: Unpack[EnrollOptions]) -> AsyncJobHandle:
        """Enrolls a ZIP file of photos of many people, as `whosthere enroll` does. It is streamed from the disk."""
        return self._job((await self._archive(path, **options)).id)

    async def enroll_many(
        self, images: Mapping[str, Photo], *, manifest: Photo | None = None, **options: Unpack[EnrollOptions]
    ) -> AsyncJobHandle:
        """Enrolls photos of many people by name: `ana/1.jpg` and `ana_1.jpg` are photos of `ana`.

        With a manifest (CSV), its row for a name gives the identity.
        """
        return self._job((await self._many(images, manifest=manifest, **options)).id)

    def _job(self, job_id: str) -> AsyncJobHandle:
        return AsyncJobHandle(self._connection, JobCalls(self._calls.api, job_id))


class AsyncWebhooks(Handle[WebhookCalls]):
    """The webhooks."""

    list = _answered(WebhookCalls.list)
    create = _answered(WebhookCalls.create)
    show = _answered(WebhookCalls.show)
    delete = _answered(WebhookCalls.delete)
    deliveries = _listed(WebhookCalls.deliveries)
    replay = _answered(WebhookCalls.replay)


class AsyncKeys(Handle[KeyCalls]):
    """The API keys."""

    list = _listed(KeyCalls.list)
    own = _answered(KeyCalls.own)
    create = _answered(KeyCalls.create)
    revoke = _answered(KeyCalls.revoke)


class AsyncClient(Handle[ServiceCalls]):
    """A client of the service at a URL. Close it, or use it as a context manager."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_seconds: float = Options.timeout_seconds,
        retries: Retries = Options.retries,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """`http` is an HTTP client of yours, with certificates or a proxy; you close it. Raises ValueError."""
        options = Options(key, timeout_seconds, retries)
        super().__init__(Connection(url, httpx.AsyncClient() if http is None else http), ServiceCalls(Api(options)))
        self._owns = http is None

    ready = _answered(ServiceCalls.ready)
    key_needed = _answered(ServiceCalls.key_needed)
    models = _answered(ServiceCalls.models)
    detect = _answered(ServiceCalls.detect)
    embed = _answered(ServiceCalls.embed)
    compare = _answered(ServiceCalls.compare)
    galleries = _listed(ServiceCalls.galleries)
    jobs = _listed(ServiceCalls.jobs)
    events = _listed(ServiceCalls.events)
    event = _answered(ServiceCalls.event)
    attendance = _answered(ServiceCalls.attendance)
    forget_events = _answered(ServiceCalls.forget_events)

    def gallery(self, name: str) -> AsyncGalleryHandle:
        return AsyncGalleryHandle(self._connection, GalleryCalls(self._calls.api, name))

    def job(self, job_id: str) -> AsyncJobHandle:
        return AsyncJobHandle(self._connection, JobCalls(self._calls.api, job_id))

    @property
    def webhooks(self) -> AsyncWebhooks:
        return AsyncWebhooks(self._connection, WebhookCalls(self._calls.api))

    @property
    def keys(self) -> AsyncKeys:
        return AsyncKeys(self._connection, KeyCalls(self._calls.api))

    def with_options(
        self,
        *,
        timeout_seconds: float | None = None,
        retries: Retries | None = None,
        request_id: str | None = None,
        page_size: int | None = None,
    ) -> Self:
        """Returns the same client with other options: `faces.with_options(timeout_seconds=2).gallery("staff")`.

        It shares the connections and is closed with the first. Raises ValueError.
        """
        other = copy.copy(self)
        api = self._calls.api
        options = api.options.changed(timeout_seconds, retries, request_id, page_size)
        other._calls, other._owns = ServiceCalls(replace(api, options=options)), False  # noqa: SLF001 (a copy of self)
        return other

    async def close(self) -> None:
        if self._owns:
            await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
