"""The charts of an evaluation, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from search_service.calibration.svg import FAINT, INK, OWN, SOFT, STRANGER, WRONG, line, steps, text
from search_service.evaluation.metrics import BIN, Basis, Metrics

WIDTH, HEIGHT = 560, 400
LEFT, TOP, RIGHT, BOTTOM = 64, 18, 532, 348
"""Pixels of the axes."""
NARROW = 1.5
"""Decades: longer axes have labels only at 1, not at 2 and 5."""
LEAST_HEIGHT = 3
"""Height in pixels of a bin that is not empty."""
LINES = (0.1, 0.01, 0.001)
"""FPIRs whose thresholds are drawn into the histogram."""


def det_chart(metrics: Metrics) -> str:
    """Draws FNIR over FPIR, both logarithmic, and the intervals at the FPIRs of the table."""
    rates = [(rate.fpir, rate.fnir, rate.basis) for rate in metrics.rates if rate.fnir is not None]
    heights = [fnir for _, fnir in metrics.det] + [edge for _, fnir, _ in rates for edge in (fnir.low, fnir.high)]
    heights = [height for height in heights if height > 0]
    if not metrics.det or not heights:
        why = "Nobody was missed at any threshold." if metrics.det else "There are no strangers to search with."
        return _empty_chart(why)
    x = _LogAxis([fpir for fpir, _ in metrics.det if fpir > 0] or [0.5], LEFT, RIGHT)
    y = _LogAxis(heights, BOTTOM, TOP)
    parts = [_opening("DET curve: FNIR over FPIR")]
    for value, label in y.ticks():
        parts.append(line(LEFT, y(value), RIGHT, y(value), FAINT))
        parts.append(text(LEFT - 8, y(value) + 4, label, anchor="end"))
    for value, label in x.ticks():
        parts.append(line(x(value), TOP, x(value), BOTTOM, FAINT))
        parts.append(text(x(value), BOTTOM + 18, label, anchor="middle"))
    path = "M" + "L".join(f"{x(fpir):.1f} {y(fnir):.1f}" for fpir, fnir in metrics.det if fpir > 0)
    parts.append(f'<path d="{path}" fill="none" stroke="{OWN}" stroke-width="2"/>')
    for fpir, fnir, basis in rates:
        at, fill = x(fpir), OWN if basis is Basis.MEASURED else "white"
        parts.append(line(at, y(fnir.low), at, y(fnir.high), OWN))
        point = f'cx="{at:.1f}" cy="{y(fnir.value):.1f}" r="4.5"'
        parts.append(f'<circle {point} fill="{fill}" stroke="{OWN}" stroke-width="2"/>')
    return _closed(parts, "FPIR: strangers taken for somebody", "FNIR: people missed")


def histogram_chart(metrics: Metrics) -> str:
    """Draws the distribution of the top scores of mated probes and strangers, and the service's thresholds."""
    found = metrics.histogram
    if not found.right and not found.strangers:
        return _empty_chart("Nothing could be searched.")
    mated = sum(found.right) + sum(found.wrong)
    groups = (
        (found.strangers, sum(found.strangers), STRANGER),
        (found.right, mated, OWN),
        (found.wrong, mated, WRONG),
    )
    highest = max(max(counts) / max(total, 1) for counts, total, _ in groups)
    lines = [rate for rate in metrics.calibrated if rate.fpir in LINES]
    low = min(found.start, *(rate.threshold for rate in lines))
    high = max(found.start + BIN * len(found.right), *(rate.threshold for rate in lines))

    def x(score: float) -> float:
        return LEFT + (score - low) / (high - low) * (RIGHT - LEFT)

    def y(share: float) -> float:
        return BOTTOM - share / highest * (BOTTOM - TOP - 32)

    parts = [_opening("Histograms of scores")]
    for height in (highest / 2, highest):
        parts.append(line(LEFT, y(height), RIGHT, y(height), FAINT))
        parts.append(text(LEFT - 8, y(height) + 4, f"{100 * height:.2g} %", anchor="end"))
    for counts, total, color in groups:
        for places in _runs(counts):
            edges = [x(found.start + place * BIN) for place in (*places, places[-1] + 1)]
            heights = [min(y(counts[place] / total), BOTTOM - LEAST_HEIGHT) for place in places]
            parts.append(steps(edges, heights, BOTTOM, color, 0.28))
    for i, rate in enumerate(lines):
        at, above = x(rate.threshold), TOP + 10 + 14 * (i % 2)  # labels of neighbors do not overlap
        parts.append(line(at, above + 5, at, BOTTOM, dash="4 3"))
        parts.append(text(at, above, f"{100 * rate.fpir:g} %", anchor="middle"))
    parts.append(line(LEFT, BOTTOM, RIGHT, BOTTOM, INK))
    ticks = [tick / 10 for tick in range(math.ceil(low * 10), math.floor(high * 10) + 1)]
    parts += [text(x(tick), BOTTOM + 18, f"{tick:.1f}", anchor="middle") for tick in ticks]
    return _closed(parts, "score of the top candidate", "share of the photos")


class _LogAxis:
    """A logarithmic axis for positive values, from one pixel to another, that ends at 1, 2 or 5 of a decade."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self._low = max(edge for edge in _decades() if edge <= min(values) * (1 + 1e-9))
        self._high = min(edge for edge in _decades() if edge >= max(values) * (1 - 1e-9) and edge > self._low)
        self._first, self._last = first, last
        self._span = math.log10(self._high / self._low)

    def __call__(self, value: float) -> float:
        part = math.log10(min(max(value, self._low), self._high) / self._low) / self._span
        return self._first + part * (self._last - self._first)

    def ticks(self) -> Iterator[tuple[float, str]]:
        for value in _decades():
            if self._low <= value <= self._high:
                is_power = f"{value:e}".startswith("1.0")
                yield value, f"{100 * value:g} %" if is_power or self._span < 2 * NARROW else ""


def _decades() -> list[float]:
    return [float(f"{digit}e{power}") for power in range(-9, 1) for digit in (1, 2, 5) if digit == 1 or power < 0]


def _runs(counts: Sequence[int]) -> list[list[int]]:
    """Returns the places of each run of bins that are not empty."""
    return [list(places) for is_filled, places in groupby(range(len(counts)), lambda i: counts[i] > 0) if is_filled]


def _opening(label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" font-family="inherit">'


def _closed(parts: Sequence[str], x_label: str, y_label: str) -> str:
    middle = (TOP + BOTTOM) / 2
    labels = (
        text((LEFT + RIGHT) / 2, HEIGHT - 12, x_label, SOFT, anchor="middle"),
        text(16, middle, y_label, SOFT, anchor="middle", pivot=middle),
    )
    return "\n".join([*parts, *labels, "</svg>"])


def _empty_chart(why: str) -> str:
    return f"{_opening(why)}{text(WIDTH / 2, HEIGHT / 2, why, SOFT, anchor='middle')}</svg>"
