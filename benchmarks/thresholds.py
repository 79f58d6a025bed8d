"""Measures the scores of photos of different people, and the thresholds that follow from them.

    python -m benchmarks.thresholds [FOLDER]

Embeds every photo of an LFW folder and writes to benchmarks/results:
- thresholds_fmr.csv: the false match rate as a function of cosine over all pairs of photos of different people,
  with the exponential tail fitted to it (`packs.ScoreTail`), and the verification pairs at FMR 1e-3;
- thresholds_fpir.csv: the FPIR at thresholds of such a tail for 10, 3 and 1 %, and the FNIR. The tail is
  fitted on one half of the people and the rates are observed on the other, over SPLITS random halvings;
- thresholds_margin.csv: the answers that a minimum margin between the two best identities would send to review.

LFW has wrong labels, some of them one person under two names. Two people with photos whose score the tail expects for
less than one pair in total count as one person and are left out of every pair; `two_names` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks import lfw
from benchmarks.lfw import Cell, Embedded, OpenSet
from indexer.models.packs import SFACE
from indexer.types import ScoreTail, Vectors

BIN = 1e-4
"""Width of a histogram bin, as a cosine."""
EDGES = np.arange(-1.0, 1.0 + 2 * BIN, BIN)
BLOCK = 512
"""Photos compared with all others at a time."""
SAME_FMR = 1e-3
"""The false match rate at `Pack.same_threshold`."""
FIT_FMR = (1e-3, 1e-5)
"""The tail is fitted between these rates. For an FPIR of 1 %, a gallery of 10 needs an FMR of 1e-3, one of 1,000 needs
1e-5. Above 1e-3 the tail falls more slowly, so a wider fit would underestimate rare scores."""
FPIRS = (0.1, 0.03, 0.01)
SPLITS = 20
DRAWS = 20
"""Galleries drawn for the margin, each with a random photo of all people who have at least two."""
MARGINS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15)

Names = frozenset[tuple[int, int]]
"""Pairs of person numbers, the smaller first."""
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Impostors:
    """The scores of all pairs of photos of different people."""

    above: NDArray[np.int64]
    """Number of pairs that score EDGES[i] or more."""

    @property
    def pairs(self) -> int:
        return int(self.above[0])

    def fmr(self, cosine: float) -> float:
        return float(self.above[int(np.searchsorted(EDGES, cosine - BIN / 2))]) / self.pairs

    def cosine(self, fmr: float) -> float:
        """Returns the lowest cosine that no larger share exceeds."""
        return float(EDGES[int(np.argmax(self.above <= fmr * self.pairs))])


def impostors(vectors: Vectors, person: NDArray[np.int64], two_names: Names = frozenset()) -> Impostors:
    """`vectors` (M, D), `person` (M,)."""
    counts = np.zeros(len(EDGES), dtype=np.int64)
    for start in range(0, len(vectors), BLOCK):
        end = start + BLOCK
        scores = vectors[start:end] @ vectors[start:].T
        strangers = ~_same(person[start:end], person[start:], two_names)
        later = np.arange(scores.shape[1]) > np.arange(len(scores))[:, None]
        bins = ((scores[strangers & later] + 1) / BIN).astype(np.int64).clip(0, len(EDGES) - 1)
        counts += np.bincount(bins, minlength=len(EDGES))
    return Impostors(counts[::-1].cumsum()[::-1])


def _same(a: NDArray[np.int64], b: NDArray[np.int64], two_names: Names) -> Flags:
    """Returns (len(a), len(b)): whether two photos show one person, under either name."""
    same = a[:, None] == b[None, :]
    for one, other in two_names:
        for p, q in ((one, other), (other, one)):
            if (a == p).any() and (b == q).any():
                same |= (a == p)[:, None] & (b == q)[None, :]
    return np.asarray(same)


def find_two_names(data: Embedded, tail: ScoreTail, pairs: int) -> Names:
    """Returns people with photos whose score `tail` expects for less than one of `pairs` pairs of strangers."""
    limit = tail.cosine(1 / pairs)
    found: set[tuple[int, int]] = set()
    for start in range(0, len(data.vectors), BLOCK):
        rows, columns = np.nonzero(data.vectors[start : start + BLOCK] @ data.vectors.T >= limit)
        people = np.sort(np.stack([data.person[rows + start], data.person[columns]], axis=1), axis=1)
        found |= {(int(a), int(b)) for a, b in people[people[:, 0] != people[:, 1]]}
    return frozenset(found)


def fit(scores: Impostors, between: tuple[float, float] = FIT_FMR) -> ScoreTail:
    """Fits log FMR over cosine by least squares, at rates evenly spaced in the logarithm."""
    rates = np.geomspace(*between, 50)
    cosines = np.array([scores.cosine(float(rate)) for rate in rates])
    slope, offset = np.polyfit(cosines, np.log(rates), 1)
    start = float(cosines[0])
    return ScoreTail(start=start, rate=float(np.exp(offset + slope * start)), scale=float(-1 / slope))


def rate_at(tail: ScoreTail, cosine: float) -> float:
    return float(tail.rate * np.exp(-(cosine - tail.start) / tail.scale))


def threshold(tail: ScoreTail, fpir: float, identities: int) -> float:
    """Returns the score that the best of `identities` strangers reaches with probability `fpir`."""
    return tail.cosine(-float(np.expm1(np.log1p(-fpir) / identities)))


@dataclass(frozen=True, eq=False)
class Ranked:
    """Each probe's best and second-best identity."""

    best: NDArray[np.float32]
    second: NDArray[np.float32]
    right: Flags
    """Whether the best identity is the probe's person."""


