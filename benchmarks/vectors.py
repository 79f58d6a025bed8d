"""Vector search beside its rivals: milliseconds, queries a second, bytes a face, and mates found.

    python -m benchmarks.vectors [FOLDER] [--quick] [--embeddings FILE.npz]

Writes benchmarks/results/vectors.csv, from which `benchmarks.charts` draws docs/vectors.svg. Galleries of 10,000,
100,000 and 1,000,000 faces, two of each person, in 128 and in 512 dimensions, are synthetic (`Population`): strangers
and mates score as they do with SFace on an LFW folder. The CSV has one `table` after another:

- `spread`: the cosines of real and of made embeddings at the same quantiles, so that the claim can be checked;
- `rivals`: one query on one thread, all rivals in turns (medians; every answer ends in an identity); a batch of 256 on
  every core; seconds to build; bytes a face in memory that is the process's own, so without what is mapped from a file;
  of the mated probes the share that exact search finds (rank 1), the share of those that the rival finds, and the share
  of strangers whose nearest identity is the one that exact search names. `lfw` galleries are real embeddings, with
  copies of them as further photos of the same people up to 100,000, searched with other real photos;
- `codes`: sub-quantizers and rows re-scored (`compressed.PARTS`, `FIRST_RESCORED`), with mates that score 0.4 to 0.6;
- `tiers`: exact and compressed at the sizes between which `tiers.EXACT_NUMBERS` chooses.

`faceflash`, which keeps vectors in a file, is given a mapped array. Graphs stop at 100,000 faces: building one of those
takes minutes, of a million it takes too long to be worth a row.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import faiss
import hnswlib
import numpy as np
import usearch.index
from faceflash.index import FaceIndex
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import lfw, thresholds
from benchmarks.lfw import Cell, Embedded, say
from indexer.gallery.embeddings import FaceVectors
from indexer.models.packs import SFACE
from indexer.types import Tier, Vectors, normalize
from indexer.vectors import compressed
from indexer.vectors.base import Header, VectorIndex
from indexer.vectors.engines import FaissEngine
from indexer.vision.runtime import usable_cores

SIZES = (10_000, 100_000, 1_000_000)
DIMS = (128, 512)
MOST_OF_A_GRAPH = 100_000
PHOTOS = 2
"""Faces of each person in a made gallery."""
MATED, STRANGERS = 1_000, 500
"""Probes whose answers are compared with those of exact search."""
TIMED = 200
"""Probes that are searched one by one, half of them mated."""
BATCH, BATCHES = 256, 3
A_TURN, WARM_UP = 20, 3
TOP = 10
CHUNK = 20_000
"""People made at a time."""
HARD = (0.4, 0.6)
"""Cosines of mates near the threshold."""
HARD_PROBES = 1_000
PARTS = (32, 64, 128)
RESCORED = (64, 256, 1024)
TIER_SIZES = (5_000, 10_000, 20_000, 50_000, 100_000)

Ids = NDArray[np.int64]
Search = Callable[[Vectors, int], Ids]
"""(Q, D) and a number of threads -> (Q,) the nearest identity of each; -1 where there is none."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What the scores of real embeddings are like."""

    people: Vectors
    """(M, D) one face of each person."""
    mates: NDArray[np.float64]
    """Ascending: each other photo's cosine with its person's first."""
    strangers: thresholds.Impostors
    data: Embedded


@dataclass(frozen=True, eq=False)
class Group:
    """People who look alike: their mean (D,), and what turns white noise into them (D, D)."""

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]


