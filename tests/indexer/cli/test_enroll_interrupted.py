"""`whosthere enroll` in several processes: at the same time, interrupted and killed."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import re
import select
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageEnhance

from tests import photos
from tests.indexer.cli.command import Command
from tests.indexer.cli.conftest import Demo
from tests.waiting import DEADLINE, wait_for

ROW_BYTES = 700
"""More than each row of a report has; 300 of them are three times what a FIFO holds."""

FIFO_BYTES = 65_536


def make_crowd(demo: Demo, folder: Path, copies: int) -> list[str]:
    """Writes six of the demo's people in `copies` different photos each. Returns the photos' SHA-256, sorted."""
    for person in sorted(demo.photos.iterdir()):
        if person.name == "hanks":  # its quality is just above the limit
            continue
        with Image.open(person / "1.jpg") as opened:
            original = opened.convert("RGB")
        (folder / person.name).mkdir(parents=True)
        for i in range(copies):
            resized = original.resize((original.width - i % 10, original.height))
            picture = ImageEnhance.Brightness(resized).enhance(0.9 + 0.01 * (i // 10))
            (folder / person.name / f"{i}.jpg").write_bytes(photos.encode(picture, "JPEG", quality=90 + i % 7))
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.jpg"))
    assert len(set(hashes)) == 6 * copies
    return hashes


def test_two_processes_at_once_enroll_each_photo_once(empty: Command, demo: Demo, tmp_path: Path) -> None:
    hashes = make_crowd(demo, tmp_path / "photos", 8)
    both = [empty.start("enroll", tmp_path / "photos", "--gallery", "staff", "--json") for _ in range(2)]
    answers = [process.communicate(timeout=DEADLINE) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    summaries: list[dict[str, Any]] = [json.loads(out) for out, _ in answers]
    for one, other in zip(*(summary["results"] for summary in summaries), strict=True):
        assert {one["outcome"], other["outcome"]} == {"enrolled", "unchanged"}
        assert one["face_id"] == other["face_id"]
    assert empty.images() == hashes
    assert empty.ok("doctor").code == 0


class PipedReport:
    """A report in a FIFO. When nothing reads it, `enroll` blocks after the rows that a FIFO holds."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a writer
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # where it is larger by default: Linux with pages of 64 KiB
            fcntl.fcntl(self._file, fcntl.F_SETPIPE_SZ, FIFO_BYTES)
        self._text = b""

    def read_until_enrolled(self, process: subprocess.Popen[str]) -> None:
        """Reads until a row is enrolled, and not further than one call returns."""

        def is_enrolled() -> bool:
            self._read()
            return any(row["outcome"] == "enrolled" for row in self.rows())

        wait_for(lambda: is_enrolled() or process.poll() is not None, "a row that is enrolled")
        assert process.poll() is None, process.communicate()

    def read_to_end(self) -> None:
        """Reads until the writer has closed the FIFO."""
        while True:
            assert select.select([self._file], [], [], DEADLINE)[0], "the report is neither continued nor closed"
            if not self._read():
                return

    def rows(self) -> list[dict[str, str]]:
        """Returns the complete rows read so far; the last one may be cut off."""
        complete, _, _ = self._text.rpartition(b"\n")
        return list(csv.DictReader(io.StringIO(complete.decode())))

    def close(self) -> None:
        os.close(self._file)

    def _read(self) -> bytes:
        """Reads what is there, at most 4096 bytes; nothing when there is no writer."""
        try:
            read = os.read(self._file, 4096)
        except BlockingIOError:
            return b""
        self._text += read
        return read


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[list[PipedReport]]:
    opened = [PipedReport(tmp_path / f"{name}.csv") for name in ("first", "second")]
    yield opened
    for report in opened:
        report.close()


def check_acknowledged(command: Command, rows: list[dict[str, str]]) -> None:
    """Checks that the faces of a report are in the database, and each image once."""
    stored = {str(face_id): sha for face_id, sha in command.query("SELECT id, image_sha256 FROM faces")}
    for row in rows:
        assert row["outcome"] in ("enrolled", "unchanged")
        assert stored[row["face_id"]] == hashlib.sha256(Path(row["image"]).read_bytes()).hexdigest()
    assert len(stored) == len(set(stored.values()))


def test_interrupted_or_killed_enrollment_is_continued_by_the_next_run(
    empty: Command, demo: Demo, tmp_path: Path, reports: list[PipedReport]
) -> None:
    """The first two processes cannot end by themselves: the test does not read their reports to the end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it runs in the background
    folder = tmp_path.joinpath("photos", *(letter * (ROW_BYTES // 3) for letter in "abc"))
    expected = make_crowd(demo, folder, 50)
    arguments = ["enroll", str(folder), "--gallery", "staff", "--report"]

    first, report = empty.start(*arguments, reports[0].path), reports[0]
    report.read_until_enrolled(first)
    first.send_signal(signal.SIGINT)
    report.read_to_end()
    _, err = first.communicate(timeout=DEADLINE)
    assert first.returncode == 130, err
    *progress, last = filter(None, err.splitlines())
    assert last == "Interrupted. Everything acknowledged is kept; run the same command again to continue."
    assert all(re.fullmatch(r"\d+ of 300 images(, .*)?", line) for line in progress)
    interrupted = report.rows()
    check_acknowledged(empty, interrupted)
    assert 0 < len(interrupted) < 300

    second, report = empty.start(*arguments, reports[1].path), reports[1]
    report.read_until_enrolled(second)
    second.kill()
    report.read_to_end()
    second.communicate(timeout=DEADLINE)
    assert second.returncode == -signal.SIGKILL
    killed = report.rows()
    check_acknowledged(empty, killed)
    outcomes = [row["outcome"] for row in killed]
    assert outcomes[: len(interrupted)] == ["unchanged"] * len(interrupted), "acknowledged images are already enrolled"
    assert len(interrupted) < len(killed) < 300
    assert outcomes[-1] == "enrolled"
    assert empty.script("doctor").code == 0

    before = empty.images()
    summary = empty.script(*arguments, tmp_path / "third.csv", "--json").json
    assert Counter(row["outcome"] for row in summary["results"]) == {
        "unchanged": len(before),
        "enrolled": 300 - len(before),
    }
    assert (summary["faces"], summary["identities"]) == (300, 6)
    assert empty.images() == expected
    with (tmp_path / "third.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    check_acknowledged(empty, rows)
    assert len(rows) == 300
    assert empty.ok("doctor").code == 0
    assert empty.ok("gallery", "show", "staff", "--json").json["index"]["faces"] == 300
