"""The index in Milvus returns what FAISS returns for the same faces."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from indexer.vectors.flat import FlatIndex
from indexer.vectors.milvus import index as milvus_index
from indexer.vectors.milvus.client import INDEX_TYPES
from indexer.vectors.milvus.index import MilvusEngine
from tests.indexer.vectors.milvus.engines import (
    PATH,
    TIMEOUT_S,
    build_empty,
    engine_at,
    faces_of,
    header,
    ids,
    one_page,
    random_vectors,
    rows_of,
)
from tests.indexer.vectors.milvus.server import MilvusServer


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_puts_and_removes_equals_faiss(engine: MilvusEngine, seed: int) -> None:
    """Uses small integers: every product is exact in float32, and many are equal."""
    rng = np.random.default_rng(seed)
    index, exact = build_empty(engine, 6), FlatIndex(6)
    for _ in range(8):
        face_ids = rng.choice(np.arange(1, 41), rng.integers(0, 16), replace=False)
        owners, vectors = rng.integers(1, 7, len(face_ids)), rng.integers(-2, 3, (len(face_ids), 6)).astype(np.float32)
        removed = rng.integers(1, 41, rng.integers(0, 5)).tolist()
        for one in (index, exact):
            one.put(face_ids, owners, vectors)
            one.remove(removed)
    assert len(index) == len(exact)
    assert index.face_ids().tolist() == exact.face_ids().tolist()
    assert rows_of(index) == rows_of(exact)
    probes = rng.integers(-2, 3, (9, 6)).astype(np.float32)
    for k in (0, 1, 3, 6, 50):
        assert index.nearest_faces(probes, k) == exact.nearest_faces(probes, k)
        assert index.nearest_identities(probes, k) == exact.nearest_identities(probes, k)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.skip("milvus-lite has no index IVF_RABITQ") if "rabitq" in kind else ())
        for kind in INDEX_TYPES
    ],
)
def test_every_index_type_scores_unit_vectors_as_faiss(milvus: MilvusServer, kind: str) -> None:
    rng = np.random.default_rng(5)
    vectors, owners = random_vectors(rng, 1500, 64), rng.integers(1, 300, 1500)
    exact = FlatIndex(64)
    exact.put(np.arange(1, 1501), owners, vectors)
    with engine_at(milvus.address(f"&index={kind}")) as engine:
        index, _ = engine.build(PATH, header(64), one_page(np.arange(1, 1501), owners, vectors))
        engine._milvus.call("flush", lambda c: c.flush(index.collection, timeout=TIMEOUT_S))
        probes = random_vectors(rng, 20, 64)
        for answer in ("nearest_faces", "nearest_identities"):
            found, wanted = getattr(index, answer)(probes, 10), getattr(exact, answer)(probes, 10)
            assert [faces_of(hits) for hits in found] == [faces_of(hits) for hits in wanted]
            for hits, others in zip(found, wanted, strict=True):
                assert [h.score for h in hits] == pytest.approx([h.score for h in others], abs=1e-6)


def test_large_operations_take_several_requests(engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_index, "WRITE_BYTES", 4 * 8 * 10)
    monkeypatch.setattr(milvus_index, "READ_BYTES", 4 * 8 * 9)
    monkeypatch.setattr(milvus_index, "DELETE_BATCH", 3)
    rng = np.random.default_rng(2)
    index, exact = build_empty(engine, 8), FlatIndex(8)
    vectors = random_vectors(rng, 47, 8)
    for one in (index, exact):
        one.put(np.arange(1, 48), np.arange(1, 48), vectors)
        one.remove(range(1, 12))
    assert rows_of(index) == rows_of(exact)
    assert list(map(faces_of, index.nearest_faces(vectors, 3))) == list(map(faces_of, exact.nearest_faces(vectors, 3)))


def test_faces_are_counted_once_after_each_write(engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_empty(engine, 4)
    requests: list[str] = []
    call = index._milvus.call

    def recorded(what: str, method: Callable[[object], object]) -> object:
        requests.append(what)
        return call(what, method)

    monkeypatch.setattr(index._milvus, "call", recorded)
    counts = [len(index), len(index)]
    index.put(ids(1, 2), ids(1, 2), np.eye(4, dtype=np.float32)[:2])
    counts += [len(index), len(index)]
    index.remove([1])
    counts += [len(index), len(index)]
    assert counts == [0, 0, 2, 2, 1, 1]
    assert requests == ["count faces", "store faces", "count faces", "remove faces", "count faces"]


@pytest.mark.parametrize("consistency", ["strong", "session"])
def test_each_thread_finds_its_own_writes_at_once(milvus: MilvusServer, consistency: str) -> None:
    with engine_at(milvus.address(f"&consistency={consistency}")) as engine:
        index, vectors = build_empty(engine, 16), random_vectors(np.random.default_rng(3), 200, 16)

        def put(start: int) -> None:
            index.put(np.arange(start + 1, start + 21), np.arange(start + 1, start + 21), vectors[start : start + 20])
            (hits,) = index.nearest_faces(vectors[start : start + 1], 1)
            assert hits[0].face_id == start + 1

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(put, range(0, 200, 20)))
        assert len(index) == 200
