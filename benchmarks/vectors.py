"""Compares vector indexes: milliseconds, queries per second, bytes per face, and recall.

    python -m benchmarks.vectors [FOLDER] [--quick] [--embeddings FILE.npz]

Writes benchmarks/results/vectors.csv, from which `benchmarks.charts` draws docs/vectors.svg. Galleries of 10,000,
100,000 and 1,000,000 faces, two of each person, in 128 and in 512 dimensions, are synthetic (`Population`): strangers
and mates score as they do with SFace on an LFW folder. The CSV has one `table` after another:

- `spread`: cosines of real and of synthetic embeddings at the same quantiles;
- `rivals`: one query on one thread, all indexes in turns (medians; every answer ends in an identity); a batch of 256 on
  every core; seconds to build; private memory in bytes per face, without memory-mapped files; the share of mated probes
  that exact search finds (rank 1), the recall among those, and the share of strangers with the same nearest identity as
  in exact search. `lfw` galleries are real embeddings, extended to 100,000 by synthetic photos of the same people, and
  searched with other real photos;
- `codes`: sub-quantizers and rescored rows (`product_codes.SUBQUANTIZERS`, `self_check.MIN_RESCORED`), with mates that
  score 0.4 to 0.6;
- `tiers`: exact and compressed search at the sizes between which `engines.MAX_EXACT_NUMBERS` chooses.

Graphs stop at 100,000 faces: building one of that size takes minutes, and one of a million would take too long.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import lfw
from benchmarks.lfw import Cell, Embedded, say
from benchmarks.synthetic_faces import PHOTOS, Ids, Measured, Population, make_vectors, measure, spread_rows
from benchmarks.vector_indexes import (
    EXACT,
    MOST_OF_A_GRAPH,
    OTHER_GRAPHS,
    RIVALS,
    Built,
    Gallery,
    Rival,
    Search,
    build_flat,
    build_whosthere,
    face_vectors,
    search_of,
)
from indexer.models.packs import SFACE
from indexer.types import Tier, Vectors
from indexer.vectors import compressed, product_codes
from indexer.vision.runtime import usable_cores

SIZES = (10_000, 100_000, 1_000_000)

DIMS = (128, 512)

MATED, STRANGERS = 1_000, 500
"""Probes whose answers are compared with those of exact search."""

TIMED = 200
"""Probes searched one by one, half of them mated."""

BATCH, BATCHES = 256, 3

A_TURN, WARM_UP = 20, 3

HARD = (0.4, 0.6)
"""Cosines of mates near the threshold."""

HARD_PROBES = 1_000

PARTS = (32, 64, 128)

RESCORED = (64, 256, 1024)

TIER_SIZES = (5_000, 10_000, 20_000, 50_000, 100_000)


@dataclass(frozen=True, eq=False)
class Contender:
    """An index over a gallery, with the time and memory of building it."""

    name: str
    built: Built
    build_s: float
    bytes_a_face: float


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Limits the threads of FAISS and of the BLAS libraries of FAISS and NumPy."""
    before = faiss.omp_get_max_threads()
    with threadpool_limits(count):
        faiss.omp_set_num_threads(count)
        yield
    faiss.omp_set_num_threads(before)


def make_gallery(population: Population, vectors: Vectors, groups: Ids) -> Gallery:
    """Returns a gallery with mated probes of random faces, and strangers."""
    rng = np.random.default_rng(len(vectors))
    rows = rng.choice(len(vectors), MATED, replace=False)
    mated = population.photos(vectors[rows], groups[rows], rng)
    strangers, _ = population.people(STRANGERS, rng)
    identities = np.arange(len(vectors), dtype=np.int64) // PHOTOS
    right = np.concatenate([identities[rows], np.full(STRANGERS, -1)])
    return Gallery("synthetic", vectors, identities, np.concatenate([mated, strangers]), right)


