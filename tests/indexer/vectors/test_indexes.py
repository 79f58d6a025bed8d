"""Every kind of index returns the exact answer, computed by brute force."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.gallery.embeddings import FaceVectors
from indexer.types import Hit, Vectors
from indexer.vectors import compressed, gpu, mapped_file
from indexer.vectors.base import VectorIndex
from indexer.vectors.flat import FACES_PER_IDENTITY, build_flat_index
from tests.indexer.vectors.milvus.engines import PATH, engine_at, header, ids
from tests.indexer.vectors.milvus.server import MilvusServer
from tests.indexer.vectors.milvus.server import milvus as milvus

DIM = 6

# Small integers: every inner product is exact in float32, in any order of addition, and many are equal.
small_vectors = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM)
faces = st.tuples(st.integers(1, 30), st.integers(1, 6), small_vectors)
puts = st.lists(faces, max_size=15, unique_by=lambda f: f[0])
removes = st.lists(st.integers(1, 30), max_size=8)
steps = st.lists(st.one_of(puts, removes.map(lambda ids: [(i, 0, None) for i in ids])), max_size=8)


Make = Callable[[Path, int, Vectors], VectorIndex]
"""Builds an index in that folder, of that dimension, with faces 1001, 1002, ... of identities with the same ids."""


def initial_faces(first: Vectors) -> FaceVectors:
    numbers = np.arange(1001, 1001 + len(first))
    return FaceVectors(numbers, numbers, first)


def exact(folder: Path, dim: int, first: Vectors) -> VectorIndex:
    return build_flat_index(dim, [initial_faces(first)], None)


def in_file(folder: Path, dim: int, first: Vectors) -> VectorIndex:
    return compressed.open_index(compressed.build(folder / "1.index", dim, [initial_faces(first)], {}))


def on_gpus(folder: Path, dim: int, first: Vectors) -> VectorIndex:
    if reason := gpu.unavailable_reason():
        pytest.skip(reason)
    in_file(folder, dim, first)
    return compressed.open_index(mapped_file.read(folder / "1.index"), "gpu", gpu.GpuScan)


LOCAL = {"exact": exact, "compressed": in_file, "gpu": on_gpus}


@pytest.fixture(params=[*LOCAL, "milvus"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    if request.param != "milvus":
        yield LOCAL[request.param]
        return
    server: MilvusServer = request.getfixturevalue("milvus")
    with engine_at(server.address()) as engine:
        yield lambda folder, dim, first: engine.build(PATH, header(dim), lambda: iter([initial_faces(first)]))[0]


@pytest.fixture
def empty(make: Make, tmp_path: Path) -> Callable[[int], VectorIndex]:
    return lambda dim: make(tmp_path, dim, np.empty((0, dim), np.float32))


def exact_faces(truth: dict[int, tuple[int, list[int]]], query: list[int], k: int) -> list[Hit]:
    hits = [
        Hit(identity, face_id, float(np.dot(np.array(vector, np.float64), np.array(query, np.float64))))
        for face_id, (identity, vector) in truth.items()
    ]
    return sorted(hits, key=lambda hit: (-hit.score, hit.face_id))[:k]


def exact_identities(truth: dict[int, tuple[int, list[int]]], query: list[int], k: int) -> list[Hit]:
    best: dict[int, Hit] = {}
    for hit in exact_faces(truth, query, len(truth)):
        best.setdefault(hit.identity_id, hit)
    return list(best.values())[:k]


@pytest.mark.parametrize("make", list(LOCAL.values()), ids=list(LOCAL))
@settings(max_examples=100)
@given(
    first=st.lists(small_vectors, max_size=20),
    gone=st.sets(st.integers(1001, 1020)),
    steps=steps,
    queries=st.lists(small_vectors, min_size=1, max_size=24),
    k=st.integers(0, 35),
)
def test_any_order_of_puts_and_removes_is_exact(
    make: Make,
    first: list[list[int]],
    gone: set[int],
    steps: list[list[tuple[int, int, list[int] | None]]],
    queries: list[list[int]],
    k: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = make(Path(folder), DIM, np.array(first, np.float32).reshape(-1, DIM))
    truth: dict[int, tuple[int, list[int]]] = {n: (n, v) for n, v in enumerate(first, 1001) if n not in gone}
    index.remove(sorted(gone))
    for step in steps:
        coming = [(face_id, identity, vector) for face_id, identity, vector in step if vector is not None]
        going = [face_id for face_id, _, vector in step if vector is None]
        if coming:
            index.put(
                ids(*(f for f, _, _ in coming)),
                ids(*(i for _, i, _ in coming)),
                np.array([v for _, _, v in coming], dtype=np.float32),
            )
            truth |= {f: (i, v) for f, i, v in coming}
        index.remove(going)
        for face_id in going:
            truth.pop(face_id, None)
    assert len(index) == len(truth)
    assert index.face_ids().tolist() == sorted(truth)
    assert index.most_faces() >= max(Counter(identity for identity, _ in truth.values()).values(), default=0)
    probes = np.array(queries, dtype=np.float32)
    assert index.nearest_faces(probes, k) == [exact_faces(truth, q, k) for q in queries]
    assert index.nearest_identities(probes, k) == [exact_identities(truth, q, k) for q in queries]


@pytest.mark.parametrize("kind", ["exact", "compressed"])
def test_most_faces_of_an_identity_are_known(kind: str, tmp_path: Path) -> None:
    index = LOCAL[kind](tmp_path, 4, np.eye(4, dtype=np.float32))
    assert index.most_faces() == 1
    index.put(ids(1, 2, 3), ids(7, 7, 8), np.eye(4, dtype=np.float32)[:3])
    assert index.most_faces() in (2, 3)  # what was added since an index was built is counted apart


def test_unit_vectors_of_realistic_size_are_ranked_exactly(empty: Callable[[int], VectorIndex]) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((3000, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    face_ids, owners = np.arange(10, 3010), rng.integers(1, 400, 3000)
    index = empty(128)
    for start in range(0, 3000, 700):
        part = slice(start, start + 700)
        index.put(face_ids[part], owners[part], vectors[part])
    probes = vectors[::100] + 0.05 * rng.standard_normal((30, 128)).astype(np.float32)
    scores = probes.astype(np.float64) @ vectors.T.astype(np.float64)
    for hits, row in zip(index.nearest_faces(probes, 10), scores, strict=True):
        order = np.argsort(-row)[:10]
        assert [hit.face_id for hit in hits] == face_ids[order].tolist()
        assert [hit.identity_id for hit in hits] == owners[order].tolist()
        assert [hit.score for hit in hits] == pytest.approx(row[order].tolist(), abs=1e-4)
    for hits, row in zip(index.nearest_identities(probes, 10), scores, strict=True):
        best = {int(owner): float(row[owners == owner].max()) for owner in np.unique(owners)}
        expected = sorted(best, key=lambda owner: -best[owner])[:10]
        assert [hit.identity_id for hit in hits] == expected
        assert [hit.score for hit in hits] == pytest.approx([best[owner] for owner in expected], abs=1e-4)


@pytest.mark.parametrize("kind", ["exact", "compressed"])
def test_search_starts_no_threads(kind: str, tmp_path: Path) -> None:
    """FAISS's threads wait actively for each other, which takes long while other processes need the cores."""
    rng = np.random.default_rng(6)
    index = LOCAL[kind](tmp_path, 64, rng.standard_normal((3000, 64)).astype(np.float32))

    tasks = Path("/proc/self/task")

    def search() -> set[Path]:
        before = set(tasks.iterdir())
        index.nearest_identities(rng.standard_normal((32, 64)).astype(np.float32), 5)
        return set(tasks.iterdir()) - before

    with ThreadPoolExecutor(1) as thread:  # where nothing has limited FAISS's threads before
        assert thread.submit(search).result() == set()


