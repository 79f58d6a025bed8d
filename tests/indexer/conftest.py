"""The built-in liveness pack, from the shared folder, which not everyone has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from indexer.models.liveness_packs import MINIFASNET
from indexer.models.model_files import ModelFiles
from tests import photos


@pytest.fixture(scope="session")
def liveness_folder() -> Path:
    """The folder with upstream's files and outputs. Skips the test without the shared folder."""
    return photos.shared("golden/liveness")


@pytest.fixture(scope="session")
def liveness_files(liveness_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A models folder in which the pack is installed."""
    folder = tmp_path_factory.mktemp("liveness-models")
    for file in MINIFASNET.files:
        shutil.copyfile(liveness_folder / file.name, folder / file.name)
    return ModelFiles(folder)
