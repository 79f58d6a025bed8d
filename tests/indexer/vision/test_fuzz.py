"""Thousands of damaged images in every decoder: each ends as pixels or as a rejection, soon, and leaves nothing behind.

`FUZZ=10000 .venv/bin/python -m pytest tests/vision/test_fuzz.py` tries more of them. Those of a number are always the
same: `tests.vision.fuzz.mutant` makes them.
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
AT_ONCE = 500
"""Images of one process: one that dies of an image takes no others with it."""

DEADLINE = 300
"""Seconds after which a process hangs; it needs two."""

SLOWEST = 10.0
"""Seconds of CPU for one image of some kB. A PNG of as many pixels as are allowed, 100 million, takes two."""

LEAK = 2**20
"""Bytes that nothing but a leak makes a process grow by in each of several rounds: 2 kB an image, and the smallest
picture has 23."""


@pytest.mark.parametrize("first", range(0, IMAGES, AT_ONCE))
def test_damaged_images_neither_crash_nor_leak(tmp_path: Path, first: int) -> None:
    count, progress = min(AT_ONCE, IMAGES - first), tmp_path / "progress"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", fuzz.__name__, str(first), str(count), str(progress)],
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    last = progress.read_text() if progress.exists() else "none"
    assert done.returncode == 0, f"ended with {done.returncode} at image {last}: {done.stderr.decode()[-4000:]}"
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    assert sum(told["ended"].values()) == 2 * count, "whole and reduced"
    assert min(told["ended"].get(word, 0) for word in ("decoded", "unreadable_image")) > count / 10, "both are tried"
    seconds, number = told["slowest"]
    assert seconds < SLOWEST, f"image {number}"
    assert min(told["grown"]) < LEAK, told


def test_a_damaged_image_is_the_same_again() -> None:
    assert [fuzz.mutant(number) for number in range(20)] == [fuzz.mutant(number) for number in range(20)]
    assert len({fuzz.mutant(number) for number in range(200)}) > 190
