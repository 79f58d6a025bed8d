"""Compares ways to score an identity by several photos, and the effect of one bad or wrong photo.

    python -m benchmarks.fusion [FOLDER] [--cache FOLDER]

People with at least two photos in LFW are enrolled with K random ones, or with all but one of fewer. People with more
than K photos are searched with the others, at most PROBES of them; people with one photo are strangers. In `wrong`
galleries one of the K photos is another enrolled person's, in `blurred` ones it is out of focus (Gaussian blur with a
sigma of 2.5 pixels in the crop). Results are means over DRAWS galleries. Embeddings are the pipeline's
(`benchmarks/variants.py`, which shares its cache); the mean embedding is that of all people.

`fusion.fused_score` is `search_service/matching/fusion.py`, by which the search scores people.

For the strangers alone: how many times as often they score above t with all of a person's photos together, or with the
best of them, as with one photo, for the t that one pair in 1 / FMRS exceeds.

Writes benchmarks/results/fusion.csv and fusion_strangers.csv.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import lfw
from benchmarks.lfw import Cell, say
from benchmarks.variant_views import Study
from benchmarks.variants import SHIPPED, VARIANTS, People, embeddings, mean_embedding
from indexer.models.packs import SFACE
from indexer.types import Vectors, normalize
from search_service.matching.fusion import consistent_faces, fused_scores

COUNTS = (1, 2, 3, 5)
SPOILT = ("clean", "blurred", "wrong")
DRAWS = 8
PROBES = 5
FPIRS = (0.1, 0.03, 0.01)
FMRS = (1e-3, 1e-4, 1e-5)
STRANGER_COUNTS = (2, 3, 5, 8)
NEAR = 0.2
"""Only identities with a face above this score are fused by `fusion.fused_score`, which is slow; all others are far
below any threshold."""

Scores = NDArray[np.float32]
"""(P, K) cosines of P probes to the K faces of one identity."""
Way = Callable[[Scores, Vectors, NDArray[np.float32]], NDArray[np.floating]]
"""Scores, faces (K, D), and their qualities (K, 4) as `Study.qualities` has them -> (P,) one score a probe."""


def best_of(scores: Scores, faces: Vectors, quality: NDArray[np.float32]) -> NDArray[np.floating]:
    return np.asarray(scores.max(1))


def mean(scores: Scores, faces: Vectors, quality: NDArray[np.float32]) -> NDArray[np.floating]:
    return _weighted(scores, faces, np.ones(len(faces), np.float32))


def best_and_mean_score(scores: Scores, faces: Vectors, quality: NDArray[np.float32]) -> NDArray[np.floating]:
    return np.asarray((scores.max(1) + scores.mean(1)) / 2)


def by_score(scores: Scores, faces: Vectors, quality: NDArray[np.float32]) -> NDArray[np.floating]:
    return _weighted(scores, faces, quality[:, 0] ** 8)


def by_size(scores: Scores, faces: Vectors, quality: NDArray[np.float32]) -> NDArray[np.floating]:
    return _weighted(scores, faces, quality[:, 1] ** 0.5)


def by_sharpness(scores: Scores, faces: Vectors, quality: NDArray[np.float32]) -> NDArray[np.floating]:
    return _weighted(scores, faces, quality[:, 2] ** 0.5)


def by_yaw(scores: Scores, faces: Vectors, quality: NDArray[np.float32]) -> NDArray[np.floating]:
    return _weighted(scores, faces, (1 / (1 + 4 * np.abs(quality[:, 3]))).astype(np.float32))


def sorted_mean(scores: Scores, faces: Vectors, quality: NDArray[np.float32]) -> NDArray[np.floating]:
    """Returns the score of the mean of the faces that `consistent_faces` keeps."""
    similarities = (faces @ faces.T).astype(np.float64)
    kept = np.flatnonzero(consistent_faces(similarities[None], np.ones((1, len(faces)), bool), SFACE.same_threshold))
    is_single = len(kept) == 1 or (len(kept) == 2 and similarities[kept[0], kept[1]] < SFACE.same_threshold)
    return best_of(scores, faces, quality) if is_single else mean(scores[:, kept], faces[kept], quality)


def fused(scores: Scores, faces: Vectors, quality: NDArray[np.float32]) -> NDArray[np.floating]:
    """Returns the score that searches use, of `search_service/matching/fusion.py`."""
    answer = np.array(scores.max(1))
    near = np.flatnonzero(answer > NEAR)
    if len(faces) > 1 and len(near):
        similarities = np.broadcast_to(faces @ faces.T, (len(near), len(faces), len(faces)))
        present = np.ones((len(near), len(faces)), bool)
        answer[near] = fused_scores(scores[near], similarities, present, SFACE.same_threshold)
    return answer


WAYS: Mapping[str, Way] = {
    "best of": best_of,
    "mean of embeddings": mean,
    "mean of best and mean score": best_and_mean_score,
    "mean weighted by detection score": by_score,
    "mean weighted by size": by_size,
    "mean weighted by sharpness": by_sharpness,
    "mean weighted by yaw": by_yaw,
    "mean without the odd one": sorted_mean,
    "fusion.fused_score": fused,
}


def _weighted(scores: Scores, faces: Vectors, weights: NDArray[np.float32]) -> NDArray[np.floating]:
    return np.asarray(scores @ weights / np.linalg.norm(weights @ faces))


@dataclass(frozen=True, eq=False)
class Draw:
    """A random gallery and its probes, as rows of all photos."""

    people: tuple[int, ...]
    faces: tuple[tuple[int, ...], ...]
    """Returns the scores of each of `people`."""
    mated: NDArray[np.int64]
    strangers: NDArray[np.int64]


def draw(people: People, count: int, seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    photos: list[list[int]] = [[] for _ in people.names]
    for row in rng.permutation(len(people.person)).tolist():
        photos[people.person[row]].append(row)
    enrolled = {person: rows[: min(count, len(rows) - 1)] for person, rows in enumerate(photos) if len(rows) > 1}
    mated = [row for rows in photos if len(rows) > count for row in rows[count : count + PROBES] if len(rows) > 1]
    strangers = [rows[0] for rows in photos if len(rows) == 1]
    return Draw(tuple(enrolled), tuple(map(tuple, enrolled.values())), np.array(mated), np.array(strangers))


def templates(
    given: Draw, vectors: Vectors, blurred: Vectors, count: int, spoilt: str, rng: np.random.Generator
) -> list[Vectors]:
    """Returns the embeddings (K, D) of each person's faces, one of them replaced or blurred."""
    found = [vectors[list(rows)] for rows in given.faces]
    for i, rows in enumerate(given.faces):
        if len(rows) == count and spoilt != "clean":
            place = int(rng.integers(count))
            other = (i + 1 + int(rng.integers(len(given.faces) - 1))) % len(given.faces)
            found[i][place] = blurred[rows[place]] if spoilt == "blurred" else vectors[given.faces[other][0]]
    return found


