"""Home folders with prepared networks: an empty one, and one with the demo's seven people."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from indexer.vision.pipeline import FacePipeline
from search_service.demo import make_photos
from tests.indexer.cli.command import Command


@dataclass(frozen=True)
class Demo:
    """The demo's photos: `photos/` with a folder for each person, and `probes/`."""

    photos: Path
    probes: Path

    def photo(self, person: str) -> Path:
        return self.photos / person / "1.jpg"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(*make_photos(tmp_path_factory.mktemp("demo")))


@pytest.fixture(scope="session")
def prepared_models(models_folder: Path, pipeline: FacePipeline) -> Path:
    """The models folder after `pipeline` has prepared its networks."""
    return models_folder


@pytest.fixture(scope="session")
def staffed_home(tmp_path_factory: pytest.TempPathFactory, prepared_models: Path, demo: Demo) -> Path:
    """A home folder with the demo's seven people in the gallery `staff`. Tests use copies of it."""
    home = tmp_path_factory.mktemp("staffed") / "home"
    home.mkdir(0o700)  # otherwise the first command reports that others could open it
    (home / "models").symlink_to(prepared_models)
    Command(home).ok("enroll", demo.photos, "--gallery", "staff")
    return home


@pytest.fixture
def empty(tmp_path: Path, prepared_models: Path) -> Command:
    """The command with a home folder that contains only the networks."""
    home = tmp_path / "home"
    home.mkdir(0o700)
    (home / "models").symlink_to(prepared_models)
    return Command(home)


@pytest.fixture
def staff(tmp_path: Path, staffed_home: Path) -> Command:
    """The command with a separate home folder that contains the gallery `staff`."""
    return Command(Path(shutil.copytree(staffed_home, tmp_path / "home", symlinks=True)))
