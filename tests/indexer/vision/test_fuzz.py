"""Thousands of damaged images: each is decoded or rejected in a short time, without a crash or a memory leak.

`FUZZ=10000 .venv/bin/python -m pytest tests/indexer/vision/test_fuzz.py` tests more of them. The images are
reproducible: `tests.indexer.vision.fuzz.mutant` makes one from its number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.indexer.vision import fuzz

IMAGES = int(os.environ.get("FUZZ", "1500"))
PROCESS_IMAGES = 500
"""Images of one process, so that a crash does not affect all others."""

DEADLINE = 300
"""Seconds after which a process counts as hanging; it takes two."""

MAX_SECONDS = 10.0
"""CPU time of one image of some kB. A PNG of the maximum size, 100 million pixels, takes two seconds."""

MAX_GROWTH = 2**20
"""Bytes by which a process may grow in the best of several rounds: 2 kB per image; the smallest picture has 23."""


@pytest.mark.parametrize("first", range(0, IMAGES, PROCESS_IMAGES))
def test_damaged_images_neither_crash_nor_leak(tmp_path: Path, first: int) -> None:
    count, progress = min(PROCESS_IMAGES, IMAGES - first), tmp_path / "progress"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", fuzz.__name__, str(first), str(count), str(progress)],
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    last = progress.read_text() if progress.exists() else "none"
    assert done.returncode == 0, f"ended with {done.returncode} at image {last}: {done.stderr.decode()[-4000:]}"
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert set(report["ended"]) <= {"decoded", "unreadable_image", "image_too_large"}
    assert sum(report["ended"].values()) == 2 * count, "full size and reduced"
    assert min(report["ended"][outcome] for outcome in ("decoded", "unreadable_image")) > count / 10
    seconds, number = report["slowest"]
    assert seconds < MAX_SECONDS, f"image {number}"
    assert min(report["grown"]) < MAX_GROWTH, report


def test_damaged_images_are_reproducible() -> None:
    assert [fuzz.mutant(number) for number in range(20)] == [fuzz.mutant(number) for number in range(20)]
    assert len({fuzz.mutant(number) for number in range(200)}) > 190