class Population:
    """Makes people whose scores are spread as those of real ones.

    Real people are parted into GROUPS of lookalikes by k-means, and each group is a normal distribution with its mean
    and covariance (shrunk to the common one by SHRINK, for want of people), projected to the sphere. The parting gives
    strangers the heavy tail that even spread has not. In more dimensions than were measured the same groups are put
    into a random subspace, and a share of the variance, FLOOR, is spread evenly over all dimensions. That alone would
    make strangers score too evenly, so the eigenvalues of each group are raised to the power at which the cosine that
    one pair of strangers in a thousand reaches is that of the real ones.

    A mate is its person's face turned away, to a cosine drawn from the measured ones, towards someone of its group.
    """

    GROUPS = 8
    SHRINK = 0.1
    FLOOR = 0.2
    FIT_PEOPLE = 4_000

    def __init__(self, measured: Measured, dim: int) -> None:
        self.dim = dim
        self._mates = measured.mates
        people = measured.people.astype(np.float64)
        kmeans = faiss.Kmeans(people.shape[1], self.GROUPS, seed=1)
        kmeans.train(measured.people)
        self._nearest = kmeans.index
        member = self.groups_of(measured.people)
        self._shares = np.bincount(member, minlength=self.GROUPS) / len(member)
        common = np.cov(people.T)
        self._moments = [
            (some.mean(axis=0), (1 - self.SHRINK) * np.cov(some.T) + self.SHRINK * common)
            for some in (people[member == group] for group in range(self.GROUPS))
        ]
        self.power = 1.0 if dim == people.shape[1] else self._fit_power(measured.strangers.cosine(1e-3))
        self._groups = self._make_groups(self.power)

    def groups_of(self, faces: Vectors) -> Ids:
        """(N, D) in as many dimensions as were measured -> (N,)."""
        groups: Ids = self._nearest.search(faces, 1)[1][:, 0]
        return groups

    def people(self, count: int, rng: np.random.Generator) -> tuple[Vectors, Ids]:
        """(N, D) one face each, and (N,) their groups."""
        groups = rng.choice(self.GROUPS, count, p=self._shares)
        return self._draw(groups, np.ones(count, np.float32), rng), groups

    def photos(
        self, faces: Vectors, groups: Ids, rng: np.random.Generator, cosines: NDArray[np.float64] | None = None
    ) -> Vectors:
        """(N, D) another photo of each of these (N, D) faces, at (N,) `cosines` or such as mates have."""
        if cosines is None:
            cosines = np.interp(rng.random(len(faces)), np.linspace(0, 1, len(self._mates)), self._mates)
        near = cosines.astype(np.float32)
        # With this share of the mean in the other direction, the photo has as much of it as any face.
        aside = self._draw(groups, np.sqrt((1 - near) / (1 + near)), rng)
        aside -= np.einsum("nd,nd->n", aside, faces)[:, None] * faces
        photos = near[:, None] * faces + np.sqrt(1 - near**2)[:, None] * normalize(aside)
        return normalize(photos.astype(np.float32))

    def _draw(self, groups: Ids, means: NDArray[np.float32], rng: np.random.Generator) -> Vectors:
        """One of each of these (N,) groups, with (N,) `means` times its mean."""
        drawn = np.empty((len(groups), self.dim), np.float32)
        for number, group in enumerate(self._groups):
            rows = np.flatnonzero(groups == number)
            noise = rng.standard_normal((len(rows), self.dim), dtype=np.float32)
            drawn[rows] = means[rows, None] * group.mean + noise @ group.spread
        return normalize(drawn)

    def _fit_power(self, cosine: float) -> float:
        low, high = 1.0, 4.0
        for _ in range(8):
            self._groups = self._make_groups((low + high) / 2)
            people, _ = self.people(self.FIT_PEOPLE, np.random.default_rng(2))
            reached = thresholds.impostors(people, np.arange(len(people))).cosine(1e-3)
            low, high = ((low + high) / 2, high) if reached < cosine else (low, (low + high) / 2)
        return (low + high) / 2

    def _make_groups(self, power: float) -> list[Group]:
        measured = len(self._moments[0][0])
        subspace = np.linalg.qr(np.random.default_rng(3).standard_normal((self.dim, measured)))[0]
        if self.dim == measured:
            subspace = np.eye(measured)
        return [self._make_group(mean, covariance, subspace, power) for mean, covariance in self._moments]

    def _make_group(
        self, mean: NDArray[np.float64], covariance: NDArray[np.float64], subspace: NDArray[np.float64], power: float
    ) -> Group:
        values, axes = np.linalg.eigh(covariance)
        total = float(values.sum())
        sharp = values**power * (total / (values**power).sum())
        floor = self.FLOOR if self.dim > len(mean) else 0.0
        lifted = subspace @ (axes * sharp) @ axes.T @ subspace.T
        whole = (1 - floor) * lifted + floor * total / self.dim * np.eye(self.dim)
        spread = np.linalg.cholesky(whole).T
        return Group((subspace @ mean).astype(np.float32), np.ascontiguousarray(spread, dtype=np.float32))


