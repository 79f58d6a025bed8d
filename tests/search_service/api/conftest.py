"""One service for all the tests of a worker; each test has galleries of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from indexer.settings import read_settings
from search_service.demo import make_photos
from search_service.service_context import ServiceContext
from tests.search_service.api.serving import Running, image, ok, running
from tests.variants import SETTINGS
from tests.waiting import wait_for

MAX_IMAGE_BYTES = 2 * 2**20
MAX_BODY_BYTES = 4 * 2**20


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos/` (one person a folder) and `probes/`, as the demo makes them."""
    folder = tmp_path_factory.mktemp("demo")
    make_photos(folder)
    return folder


@pytest.fixture(scope="session")
def stranger(photos: Path) -> bytes:
    """A photo of a person who is in no gallery."""
    return (photos / "probes" / "stranger.jpg").read_bytes()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Iterator[Running]:
    """A service with small limits, over real networks and SQLite."""
    place = new_home(tmp_path_factory.mktemp("home"), models_folder)
    settings = read_settings(SETTINGS, home=place, max_image_bytes=MAX_IMAGE_BYTES, max_body_bytes=MAX_BODY_BYTES)
    with running(ServiceContext(settings)) as service:
        with service.client() as client:
            wait_for(lambda: client.get("/readyz").status_code == 200, "the service is ready")
        yield service


@pytest.fixture(scope="session")
def client(service: Running) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def gallery(client: httpx.Client) -> str:
    """The path of an empty gallery."""
    name = f"g-{uuid.uuid4().hex}"
    ok(client.post("/v1/galleries", json={"name": name}), 201)
    return f"/v1/galleries/{name}"


@pytest.fixture(scope="session")
def people(client: httpx.Client, photos: Path) -> str:
    """The path of a gallery in which the seven people of the demo are; tests only read it."""
    path = "/v1/galleries/people"
    ok(client.post("/v1/galleries", json={"name": "people"}), 201)
    for photo in sorted((photos / "photos").glob("*/*.jpg")):
        files = image(photo.read_bytes(), photo.name)
        ok(client.post(f"{path}/identities/{photo.parent.name}/faces", files=files), 201)
    return path


def new_home(folder: Path, models_folder: Path) -> Path:
    """A home of its own that shares the prepared networks."""
    models_folder.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models_folder)
    return folder
