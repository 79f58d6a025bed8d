"""A runtime that is broken, or short of memory, is not blamed on the photos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.errors import Overloaded
from indexer.settings import read_settings
from indexer.vision import runtime
from indexer.vision.pipeline import FacePipeline, ImageResult
from search_service.background import jobs
from search_service.background.jobs import CourteousPipeline
from search_service.cli.app import main
from search_service.service_context import ServiceContext
from tests import photos as sources
from tests.search_service.api.bulk import STAFF, enroll, finished, packed
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import image, ok, refused, running
from tests.variants import SETTINGS
from tests.waiting import wait_for

LOST = RuntimeError("CUDA error: the device was lost")
SHORT = Overloaded("a batch of 640 x 640 images does not fit in the GPU's memory")


class Broken:
    """Every inference raises `error`, until it is None."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = LOST
        for kind in (runtime._OpenVino, runtime._OnnxRuntime):
            monkeypatch.setattr(kind, "run", self._replace(kind.run))

    def _replace(self, run: Any) -> Any:
        def replaced(session: Any, images: Any) -> Any:
            if self.error is not None:
                raise self.error
            return run(session, images)

        return replaced


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    return Broken(monkeypatch)


@pytest.fixture
def home(tmp_path: Path, models_folder: Path) -> Path:
    return new_home(tmp_path, models_folder)


@pytest.fixture
def client(home: Path) -> Iterator[httpx.Client]:
    with running(ServiceContext(read_settings(SETTINGS, home=home))) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        yield client


def postponed(client: httpx.Client, path: str, problem: str) -> None:
    wait_for(lambda: problem in (ok(client.get(path))["problem"] or ""), "the job is postponed")
    job = ok(client.get(path))
    assert (job["state"], job["done"]) == ("running", 0)


@pytest.mark.parametrize("error", [LOST, SHORT, MemoryError()], ids=["lost", "overloaded", "memory"])
def test_job_waits_for_the_runtime_and_then_enrolls_every_photo(
    client: httpx.Client, broken: Broken, people_zip: bytes, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.01)
    broken.error = error
    path = enroll(client, people_zip)
    postponed(client, path, "memory" if error is not LOST else "fail on every image: RuntimeError: CUDA error")
    broken.error = None
    assert finished(client, path)["enrolled"] == 7


def test_job_with_a_single_photo_waits_as_well(
    client: httpx.Client, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.01)
    path = enroll(client, packed({"eileen/1.png": sources.astronaut()}))
    postponed(client, path, "CUDA error")
    broken.error = None
    assert finished(client, path)["enrolled"] == 1


def test_job_fails_with_the_error_by_which_all_of_its_photos_fail(
    client: httpx.Client, people_zip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> ImageResult:
        raise ValueError("a bug")

    monkeypatch.setattr(CourteousPipeline, "_describe", fail)
    job = finished(client, enroll(client, people_zip), "failed")
    assert (job["problem"], job["done"]) == ("all 7 photos fail with the same error: ValueError: a bug", 0)


def test_searches_fail_without_blaming_the_photo(client: httpx.Client, broken: Broken) -> None:
    broken.error = SHORT
    refused(client.post(f"{STAFF}/search", files=image(sources.astronaut())), 429, "overloaded")
    broken.error = None
    ok(client.post(f"{STAFF}/search", files=image(sources.astronaut())))
    broken.error = LOST
    refused(client.post(f"{STAFF}/search", files=image(sources.astronaut())), 500, "failed")


COMMANDS = (
    ["enroll", "ana.png", "--gallery", "staff"],
    ["search", "ana.png", "--gallery", "staff"],
    ["search", "ana.png", "ana.png", "--gallery", "staff", "--same-person"],
    ["compare", "ana.png", "ana.png"],
)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The photo ana.png in the current folder."""
    (tmp_path / "ana.png").write_bytes(sources.astronaut())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.usefixtures("photo")
def test_command_ends_with_one_line_about_the_error(
    home: Path, broken: Broken, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--home", str(home), "gallery", "create", "staff"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["--home", str(home), *command])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "fail on every image: RuntimeError: CUDA error: the device was lost" in printed.err.splitlines()[-1]
    assert "unreadable" not in printed.out


@pytest.mark.usefixtures("photo")
def test_search_names_the_photo_on_which_working_networks_fail(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--home", str(home), "enroll", "ana.png", "--gallery", "staff"])
    Path("odd.png").write_bytes(sources.six_people())
    describe = FacePipeline.describe

    def fail(self: FacePipeline, images: list[bytes], *arguments: Any) -> list[ImageResult]:
        if sources.six_people() in images:
            raise ValueError("a bug")
        return describe(self, images, *arguments)

    monkeypatch.setattr(FacePipeline, "describe", fail)
    with pytest.raises(SystemExit) as ended:
        main(["--home", str(home), "search", "ana.png", "odd.png", "--gallery", "staff"])
    assert ended.value.code == 3
    found, failed = capsys.readouterr().out.splitlines()[-2:]
    assert "match" in found
    assert "odd.png" in failed
    assert "unreadable_image: the image cannot be processed: ValueError: a bug" in failed


def test_doctor_reports_networks_that_do_not_run(
    home: Path, broken: Broken, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--home", str(home), "doctor", "--json"])
    assert ended.value.code == 1
    (problem,) = [finding for finding in json.loads(capsys.readouterr().out) if not finding["ok"]]
    assert (problem["check"], "the device was lost" in problem["found"]) == ("networks", True)