def rank(data: Embedded, gallery: NDArray[np.int64], probes: NDArray[np.int64], two_names: Names) -> Ranked:
    """Removes the probe's person under another name from the gallery."""
    scores = data.vectors[probes] @ data.vectors[gallery].T
    mine = data.person[probes][:, None] == data.person[gallery][None, :]
    scores[_same(data.person[probes], data.person[gallery], two_names) & ~mine] = -1
    order = np.argpartition(-scores, 1, axis=1)[:, :2]
    rows = np.arange(len(probes))[:, None]
    order = order[rows, np.argsort(-scores[rows, order], axis=1)]
    top = scores[rows, order]
    return Ranked(top[:, 0], top[:, 1], mine[rows[:, 0], order[:, 0]])


def fmr_rows(data: Embedded, two_names: Names, pairs: list[lfw.Pair]) -> list[dict[str, Cell]]:
    labelled = impostors(data.vectors, data.person)
    scores = impostors(data.vectors, data.person, two_names)
    tail, wide = fit(scores), fit(scores, (1e-2, 1e-5))
    rows: list[dict[str, Cell]] = []
    for rate in (1e-1, 1e-2, SAME_FMR, 1e-4, 1e-5, 1e-6):
        cosine = scores.cosine(rate)
        rows.append(
            {
                "what": f"FMR {rate:g}",
                "cosine": cosine,
                "cosine_as_labelled": labelled.cosine(rate),
                "tail_fmr": rate_at(tail, cosine),
                "tail_fmr_over_measured": rate_at(tail, cosine) / rate,
                "tail_cosine_minus_measured": tail.cosine(rate) - cosine,
                "fitted_1e-2_to_1e-5_over_measured": rate_at(wide, cosine) / rate,
            }
        )
    row_of = data.rows
    known = [pair for pair in pairs if pair.a in row_of and pair.b in row_of]
    pair_scores = np.array([data.vectors[row_of[p.a]] @ data.vectors[row_of[p.b]] for p in known])
    same = np.array([pair.same for pair in known])
    accepted = pair_scores >= scores.cosine(SAME_FMR)
    values: dict[str, Cell] = {
        "tail start": tail.start,
        "tail rate": tail.rate,
        "tail scale": tail.scale,
        "pairs of strangers": scores.pairs,
        "photos": len(data.shots),
        "pairs.csv, same person": int(same.sum()),
        f"pairs.csv, same person, accepted at FMR {SAME_FMR:g}": float(accepted[same].mean()),
        f"pairs.csv, different people, accepted at FMR {SAME_FMR:g}": float(accepted[~same].mean()),
    }
    rows += [{"what": what, "value": value} for what, value in values.items()]
    rows += [
        {"what": f"two names: {data.names[a]} / {data.names[b]}", "value": best_score(data, a, b)}
        for a, b in sorted(two_names)
    ]
    return rows


def best_score(data: Embedded, a: int, b: int) -> float:
    return float((data.vectors[data.person == a] @ data.vectors[data.person == b].T).max())