def test_identity_with_very_many_faces_hides_no_other(empty: Callable[[int], VectorIndex]) -> None:
    """The first fetch contains only faces of one person, as would a grouping search in Milvus."""
    many = FACES_PER_IDENTITY * 5 * 20
    index = empty(2)
    near = np.tile(np.array([[1, 0]], dtype=np.float32), (many, 1))
    index.put(np.arange(1, many + 1), np.ones(many, dtype=np.int64), near)
    far = np.array([[0.5, 0], [0.4, 0], [0.3, 0], [-1, 0]], dtype=np.float32)
    index.put(ids(2001, 2002, 2003, 2004), ids(2, 3, 4, 5), far)
    [hits] = index.nearest_identities(np.array([[1, 0]], dtype=np.float32), 5)
    assert [(hit.identity_id, hit.face_id) for hit in hits] == [(1, 1), (2, 2001), (3, 2002), (4, 2003), (5, 2004)]
    assert [hit.score for hit in hits] == pytest.approx([1, 0.5, 0.4, 0.3, -1], abs=5e-4)  # half precision


@pytest.mark.parametrize("k", [1, 3, 5, 6, 9])
def test_equal_scores_are_ordered_by_face_id(empty: Callable[[int], VectorIndex], k: int) -> None:
    index = empty(2)
    index.put(ids(6, 2, 5, 1, 4, 3), ids(6, 2, 5, 1, 4, 3), np.tile(np.array([[0, 1]], dtype=np.float32), (6, 1)))
    index.put(ids(9), ids(9), np.array([[0, 2]], dtype=np.float32))
    query = np.array([[0, 1]], dtype=np.float32)
    expected = [9, 1, 2, 3, 4, 5, 6][:k]
    assert [hit.face_id for hit in index.nearest_faces(query, k)[0]] == expected
    assert [hit.identity_id for hit in index.nearest_identities(query, k)[0]] == expected


