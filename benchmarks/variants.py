"""Compares ways to place landmarks, cut crops, average and center embeddings, all over the same photos.

    python -m benchmarks.variants [FOLDER] [--cache FOLDER] [--center FILE]

The open-set protocol of LFW over embeddings, without the quality gate. A mean embedding or covariance is learned on one
half of the people and measured on the other, both ways, over HALVINGS random halvings. `half_` columns are means over
the halves, with DRAWS galleries each of 430 people and a random photo of each; `change_` is the mean difference to
`as it was` in the same galleries, `sd` its standard deviation over the halvings. `whole_` columns use all people at
once (860 enrolled with their first photo) for learning and measuring: compare them with `accuracy.csv`. FNMR is over
all pairs of photos of one half, the pairs of a person counting as one. `detections` and `embeddings` are runs of the
networks for each face: squares at a second pass, of 320 pixels by default, and crops.

`--center` writes the file that `packs.Center` describes. `--cache` stores landmarks and embeddings for the next run.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import lfw, looks
from benchmarks.lfw import Cell, OpenSet, Shot, say
from benchmarks.variant_views import AT_ONCE, Study, in_parts
from indexer.types import Vectors, normalize

HALVINGS = 6

DRAWS = 3

FPIRS = (0.1, 0.03, 0.01)

FMRS = (1e-4, 1e-5)

BINS = 20_000

Learn = Callable[[Vectors, NDArray[np.int64], NDArray[np.int64]], Vectors]
"""Maps embeddings (M, D), their people (M,) and the rows to learn from to changed embeddings."""


class People:
    """The people of the photos, and the protocol over some of them."""

    def __init__(self, shots: Sequence[Shot]) -> None:
        self.names, self.person = np.unique([shot.person for shot in shots], return_inverse=True)
        self.photos = np.bincount(self.person)
        self.everybody = np.ones(len(self.names), np.bool_)
        self.first = np.unique(self.person, return_index=True)[1]

    def halves(self, number: int) -> Iterator[NDArray[np.bool_]]:
        """Returns both halves of the people, (P,) each."""
        some = np.random.default_rng(number).permutation(len(self.names)) < len(self.names) // 2
        yield from (some, ~some)

    def any_photos(self, draw: int) -> NDArray[np.int64]:
        """Returns a random photo of each person, (P,)."""
        order = np.random.default_rng(1000 + draw).permutation(len(self.person))
        return np.asarray(order[np.unique(self.person[order], return_index=True)[1]])

    def open_set(self, some: NDArray[np.bool_], chosen: NDArray[np.int64]) -> OpenSet:
        """Returns the protocol for `some` people (P,), enrolled or searched with their `chosen` photos (P,)."""
        gallery, non_mated = chosen[(self.photos > 1) & some], chosen[(self.photos == 1) & some]
        theirs = np.flatnonzero((self.photos > 1)[self.person] & some[self.person])
        return OpenSet(gallery, np.setdiff1d(theirs, chosen), non_mated)


def mean_embedding(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the mean over people of the mean of their photos, (D,)."""
    weights = 1 / np.bincount(person[rows], minlength=person.max() + 1)[person[rows]]
    return np.asarray((vectors[rows] * weights[:, None]).sum(0) / weights.sum(), np.float32)


