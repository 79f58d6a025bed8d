"""Draws docs/speed.svg and docs/vectors.svg from the measurements in benchmarks/results.

.venv/bin/python -m benchmarks.charts
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SPEED, VECTORS = ROOT / "docs" / "speed.svg", ROOT / "docs" / "vectors.svg"

OURS, OTHERS = "#1a7f64", "#9aa3b2"
Row = dict[str, str]
Bar = tuple[str, float, str]
"""Label, value, and what is printed after the bar."""

PHOTO_ROWS = {
    "SearchService": "whosthere",
    "over HTTP": "whosthere over HTTP",
    "plain loop, OpenCV": "YuNet and SFace in OpenCV",
    "plain loop, same embedder, float32": "the same, SFace in OpenVINO",
}
"""Rows of search_latency.csv and their labels."""


def read(name: str) -> list[Row]:
    """Returns the rows of a result file; its first line, a comment, names the hardware."""
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def synthetic_galleries() -> list[Row]:
    """Returns the index comparisons over synthetic galleries."""
    return [row for row in read("vectors.csv") if row["table"] == "rivals" and row["gallery"] != "lfw"]


def million_faces() -> list[Bar]:
    """Returns the time of one query over a million faces of 512 numbers, and its recall relative to exact search."""
    return [
        (
            f"{row['rival']}, compressed" if row["rival"] == "whosthere" else row["rival"],
            float(row["query_ms"]),
            f"{float(row['query_ms']):.3g} ms, recall {100 * float(row['of_those_found']):.1f} %",
        )
        for row in synthetic_galleries()
        if (row["dim"], row["faces"]) == ("512", "1000000")
    ]


def one_photo() -> list[Bar]:
    """Returns the time from a photo's bytes to the answer, over 858 enrolled faces."""
    rows = {row["what"]: float(row["median_ms"]) for row in read("search_latency.csv")}
    return [(label, rows[name], f"{rows[name]:.3g} ms") for name, label in PHOTO_ROWS.items()]


def draw_bars(panel: Axes, bars: Sequence[Bar], title: str) -> None:
    """Draws horizontal bars, the first at the top; shorter is faster."""
    values = [value for _, value, _ in bars]
    colors = [OURS if label.startswith("whosthere") else OTHERS for label, _, _ in bars]
    drawn = panel.barh([label for label, _, _ in bars], values, color=colors, height=0.62)
    panel.bar_label(drawn, [after for _, _, after in bars], padding=4)
    panel.invert_yaxis()
    panel.set_title(title, loc="left", fontweight="bold", fontsize=10)
    panel.set_xlim(0, max(values) * 1.35)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.tick_params(left=False, bottom=False, labelbottom=False)


def draw_speed() -> None:
    figure = Figure(figsize=(8.4, 3.9), facecolor="white")
    figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.12)
    above, below = figure.subplots(2, 1)
    draw_bars(above, million_faces(), "One query over 1,000,000 faces on one thread (shorter is faster)")
    draw_bars(below, one_photo(), "One photo of a gallery of 858 faces, from JPEG to answer, two cores")
    figure.savefig(SPEED, metadata={"Date": None})


def draw_vectors() -> None:
    """Draws one query's time over the size of synthetic galleries, a panel for each dimension."""
    rows = synthetic_galleries()
    dims = sorted({int(row["dim"]) for row in rows})
    figure = Figure(figsize=(4.6 * len(dims), 4.4), layout="constrained", facecolor="white")
    panels: list[Axes] = list(figure.subplots(1, len(dims), sharey=True))
    for panel, dim in zip(panels, dims, strict=True):
        draw_lines(panel, [row for row in rows if int(row["dim"]) == dim], rows)
        panel.set_title(f"{dim} dimensions")
    panels[0].set_ylabel("one query on one thread, ms")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(VECTORS, metadata={"Date": None})


def draw_lines(panel: Axes, rows: Sequence[Row], all_rows: Sequence[Row]) -> None:
    for number, name in enumerate(dict.fromkeys(row["rival"] for row in rows)):
        mine = [row for row in rows if row["rival"] == name]
        recall = min(100 * float(row["of_those_found"]) for row in all_rows if row["rival"] == name)
        ours = name == "whosthere"
        panel.plot(
            [int(row["faces"]) for row in mine],
            [float(row["query_ms"]) for row in mine],
            marker="os^Dv<>"[number % 7],
            markersize=5,
            linewidth=2.5 if ours else 1.2,
            color="black" if ours else f"C{number}",
            label=name if recall > 99.95 else f"{name} (recall from {recall:.1f} %)",
        )
    sizes = sorted({int(row["faces"]) for row in rows})
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("faces")
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
    panel.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    panel.minorticks_off()
    panel.grid(alpha=0.3)


def main() -> None:
    # Text is drawn as paths, so that it looks the same whichever fonts are installed.
    with mpl.rc_context({"svg.hashsalt": "charts", "svg.fonttype": "path", "font.size": 9.5}):
        draw_speed()
        draw_vectors()
    print(f"{SPEED.relative_to(ROOT)} and {VECTORS.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
