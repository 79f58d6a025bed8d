from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.settings import read_settings
from search_service.demo import PROBES, make_photos
from search_service.service_context import ServiceContext
from tests.indexer.cli.command import Command
from tests.variants import SETTINGS


@pytest.fixture
def home_folder(tmp_path: Path, models_folder: Path) -> Path:
    """A home folder with models."""
    models_folder.mkdir(parents=True, exist_ok=True)
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "models").symlink_to(models_folder)
    return folder


@pytest.fixture
def context(home_folder: Path) -> Iterator[ServiceContext]:
    context = ServiceContext(read_settings(SETTINGS, home=home_folder))
    yield context
    context.close()


@pytest.fixture
def command(home_folder: Path) -> Command:
    return Command(home_folder)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each person: seven with two photos, and a stranger with one. Not to be changed."""
    folder = tmp_path_factory.mktemp("labelled")
    people, probes = make_photos(folder / "demo")
    shutil.copytree(people, folder / "people")
    for probe in PROBES:
        target = folder / "people" / (probe.expected or "stranger")
        target.mkdir(exist_ok=True)
        shutil.copy(probes / probe.file, target / f"2{Path(probe.file).suffix}")
    return folder / "people"


@pytest.fixture
def people(tmp_path: Path, labelled: Path) -> Path:
    """A copy of `labelled` that may be changed."""
    return Path(shutil.copytree(labelled, tmp_path / "people"))
