"""A place to be hurt, over each database; and photos without end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from search_service.demo import make_photos
from tests.faults.place import STAFF, Ask, Photo, Place
from tests.postgres import Database
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import image


@pytest.fixture
def new_place(tmp_path: Path, models_folder: Path) -> Callable[[str], Place]:
    """A place over a database of that URL; "" is the home's own."""

    def make(url: str) -> Place:
        (tmp_path / "home").mkdir(exist_ok=True)
        logs = (tmp_path / f"serve-{number}.log" for number in range(100))
        return Place(new_home(tmp_path / "home", models_folder), url, logs)

    return make


@pytest.fixture
def place(database: Database, new_place: Callable[[str], Place]) -> Place:
    """Over SQLite and PostgreSQL."""
    return new_place(database.url)


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Photo:
    """Photos of the demo's people by number, no two of the same bytes."""
    folder, _ = make_photos(tmp_path_factory.mktemp("demo"))
    people = [(path.parent.name, path.read_bytes()) for path in sorted(folder.glob("*/1.jpg"))]

    def make(number: int) -> tuple[str, bytes]:
        person, data = people[number % len(people)]
        return person, data + b"%d" % number  # decoders do not look behind the end

    return make


@pytest.fixture(scope="session")
def enrol(photo: Photo) -> Ask:
    """Enrols the photo of that number."""

    def ask(client: httpx.Client, number: int) -> httpx.Response:
        person, data = photo(number)
        return client.post(f"{STAFF}/identities/{person}/faces", files=image(data))

    return ask
