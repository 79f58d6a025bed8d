"""Migrates a database repeatedly, each time in a process that is killed one statement later."""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from typing import Any

import alembic.command  # noqa: F401 (once, not in every child)
from sqlalchemy import event

from indexer.gallery.database import current_version, migrate, open_database


def main(url: str) -> None:
    """Prints the version of the database after each killed child, and ends with the first child that completes."""
    for statements in count(1):
        child = os.fork()
        if child == 0:
            _migrate(url, statements)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        engine = open_database(url)
        sys.stdout.write(f"{current_version(engine)}\n")
        engine.dispose()
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            assert os.waitstatus_to_exitcode(status) == 0
            return


def _migrate(url: str, statements: int) -> None:
    """Migrates and kills itself after so many statements."""
    left = iter(range(statements - 1, -1, -1))

    def executed(*_: Any) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = open_database(url)
    event.listen(engine, "after_cursor_execute", executed)
    migrate(engine)


if __name__ == "__main__":
    main(sys.argv[1])
