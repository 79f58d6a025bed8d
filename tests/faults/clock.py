"""Runs `whosthere` with a clock that can be set: the file named by CLOCK contains its offset in seconds."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path


def main() -> None:
    """Replaces the functions that return the time before the program's modules import them, and runs the program."""
    file, real = Path(os.environ["CLOCK"]), time.time

    def offset() -> float:
        return float(file.read_text())

    from indexer import clock

    clock.now = lambda: datetime.now(UTC) + timedelta(seconds=offset())
    time.time = lambda: real() + offset()
    time.time_ns = lambda: int(time.time() * 1e9)

    from search_service.cli import main as whosthere

    whosthere()


if __name__ == "__main__":
    main()
