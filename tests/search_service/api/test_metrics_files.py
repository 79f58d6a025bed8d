"""Workers count together, and go on without that where the folder in which they do is full."""

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

from search_service.api.metrics_files import FILE_BYTES, PREFIX, shared_folder
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import ENVIRONMENT, Serve, ok
from tests.waiting import DEADLINE, wait_for

SMALL = 2**18
"""Bytes of a disk: less than what two workers fill."""

COUNT = """
import logging, resource, sys
from pathlib import Path
from indexer.home import ServiceContext
from indexer.settings import read_settings
from search_service.api.metrics import Metrics

logging.basicConfig()
home = ServiceContext(read_settings(SETTINGS, home=Path(sys.argv[1])))
home.store.galleries.list()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
metrics = Metrics(home)
for number in range(1000):
    metrics.request("GET", f"/{number}", 200, 0.01)
    metrics.batch(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(metrics.text().decode())
"""
"""A worker that counts what does not fit into FILE_BYTES, and may not write files that are larger than it is told."""


def count(tmp_path: Path, most: int) -> tuple[str, str]:
    """What such a worker tells, and what it logs."""
    shared = tmp_path / "shared"
    shared.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(tmp_path / "home"), str(most)],
        env=ENVIRONMENT | {"PROMETHEUS_MULTIPROC_DIR": str(shared)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size can be set")


@needs_limits
def test_files_are_filled_before_they_are_counted_in(tmp_path: Path) -> None:
    told, log = count(tmp_path, 2**30)
    assert log == ""
    assert told.count("whosthere_requests_total{") == 1000
    files = sorted((tmp_path / "shared").iterdir())
    assert [file.stem.rpartition("_")[0] for file in files] == ["counter", "gauge_livesum", "histogram"]
    for file in files:
        assert file.stat().st_size >= FILE_BYTES
        assert file.stat().st_blocks * 512 >= file.stat().st_size, "it has holes"


@needs_limits
def test_who_cannot_fill_files_counts_in_memory(tmp_path: Path) -> None:
    told, log = count(tmp_path, FILE_BYTES - 1)
    assert told.count("whosthere_requests_total{") == 1000
    assert "whosthere_batch_images_count 1000.0" in told
    assert log.count("counts metrics in its memory alone") == 1
    assert str(tmp_path / "shared") in log
    assert not list((tmp_path / "shared").iterdir())


@needs_limits
def test_who_cannot_fill_more_of_a_file_goes_on(tmp_path: Path) -> None:
    told, log = count(tmp_path, FILE_BYTES + 1)
    assert 0 < told.count("whosthere_requests_total{") < 1000
    assert 1 <= log.count("counts metrics in its memory alone") <= 2, "once for a file"
    assert {file.stat().st_size for file in (tmp_path / "shared").iterdir()} == {FILE_BYTES}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_folders_of_services_that_were_killed_are_deleted(temporary: Path) -> None:
    left = temporary / f"{PREFIX}left"
    left.mkdir()
    (left / "counter_1.db").write_bytes(b"x")
    (temporary / "else").mkdir()
    with shared_folder() as one, shared_folder() as other:
        assert one is not None
        assert other is not None
        assert {path.name for path in temporary.iterdir()} == {"else", one.name, other.name}
    assert [path.name for path in temporary.iterdir()] == ["else"]


def test_without_a_folder_each_counts_alone(
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
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
        subprocess.run(mounting, check=True, capture_output=True, timeout=DEADLINE)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=DEADLINE)


def test_workers_answer_when_the_temporary_folder_is_full(
    tmp_path: Path, models_folder: Path, small_disk: Path
) -> None:
    """A page of a mapped file that has no place on the disk is the end of a process."""
    home = new_home(tmp_path, models_folder)
    serve = Serve(home, tmp_path / "log", "--workers", "2", TMPDIR=str(small_disk))
    try:
        wait_for(lambda: serve.log().count("Application startup complete") == 2, "both workers have started")
        serve.ready()
        try:
            (small_disk / "full").write_bytes(bytes(2 * SMALL))
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
