"""What tests of several packages share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from indexer.vision.files import ModelFiles
from indexer.vision.packs import SFACE
from indexer.vision.pipeline import FacePipeline


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One models folder for the whole run, so that the networks are prepared once."""
    own = tmp_path_factory.getbasetemp()
    # Each worker of pytest-xdist has a folder of its own in the run's.
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "models"


@pytest.fixture(scope="session")
def pipeline(models_folder: Path) -> FacePipeline:
    """The real pipeline over the embedded pack, loaded."""
    loaded = FacePipeline(SFACE, ModelFiles(models_folder))
    loaded.load()
    return loaded
