"""Runs the code of an earlier commit in separate processes, through its public command."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.variants import clean_environment

COMMIT = "2374521989f54c742814b638307fb32528d4e172"
"""The last commit before the code was restructured."""

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("indexer", "search_service", "migrations", "pyproject.toml")

COMMAND = """
import sys, indexer
assert indexer.__file__.startswith(sys.argv.pop(1)), indexer.__file__
from search_service.cli import main
main()
"""

COMMANDS = """
import io, json, os, sys
from contextlib import redirect_stdout
from search_service.cli import main

answers, before = [], dict(os.environ)
for arguments, settings in json.load(sys.stdin):
    os.environ.update(settings)
    code = 0
    with redirect_stdout(io.StringIO()) as out:
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
    os.environ.clear()
    os.environ.update(before)
    answers.append([code, out.getvalue()])
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Command:
    """Arguments of `whosthere`, and settings that differ from those of the other commands of the process."""

    arguments: Sequence[str | Path]
    settings: Mapping[str, str]


def command(*arguments: str | Path, **settings: str) -> Command:
    return Command(arguments, settings)


def missing() -> str | None:
    """Returns why the earlier commit is not available, or None if it is."""
    if shutil.which("git") is None:
        return "git is not installed"
    found = subprocess.run(
        ["git", "cat-file", "-e", f"{COMMIT}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
    )
    if found.returncode == 0:
        return None
    return (
        f"commit {COMMIT[:7]} is not in this checkout (a shallow clone or a source archive?): {found.stderr.decode()}"
    )


def extract(folder: Path, revision: str = COMMIT) -> None:
    """Writes the packages of a commit to `folder`."""
    archive = subprocess.run(["git", "archive", revision, *PARTS], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


def program(code: Path) -> Sequence[str]:
    """Returns the `whosthere` of a source tree, to be run with `search_path`. -P keeps the working directory off it."""
    return sys.executable, "-P", "-c", COMMAND, str(code)


def search_path(code: Path) -> dict[str, str]:
    """Returns the environment variable with which Python imports the packages of a source tree."""
    return {"PYTHONPATH": os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])}


def run_python(source: str, *arguments: str | Path, stdin: str = "", **environment: str) -> str:
    """Runs a script and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", source, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        env=clean_environment(**environment),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_commands(commands: Sequence[Command], **environment: str) -> list[Any]:
    """Runs commands one after another in one process, which loads the libraries once. Each must end with exit code 0.
    Returns what each printed: an object where it is JSON."""
    lines = [([str(argument) for argument in one.arguments], one.settings) for one in commands]
    answers = json.loads(run_python(COMMANDS, stdin=json.dumps(lines), **environment))
    for one, (code, out) in zip(commands, answers, strict=True):
        assert code == 0, (one, out)
    return [json.loads(out) if out.startswith(("{", "[")) else out for _, out in answers]
