"""The `whosthere` command."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits with its code. The commands are imported when it is called."""
    from search_service.cli.app import main as run

    run(arguments)
