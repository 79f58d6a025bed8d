"""The wheel holds everything that the program needs, and no top-level module besides its two packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.variants import clean_environment
from tests.waiting import DEADLINE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    build = [sys.executable, "-m", "pip", "wheel", *options, str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_has_no_other_top_level_module(unpacked: Path) -> None:
    names = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"indexer", "search_service"}


def test_every_file_of_the_packages_is_in_the_wheel(unpacked: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "indexer", "search_service", "migrations"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    if not listed:
        pytest.skip("this is not a git checkout")
    expected = {name.replace("migrations/", "indexer/migrations/", 1) for name in listed}
    assert expected <= {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}


def test_the_wheel_creates_a_database_without_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    script = "from search_service.cli import main; main(['gallery', 'list', '--json'])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        env=clean_environment(WHOSTHERE_HOME=str(tmp_path / "home"), PYTHONPATH=str(unpacked)),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert (tmp_path / "home" / "whosthere.db").exists()
