"""The vector indexes that `benchmarks.vectors` compares, each built over the same gallery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import hnswlib
import numpy as np
import usearch.index
from faceflash.index import FaceIndex

from benchmarks.synthetic_faces import CHUNK, Ids
from indexer.gallery.embeddings import FaceVectors
from indexer.types import Tier, Vectors
from indexer.vectors.base import Header, VectorIndex
from indexer.vectors.engines import FaissEngine
from indexer.vectors.self_check import SelfCheckReport
from indexer.vision.runtime import usable_cores

MOST_OF_A_GRAPH = 100_000

TOP = 10

Search = Callable[[Vectors, int], Ids]
"""Maps queries (Q, D) and a number of threads to the nearest identity of each (Q,), or -1."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Vectors (N, D) with their identities (N,), ascending; probes with their correct identity, or -1."""

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
    """An index that is ready to search. `note` describes its parameters."""

    search: Search
    note: str = ""


@dataclass(frozen=True)
class Rival:
    name: str
    build: Callable[[Gallery, Path], Built]
    """Receives a folder for its files."""
    most: int = 10**9
    """Largest gallery for which it is built."""


def build_whosthere(gallery: Gallery, folder: Path, tier: Tier = Tier.AUTO) -> Built:
    """Builds the index as the service does, from 10,000 faces of SQL at a time."""
    index = _engine_build(gallery, folder, tier)
    note = index.kind
    if isinstance(index.checked, SelfCheckReport):
        note += f", {index.checked.rescored} rows re-scored; recall in the self-check {index.checked.mates_found}"
    return Built(search_of(index), note)


def _engine_build(gallery: Gallery, folder: Path, tier: Tier) -> VectorIndex:
    header = Header(1, "", "", gallery.vectors.shape[1], 0, "", len(gallery.vectors))
    index, _ = FaissEngine(tier).build(folder / f"{tier}.index", header, lambda: face_vectors(gallery))
    return index


def face_vectors(gallery: Gallery) -> Iterator[FaceVectors]:
    for start in range(0, len(gallery.vectors), 10_000):
        end = min(start + 10_000, len(gallery.vectors))
        part = slice(start, end)
        yield FaceVectors(np.arange(start, end, dtype=np.int64), gallery.identities[part], gallery.vectors[part])


def search_of(index: VectorIndex) -> Search:
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
    """Follows FAISS' guidelines: 4 sqrt(N) lists, trained on 40 faces each; an eighth of them is probed."""
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
    """Uses the precision that usearch chooses for this CPU."""
    index = usearch.index.Index(
        ndim=gallery.vectors.shape[1], metric="ip", connectivity=32, expansion_add=100, expansion_search=256
    )
    index.add(np.arange(len(gallery.vectors)), gallery.vectors, threads=usable_cores())

    def search(queries: Vectors, threads: int) -> Ids:
        keys = np.atleast_2d(index.search(queries, TOP, threads=threads).keys)
        return _owners(keys[:, 0].astype(np.int64), gallery.identities)

    return Built(search, f"{index.dtype.name}, connectivity 32, expansion 100 and 256")


def build_faceflash(gallery: Gallery, folder: Path) -> Built:
    """Fits the codes to the first 5,000 faces, as faceflash does; the others are encoded in parts, because `add_batch`
    copies everything at each call. Vectors are memory-mapped, as after its `load`."""
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
"""Skipped for real embeddings, where one graph is enough."""


def _owners(rows: Ids, identities: Ids) -> Ids:
    return np.where(rows < 0, -1, identities[rows])
