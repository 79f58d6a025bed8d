"""The chart of `gallery calibrate`, as SVG."""

from __future__ import annotations

import numpy as np

from search_service.calibration.report import Basis, Report
from search_service.calibration.svg import FAINT, INK, OWN, STRANGER, line, steps, text

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 64, 46
"""Margins around the axes in pixels."""
BIN = 0.01
"""Width of a bin in cosine."""


def chart(report: Report, title: str) -> str:
    """Draws histograms of each person's best score with a stranger and with their own photos, and the thresholds."""
    strangers, mated = report.strangers, report.mated_scores
    scores = np.concatenate([strangers, mated, [row.threshold for row in report.rows]])
    low = float(np.floor(scores.min() * 20) / 20)
    edges = low + BIN * np.arange(np.ceil((scores.max() - low) / BIN) + 2)
    high = float(edges[-1])
    shares = [np.histogram(part, edges)[0] / max(len(part), 1) for part in (strangers, mated)]
    highest = max(float(share.max()) for share in shares) or 1.0
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def x(score: float) -> float:
        return LEFT + (score - low) / (high - low) * (right - LEFT)

    def y(share: float) -> float:
        return floor - share / highest * (floor - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(LEFT, 20, title, size=15),
        text(LEFT, 40, f"best score with somebody else ({len(strangers):,} people)", STRANGER, 12),
    ]
    if len(mated):
        parts.append(text(LEFT + 300, 40, f"with their own other photos ({len(mated):,} people)", OWN, 12))
    for share, color in zip(shares, (STRANGER, OWN), strict=True):
        if share.any():
            parts.append(steps([x(float(edge)) for edge in edges], [y(float(s)) for s in share], floor, color))
    for row in report.rows:
        at = x(row.threshold)
        parts.append(line(at, TOP, at, floor, dash="" if row.basis is Basis.MEASURED else "3 3"))
        parts.append(text(at, TOP + 1, f"{100 * row.fpir:g} %", size=11, anchor="end", pivot=TOP + 4))
    parts.append(line(LEFT, floor, right, floor))
    ticks = np.arange(np.ceil(low * 10) / 10, high + 1e-9, 0.1).tolist()
    parts += [text(x(tick), floor + 16, f"{tick:.1f}", size=12, anchor="middle") for tick in ticks]
    for height in (highest / 2, highest):
        parts.append(text(LEFT - 6, y(height) + 4, f"{100 * height:.2g} %", size=12, anchor="end"))
        parts.append(line(LEFT, y(height), right, y(height), FAINT))
    caption = "Cosine, and share of the people in each hundredth. Lines: threshold for an FPIR, dashed if not measured."
    return "\n".join([*parts, text(LEFT, HEIGHT - 10, caption, INK, 12), "</svg>", ""])
