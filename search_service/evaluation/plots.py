"""The curves of an evaluation, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from search_service.calibration.plot import FAINT, INK, OWN, STRANGER
from search_service.evaluation.metrics import BIN, Asked, Basis, Histogram, Numbers, Rate

WIDTH, HEIGHT = 560, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 28, 18, 52
"""Pixels around the axes."""
WRONG, SOFT = "#9333ea", "#6b7280"
NARROW = 1.5
"""Decades: an axis of more has labels at 1 of 1, 2 and 5 alone."""
LEAST_HEIGHT = 3
"""Pixels of a bin that holds anything."""
LINES = (0.1, 0.01, 0.001)
"""FPIRs whose thresholds are drawn into the histogram."""

_Scale = Callable[[float], float]
"""From a value to a pixel."""


def det_picture(told: Numbers) -> str:
    """FNIR over FPIR, both logarithmic, and the intervals at the FPIRs of the table."""
    rates = [rate for rate in told.rates if rate.fnir is not None]
    heights = [fnir for _, fnir in told.det] + [e for r in rates if r.fnir for e in (r.fnir.low, r.fnir.high)]
    shown = [height for height in heights if height > 0]
    if not told.det or not shown:
        return _nothing("Nobody was missed at any threshold." if told.det else "There are no strangers to search with.")
    x = _Log([fpir for fpir, _ in told.det if fpir > 0] or [0.5], LEFT, WIDTH - RIGHT)
    y = _Log(shown, HEIGHT - BOTTOM, TOP)
    parts = [_opening("DET curve: FNIR over FPIR")]
    for value, label in y.ticks():
        at = y(value)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, FAINT))
        parts.append(_text(LEFT - 8, at + 4, label, anchor="end"))
    for value, label in x.ticks():
        at = x(value)
        parts.append(_line(at, TOP, at, HEIGHT - BOTTOM, FAINT))
        parts.append(_text(at, HEIGHT - BOTTOM + 18, label, anchor="middle"))
    points = [(x(fpir), y(fnir)) for fpir, fnir in told.det if fpir > 0]
    parts.append(f'<path d="{_steps(points)}" fill="none" stroke="{OWN}" stroke-width="2"/>')
    parts += [_marked(rate, x, y) for rate in rates]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "FPIR: strangers taken for somebody", SOFT, "middle"))
    parts.append(_turned(16, (TOP + HEIGHT - BOTTOM) / 2, "FNIR: people missed"))
    return "\n".join([*parts, "</svg>"])


def histogram_picture(told: Histogram, asked: Sequence[Asked]) -> str:
    """How the top scores of mated probes and strangers are spread, and the service's own thresholds."""
    groups = ((told.strangers, STRANGER), (told.right, OWN), (told.wrong, WRONG))
    if not told.right and not told.strangers:
        return _nothing("Nothing could be searched.")
    totals = (sum(told.strangers), sum(told.right) + sum(told.wrong), sum(told.right) + sum(told.wrong))
    shares = [[count / max(total, 1) for count in counts] for (counts, _), total in zip(groups, totals, strict=True)]
    most = max(map(max, shares))
    lines = [one for one in asked if one.fpir in LINES]
    low = min(told.start, *(one.threshold for one in lines))
    high = max(told.start + BIN * len(told.right), *(one.threshold for one in lines))

    def x(score: float) -> float:
        return LEFT + (score - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share / most * (HEIGHT - BOTTOM - TOP - 32)

    parts = [_opening("Histograms of scores")]
    for height in (most / 2, most):
        parts.append(_line(LEFT, y(height), WIDTH - RIGHT, y(height), FAINT))
        parts.append(_text(LEFT - 8, y(height) + 4, f"{100 * height:.2g} %", anchor="end"))
    for (counts, color), share in zip(groups, shares, strict=True):
        if any(counts):
            parts.append(_area(told.start, share, x, y, color))
    for i, one in enumerate(lines):
        at, above = x(one.threshold), TOP + 10 + 14 * (i % 2)  # neighbours do not run into each other
        parts.append(_line(at, above + 5, at, y(0), INK, dash="4 3"))
        parts.append(_text(at, above, f"{100 * one.fpir:g} %", anchor="middle"))
    parts.append(_line(LEFT, y(0), WIDTH - RIGHT, y(0), INK))
    ticks = [tick / 10 for tick in range(math.ceil(low * 10), math.floor(high * 10) + 1)]
    parts += [_text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:.1f}", anchor="middle") for tick in ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "score of the top candidate", SOFT, "middle"))
    parts.append(_turned(16, (TOP + HEIGHT - BOTTOM) / 2, "share of the photos"))
    return "\n".join([*parts, "</svg>"])


class _Log:
    """A logarithmic axis over values above 0, from pixel to pixel, ending at 1, 2 or 5 of a decade."""

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
                whole = f"{value:e}".startswith("1.0")
                yield value, f"{100 * value:g} %" if whole or self._span < 2 * NARROW else ""


def _decades() -> list[float]:
    return [float(f"{digit}e{power}") for power in range(-9, 1) for digit in (1, 2, 5) if digit == 1 or power < 0]


def _marked(rate: Rate, x: _Log, y: _Log) -> str:
    if rate.fnir is None:
        return ""
    at, fill = x(rate.fpir), OWN if rate.basis is Basis.MEASURED else "white"
    return (
        _line(at, y(rate.fnir.low), at, y(rate.fnir.high), OWN)
        + f'<circle cx="{at:.1f}" cy="{y(rate.fnir.value):.1f}" r="4.5" fill="{fill}" stroke="{OWN}" stroke-width="2"/>'
    )


def _steps(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _area(start: float, shares: Sequence[float], x: _Scale, y: _Scale, color: str) -> str:
    """One shape for each run of bins that hold something, high enough to be seen."""
    floor, path = y(0), ""
    for i, share in enumerate(shares):
        left, right = x(start + i * BIN), x(start + (i + 1) * BIN)
        if not share:
            continue
        path += "L" if i and shares[i - 1] else f"M{left:.1f} {floor:.1f}L"
        height = min(y(share), floor - LEAST_HEIGHT)
        path += f"{left:.1f} {height:.1f}L{right:.1f} {height:.1f}"
        if i + 1 == len(shares) or not shares[i + 1]:
            path += f"L{right:.1f} {floor:.1f}"
    return f'<path d="{path}" fill="{color}" fill-opacity="0.28" stroke="{color}"/>'


def _opening(label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" font-family="inherit">'


def _nothing(why: str) -> str:
    return f"{_opening(why)}{_text(WIDTH / 2, HEIGHT / 2, why, SOFT, 'middle')}</svg>"


def _line(x1: float, y1: float, x2: float, y2: float, color: str, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dashed}/>'


def _text(x: float, y: float, text: str, color: str = INK, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="13" text-anchor="{anchor}">{escape(text)}</text>'


def _turned(x: float, y: float, text: str) -> str:
    return (
        f'<text x="{x}" y="{y:.1f}" fill="{SOFT}" font-size="13" text-anchor="middle" '
        f'transform="rotate(-90 {x} {y:.1f})">{escape(text)}</text>'
    )
