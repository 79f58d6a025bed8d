"""The `whosthere` command as people call it: in this process, or as the installed script."""

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
    """The command over one home folder."""

    home: Path

    def __call__(self, *arguments: str | Path) -> Ran:
        """In this process; what it prints must be UTF-8, as on most terminals.

        Lines of progress, which come every few seconds of real time, are not printed.
        """
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
        code: object = 0
        no_progress = patch.object(common, "PLAIN_LINE_EVERY_SECONDS", math.inf)
        with redirect_stdout(out), redirect_stderr(err), no_progress:
            try:
                main(["--home", str(self.home), *map(str, arguments)])
            except SystemExit as end:
                code = end.code
        told = []
        for stream in (out, err):
            stream.seek(0)
            told.append(stream.read())
        assert isinstance(code, int)
        return Ran(code, *told)

    def ok(self, *arguments: str | Path) -> Ran:
        ran = self(*arguments)
        assert ran.code == 0, ran
        return ran

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """As the installed script, found by WHOSTHERE_HOME."""
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
        """The database itself; what is done is committed."""
        with closing(sqlite3.connect(self.home / "whosthere.db")) as connection, connection:
            connection.execute("PRAGMA foreign_keys = ON")
            yield connection

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with self.database() as database:
            return database.execute(sql).fetchall()

    def images(self) -> Sequence[str]:
        """The SHA-256 of every enrolled image."""
        return [sha for (sha,) in self.query("SELECT image_sha256 FROM faces ORDER BY image_sha256")]


def reasons(summary: Mapping[str, Any]) -> dict[str, str | None]:
    """What `enroll --json` says of each file, by name."""
    return {Path(row["image"]).name: row["reason"] for row in summary["results"]}


def encode_jpeg(picture: Image.Image, quality: int = 95) -> bytes:
    """Returns the picture as a JPEG with Pillow's default subsampling."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
