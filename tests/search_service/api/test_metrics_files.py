"""Workers count together, and each in its memory where the disk for that is full."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from search_service.api.metrics_files import FILE_BYTES, FOLDER_VARIABLE, PREFIX, shared_folder
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import ENVIRONMENT, Serve, ok
from tests.waiting import DEADLINE, wait_for

SMALL_DISK = 7 * 2**20
"""Bytes of a disk that holds the files of one worker, but not those of two."""

COUNT = """
import json, logging, resource, sys
from pathlib import Path
from types import SimpleNamespace

limit, galleries = int(sys.argv[2]), int(sys.argv[3])
logging.basicConfig()
from search_service.api import metrics_files

resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
metrics_files.prepare()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
from indexer.settings import read_settings
from search_service.api.metrics import Metrics
from search_service.service_context import ServiceContext

context = ServiceContext(read_settings({}, home=Path(sys.argv[1])))
context.store.galleries.list()
metrics = Metrics(context)
for number in range(galleries):
    metrics.batch(1)
    for decision in ("match", "no_match", "review"):
        metrics.decided(SimpleNamespace(name=f"{number}-" + "x" * 190), SimpleNamespace(decision=decision))
print(metrics.text().decode())
"""
"""A worker that may not write files larger than a limit when it starts, and counts decisions of many galleries."""


def count(tmp_path: Path, limit: int, galleries: int) -> tuple[str, str]:
    """Returns the metrics of such a worker, and its log."""
    shared = tmp_path / "shared"
    shared.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(tmp_path / "home"), str(limit), str(galleries)],
        env=ENVIRONMENT | {FOLDER_VARIABLE: str(shared)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size can be set")


@needs_limits
def test_files_are_written_in_full_and_never_grow(tmp_path: Path) -> None:
    metrics, log = count(tmp_path, 2**30, 3000)
    assert "in its memory alone" not in log
    decisions = re.findall(r'whosthere_decisions_total\{decision="match",gallery="(.*)"\} (.*)', metrics)
    assert 1000 < len(decisions) < 3000
    assert sum(float(value) for _, value in decisions) == 3000, "galleries without a label of their own share one"
    files = {file.stem.rpartition("_")[0]: file.stat() for file in (tmp_path / "shared").iterdir()}
    assert {name: file.st_size for name, file in files.items()} == FILE_BYTES
    assert all(file.st_blocks * 512 >= file.st_size for file in files.values()), "no file has holes"


@needs_limits
def test_a_worker_that_cannot_write_its_files_counts_in_memory(tmp_path: Path) -> None:
    metrics, log = count(tmp_path, FILE_BYTES["counter"] - 1, 3000)
    assert metrics.count('whosthere_decisions_total{decision="match"') == 3000
    assert "whosthere_batch_images_count 3000.0" in metrics
    assert log.count("counts metrics in its memory alone") == 1
    assert str(tmp_path / "shared") in log
    assert not list((tmp_path / "shared").iterdir())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_folders_of_killed_services_are_deleted(temporary: Path) -> None:
    abandoned = temporary / f"{PREFIX}abandoned"
    abandoned.mkdir()
    (abandoned / "counter_1.db").write_bytes(b"x")
    (temporary / "else").mkdir()
    with shared_folder() as one, shared_folder() as other:
        assert one is not None
        assert other is not None
        assert {path.name for path in temporary.iterdir()} == {"else", one.name, other.name}
    assert [path.name for path in temporary.iterdir()] == ["else"]


def test_without_a_temporary_folder_workers_count_alone(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "missing"))
    with shared_folder() as folder:
        assert folder is None
    assert str(temporary / "missing") in caplog.text
    assert "set TMPDIR" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
        subprocess.run(mounting, check=True, capture_output=True, timeout=DEADLINE)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=DEADLINE)


def test_workers_answer_while_the_temporary_folder_is_full(
    tmp_path: Path, models_folder: Path, small_disk: Path
) -> None:
    """A page of a mapped file without room on the disk would end the process."""
    home = new_home(tmp_path, models_folder)
    serve = Serve(home, tmp_path / "log", "--workers", "2", TMPDIR=str(small_disk))
    try:
        wait_for(lambda: serve.log().count("Application startup complete") == 2, "both workers have started")
        serve.ready()
        try:
            (small_disk / "full").write_bytes(bytes(2 * SMALL_DISK))
        except OSError:
            assert os.statvfs(small_disk).f_bavail == 0
        for number in range(20):
            with httpx.Client(base_url=serve.client.base_url, timeout=DEADLINE) as client:  # maybe the other worker
                ok(client.get("/v1/galleries"))
                assert client.get(f"/v1/galleries/none-{number}").status_code == 404
                assert client.get("/metrics").status_code == 200
        assert len(re.findall(r"Started server process", serve.log())) == 2, serve.log()
        assert f"{small_disk}/{PREFIX}" in serve.log()
    finally:
        serve.end()
