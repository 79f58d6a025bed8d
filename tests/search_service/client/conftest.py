"""Fixtures that run each test with both clients against the real service."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from indexer.settings import read_settings
from search_service.client import AsyncClient, Client, GalleryHandle
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests.search_service.api.conftest import new_home
from tests.search_service.api.conftest import photos as photos
from tests.search_service.api.conftest import service as service
from tests.search_service.api.serving import Running, running
from tests.search_service.client.blocking import blocking
from tests.search_service.client.faulty import Faulty
from tests.variants import SETTINGS

Connect = Callable[..., Client]
"""Creates a client from the arguments of `Client`."""


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with ExitStack() as stack:
        if request.param == "sync":
            yield lambda *args, **kwargs: stack.enter_context(Client(*args, **kwargs))
            return
        runner = stack.enter_context(asyncio.Runner())

        def create(*args: object, **kwargs: object) -> Client:
            client = AsyncClient(*args, **kwargs)  # type: ignore[arg-type]
            stack.callback(lambda: runner.run(client.close()))
            return blocking(client, runner)

        yield create


@pytest.fixture
def faces(service: Running, connect: Connect) -> Client:
    return connect(service.url)


@pytest.fixture
def gallery(faces: Client) -> GalleryHandle:
    """An empty gallery."""
    gallery = faces.gallery(f"g-{uuid.uuid4().hex}")
    gallery.create()
    return gallery


@pytest.fixture
def staff(gallery: GalleryHandle, photos: Path) -> GalleryHandle:
    """A gallery of two people with one photo each."""
    for name in ("left-1", "left-2"):
        gallery.enroll(name, photos / "photos" / name / "1.jpg")
    return gallery


@pytest.fixture
def faulty(service: Running) -> Iterator[Faulty]:
    with Faulty(service.url) as server:
        yield server


@contextmanager
def guarded(folder: Path, models_folder: Path) -> Iterator[tuple[str, str]]:
    """Runs a separate service and yields its URL and an administrator's key."""
    context = ServiceContext(read_settings(SETTINGS, home=new_home(folder, models_folder)))
    _, key = context.keys.create("owner", [Scope.ADMIN], None, None, None)
    with running(context) as service:
        yield service.url, key
