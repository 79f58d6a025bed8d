"""Elements of SVG charts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STRANGER, OWN, WRONG = "#c2410c", "#1d4ed8", "#9333ea"
INK, SOFT, FAINT = "#1f2937", "#6b7280", "#d1d5db"


def line(x1: float, y1: float, x2: float, y2: float, color: str = INK, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dashed}/>'


def text(
    x: float,
    y: float,
    content: str,
    color: str = INK,
    size: int = 13,
    anchor: str = "start",
    pivot: float | None = None,
) -> str:
    """Returns a text that begins at (x, y), or is anchored there; it is rotated to read upwards around (x, pivot)."""
    turned = "" if pivot is None else f' transform="rotate(-90 {x:.1f} {pivot:.1f})"'
    attributes = f'x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="{size}" text-anchor="{anchor}"{turned}'
    return f"<text {attributes}>{escape(content)}</text>"


def steps(edges: Sequence[float], heights: Sequence[float], floor: float, color: str, opacity: float = 0.25) -> str:
    """Returns the filled outline of a histogram: N + 1 edges from left to right, and N heights."""
    path = f"M{edges[0]:.1f} {floor:.1f}"
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        path += f"L{left:.1f} {height:.1f}L{right:.1f} {height:.1f}"
    return f'<path d="{path}L{edges[-1]:.1f} {floor:.1f}Z" fill="{color}" fill-opacity="{opacity}" stroke="{color}"/>'