def rates(given: Draw, person: NDArray[np.int64], scores: NDArray[np.floating]) -> list[float]:
    """Returns 1 - rank-1 and FNIR at FPIRS for (probes, people) scores, the mated probes first."""
    mated, strangers = scores[: len(given.mated)], np.sort(scores[len(given.mated) :].max(1))[::-1]
    right = np.array(given.people)[mated.argmax(1)] == person[given.mated]
    thresholds = [strangers[int(fpir * len(strangers))] for fpir in FPIRS]
    return [1 - float(right.mean()), *(1 - float((right & (mated.max(1) > t)).mean()) for t in thresholds)]


def compare(
    people: People, vectors: Vectors, blurred: Vectors, qualities: NDArray[np.float32], count: int, spoilt: str
) -> list[dict[str, Cell]]:
    ways = WAYS if count > 1 else {"best of": best_of}
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for seed in range(DRAWS):
        given = draw(people, count, seed)
        faces = templates(given, vectors, blurred, count, spoilt, np.random.default_rng(seed))
        probes = vectors[np.concatenate([given.mated, given.strangers])]
        each = [probes @ some.T for some in faces]
        for name, way in ways.items():
            parts = [way(s, f, qualities[list(r)]) for s, f, r in zip(each, faces, given.faces, strict=True)]
            found[name].append(rates(given, people.person, np.stack(parts, axis=1)))
    return [_row(name, count, spoilt, len(given.mated), values) for name, values in found.items()]


def _row(name: str, count: int, spoilt: str, probes: int, values: Sequence[Sequence[float]]) -> dict[str, Cell]:
    table = np.array(values)
    row: dict[str, Cell] = {"gallery": spoilt, "photos": count, "score": name, "mated_probes": probes}
    row["rank_1"] = 1 - float(table[:, 0].mean())
    row |= {f"fnir_at_fpir_{fpir:g}": float(table[:, i].mean()) for i, fpir in enumerate(FPIRS, 1)}
    return row | {"sd_of_the_last": float(table[:, -1].std(ddof=1))}


def as_often(people: People, vectors: Vectors, count: int) -> list[dict[str, Cell]]:
    """Returns a row for each of FMRS."""
    ways: dict[str, Way] = {"single": lambda scores, *_: scores[:, 0], "best": best_of, "together": fused}
    qualities = np.empty((count, 4), np.float32)  # which none of these ways asks for
    found: dict[str, list[NDArray[np.floating]]] = {name: [] for name in ways}
    for seed in range(DRAWS):
        given = draw(people, count + 1, seed)
        probes = vectors[given.strangers]
        for rows in given.faces:
            if len(rows) >= count:
                faces = vectors[list(rows[:count])]
                for name, way in ways.items():
                    found[name].append(way(probes @ faces.T, faces, qualities))
    scores = {name: np.concatenate(some) for name, some in found.items()}
    table: list[dict[str, Cell]] = []
    for fmr in FMRS:
        t = np.quantile(scores["single"], 1 - fmr)
        often = {name: float((some > t).mean() / fmr) for name, some in scores.items() if name != "single"}
        table.append({"photos": count, "pairs": len(scores["single"]), "fmr": fmr, **often})
    return table


def main() -> None:
    parser = lfw.arguments(__doc__)
    parser.add_argument("--cache", type=Path, help="a folder for landmarks and embeddings")
    given = parser.parse_args()
    shots = lfw.list_shots(given.folder)
    rows: list[dict[str, Cell]] = []
    with tempfile.TemporaryDirectory() as temporary:
        study, people = Study(shots, given.cache or Path(temporary)), People(shots)
        sharp = embeddings(study, VARIANTS[SHIPPED])
        center = mean_embedding(sharp, people.person, np.arange(len(sharp)))
        blurred = normalize(normalize(study.raw("u blurred").sum(1)) - center)
        qualities = study.qualities()
    for spoilt in SPOILT:
        for count in COUNTS if spoilt == "clean" else COUNTS[1:]:
            say(f"{spoilt}, {count} photos")
            rows += compare(people, normalize(sharp - center), blurred, qualities, count, spoilt)
    lfw.write_results(lfw.RESULTS / "fusion.csv", rows)
    strangers = [row for count in STRANGER_COUNTS for row in as_often(people, normalize(sharp - center), count)]
    lfw.write_results(lfw.RESULTS / "fusion_strangers.csv", strangers)


if __name__ == "__main__":
    main()
