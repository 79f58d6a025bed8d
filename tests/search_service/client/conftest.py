"""Both clients, against the real service, for the same tests."""

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
"""Makes a client from what `Client` takes."""


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with ExitStack() as stack:
        if request.param == "sync":
            yield lambda *given, **asked: stack.enter_context(Client(*given, **asked))
            return
        runner = stack.enter_context(asyncio.Runner())

        def made(*given: object, **asked: object) -> Client:
            client = AsyncClient(*given, **asked)  # type: ignore[arg-type]
            stack.callback(lambda: runner.run(client.close()))
            return blocking(client, runner)

        yield made


@pytest.fixture
def faces(service: Running, connect: Connect) -> Client:
    return connect(service.url)


@pytest.fixture
def gallery(faces: Client) -> GalleryHandle:
    """An empty one."""
    made = faces.gallery(f"g-{uuid.uuid4().hex}")
    made.create()
    return made


@pytest.fixture
def staff(gallery: GalleryHandle, photos: Path) -> GalleryHandle:
    """One with two people in it, a photo each."""
    for name in ("left-1", "left-2"):
        gallery.enroll(name, photos / "photos" / name / "1.jpg")
    return gallery


@pytest.fixture
def faulty(service: Running) -> Iterator[Faulty]:
    with Faulty(service.url) as server:
        yield server


@contextmanager
def guarded(folder: Path, models_folder: Path) -> Iterator[tuple[str, str]]:
    """The address of a service of its own, and a key that opens everything there."""
    home = ServiceContext(read_settings(SETTINGS, home=new_home(folder, models_folder)))
    _, key = home.keys.create("owner", [Scope.ADMIN], None, None, None)
    with running(home) as service:
        yield service.url, key