def real_gallery(measured: Measured, population: Population, faces: int) -> Gallery:
    """Returns a gallery of real first photos, extended by synthetic photos of the same people. Every second person with
    one photo is left out. Probes are the other photos and the people left out, all real."""
    data = measured.data
    counts = np.bincount(data.person)
    first = np.unique(data.person, return_index=True)[1]
    alone = np.flatnonzero(counts == 1)
    out = alone[::2]
    people = np.setdiff1d(np.arange(len(counts)), out)
    others = np.setdiff1d(np.flatnonzero(counts[data.person] > 1), first)
    rng = np.random.default_rng(5)
    copied = np.sort(rng.choice(people, faces - len(people)))
    copies = population.photos(data.vectors[first[copied]], population.groups_of(data.vectors[first[copied]]), rng)
    whose = np.concatenate([people, copied])
    order = np.argsort(whose, kind="stable")
    vectors = np.concatenate([data.vectors[first[people]], copies])[order]
    probes = np.concatenate([data.vectors[others], data.vectors[first[out]]])
    right = np.concatenate([data.person[others], np.full(len(out), -1)])
    return Gallery("lfw", vectors, whose[order], probes, right)


def contend(gallery: Gallery, rivals: Sequence[Rival], folder: Path) -> list[Contender]:
    """Builds the indexes one after the other, with every core."""
    contenders = []
    for rival in rivals:
        if len(gallery.vectors) > rival.most:
            continue
        before, begun = _own_bytes(), time.perf_counter()
        built = rival.build(gallery, folder)
        build_s = time.perf_counter() - begun
        per_face = (_own_bytes() - before) / len(gallery.vectors)
        contenders.append(Contender(rival.name, built, build_s, per_face))
        say(f"{gallery.label}: {rival.name} built in {build_s:.1f} s")
    return contenders


