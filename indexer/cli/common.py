"""What the commands share: options, the opened AppContext, and printing."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from indexer.app_context import AppContext
from indexer.settings import Settings, read_settings
from indexer.types import Device, Gallery, LivenessMode, Outcome

FAILED = 1
"""Exit code when the command failed."""

SOME_REJECTED = 3
"""Exit code when some images were rejected and the others were enrolled."""

SHOWN_REJECTIONS = 20

PLAIN_LINE_EVERY_SECONDS = 5.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
gallery_option = click.option("--gallery", "-g", required=True, metavar="G", help="The gallery's name.")


device_option = click.option(
    "--device", type=click.Choice([str(d) for d in Device]), help="What the networks run on (WHOSTHERE_DEVICE)."
)
"""For commands under `with_context`, which takes the option."""


liveness_option = click.option(
    "--liveness",
    type=click.Choice([str(mode) for mode in LivenessMode]),
    callback=lambda _, __, value: LivenessMode(value) if value else None,
    help="Show whether faces are live, or require it (WHOSTHERE_LIVENESS).",
)


def context_opener(
    open_context: Callable[[Settings], AppContext],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator for commands: it adds the option `--home`, and passes what `open_context` opens there as the
    first argument, on the `--device` asked for."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--home", type=click.Path(path_type=Path), help="Data folder (WHOSTHERE_HOME).")
        @wraps(command)
        def run(*args: Any, home: Path | None, device: str | None = None, **kwargs: Any) -> Any:
            folder = home or click.get_current_context().find_root().params.get("home")
            context = open_context(read_settings(home=folder, device=device))
            try:
                return command(context, *args, **kwargs)
            finally:
                context.close()

        return run

    return decorate


with_context = context_opener(AppContext)


def examples(*lines: str) -> str:
    """Returns the examples that end a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(*columns: str) -> Table:
    return Table(*(Column(name, overflow="fold") for name in columns), box=None, header_style="bold", pad_edge=False)


def show(content: object) -> None:
    """Prints for people: as wide as their terminal, or 200 columns without one."""
    # Names are data: "Ana [/IT]" and ":x:" are not markup.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(content)


def summary_of(
    context: AppContext, gallery: Gallery, unit: str, outcomes: Counter[Outcome], seconds: float
) -> dict[str, Any]:
    """Returns the outcomes counted (`unit` names what was enrolled) and what the gallery holds now, for `--json`."""
    identities, faces = context.store.galleries.counts(gallery.id)
    return {
        "gallery": gallery.name,
        "model": gallery.model,
        unit: outcomes.total(),
        "enrolled": outcomes[Outcome.ENROLLED],
        "unchanged": outcomes[Outcome.UNCHANGED],
        "rejected": outcomes[Outcome.REJECTED],
        "identities": identities,
        "faces": faces,
        "seconds": round(seconds, 3),
    }


def print_counts(summary: dict[str, Any], unit: str) -> None:
    """Prints what `summary_of` returns, for people."""
    click.echo(
        f"{summary[unit]} {unit}: {summary['enrolled']} enrolled, {summary['unchanged']} unchanged, "
        f"{summary['rejected']} rejected, in {summary['seconds']:.1f} s."
    )
    click.echo(
        f"Gallery {summary['gallery']} ({summary['model']}) holds {summary['identities']} identities "
        f"with {summary['faces']} faces."
    )


@contextmanager
def progress_count(what: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yields a function that shows progress on standard error: `(done, total, remark)`.

    It draws a bar on a terminal, and prints a line every few seconds elsewhere.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        printed = time.monotonic()

        def report(done: int, total: int, more: str) -> None:
            nonlocal printed
            if time.monotonic() - printed >= PLAIN_LINE_EVERY_SECONDS:
                printed = time.monotonic()
                click.echo(f"{done} of {total} {unit}{f', {more}' if more else ''}", err=True)

        yield report
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[more]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, more="")
        yield lambda done, total, more: bar.update(task, completed=done, total=total, more=more)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields a function that shows the bytes of each file on standard error: `(name, done, total)`.

    It draws a bar for each file on a terminal, and prints lines elsewhere.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        printed: dict[str, float] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if done == total or time.monotonic() - printed.get(name, 0.0) >= PLAIN_LINE_EVERY_SECONDS:
                printed[name] = time.monotonic()
                of = f" of {total / 1e6:.1f}" if total else ""
                click.echo(f"{name}: {done / 1e6:.1f}{of} MB", err=True)

        yield report
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield draw