def fpir_rows(data: Embedded, everybody: OpenSet, two_names: Names) -> list[dict[str, Cell]]:
    """Returns rates for the tail of one half on the other half, then for the pack's tail on all people."""
    observed: dict[float, list[tuple[float, ...]]] = {fpir: [] for fpir in FPIRS}
    for split in range(SPLITS):
        fitted = np.random.default_rng(split).permutation(len(data.names)) < len(data.names) // 2
        mine = fitted[data.person]
        tail = fit(impostors(data.vectors[mine], data.person[mine], two_names))
        other = OpenSet(*(part[~mine[part]] for part in (everybody.gallery, everybody.mated, everybody.non_mated)))
        for fpir, seen in observed.items():
            seen.append(observe(data, other, threshold(tail, fpir, len(other.gallery)), two_names))
        print(f"halving {split + 1}/{SPLITS}", flush=True)
    rows: list[dict[str, Cell]] = []
    for fpir, seen in observed.items():
        table = np.array(seen)
        rows.append(_fpir_row(f"{SPLITS} halvings, mean", fpir, len(everybody.gallery) // 2, table.mean(0)))
        rows.append(_fpir_row(f"{SPLITS} halvings, sd", fpir, len(everybody.gallery) // 2, table.std(0, ddof=1)))
    for fpir in FPIRS:
        identities = len(everybody.gallery)
        found = observe(data, everybody, threshold(SFACE.tail, fpir, identities), two_names)
        rows.append(_fpir_row("packs.py, everybody", fpir, identities, np.array(found)))
    return rows


def observe(data: Embedded, people: OpenSet, cosine: float, two_names: Names) -> tuple[float, ...]:
    """Returns threshold, FPIR, FPIR as labeled, FNIR and rank-1."""
    strangers = rank(data, people.gallery, people.non_mated, two_names)
    labelled = rank(data, people.gallery, people.non_mated, frozenset())
    mated = rank(data, people.gallery, people.mated, two_names)
    return (
        cosine,
        float((strangers.best >= cosine).mean()),
        float((labelled.best >= cosine).mean()),
        1 - float((mated.right & (mated.best >= cosine)).mean()),
        float(mated.right.mean()),
    )


def _fpir_row(tail: str, fpir: float, identities: int, values: NDArray[np.float64]) -> dict[str, Cell]:
    names = ("threshold", "fpir", "fpir_as_labelled", "fnir", "rank_1")
    row: dict[str, Cell] = {"tail": tail, "identities": identities, "fpir_requested": fpir}
    return row | {name: float(value) for name, value in zip(names, values, strict=True)}


def margin_rows(data: Embedded, two_names: Names, fpir: float) -> list[dict[str, Cell]]:
    """Returns the share of answers above the threshold for `fpir` within each margin, over DRAWS galleries."""
    draws = [answers_above(data, two_names, fpir, draw) for draw in range(DRAWS)]
    found = {kind: np.concatenate([draw[kind] for draw in draws]) for kind in draws[0]}
    rows: list[dict[str, Cell]] = []
    for margin in MARGINS:
        row: dict[str, Cell] = {"fpir_requested": fpir, "margin": margin}
        row |= {f"{kind}_to_review": float((values < margin).mean()) for kind, values in found.items()}
        rows.append(row | {f"{kind}_a_gallery": len(values) / DRAWS for kind, values in found.items()})
    return rows


def answers_above(data: Embedded, two_names: Names, fpir: float, draw: int) -> dict[str, NDArray[np.float32]]:
    """Returns the margins of a random gallery's correct answers, of wrong ones to mated probes, and to strangers."""
    counts = np.bincount(data.person)
    order = np.random.default_rng(draw).permutation(len(data.person))
    _, first = np.unique(data.person[order], return_index=True)
    chosen = order[first]  # one random photo of each person
    gallery = chosen[counts > 1]
    probes = np.setdiff1d(np.nonzero(counts[data.person] > 1)[0], gallery)
    cosine = threshold(SFACE.tail, fpir, len(gallery))
    mated = rank(data, gallery, probes, two_names)
    strangers = rank(data, gallery, chosen[counts == 1], two_names)
    kinds = {
        "right": (mated, mated.right),
        "wrong": (mated, ~mated.right),
        "stranger": (strangers, ~strangers.right),
    }
    return {
        kind: (ranked.best - ranked.second)[which & (ranked.best >= cosine)] for kind, (ranked, which) in kinds.items()
    }


def main() -> None:
    folder = lfw.arguments(__doc__).parse_args().folder
    shots = lfw.list_shots(folder)
    data = lfw.embed(lfw.load_pipeline(SFACE), shots)
    report(data, lfw.open_set(data, shots), lfw.list_pairs(folder))


def report(data: Embedded, people: OpenSet, pairs: list[lfw.Pair]) -> None:
    labelled = impostors(data.vectors, data.person)
    two_names = find_two_names(data, fit(labelled), labelled.pairs)
    lfw.write_results(lfw.RESULTS / "thresholds_fmr.csv", fmr_rows(data, two_names, pairs))
    lfw.write_results(lfw.RESULTS / "thresholds_fpir.csv", fpir_rows(data, people, two_names))
    margins = [row for fpir in FPIRS for row in margin_rows(data, two_names, fpir)]
    lfw.write_results(lfw.RESULTS / "thresholds_margin.csv", margins)


if __name__ == "__main__":
    main()
