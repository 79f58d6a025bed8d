"""The chart of `gallery calibrate`, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from search_service.calibration.report import Basis, Report

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 64, 46
"""Margins around the axes in pixels."""
BIN = 0.01
"""Width of a bin in cosine."""
STRANGER, OWN, INK, FAINT = "#c2410c", "#1d4ed8", "#1f2937", "#d1d5db"


def chart(report: Report, title: str) -> str:
    """Draws histograms of each person's best score with a stranger and with their own photos, and the thresholds."""
    strangers, mated = report.strangers, report.mated_scores
    scores = np.concatenate([strangers, mated, [row.threshold for row in report.rows]])
    low = float(np.floor(scores.min() * 20) / 20)
    edges = low + BIN * np.arange(np.ceil((scores.max() - low) / BIN) + 2)
    high = float(edges[-1])
    shares = [np.histogram(part, edges)[0] / max(len(part), 1) for part in (strangers, mated)]
    highest = max(float(share.max()) for share in shares) or 1.0

    def x(score: float) -> float:
        return LEFT + (score - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share / highest * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 20, title, size=15),
        _text(LEFT, 40, f"best score with somebody else ({len(strangers):,} people)", STRANGER),
    ]
    if len(mated):
        parts.append(_text(LEFT + 300, 40, f"with their own other photos ({len(mated):,} people)", OWN))
    for share, color in zip(shares, (STRANGER, OWN), strict=True):
        if share.any():
            parts.append(_steps([x(float(edge)) for edge in edges], [y(float(s)) for s in share], color))
    for row in report.rows:
        dash = "" if row.basis is Basis.MEASURED else ' stroke-dasharray="3 3"'
        at = f"{x(row.threshold):.1f}"
        parts.append(f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{y(0):.1f}" stroke="{INK}"{dash}/>')
        parts.append(
            f'<text x="{at}" y="{TOP + 1}" fill="{INK}" font-size="11" text-anchor="end" '
            f'transform="rotate(-90 {at} {TOP + 4})">{100 * row.fpir:g} %</text>'
        )
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="{INK}"/>')
    ticks = np.arange(np.ceil(low * 10) / 10, high + 1e-9, 0.1).tolist()
    parts += [_text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:.1f}", anchor="middle") for tick in ticks]
    for height in (highest / 2, highest):
        at = f"{y(height):.1f}"
        parts.append(_text(LEFT - 6, y(height) + 4, f"{100 * height:.2g} %", anchor="end"))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" stroke="{FAINT}"/>')
    caption = "Cosine, and share of the people in each hundredth. Lines: threshold for an FPIR, dashed if not measured."
    return "\n".join([*parts, _text(LEFT, HEIGHT - 10, caption), "</svg>", ""])


def _steps(edges: Sequence[float], heights: Sequence[float], color: str) -> str:
    floor = f"{HEIGHT - BOTTOM}"
    path = f"M{edges[0]:.1f} {floor}"
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        path += f"L{left:.1f} {height:.1f}L{right:.1f} {height:.1f}"
    return f'<path d="{path}L{edges[-1]:.1f} {floor}Z" fill="{color}" fill-opacity="0.25" stroke="{color}"/>'


def _text(x: float, y: float, text: str, color: str = INK, size: int = 12, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
    )
