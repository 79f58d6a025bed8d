"""Runs the `whosthere` command, in this process or as the installed script."""

from __future__ import annotations

import io
import json
import math
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image

from indexer.cli import common
from search_service.cli import main
from tests.variants import clean_environment
from tests.waiting import DEADLINE

SCRIPT = Path(sys.executable).with_name("whosthere")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Command:
    """The command with one home folder."""

    home: Path

    def __call__(self, *arguments: str | Path) -> Ran:
        """Runs the command in this process. Its output must be UTF-8, as on most terminals.

        Progress lines, which appear every few seconds of real time, are not printed.
        """
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
        code: object = 0
        no_progress = patch.object(common, "PLAIN_LINE_EVERY_SECONDS", math.inf)
        with redirect_stdout(out), redirect_stderr(err), no_progress:
            try:
                main(["--home", str(self.home), *map(str, arguments)])
            except SystemExit as end:
                code = end.code
        printed = []
        for stream in (out, err):
            stream.seek(0)
            printed.append(stream.read())
        assert isinstance(code, int)
        return Ran(code, *printed)

    def ok(self, *arguments: str | Path) -> Ran:
        ran = self(*arguments)
        assert ran.code == 0, ran
        return ran

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Starts the installed script, with the home folder in WHOSTHERE_HOME."""
        return subprocess.Popen(
            [SCRIPT, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=clean_environment(WHOSTHERE_HOME=str(self.home), **environment),
        )

    def script(self, *arguments: str | Path, **environment: str) -> Ran:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=DEADLINE)
        return Ran(process.returncode, out, err)

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """Opens the database; changes are committed at the end."""
        with closing(sqlite3.connect(self.home / "whosthere.db")) as connection, connection:
            connection.execute("PRAGMA foreign_keys = ON")
            yield connection

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with self.database() as database:
            return database.execute(sql).fetchall()

    def images(self) -> Sequence[str]:
        """Returns the SHA-256 of every enrolled image."""
        return [sha for (sha,) in self.query("SELECT image_sha256 FROM faces ORDER BY image_sha256")]


def reasons(summary: Mapping[str, Any]) -> dict[str, str | None]:
    """Returns the reason in the result of `enroll --json` for each file, by name."""
    return {Path(row["image"]).name: row["reason"] for row in summary["results"]}


def encode_jpeg(picture: Image.Image, quality: int = 95) -> bytes:
    """Returns the picture as a JPEG with Pillow's default subsampling."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