def _own_bytes() -> int:
    """Returns the anonymous memory of this process, after freed memory was returned; Linux only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("/proc/self/status has no RssAnon")


def time_one_by_one(searches: Mapping[str, Search], probes: Vectors) -> dict[str, float]:
    """Returns the median milliseconds of each, on one thread, in turns of A_TURN queries. The first queries of a turn
    do not count, because the caches hold the data of another index, unlike in a service in use."""
    taken: dict[str, list[float]] = {name: [] for name in searches}
    with _threads(1):
        for start in range(0, len(probes), A_TURN):
            for name, search in searches.items():
                numbers = (*[start] * WARM_UP, *range(start, min(start + A_TURN, len(probes))))
                for turn, number in enumerate(numbers):
                    begun = time.perf_counter()
                    search(probes[number : number + 1], 1)
                    if turn >= WARM_UP:
                        taken[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(times) for name, times in taken.items()}


def time_batches(searches: Mapping[str, Search], probes: Vectors) -> dict[str, float]:
    """Returns the median milliseconds of each, on every core and in turns."""
    batch = np.resize(np.arange(len(probes)), BATCH)
    taken: dict[str, list[float]] = {name: [] for name in searches}
    with _threads(usable_cores()):
        for _ in range(BATCHES):
            for name, search in searches.items():
                begun = time.perf_counter()
                search(probes[batch], usable_cores())
                taken[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(times) for name, times in taken.items()}


def answers_to(search: Search, probes: Vectors) -> Ids:
    with _threads(usable_cores()):
        parts = [search(probes[i : i + BATCH], usable_cores()) for i in range(0, len(probes), BATCH)]
    return np.concatenate(parts)


def timed_probes(gallery: Gallery) -> Vectors:
    """Returns TIMED probes, half of them mated."""
    mated, strangers = gallery.probes[gallery.right >= 0], gallery.probes[gallery.right < 0]
    return np.concatenate([mated[: TIMED // 2], strangers[: TIMED // 2]])


def rival_rows(gallery: Gallery, contenders: Sequence[Contender]) -> list[dict[str, Cell]]:
    searches = {contender.name: contender.built.search for contender in contenders}
    answers = {name: answers_to(search, gallery.probes) for name, search in searches.items()}
    one, batch = time_one_by_one(searches, timed_probes(gallery)), time_batches(searches, gallery.probes)
    mated, stranger = gallery.right >= 0, gallery.right < 0
    exact = answers[EXACT]
    findable = mated & (exact == gallery.right)
    rows: list[dict[str, Cell]] = []
    for it in contenders:
        row: dict[str, Cell] = {
            "table": "rivals",
            "gallery": gallery.name,
            "dim": gallery.vectors.shape[1],
            "faces": len(gallery.vectors),
            "rival": it.name,
            "query_ms": one[it.name],
            "times_as_fast_as_flat": one[EXACT] / one[it.name],
            "batch_256_ms": batch[it.name],
            "queries_a_second": 1000 * BATCH / batch[it.name],
            "build_s": it.build_s,
            # smaller galleries take less than the normal variation of the process
            "bytes_a_face": it.bytes_a_face if len(gallery.vectors) >= 100_000 else "",
            "mates_exact_finds": float(findable.sum() / mated.sum()),
            "of_those_found": float((answers[it.name] == exact)[findable].mean()),
            "best_missed_cosine": _best_missed(gallery, findable & (answers[it.name] != exact)),
            "strangers_same_nearest": float((answers[it.name] == exact)[stranger].mean()),
            "note": it.built.note,
        }
        say(f"{gallery.label}: {it.name} {row['query_ms']:.3g} ms, {row['of_those_found']:.4%} recall")
        rows.append(row)
    return rows


def _best_missed(gallery: Gallery, missed: NDArray[np.bool_]) -> Cell:
    """Returns the highest cosine at which a mate was missed, or an empty cell."""
    scores = [
        float((gallery.vectors[gallery.identities == gallery.right[i]] @ gallery.probes[i]).max())
        for i in np.flatnonzero(missed)
    ]
    return max(scores) if scores else ""


def code_rows(population: Population, vectors: Vectors, groups: Ids, folder: Path) -> list[dict[str, Cell]]:
    """Returns rows for sub-quantizers and rescored rows; the index itself settles on the one marked `chosen`."""
    gallery, hard = hard_gallery(population, vectors, groups)
    flat = build_flat(gallery, folder).search
    findable = answers_to(flat, gallery.probes) == gallery.right
    rows: list[dict[str, Cell]] = []
    for parts in PARTS:
        with patch.object(product_codes, "SUBQUANTIZERS", parts):
            begun = time.perf_counter()
            base = compressed.build(folder / "codes.index", gallery.vectors.shape[1], face_vectors(gallery), {})
            build_s, index = time.perf_counter() - begun, compressed.open_index(base)
            chosen, search = index.rescored, search_of(index)
            for rescored in sorted({*RESCORED, chosen}):
                index.rescored = rescored
                found = (answers_to(search, gallery.probes) == gallery.right)[findable].mean()
                rows.append(
                    {
                        "table": "codes",
                        "gallery": f"synthetic, mates at {hard}",
                        "dim": gallery.vectors.shape[1],
                        "faces": len(gallery.vectors),
                        "parts": parts,
                        "rescored": rescored,
                        "chosen": "yes" if rescored == chosen else "",
                        "query_ms": time_one_by_one({"": search}, gallery.probes[:TIMED])[""],
                        "build_s": build_s,
                        "mates_exact_finds": float(findable.mean()),
                        "of_those_found": float(found),
                    }
                )
        say(f"{gallery.label}: {parts} sub-quantizers, built in {build_s:.1f} s")
    return rows


def hard_gallery(population: Population, vectors: Vectors, groups: Ids) -> tuple[Gallery, str]:
    """Returns a gallery with mated probes near the threshold only, and the range of their cosines."""
    rng = np.random.default_rng(7)
    rows = rng.choice(len(vectors), HARD_PROBES, replace=False)
    cosines = rng.uniform(*HARD, len(rows))
    probes = population.photos(vectors[rows], groups[rows], rng, cosines)
    identities = np.arange(len(vectors), dtype=np.int64) // PHOTOS
    return Gallery("synthetic", vectors, identities, probes, identities[rows]), f"{HARD[0]} to {HARD[1]}"


def tier_rows(population: Population, vectors: Vectors, groups: Ids, folder: Path) -> list[dict[str, Cell]]:
    """Returns rows for exact and compressed search at growing sizes."""
    rows: list[dict[str, Cell]] = []
    for faces in TIER_SIZES:
        if faces > len(vectors):
            continue
        gallery = make_gallery(population, vectors[:faces], groups[:faces])
        built = {tier: build_whosthere(gallery, folder, tier) for tier in (Tier.EXACT, Tier.COMPRESSED)}
        searches = {str(tier): it.search for tier, it in built.items()}
        one, batch = time_one_by_one(searches, timed_probes(gallery)), time_batches(searches, gallery.probes)
        rows += [
            {
                "table": "tiers",
                "gallery": "synthetic",
                "dim": population.dim,
                "faces": faces,
                "rival": f"whosthere, {tier}",
                "query_ms": one[tier],
                "batch_256_ms": batch[tier],
                "queries_a_second": 1000 * BATCH / batch[tier],
                "note": f"{faces * population.dim:,} numbers",
            }
            for tier in searches
        ]
        say(f"{gallery.label}: " + ", ".join(f"{tier} {ms:.3g} ms" for tier, ms in one.items()))
    return rows


def read_embeddings(folder: Path, kept: Path | None) -> Embedded:
    """Embeds the central face of each photo, or reads `kept`; writes `kept` if it does not exist."""
    if kept is not None and kept.exists():
        with np.load(kept) as file:
            return Embedded((), (), file["vectors"], file["person"], tuple(file["names"].tolist()))
    data = lfw.embed(lfw.load_pipeline(SFACE), lfw.list_shots(folder))
    if kept is not None:
        np.savez(kept, vectors=data.vectors, person=data.person, names=np.array(data.names))
    return data


def run(measured: Measured, sizes: Sequence[int], graphs: int, folder: Path) -> Iterator[dict[str, Cell]]:
    rivals = [
        replace(rival, most=min(rival.most, graphs)) if rival.most == MOST_OF_A_GRAPH else rival for rival in RIVALS
    ]
    populations = [Population(measured, dim) for dim in DIMS]
    yield from spread_rows(measured, populations)
    middle = min(sizes[-1], 100_000)
    real = real_gallery(measured, populations[0], middle)
    yield from rival_rows(real, contend(real, [rival for rival in rivals if rival.name not in OTHER_GRAPHS], folder))
    for population in populations:
        say(f"generating {sizes[-1]:,} faces in {population.dim} dimensions")
        vectors, groups = make_vectors(population, sizes[-1])
        for faces in sizes:
            gallery = make_gallery(population, vectors[:faces], groups[:faces])
            yield from rival_rows(gallery, contend(gallery, rivals, folder))
        yield from tier_rows(population, vectors, groups, folder)
        yield from code_rows(population, vectors[:middle], groups[:middle], folder)


def main() -> None:
    parser = lfw.arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 faces only; writes no results")
    parser.add_argument("--embeddings", type=Path, help="an .npz that keeps the folder's embeddings between runs")
    parser.add_argument(
        "--graphs", type=int, default=MOST_OF_A_GRAPH, metavar="N", help="faces up to which graphs are built"
    )
    arguments = parser.parse_args()
    begun = time.monotonic()
    measured = measure(read_embeddings(arguments.folder, arguments.embeddings))
    with tempfile.TemporaryDirectory() as folder:
        rows = list(run(measured, SIZES[:1] if arguments.quick else SIZES, arguments.graphs, Path(folder)))
        results = Path(folder) if arguments.quick else lfw.RESULTS
        lfw.write_results(results / "vectors.csv", rows)
    say(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