@pytest.fixture
def with_copies(make: Make, tmp_path: Path) -> tuple[VectorIndex, Vectors, list[int]]:
    """Returns an index of 1,200 faces with more copies of one embedding than are rescored, that embedding, and the
    ids of its faces. Half of the faces were added after the build; the dimension is padded by product codes."""
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((1200, 100)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copies = rng.choice(1200, 500, replace=False)
    vectors[copies] = vectors[copies[0]]
    index = make(tmp_path, 100, vectors[:600])
    face_ids = rng.permutation(np.arange(1, 601))
    index.put(face_ids, face_ids, vectors[600:])
    every_id = np.concatenate([np.arange(1001, 1601), face_ids])
    return index, vectors[copies[0]], sorted(every_id[copies].tolist())


@pytest.mark.parametrize("probes", [1, 30])
def test_copies_of_a_face_score_equally_and_rank_by_face_id(
    with_copies: tuple[VectorIndex, Vectors, list[int]], probes: int
) -> None:
    """FAISS puts the highest id first, and products of a matrix differ in the last bit between its rows."""
    index, vector, copies = with_copies
    queries = np.tile(vector + np.linspace(0, 0.1, 100, dtype=np.float32), (probes, 1))
    for found in (index.nearest_faces(queries, 20), index.nearest_identities(queries, 20)):
        for hits in found:
            assert [hit.face_id for hit in hits] == [hit.identity_id for hit in hits] == copies[:20]
            assert len({hit.score for hit in hits}) == 1


def test_query_of_zeros_scores_zero_with_every_face(with_copies: tuple[VectorIndex, Vectors, list[int]]) -> None:
    """FAISS's fast scan answers it with NaN and the id -1."""
    index, vector, copies = with_copies
    queries = np.stack([np.zeros_like(vector), vector])
    for found in (index.nearest_faces(queries, 3), index.nearest_identities(queries, 3)):
        assert found[0] == [Hit(1, 1, 0.0), Hit(2, 2, 0.0), Hit(3, 3, 0.0)]
        assert [hit.face_id for hit in found[1]] == copies[:3]


@pytest.mark.parametrize("make", list(LOCAL.values()), ids=list(LOCAL))
def test_query_that_is_not_a_number_finds_nothing(with_copies: tuple[VectorIndex, Vectors, list[int]]) -> None:
    """FAISS answers it with the id -1 and a score."""
    index, vector, copies = with_copies
    queries = np.stack([np.full_like(vector, np.nan), vector])
    for found in (index.nearest_faces(queries, 3), index.nearest_identities(queries, 3)):
        assert found[0] == []
        assert [hit.face_id for hit in found[1]] == copies[:3]


def test_empty_index_returns_no_hits(empty: Callable[[int], VectorIndex]) -> None:
    index = empty(4)
    queries = np.eye(4, dtype=np.float32)
    assert len(index) == 0
    assert index.nearest_faces(queries, 5) == [[]] * 4
    assert index.nearest_identities(queries, 5) == [[]] * 4
    assert index.face_ids().tolist() == []
    index.remove([1, 2])
    index.put(ids(), ids(), np.empty((0, 4), dtype=np.float32))
    assert len(index) == 0
    index.put(ids(7), ids(1), queries[:1])
    index.remove([7])
    assert index.nearest_faces(queries, 5) == [[]] * 4


def test_no_queries_return_no_answers(empty: Callable[[int], VectorIndex]) -> None:
    index = empty(4)
    index.put(ids(1, 2), ids(1, 2), np.eye(4, dtype=np.float32)[:2])
    none = np.empty((0, 4), dtype=np.float32)
    assert index.nearest_faces(none, 1) == []
    assert index.nearest_identities(none, 1) == []


def test_fewer_hits_than_requested_are_returned_if_there_are_no_more(empty: Callable[[int], VectorIndex]) -> None:
    index = empty(2)
    index.put(ids(1, 2, 3), ids(8, 8, 9), np.array([[1, 0], [0.5, 0], [0, 1]], dtype=np.float32))
    query = np.array([[1, 0]], dtype=np.float32)
    assert [hit.face_id for hit in index.nearest_faces(query, 100)[0]] == [1, 2, 3]
    assert index.nearest_identities(query, 100)[0] == [Hit(8, 1, 1.0), Hit(9, 3, 0.0)]


def test_put_replaces_the_vector_and_identity_of_a_known_face(empty: Callable[[int], VectorIndex]) -> None:
    index = empty(2)
    index.put(ids(1, 2), ids(1, 2), np.array([[1, 0], [0, 1]], dtype=np.float32))
    index.put(ids(1), ids(3), np.array([[0, -1]], dtype=np.float32))
    assert len(index) == 2
    assert index.nearest_faces(np.array([[0, -1]], dtype=np.float32), 2) == [[Hit(3, 1, 1.0), Hit(2, 2, -1.0)]]


def test_contents_are_copies(empty: Callable[[int], VectorIndex]) -> None:
    index = empty(2)
    index.put(ids(2, 1), ids(5, 6), np.array([[1, 0], [0, 1]], dtype=np.float32))
    face_ids, owners, vectors = index.contents()
    found = zip(face_ids.tolist(), owners.tolist(), vectors.tolist(), strict=True)
    assert sorted(found) == [(1, 6, [0, 1]), (2, 5, [1, 0])]
    face_ids[:], owners[:], vectors[:] = 0, 0, 0
    assert index.nearest_faces(np.array([[1, 0]], dtype=np.float32), 1) == [[Hit(5, 2, 1.0)]]
