"""Failures of the `whosthere` command are one line and an exit code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from search_service.cli import app
from tests.search_service.api.serving import ENVIRONMENT, WHOSTHERE
from tests.waiting import DEADLINE


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [WHOSTHERE, *arguments, "--home", str(home)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | environment,
        timeout=DEADLINE,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_serve_reports_an_unreachable_database_in_one_line(tmp_path: Path) -> None:
    url = "postgresql://me:secret@127.0.0.1:1/x"
    line = one_line(run(tmp_path, "serve", "--port", "0", WHOSTHERE_DATABASE_URL=url))
    assert "does not answer" in line
    assert "secret" not in line


def test_serve_reports_a_damaged_database_in_one_line(tmp_path: Path) -> None:
    database = tmp_path / "whosthere.db"
    database.write_bytes(b"no database " * 1000)
    database.chmod(0o600)  # otherwise the log says that others could open it
    assert "not a database" in one_line(run(tmp_path, "serve", "--port", "0"))


def test_serve_reports_a_folder_that_cannot_be_created_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "file" in one_line(run(tmp_path / "file" / "home", "serve", "--port", "0"))


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (OSError(28, "No space left on device", "/data/x"), "Error: /data/x: No space left on device\n"),
        (PermissionError(13, "Permission denied"), "Error: Permission denied\n"),
        (OSError("odd"), "Error: odd\n"),
    ],
)
def test_errors_of_the_operating_system_are_printed_in_one_line(
    error: OSError, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app.whosthere, "main", fail)
    with pytest.raises(SystemExit) as end:
        app.main([])
    assert end.value.code == 1
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize(
    "arguments", [["models", "list", "--json"], ["models", "list"], ["gallery", "list"], ["--help"]]
)
def test_closed_standard_output_prints_no_error(tmp_path: Path, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [WHOSTHERE, *arguments],
            stdout=write,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT | {"WHOSTHERE_HOME": str(tmp_path)},
            timeout=DEADLINE,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_fpir_below_the_minimum_is_wrong_usage(tmp_path: Path) -> None:
    done = run(tmp_path, "search", "x.jpg", "--gallery", "g", "--fpir", "1e-300")
    assert done.returncode == 2
    assert done.stderr == "Error: fpir is 1e-300; expected 1e-09 or more and less than 1, as 0.01\n"