def as_they_are(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    return vectors


def centered(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    return normalize(vectors - mean_embedding(vectors, person, rows))


def half_centered(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    return normalize(vectors - 0.5 * mean_embedding(vectors, person, rows))


def total_whitened(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    """Scales down the directions of large variance; the covariance is shrunk towards its mean."""
    found = centered(vectors, person, rows)
    return _whiten(found, np.cov(found[rows].T), 1.0)


def within_whitened(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    """Scales down the directions in which a person's photos vary (within-class covariance normalization)."""
    found = centered(vectors, person, rows)
    several = rows[np.bincount(person[rows])[person[rows]] > 1]
    people = np.unique(person[several])
    covariance = np.mean([np.cov(found[several[person[several] == one]].T) for one in people], axis=0)
    return _whiten(found, covariance, 3.0)


def _whiten(vectors: Vectors, covariance: NDArray[np.float64], shrink: float) -> Vectors:
    values, axes = np.linalg.eigh(covariance)
    return normalize((vectors @ ((axes * (values + shrink * values.mean()) ** -0.5) @ axes.T)).astype(np.float32))


@dataclass(frozen=True)
class Variant:
    name: str
    views: tuple[str, ...]
    """Names of the views whose embeddings are averaged."""
    learn: Learn = centered
    mirror: bool = True
    detections: int = 1
    """Detector runs at the second pass."""

    @property
    def embeddings(self) -> int:
        return len(self.views) * (2 if self.mirror else 1)


VARIANTS = (
    Variant("as it was", ("200",), as_they_are),
    Variant("as it was, without the mirrored crop", ("200",), as_they_are, mirror=False),
    Variant("mean subtracted", ("200",)),
    Variant("half the mean subtracted", ("200",), half_centered),
    Variant("mean subtracted, whitened", ("200",), total_whitened),
    Variant("mean subtracted, whitened within people", ("200",), within_whitened),
    Variant("mean; mirrored look averaged in", ("both",), detections=2),
    Variant("mean; looks at 160, 200 and 240 averaged", ("sizes",), detections=3),
    Variant("mean; upright look", ("upright",)),
    Variant("mean; upright look and its mirror image", ("upright both",), detections=2),
    Variant("mean; upright looks at 160, 200, 240, mirrored too", ("upright six",), detections=6),
    Variant("upright, mirrored; mean not subtracted", ("upright both",), as_they_are, detections=2),
    Variant("mean; upright, mirrored; without the mirrored crop", ("upright both",), mirror=False, detections=2),
    Variant("mean; upright, mirrored; whitened within people", ("upright both",), within_whitened, detections=2),
    Variant("mean; crops of two looks averaged", ("upright", "upright both"), detections=2),
    Variant("mean; crops 2 pixels left and right", ("left", "right")),
    Variant("mean; upright, mirrored; crops 5 % nearer and wider (shipped)", ("u near", "u wide"), detections=2),
    Variant("as shipped, in a square of 256", ("256 near", "256 wide"), detections=2),
    Variant("as shipped, in a square of 384", ("384 near", "384 wide"), detections=2),
    Variant(
        "mean; upright, mirrored; crops nearer, as is and wider", ("u near", "upright both", "u wide"), detections=2
    ),
    Variant("mean; upright, mirrored; the crop itself 5 % nearer and wider", ("crop near", "crop wide"), detections=2),
)


def main() -> None:
    parser = lfw.arguments(__doc__)
    parser.add_argument("--cache", type=Path, help="a folder for landmarks and embeddings")
    parser.add_argument("--center", type=Path, help="where to write the mean embedding")
    given = parser.parse_args()
    shots = lfw.list_shots(given.folder)
    with tempfile.TemporaryDirectory() as temporary:
        study, people = Study(shots, given.cache or Path(temporary)), People(shots)
        if given.center:
            write_center(given.center, embeddings(study, VARIANTS[SHIPPED]), people)
        rows: list[dict[str, Cell]] = []
        before: list[dict[str, NDArray[np.float64]]] = []
        for variant in VARIANTS:
            say(variant.name)
            found = measure(embeddings(study, variant), variant.learn, people)
            before = before or [found]
            rows.append(row_of(variant, found, before[0]))
    lfw.write_results(lfw.RESULTS / "variants.csv", rows)


SHIPPED = next(i for i, variant in enumerate(VARIANTS) if "(shipped)" in variant.name)


def embeddings(study: Study, variant: Variant) -> Vectors:
    sides = slice(None) if variant.mirror else slice(1)
    answers = [study.raw(view)[:, sides] for view in variant.views]
    return normalize(np.sum([normalize(side) for raw in answers for side in raw.transpose(1, 0, 2)], axis=0))


def measure(vectors: Vectors, learn: Learn, people: People) -> dict[str, NDArray[np.float64]]:
    """Returns `whole` (4,): 1 - rank-1 and FNIR at FPIRS; `half` (HALVINGS, 4): the same; `fnmr` (2,)."""
    everything = np.arange(len(vectors))
    whole = errors(learn(vectors, people.person, everything), people, people.everybody, people.first)
    halves, fnmr = [], []
    for number in range(HALVINGS):
        found = []
        for half in people.halves(number):
            changed = learn(vectors, people.person, np.flatnonzero(~half[people.person]))
            found += [errors(changed, people, half, people.any_photos(number * DRAWS + i)) for i in range(DRAWS)]
            if number == 0:
                fnmr.append(non_match(changed, people, np.flatnonzero(half[people.person])))
        halves.append(np.mean(found, axis=0))
    return {"whole": np.array(whole), "half": np.array(halves), "fnmr": np.mean(fnmr, axis=0)}


def errors(vectors: Vectors, people: People, some: NDArray[np.bool_], chosen: NDArray[np.int64]) -> list[float]:
    given = people.open_set(some, chosen)
    data = lfw.Embedded((), (), vectors, people.person, ())
    found = looks.identification(data, given)
    return [1 - float(found["rank_1"]), *(float(found[f"fnir_at_fpir_{fpir:g}"]) for fpir in FPIRS)]


def non_match(vectors: Vectors, people: People, rows: NDArray[np.int64]) -> list[float]:
    """Returns FNMR at FMRS; the pairs of a person count as one."""
    mine, person = vectors[rows], people.person[rows]
    mated, strangers = np.zeros(BINS + 1), np.zeros(BINS + 1, np.int64)
    for start in range(0, len(mine), AT_ONCE):
        scores = mine[start : start + AT_ONCE] @ mine[start:].T
        later = np.arange(scores.shape[1]) > np.arange(len(scores))[:, None]
        same = person[start : start + AT_ONCE, None] == person[None, start:]
        bins = ((np.clip(scores, -1, 1) + 1) * (BINS / 2)).astype(np.int64)
        strangers += np.bincount(bins[~same & later], minlength=BINS + 1)
        photos = people.photos[np.broadcast_to(person[None, start:], same.shape)[same & later]]
        mated += np.bincount(bins[same & later], 2 / (photos * (photos - 1)), minlength=BINS + 1)
    above, below = strangers[::-1].cumsum()[::-1], np.concatenate([[0], mated.cumsum()[:-1]])
    return [float(below[np.argmax(above <= fmr * above[0])] / mated.sum()) for fmr in FMRS]


def row_of(
    variant: Variant, found: dict[str, NDArray[np.float64]], before: dict[str, NDArray[np.float64]]
) -> dict[str, Cell]:
    names = ["rank_1_error", *(f"fnir_at_fpir_{fpir:g}" for fpir in FPIRS)]
    row: dict[str, Cell] = {
        "variant": variant.name,
        "detections": variant.detections,
        "embeddings": variant.embeddings,
    }
    change = found["half"] - before["half"]
    for i, name in enumerate(names):
        row[f"whole_{name}"] = float(found["whole"][i])
    for i, name in enumerate(names):
        row[f"half_{name}"] = float(found["half"][:, i].mean())
    for i, name in enumerate(names):
        row[f"change_{name}"] = float(change[:, i].mean())
        row[f"sd_{name}"] = float(change[:, i].std(ddof=1))
    return row | {f"fnmr_at_fmr_{fmr:g}": float(value) for fmr, value in zip(FMRS, found["fnmr"], strict=True)}


def write_center(path: Path, vectors: Vectors, people: People) -> None:
    mean = mean_embedding(vectors, people.person, np.arange(len(vectors)))
    about = (
        f"Mean embedding of {len(people.names)} people of LFW (each the mean of their photos, {len(vectors)} in all), "
        "SFace, before centering"
    )
    numbers = [", ".join(f"{value:.6f}" for value in some) for some in in_parts(mean.tolist(), 12)]
    text = f'{{\n "about": {json.dumps(about)},\n "center": [\n  ' + ",\n  ".join(numbers) + "\n ]\n}\n"
    path.write_text(text)
    say(f"{path}: SHA-256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
