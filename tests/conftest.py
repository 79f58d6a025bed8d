"""Fixtures that several packages share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, settings

from indexer.models.liveness_packs import MINIFASNET
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Precision
from indexer.vision.decode import end_processes
from indexer.vision.pipeline import FacePipeline, Options
from indexer.vision.quantize import quantize_embedder
from tests import photos
from tests.postgres import database as database
from tests.postgres import empty_database as empty_database
from tests.postgres import postgres as postgres
from tests.postgres import sqlite_template as sqlite_template
from tests.postgres import store as store
from tests.variants import PRECISION, SETTINGS
from tests.waiting import wait_for

for name in [name for name in os.environ if name.startswith("WHOSTHERE_") and name not in SETTINGS]:
    del os.environ[name]  # settings of the person who runs the tests

PROCESS_SECONDS = 90
"""How long a process may take to end: longer than `server.ORPHAN_SECONDS`."""

TESTING = "PYTEST_PROCESS"
os.environ[TESTING] = str(os.getpid())  # the processes that tests start inherit it, and their processes

# How long an example takes depends on what else runs on the machine.
settings.register_profile("tests", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Checks at the end that every process that the tests started has ended, also those whose parents were killed."""
    yield
    end_processes()
    _, left = psutil.wait_procs(_started_processes(), timeout=PROCESS_SECONDS)
    found = [f"{process.pid}: {' '.join(process.cmdline())}" for process in left]
    for process in left:
        process.kill()
    assert not found


def _started_processes() -> list[psutil.Process]:
    own, started = os.getpid(), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # another user's, or it has just ended
            is_started = process.pid != own and process.environ().get(TESTING) == str(own)
            if is_started and not (
                process.ppid() == own and "multiprocessing.resource_tracker" in process.cmdline()[-1]
            ):
                started.append(process)
    return started


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models folder of the whole run, so that the networks are prepared once."""
    base = tmp_path_factory.getbasetemp()
    # Each worker of pytest-xdist has its own folder inside the run's folder.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    if PRECISION is Precision.INT8:
        _quantize_once(ModelFiles(folder))
    return folder


@pytest.fixture(scope="session")
def pipeline(models_folder: Path) -> FacePipeline:
    """The real pipeline over the embedded pack, loaded."""
    loaded = FacePipeline(SFACE, ModelFiles(models_folder), Options(precision=PRECISION))
    loaded.load()
    return loaded


def link_int8_forms(models: Path, to: Path, *names: str) -> None:
    """Links the int8 form of the embedded pack's embedder, if there is one, under other names into another folder."""
    for form in (models / "int8").glob(f"{SFACE.embedder.name}.int8.*"):
        (to / "int8").mkdir(exist_ok=True)
        for name in names:
            (to / "int8" / form.name.replace(SFACE.embedder.name, name)).symlink_to(form)


def _quantize_once(files: ModelFiles) -> None:
    """Quantizes the embedder, in one of the workers that share the folder."""
    report = files.quantized_path(SFACE.embedder).with_suffix(".json")
    report.parent.mkdir(parents=True, exist_ok=True)
    try:
        (report.parent / "started").touch(exist_ok=False)
    except FileExistsError:
        wait_for(report.exists, "another worker to quantize the model")
        return
    quantize_embedder(SFACE, files, calibration_faces(FacePipeline(SFACE, files)))


def calibration_faces(loaded: FacePipeline) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Returns seven faces, upright and mirrored, at five levels of brightness: (70, 112, 112, 3) uint8 RGB."""
    loaded.load()
    seen = loaded.describe([photos.astronaut(), photos.six_people()], None)
    crops = [face.crop for image in seen for face in image.faces if face.crop is not None]
    assert len(crops) == 7
    return np.stack(
        [
            (crop[:, ::step] * light).astype(np.uint8)
            for light in (1.0, 0.9, 0.75, 0.6, 0.5)
            for step in (1, -1)
            for crop in crops
        ]
    )


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
