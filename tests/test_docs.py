"""The documentation: its commands and examples run, its settings exist, its links lead to files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from indexer.settings import PREFIX, Settings
from indexer.types import Reason
from search_service.demo import PROBES, make_photos
from tests import photos
from tests.variants import clean_environment

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES_SECONDS = 300

README_WORDS = 900
"""Without code, table markup and addresses of links."""
DOCS_WORDS = 10_600
"""Of all pages but the decisions, which are records, as `wc -w` counts: 10,000 for the engine, the rest for what came
after it."""


def blocks(page: Path, language: str = "sh") -> list[str]:
    """Returns the contents of a page's code blocks in `language`. Every `sh` block is run."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def office(tmp_path: Path) -> Path:
    """A folder with the files that the commands name: photos, a probe, a group, a ZIP, a manifest."""
    people, probes = make_photos(tmp_path / "demo")
    folder = tmp_path / "office"
    shutil.copytree(people, folder / "photos")
    (folder / "photos" / "left-1").rename(folder / "photos" / "ana")
    shutil.copy(probes / "left-1-small.jpg", folder / "probe.jpg")
    (folder / "group.jpg").write_bytes(photos.six_people())
    for number, name in enumerate(("left-2", "left-3"), 1):
        shutil.copy(people / name / "1.jpg", folder / f"ana_{number}.jpg")
    shutil.make_archive(str(folder / "photos"), "zip", folder / "photos")
    for probe in PROBES:
        person = folder / "labelled" / (probe.expected or "stranger")
        person.mkdir(parents=True)
        shutil.copy(probes / probe.file, person)
        if probe.expected:
            shutil.copy(people / probe.expected / "1.jpg", person)
    rows = ["image,external_id,name,valid_until,department", "photos/ana/1.jpg,ana,Ana,2099-12-31,Sales"]
    (folder / "staff.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def environment(office: Path) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {
        **clean_environment(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WHOSTHERE_HOME": str(office / "home"),
        "WHOSTHERE_PORT": port,
    }


def run_commands(commands: str, office: Path, environment: dict[str, str]) -> str:
    """Runs the commands of a page and returns their output; the first command that fails fails the test."""
    # Exit code 3 means that some images were rejected, which is a valid answer: two of the photos are the same file.
    script = "set -e\n" + "".join(
        f"{line} || [ $? = 3 ]\n" if line.startswith("whosthere enroll") else f"{line}\n"
        for line in commands.replace("8000", environment["WHOSTHERE_PORT"]).splitlines()
    )
    code, output = run_to_its_end(script, office, environment)
    assert code in (0, 143), f"{script}\n{output}"
    return output


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_commands_run(page: Path, office: Path, environment: dict[str, str]) -> None:
    for block in blocks(page):
        run_commands(block, office, environment)


def test_the_readme_python_example_answers_with_the_person(office: Path, environment: dict[str, str]) -> None:
    (commands,), (example,) = blocks(ROOT / "README.md"), blocks(ROOT / "README.md", "python")
    output = run_commands(f"{commands}\npython - <<'EXAMPLE'\n{example}\nEXAMPLE", office, environment)
    assert output.splitlines()[-1] == "ana"


def run_to_its_end(script: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Returns exit code and output of a shell script, and ends servers that it leaves in the background."""
    log = folder / "output.log"
    with log.open("wb") as file:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its process group has everything that it started
        )
        try:
            code = shell.wait(LINES_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return code, log.read_text(encoding="utf-8", errors="replace")


def test_the_readme_shows_the_main_commands() -> None:
    shown = "\n".join(blocks(ROOT / "README.md"))
    assert {"enroll", "search", "serve"} <= set(re.findall(r"^whosthere (\w+)", shown, re.MULTILINE))


def test_the_readme_is_short() -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    words = [word for word in re.sub(r"\]\([^)]*\)", "]", text).replace("|", " ").split() if re.search(r"\w", word)]
    assert len(words) <= README_WORDS


def test_the_pages_are_short() -> None:
    assert sum(len(page.read_text().split()) for page in PAGES[1:] if page.name != "decisions.md") <= DOCS_WORDS


def test_the_recording_shows_every_probe_of_the_demo() -> None:
    recording = (ROOT / "docs" / "demo.svg").read_text()
    for probe in PROBES:
        assert probe.file in recording


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_pages_have_no_placeholders(page: Path) -> None:
    assert not re.search(r"@@|TODO|FIXME|XXX|<<<<|>>>>", page.read_text())


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"`{PREFIX}{name.upper()}`" in page
        assert field.description
        assert field.description in page
    documented = set(re.findall(rf"`{PREFIX}([A-Z_]+)`", page))
    assert documented == {name.upper() for name in Settings.model_fields}


def test_every_reason_is_documented() -> None:
    page = (ROOT / "docs" / "enroll.md").read_text()
    assert set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)) == set(Reason)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}, link