@dataclass(frozen=True, eq=False)
class Gallery:
    """(N, D) vectors, (N,) whose they are, ascending; probes with the identity that is right, or -1."""

    name: str
    vectors: Vectors
    identities: Ids
    probes: Vectors
    right: Ids

    @property
    def label(self) -> str:
        return f"{self.name} {self.vectors.shape[1]}-d, {len(self.vectors):,} faces"


@dataclass(frozen=True, eq=False)
class Built:
    """An index, ready. `note` says what a reader must know of it."""

    search: Search
    note: str = ""


@dataclass(frozen=True)
class Rival:
    name: str
    build: Callable[[Gallery, Path], Built]
    """The folder is for its files."""
    most: int = 10**9
    """Faces up to which it is built."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A rival over a gallery, and what building it took."""

    name: str
    built: Built
    build_s: float
    bytes_a_face: float


def build_whosthere(gallery: Gallery, folder: Path, tier: Tier = Tier.AUTO) -> Built:
    """As the service does, from 10,000 faces of SQL at a time."""
    index = _engine_build(gallery, folder, tier)
    note = index.kind
    if isinstance(index.checked, compressed.Checked):
        note += f", {index.checked.rescored} rows re-scored; promised mates found {index.checked.mates_found}"
    return Built(_identities_of(index), note)


def _engine_build(gallery: Gallery, folder: Path, tier: Tier) -> VectorIndex:
    header = Header(1, "", "", gallery.vectors.shape[1], 0, "", len(gallery.vectors))
    index, _ = FaissEngine(tier).build(folder / f"{tier}.index", header, lambda: _faces(gallery))
    return index


def _faces(gallery: Gallery) -> Iterator[FaceVectors]:
    for start in range(0, len(gallery.vectors), 10_000):
        end = min(start + 10_000, len(gallery.vectors))
        part = slice(start, end)
        yield FaceVectors(np.arange(start, end, dtype=np.int64), gallery.identities[part], gallery.vectors[part])


def _identities_of(index: VectorIndex) -> Search:
    def search(queries: Vectors, threads: int) -> Ids:
        answers = index.nearest_identities(queries, TOP)
        return np.array([hits[0].identity_id if hits else -1 for hits in answers], dtype=np.int64)

    return search


def build_flat(gallery: Gallery, folder: Path) -> Built:
    index = faiss.IndexFlatIP(gallery.vectors.shape[1])
    index.add(gallery.vectors)
    return Built(_faiss_search(index, gallery.identities), "exact")


