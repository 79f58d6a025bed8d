"""Records `make demo` as an animated terminal: runs it and writes what it prints, with its timing, to docs/demo.svg.

    .venv/bin/python -m benchmarks.record_demo

Run it in a checkout that was installed with `make demo`; delete `data/demo` first to record an enrollment.
The picture shows the whole output, plays the recording once, and shows the whole output again.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "demo.svg"
COMMAND = ("make", "demo")

COLUMNS = 104
LONGEST_PAUSE_SECONDS = 1.0
TYPING_SECONDS = 0.09
"""Time of one keystroke of the command."""

CELL_WIDTH, LINE_HEIGHT, FONT_SIZE = 8.0, 19.0, 13.3
"""In pixels; DejaVu Sans Mono and Menlo are 0.602 of the font size wide."""
MARGIN, TITLE_HEIGHT = 18.0, 34.0

STYLE = """
.window { fill: #16181d; stroke: #3a3f4b }
text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; white-space: pre }
.line { fill: #d7dae0 }
.title { fill: #8b92a1; text-anchor: middle }
.prompt { fill: #7ec699 }
.bold { font-weight: bold; fill: #ffffff }
.timed { animation-name: wait; animation-delay: 3s }
@keyframes wait { from, to { visibility: hidden } }
@media (prefers-reduced-motion: reduce) { .timed { animation: none } }
"""
"""Everything is visible at first, as a still picture is; after 3 s each piece is hidden until its time has come."""


@dataclass(frozen=True)
class Line:
    """One line of output, with its ANSI styles, and when it was complete."""

    text: Text
    seconds: float


def record(command: Sequence[str]) -> list[Line]:
    """Runs `command` in a pseudo-terminal and returns its lines. Raises CalledProcessError if it fails."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    start = time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, stdin=follower, stdout=follower, stderr=follower, env=os.environ | {"TERM": "xterm"}
    ) as process:
        os.close(follower)
        lines = _read_lines(leader, start)
    os.close(leader)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return lines


def _read_lines(terminal: int, start: float) -> list[Line]:
    lines, pending = [], b""
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # EIO: the other end is closed, on Linux
            data = b""
        *complete, pending = (pending + data).split(b"\n")
        if not data and pending:
            complete.append(pending)
        now = time.monotonic() - start
        # A progress bar redraws its line after a carriage return: the last drawing counts.
        texts = [part.decode().rstrip("\r\n").rsplit("\r", 1)[-1] for part in complete]
        lines += [Line(Text.from_ansi(text.rstrip()), now) for text in texts]
        if not data:
            return lines


def shorten_pauses(lines: Sequence[Line], start: float) -> list[Line]:
    """Returns the lines on the animation's clock: from `start` on, with pauses of LONGEST_PAUSE_SECONDS at most."""
    shown, at, before = [], start, 0.0
    for line in lines:
        at += min(line.seconds - before, LONGEST_PAUSE_SECONDS)
        before = line.seconds
        shown.append(Line(line.text, at))
    return shown


def draw(command: Sequence[str], lines: Sequence[Line]) -> str:
    """Returns the recording as an SVG document."""
    typed = " ".join(command)
    start = 0.5 + TYPING_SECONDS * len(typed) + 0.4
    width = 2 * MARGIN + COLUMNS * CELL_WIDTH
    height = TITLE_HEIGHT + (len(lines) + 1) * LINE_HEIGHT + MARGIN
    body = [
        f'<rect class="window" x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>',
        *(f'<circle cx="{20 + 18 * n}" cy="18" r="5.5" fill="{color}"/>' for n, color in enumerate(_BUTTONS)),
        f'<text class="title" x="{width / 2:g}" y="22">whosthere</text>',
        _cells(0, 0, "$ ", "prompt", 0.0),
        *(
            _cells(0, 2 + column, letter, "line", 0.5 + TYPING_SECONDS * column)
            for column, letter in enumerate(typed)
            if letter != " "
        ),
    ]
    console = Console(width=COLUMNS, color_system="truecolor", legacy_windows=False)
    for row, line in enumerate(shorten_pauses(lines, start), 1):
        column = 0
        for segment in line.text.render(console):
            if segment.text.strip():
                bold = segment.style is not None and segment.style.bold
                body.append(_cells(row, column, segment.text, "bold" if bold else "line", line.seconds))
            column += segment.cell_length
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" font-size="{FONT_SIZE}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<title>Terminal recording of {escape(typed)}</title>",
        f"<style>{STYLE}</style>",
    ]
    return "\n".join([*head, *body, "</svg>\n"])


_BUTTONS = ("#ed6a5e", "#f5bf4f", "#61c554")


def _cells(row: int, column: int, text: str, kind: str, seconds: float) -> str:
    """Returns one run of text; `textLength` keeps the columns aligned with every font."""
    text = text.rstrip()
    return (
        f'<text class="{kind} timed" style="animation-duration:{seconds:.2f}s" x="{MARGIN + column * CELL_WIDTH:g}" '
        f'y="{TITLE_HEIGHT + (row + 0.8) * LINE_HEIGHT:g}" textLength="{len(text) * CELL_WIDTH:g}" '
        f'lengthAdjust="spacingAndGlyphs" xml:space="preserve">{escape(text)}</text>'
    )


def main() -> None:
    PICTURE.write_text(draw(COMMAND, record(COMMAND)))
    print(f"{PICTURE.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
