"""An installation with each database, and any number of different photos."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from search_service.demo import make_photos
from tests.faults.installation import STAFF, Installation, NewInstallation, Photo, SendRequest
from tests.postgres import Database
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import image


@pytest.fixture
def new_installation(tmp_path: Path, models_folder: Path) -> NewInstallation:
    """Creates an installation with the database of a URL; "" is the one in the home folder."""

    def create(url: str) -> Installation:
        (tmp_path / "home").mkdir(exist_ok=True)
        logs = (tmp_path / f"serve-{number}.log" for number in range(100))
        return Installation(new_home(tmp_path / "home", models_folder), url, logs)

    return create


@pytest.fixture
def installation(database: Database, new_installation: NewInstallation) -> Installation:
    """An installation with SQLite, and one with PostgreSQL."""
    return new_installation(database.url)


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Photo:
    """Returns the demo's people and their photos by number; no two files are equal."""
    folder, _ = make_photos(tmp_path_factory.mktemp("demo"))
    people = [(path.parent.name, path.read_bytes()) for path in sorted(folder.glob("*/1.jpg"))]

    def numbered(number: int) -> tuple[str, bytes]:
        person, data = people[number % len(people)]
        return person, data + b"%d" % number  # decoders ignore bytes after the end of the image

    return numbered


@pytest.fixture(scope="session")
def enroll(photo: Photo) -> SendRequest:
    """Enrolls the photo of a number."""

    def send(client: httpx.Client, number: int) -> httpx.Response:
        person, data = photo(number)
        return client.post(f"{STAFF}/identities/{person}/faces", files=image(data))

    return send