def build_hnsw(gallery: Gallery, folder: Path) -> Built:
    index = faiss.IndexHNSWFlat(gallery.vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = 256
    index.add(gallery.vectors)
    return Built(_faiss_search(index, gallery.identities), "M 32, efConstruction 40, ef 256")


def build_ivf(gallery: Gallery, folder: Path) -> Built:
    """As FAISS' guidelines have it: 4 sqrt(N) lists, trained on 40 faces each; an eighth of them is probed."""
    lists = int(4 * np.sqrt(len(gallery.vectors)))
    dim = gallery.vectors.shape[1]
    flat = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(flat, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 16, 40
    index.nprobe = lists // 8
    index.train(gallery.vectors[:: max(1, len(gallery.vectors) // (40 * lists))])
    index.add(gallery.vectors)
    return Built(_faiss_search(index, gallery.identities), f"IVF{lists}, nprobe {index.nprobe}")


def _faiss_search(index: faiss.Index, identities: Ids) -> Search:
    def search(queries: Vectors, threads: int) -> Ids:
        _, rows = index.search(queries, TOP)
        return _owners(rows[:, 0], identities)

    return search


def build_hnswlib(gallery: Gallery, folder: Path) -> Built:
    index = hnswlib.Index(space="ip", dim=gallery.vectors.shape[1])
    index.init_index(max_elements=len(gallery.vectors), M=32, ef_construction=100)
    index.set_ef(256)
    index.add_items(gallery.vectors, num_threads=usable_cores())

    def search(queries: Vectors, threads: int) -> Ids:
        rows, _ = index.knn_query(queries, TOP, num_threads=threads)
        return _owners(rows[:, 0].astype(np.int64), gallery.identities)

    return Built(search, "M 32, ef_construction 100, ef 256")


def build_usearch(gallery: Gallery, folder: Path) -> Built:
    """In the precision that it chooses by itself for this CPU."""
    index = usearch.index.Index(
        ndim=gallery.vectors.shape[1], metric="ip", connectivity=32, expansion_add=100, expansion_search=256
    )
    index.add(np.arange(len(gallery.vectors)), gallery.vectors, threads=usable_cores())

    def search(queries: Vectors, threads: int) -> Ids:
        keys = np.atleast_2d(index.search(queries, TOP, threads=threads).keys)
        return _owners(keys[:, 0].astype(np.int64), gallery.identities)

    return Built(search, f"{index.dtype.name}, connectivity 32, expansion 100 and 256")


def build_faceflash(gallery: Gallery, folder: Path) -> Built:
    """Its codes are fitted to the first 5,000 faces, as it does itself; the others are encoded in parts, because its
    `add_batch` copies everything at each call. Vectors are mapped, as after its `load`."""
    dim, fitted = gallery.vectors.shape[1], 5_000
    index = FaceIndex(dim)
    labels = [str(identity) for identity in gallery.identities.tolist()]
    index.add_batch(gallery.vectors[:fitted], labels[:fitted])
    parts = [index.quantizer.encode(gallery.vectors[i : i + CHUNK]) for i in range(0, len(labels), CHUNK)]
    index.vectors = np.concatenate(parts)
    index.float_vectors = _mapped(gallery.vectors, folder / "faceflash.npy")
    index.labels, index.paths, index.count = labels, [""] * len(labels), len(labels)

    def search(queries: Vectors, threads: int) -> Ids:
        if len(queries) == 1:
            answers = [index.search(queries[0], TOP)]
        else:
            answers = index.search_batch(queries, TOP, parallel=threads > 1)
        return np.array([int(hits[0][0]) for hits in answers], dtype=np.int64)

    return Built(search, "512 bits, 100 candidates; vectors mapped from a file")


def _mapped(vectors: Vectors, path: Path) -> Vectors:
    np.save(path, vectors)
    mapped: Vectors = np.load(path, mmap_mode="r")
    return mapped


RIVALS = (
    Rival("whosthere", build_whosthere),
    Rival("FAISS IndexFlatIP", build_flat),
    Rival("FAISS HNSW32", build_hnsw, MOST_OF_A_GRAPH),
    Rival("FAISS IVF+SQ8", build_ivf),
    Rival("hnswlib", build_hnswlib, MOST_OF_A_GRAPH),
    Rival("usearch", build_usearch, MOST_OF_A_GRAPH),
    Rival("faceflash", build_faceflash),
)
EXACT = "FAISS IndexFlatIP"
OTHER_GRAPHS = ("hnswlib", "usearch")
"""Left out over real embeddings, where one graph is enough."""


def _owners(rows: Ids, identities: Ids) -> Ids:
    return np.where(rows < 0, -1, identities[rows])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """FAISS' own threads, and those of the BLAS libraries of FAISS and NumPy."""
    before = faiss.omp_get_max_threads()
    with threadpool_limits(count):
        faiss.omp_set_num_threads(count)
        yield
    faiss.omp_set_num_threads(before)


def measure(data: Embedded) -> Measured:
    labelled = thresholds.impostors(data.vectors, data.person)
    two_names = thresholds.find_two_names(data, thresholds.fit(labelled), labelled.pairs)
    first = np.unique(data.person, return_index=True)[1]
    others = np.setdiff1d(np.arange(len(data.person)), first)
    mates = np.einsum("nd,nd->n", data.vectors[others], data.vectors[first[data.person[others]]])
    strangers = thresholds.impostors(data.vectors, data.person, two_names)
    return Measured(data.vectors[first], np.sort(mates).astype(np.float64), strangers, data)


def make_vectors(population: Population, faces: int) -> tuple[Vectors, Ids]:
    """(N, D) PHOTOS faces a person side by side, and (N,) their people's groups."""
    rng = np.random.default_rng(population.dim)
    vectors = np.empty((faces, population.dim), np.float32)
    groups = np.empty(faces, np.int64)
    for start in range(0, faces, CHUNK * PHOTOS):
        people, of = population.people(min(CHUNK, (faces - start) // PHOTOS), rng)
        part = slice(start, start + PHOTOS * len(people))
        vectors[part][::PHOTOS] = people
        for photo in range(1, PHOTOS):
            vectors[part][photo::PHOTOS] = population.photos(people, of, rng)
        groups[part] = np.repeat(of, PHOTOS)
    return vectors, groups


def make_gallery(population: Population, vectors: Vectors, groups: Ids) -> Gallery:
    """With mated probes of any of the faces, and strangers."""
    rng = np.random.default_rng(len(vectors))
    rows = rng.choice(len(vectors), MATED, replace=False)
    mated = population.photos(vectors[rows], groups[rows], rng)
    strangers, _ = population.people(STRANGERS, rng)
    identities = np.arange(len(vectors), dtype=np.int64) // PHOTOS
    right = np.concatenate([identities[rows], np.full(STRANGERS, -1)])
    return Gallery("made", vectors, identities, np.concatenate([mated, strangers]), right)


def real_gallery(measured: Measured, population: Population, faces: int) -> Gallery:
    """The first photo of everyone but of each second one who has no other, and copies of those, which are further
    photos of the same people. Probes are the other photos, all real, and the people left out."""
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
    """Builds them one after the other, with every core."""
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
    """Memory of this process that no file stands behind, after what was freed has been given back; Linux only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("/proc/self/status does not tell RssAnon")


def time_one_by_one(searches: Mapping[str, Search], probes: Vectors) -> dict[str, float]:
    """The median of each, in milliseconds, on one thread, in turns of A_TURN queries. The first ones of a turn do not
    count: another one's turn has left its own data in the caches, as no service that is in use finds them."""
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
    """The median of each, in milliseconds, on every core and in turns."""
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
    """TIMED of them, half of them mated."""
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
            # of smaller galleries it is less than what the process takes and gives back anyway
            "bytes_a_face": it.bytes_a_face if len(gallery.vectors) >= 100_000 else "",
            "mates_exact_finds": float(findable.sum() / mated.sum()),
            "of_those_found": float((answers[it.name] == exact)[findable].mean()),
            "best_missed_cosine": _best_missed(gallery, findable & (answers[it.name] != exact)),
            "strangers_same_nearest": float((answers[it.name] == exact)[stranger].mean()),
            "note": it.built.note,
        }
        say(f"{gallery.label}: {it.name} {row['query_ms']:.3g} ms, {row['of_those_found']:.4%} of the mates found")
        rows.append(row)
    return rows


def _best_missed(gallery: Gallery, missed: NDArray[np.bool_]) -> Cell:
    """The highest cosine at which a mate was missed; empty where none was."""
    scores = [
        float((gallery.vectors[gallery.identities == gallery.right[i]] @ gallery.probes[i]).max())
        for i in np.flatnonzero(missed)
    ]
    return max(scores) if scores else ""


def code_rows(population: Population, vectors: Vectors, groups: Ids, folder: Path) -> list[dict[str, Cell]]:
    """Sub-quantizers and rows re-scored. The row that says `chosen` is what the index settles on by itself."""
    gallery, hard = hard_gallery(population, vectors, groups)
    flat = build_flat(gallery, folder).search
    findable = answers_to(flat, gallery.probes) == gallery.right
    rows: list[dict[str, Cell]] = []
    for parts in PARTS:
        with patch.object(compressed, "PARTS", parts):
            begun = time.perf_counter()
            base = compressed.build(folder / "codes.index", gallery.vectors.shape[1], _faces(gallery), {})
            build_s, index = time.perf_counter() - begun, compressed.over(base)
            chosen, search = index.rescored, _identities_of(index)
            for rescored in sorted({*RESCORED, chosen}):
                index.rescored = rescored
                found = (answers_to(search, gallery.probes) == gallery.right)[findable].mean()
                rows.append(
                    {
                        "table": "codes",
                        "gallery": f"made, mates at {hard}",
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
    """With mated probes near the threshold only, and what their cosines are."""
    rng = np.random.default_rng(7)
    rows = rng.choice(len(vectors), HARD_PROBES, replace=False)
    cosines = rng.uniform(*HARD, len(rows))
    probes = population.photos(vectors[rows], groups[rows], rng, cosines)
    identities = np.arange(len(vectors), dtype=np.int64) // PHOTOS
    return Gallery("made", vectors, identities, probes, identities[rows]), f"{HARD[0]} to {HARD[1]}"


def tier_rows(population: Population, vectors: Vectors, groups: Ids, folder: Path) -> list[dict[str, Cell]]:
    """Exact and compressed, as the service runs them, at growing sizes."""
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
                "gallery": "made",
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


def spread_rows(measured: Measured, populations: Sequence[Population]) -> list[dict[str, Cell]]:
    """The same quantiles of real and made embeddings."""
    columns = {"measured": _spread_of_real(measured)} | {
        f"made_{population.dim}": _spread_of_made(population, len(measured.people)) for population in populations
    }
    return [
        {"table": "spread", "what": what, **{name: column[what] for name, column in columns.items()}}
        for what in columns["measured"]
    ]


def _spread_of_real(measured: Measured) -> dict[str, float]:
    return _stranger_quantiles("faces of strangers", measured.strangers) | _mate_quantiles(measured.mates)


def _spread_of_made(population: Population, people: int) -> dict[str, float]:
    rng = np.random.default_rng(11)
    faces, groups = population.people(2 * people, rng)
    photos = population.photos(faces, groups, rng)
    mates = np.sort(np.einsum("nd,nd->n", faces, photos)).astype(np.float64)
    # Half of them are photos made from others, as probes are: those must score with strangers as faces do.
    both = np.concatenate([faces[::2], photos[1::2]])
    return _stranger_quantiles(
        "faces of strangers", thresholds.impostors(both, np.arange(len(both), dtype=np.int64))
    ) | _mate_quantiles(mates)


def _stranger_quantiles(what: str, scores: thresholds.Impostors) -> dict[str, float]:
    return {f"{what}, FMR {rate:g}": scores.cosine(rate) for rate in (0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)}


def _mate_quantiles(mates: NDArray[np.float64]) -> dict[str, float]:
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    quantiles = {f"mates, quantile {share:g}": float(np.quantile(mates, share)) for share in shares}
    return quantiles | {"mates, mean": float(mates.mean()), "mates, sd": float(mates.std())}


def read_embeddings(folder: Path, kept: Path | None) -> Embedded:
    """Of the central face of each photo; from `kept` where that is, else it is written for the next time."""
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
        say(f"making {sizes[-1]:,} faces in {population.dim} dimensions")
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
