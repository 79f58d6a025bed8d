"""The index in Milvus, beside FAISS over the same faces. Milvus is `milvus-lite` behind `pymilvus`' own client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.errors import InvalidSetting, StorageUnavailable
from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.types import Hit, Vectors
from indexer.vectors.base import DamagedIndex, FacePages, Header
from indexer.vectors.flat import FlatIndex
from indexer.vectors.index_registry import IndexRegistry
from indexer.vectors.milvus import index as milvus_index
from indexer.vectors.milvus.client import INDEX_TYPES, Address, CollectionGone, Milvus, parse
from indexer.vectors.milvus.index import FACES_PER_IDENTITY, MilvusEngine, MilvusIndex
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.gallery.faces import enroll_one, make_gallery, new_face, vector
from tests.indexer.vectors.milvus.server import MilvusServer, free_port
from tests.indexer.vectors.milvus.server import milvus as milvus
from tests.waiting import DEADLINE, wait_for

PATH = Path("7.index")
WITHIN = 60.0
"""Seconds that `milvus-lite` gets on a busy machine."""

NEVER = 100 * DEADLINE
"""Seconds after which an answer is given up, where a test shows that nothing waits for so long."""


@pytest.fixture
def address(milvus: MilvusServer) -> str:
    return milvus.address()


@pytest.fixture
def engine(address: str) -> Iterator[MilvusEngine]:
    with engine_at(address) as made:
        yield made


@contextmanager
def engine_at(address: str, within: float = WITHIN, building_for: float = 30.0) -> Iterator[MilvusEngine]:
    with closing(MilvusEngine(address, within, building_for)) as made:
        yield made


def header(dim: int, seq: int = 0, fingerprint: str = "f00d") -> Header:
    return Header(7, "2026-11-24T10:00:00+00:00", fingerprint, dim, seq, f"mark {seq}", 0)


def ids(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def of(face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> FacePages:
    return lambda: iter([FaceVectors(face_ids, identity_ids, vectors)])


def nobody() -> Iterator[FaceVectors]:
    return iter([])


def built(engine: MilvusEngine, dim: int) -> MilvusIndex:
    index, kept = engine.build(PATH, header(dim), nobody)
    assert kept
    return index


def spread(rng: np.random.Generator, count: int, dim: int) -> Vectors:
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_puts_and_removes_ends_as_in_faiss(engine: MilvusEngine, seed: int) -> None:
    """Small whole numbers: every product is exact in float32, and many are equal."""
    rng = np.random.default_rng(seed)
    index, exact = built(engine, 6), FlatIndex(6)
    for _ in range(8):
        face_ids = rng.choice(np.arange(1, 41), rng.integers(0, 16), replace=False)
        owners, vectors = rng.integers(1, 7, len(face_ids)), rng.integers(-2, 3, (len(face_ids), 6)).astype(np.float32)
        gone = rng.integers(1, 41, rng.integers(0, 5)).tolist()
        for one in (index, exact):
            one.put(face_ids, owners, vectors)
            one.remove(gone)
    assert len(index) == len(exact)
    assert index.face_ids().tolist() == exact.face_ids().tolist()
    assert rows_of(index) == rows_of(exact)
    probes = rng.integers(-2, 3, (9, 6)).astype(np.float32)
    for k in (0, 1, 3, 6, 50):
        assert index.nearest_faces(probes, k) == exact.nearest_faces(probes, k)
        assert index.nearest_identities(probes, k) == exact.nearest_identities(probes, k)


def rows_of(index: MilvusIndex | FlatIndex) -> dict[int, tuple[int, list[float]]]:
    return {f: (i, v) for f, i, v in zip(*(array.tolist() for array in index.contents()), strict=True)}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.skip("milvus-lite has no index IVF_RABITQ") if "rabitq" in kind else ())
        for kind in INDEX_TYPES
    ],
)
def test_unit_vectors_score_as_in_faiss_by_every_type_of_index(milvus: MilvusServer, kind: str) -> None:
    rng = np.random.default_rng(5)
    vectors, owners = spread(rng, 1500, 64), rng.integers(1, 300, 1500)
    exact = FlatIndex(64)
    exact.put(np.arange(1, 1501), owners, vectors)
    with engine_at(milvus.address(f"&index={kind}")) as engine:
        index, _ = engine.build(PATH, header(64), of(np.arange(1, 1501), owners, vectors))
        engine._milvus.ask("flush", lambda c: c.flush(index.collection, timeout=WITHIN))  # what is flushed is indexed
        probes = spread(rng, 20, 64)
        for answer in ("nearest_faces", "nearest_identities"):
            found, wanted = getattr(index, answer)(probes, 10), getattr(exact, answer)(probes, 10)
            assert [faces_of(hits) for hits in found] == [faces_of(hits) for hits in wanted]
            for hits, others in zip(found, wanted, strict=True):
                assert [h.score for h in hits] == pytest.approx([h.score for h in others], abs=1e-6)


def faces_of(hits: list[Hit]) -> list[tuple[int, int]]:
    return [(hit.identity_id, hit.face_id) for hit in hits]


def test_an_identity_with_very_many_faces_hides_nobody(engine: MilvusEngine) -> None:
    """The first fetch holds the faces of one person alone, and so would Milvus' grouping search."""
    many = FACES_PER_IDENTITY * 5 * 20
    index = built(engine, 2)
    index.put(np.arange(1, many + 1), np.ones(many, np.int64), np.tile(np.array([[1, 0]], np.float32), (many, 1)))
    far = np.array([[0.5, 0], [0.4, 0], [0.3, 0], [-1, 0]], dtype=np.float32)
    index.put(ids(1001, 1002, 1003, 1004), ids(2, 3, 4, 5), far)
    (hits,) = index.nearest_identities(np.array([[1, 0]], dtype=np.float32), 5)
    assert faces_of(hits) == [(1, 1), (2, 1001), (3, 1002), (4, 1003), (5, 1004)]
    (hits,) = index.nearest_identities(np.array([[1, 0]], dtype=np.float32), 9)
    assert faces_of(hits) == [(1, 1), (2, 1001), (3, 1002), (4, 1003), (5, 1004)]


@pytest.mark.parametrize("k", [1, 3, 7, 9])
def test_equals_go_by_face_id_whatever_the_order_they_came_in(engine: MilvusEngine, k: int) -> None:
    index = built(engine, 2)
    index.put(ids(6, 2, 5, 1, 4, 3), ids(6, 2, 5, 1, 4, 3), np.tile(np.array([[0, 1]], np.float32), (6, 1)))
    index.put(ids(9), ids(9), np.array([[0, 2]], dtype=np.float32))
    query = np.array([[0, 1]], dtype=np.float32)
    expected = [9, 1, 2, 3, 4, 5, 6][:k]
    assert [hit.face_id for hit in index.nearest_faces(query, k)[0]] == expected
    assert [hit.identity_id for hit in index.nearest_identities(query, k)[0]] == expected


def test_an_empty_index(engine: MilvusEngine) -> None:
    index = built(engine, 4)
    queries = np.eye(4, dtype=np.float32)
    assert (len(index), index.face_ids().tolist(), index.contents()[2].shape) == (0, [], (0, 4))
    assert index.nearest_faces(queries, 5) == index.nearest_identities(queries, 5) == [[]] * 4
    assert index.nearest_identities(queries[:0], 5) == []
    index.put(ids(), ids(), queries[:0])
    index.remove([])
    index.remove([1, 2])
    index.put(ids(7), ids(1), queries[:1])
    index.remove([7])
    assert len(index) == 0
    assert index.nearest_faces(queries, 5) == [[]] * 4


def test_what_comes_in_several_requests(engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_index, "WRITE_BYTES", 4 * 8 * 10)
    monkeypatch.setattr(milvus_index, "READ_BYTES", 4 * 8 * 9)
    monkeypatch.setattr(milvus_index, "REMOVED_AT_ONCE", 3)
    rng = np.random.default_rng(2)
    index, exact = built(engine, 8), FlatIndex(8)
    vectors = spread(rng, 47, 8)
    for one in (index, exact):
        one.put(np.arange(1, 48), np.arange(1, 48), vectors)
        one.remove(range(1, 12))
    assert rows_of(index) == rows_of(exact)
    assert list(map(faces_of, index.nearest_faces(vectors, 3))) == list(map(faces_of, exact.nearest_faces(vectors, 3)))


def test_faces_are_counted_once_after_each_write(engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    index = built(engine, 4)
    asked: list[str] = []
    ask = index._milvus.ask

    def noted(what: str, method: Callable[[object], object]) -> object:
        asked.append(what)
        return ask(what, method)

    monkeypatch.setattr(index._milvus, "ask", noted)
    counts = [len(index), len(index)]
    index.put(ids(1, 2), ids(1, 2), np.eye(4, dtype=np.float32)[:2])
    counts += [len(index), len(index)]
    index.remove([1])
    counts += [len(index), len(index)]
    assert counts == [0, 0, 2, 2, 1, 1]
    assert asked == ["count faces", "store faces", "count faces", "remove faces", "count faces"]


@pytest.mark.parametrize("consistency", ["strong", "session"])
def test_threads_search_while_others_put(milvus: MilvusServer, consistency: str) -> None:
    with engine_at(milvus.address(f"&consistency={consistency}")) as engine:
        search_while_others_put(built(engine, 16))


def search_while_others_put(index: MilvusIndex) -> None:
    vectors = spread(np.random.default_rng(3), 200, 16)

    def put(start: int) -> None:
        index.put(np.arange(start + 1, start + 21), np.arange(start + 1, start + 21), vectors[start : start + 20])
        (hits,) = index.nearest_faces(vectors[start : start + 1], 1)  # at once, by whoever wrote it
        assert hits[0].face_id == start + 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(put, range(0, 200, 20)))
    assert len(index) == 200


def test_it_is_there_for_the_next_process_and_after_a_crash_of_milvus(milvus: MilvusServer, address: str) -> None:
    vectors = spread(np.random.default_rng(1), 30, 8)
    with engine_at(address) as engine:
        with pytest.raises(FileNotFoundError, match=r"Milvus at http://127\.0\.0\.1:\d+ has no index 7\.index"):
            engine.load(PATH)
        index, _ = engine.build(PATH, header(8, 5), of(np.arange(1, 31), np.arange(1, 31), vectors))
        index.remove([30])
        assert engine.save(PATH, header(8, 6), index)
    milvus.kill()
    milvus.start()
    with engine_at(address) as engine:
        found, index = engine.load(PATH)
        assert found == header(8, 6)
        assert index.face_ids().tolist() == list(range(1, 30))
        assert [hit.face_id for (hit,) in index.nearest_faces(vectors[:29], 1)] == list(range(1, 30))


def test_the_position_goes_forward_only(engine: MilvusEngine, address: str) -> None:
    index = built(engine, 4)
    with engine_at(address) as other:
        _, same = other.load(PATH)
        index.remember(asdict(header(4, 12)))
        same.remember(asdict(header(4, 9)))
        assert index.position() == same.position() == asdict(header(4, 12))
        same._positions.remember(same.collection, asdict(header(4, 10)))  # it had looked before the other wrote
        assert index.position() == asdict(header(4, 12))
        assert other.load(PATH)[0] == header(4, 12)


OTHER_PROCESS = """
import sys
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
from indexer.vectors.milvus.index import MilvusEngine
header, index = MilvusEngine(sys.argv[1]).load(Path("7.index"))
index.put(np.array([50]), np.array([5]), np.eye(4, dtype=np.float32)[3:])
index.remove([1])
index.remember(asdict(replace(header, seq=header.seq + 2)))
"""


def test_what_another_process_writes_is_found_at_once(engine: MilvusEngine, address: str) -> None:
    index, _ = engine.build(PATH, header(4, 3), of(ids(1, 2), ids(1, 2), np.eye(4, dtype=np.float32)[:2]))
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, address], check=True, timeout=DEADLINE)
    assert index.nearest_faces(np.eye(4, dtype=np.float32)[3:], 1) == [[Hit(5, 50, 1.0)]]
    assert index.face_ids().tolist() == [2, 50]
    position = index.position()
    assert position is not None
    assert position["seq"] == 5


BUILT_HALF = """
import os, sys
from pathlib import Path
import numpy as np
from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.vectors.base import Header
from indexer.vectors.milvus.index import MilvusEngine
def faces():
    yield FaceVectors(np.array([1]), np.array([1]), np.eye(4, dtype=np.float32)[:1])
    os._exit(9)
MilvusEngine(sys.argv[1]).build(Path("7.index"), Header(7, "then", "f00d", 4, 1, "", 2), faces)
"""


def test_a_half_built_index_is_not_taken_for_whole(engine: MilvusEngine, address: str) -> None:
    assert subprocess.run([sys.executable, "-c", BUILT_HALF, address], check=False, timeout=DEADLINE).returncode == 9
    assert engine.stored_galleries() == {7}
    with pytest.raises(FileNotFoundError):
        engine.load(PATH)
    with pytest.raises(StorageUnavailable, match="being built in Milvus by another process"):
        built(engine, 4)
    with engine_at(address, building_for=0) as later:
        index, _ = later.build(PATH, header(4, 2), of(ids(3), ids(3), np.eye(4, dtype=np.float32)[:1]))
        assert later._collections(PATH) == [index.collection]
        assert later.load(PATH)[1].face_ids().tolist() == [3]


def test_a_build_that_fails_leaves_what_was_there(engine: MilvusEngine) -> None:
    index, _ = engine.build(PATH, header(4, 1), of(ids(1), ids(1), np.eye(4, dtype=np.float32)[:1]))

    def fails() -> Iterator[FaceVectors]:
        yield FaceVectors(ids(2), ids(2), np.eye(4, dtype=np.float32)[:1])
        raise RuntimeError("the database is gone")

    with pytest.raises(RuntimeError, match="the database is gone"):
        engine.build(PATH, header(4, 2), fails)
    assert engine._collections(PATH) == [index.collection]
    assert engine.load(PATH)[1].face_ids().tolist() == index.face_ids().tolist() == [1]


def test_who_has_an_index_that_was_built_anew_is_told_and_finds_the_new_one(engine: MilvusEngine, address: str) -> None:
    old = built(engine, 4)
    with engine_at(address) as other:
        other.build(PATH, header(4, 8), of(ids(4), ids(4), np.eye(4, dtype=np.float32)[:1]))
        other.build(Path("71.index"), replace(header(4), gallery_id=71), nobody)
    for use in uses(old):
        with pytest.raises(CollectionGone, match=r"Milvus at .* could not"):
            use()
    assert old.is_replaced
    found, new = engine.load(PATH)
    assert (found.seq, found.faces, new.is_replaced) == (8, 1, False)
    assert new.face_ids().tolist() == [4]
    assert engine.stored_galleries() == {7, 71}


def test_another_pack_and_dimension_take_the_place(engine: MilvusEngine) -> None:
    first = built(engine, 4)
    second, _ = engine.build(PATH, header(6, 2, "beef"), of(ids(1), ids(1), np.eye(6, dtype=np.float32)[:1]))
    assert first.collection.rpartition("_")[0] != second.collection.rpartition("_")[0]
    assert engine._collections(PATH) == [second.collection]
    found, index = engine.load(PATH)
    assert found == replace(header(6, 2, "beef"), faces=1)
    with pytest.raises(StorageUnavailable, match="could not store faces"):
        index.put(ids(2), ids(2), np.eye(4, dtype=np.float32)[:1])
    assert len(index) == 1


def test_deleting_takes_everything_of_the_gallery_and_nothing_else(engine: MilvusEngine) -> None:
    index = built(engine, 4)
    engine.build(Path("71.index"), replace(header(4), gallery_id=71), nobody)
    engine.delete(PATH)
    engine.delete(PATH)
    assert engine.stored_galleries() == {71}
    assert index.position() is None
    with pytest.raises(FileNotFoundError):
        engine.load(PATH)
    assert engine.load(Path("71.index"))[0].gallery_id == 71


def test_what_is_kept_of_another_version_is_damaged(engine: MilvusEngine) -> None:
    index = built(engine, 4)
    index.remember({"seq": 99, "what": "is this"})
    with pytest.raises(DamagedIndex, match="is not a header"):
        engine.load(PATH)


def uses(index: MilvusIndex) -> list[Callable[[], object]]:
    query = np.ones((1, 4), np.float32)
    return [
        lambda: index.nearest_faces(query, 1),
        lambda: index.nearest_identities(query, 1),
        lambda: index.put(ids(1), ids(1), query),
        lambda: index.remove([1]),
        lambda: len(index),
        index.face_ids,
        index.contents,
    ]


def test_an_outage_is_a_clear_error_and_then_it_goes_on(tmp_path: Path) -> None:
    server = MilvusServer(tmp_path / "data")
    try:
        with engine_at(server.address(), within=NEVER) as engine, ThreadPoolExecutor(1) as thread:
            index, _ = engine.build(PATH, header(4, 1), of(ids(1), ids(1), np.eye(4, dtype=np.float32)[:1]))
            server.kill()
            more: list[Callable[[], object]] = [index.position, lambda: index.remember(asdict(header(4, 2)))]
            for use in uses(index) + more:
                with pytest.raises(StorageUnavailable, match=r"^Milvus at http://127\.0\.0\.1:\d+ could not \w+"):
                    thread.submit(use).result(DEADLINE)
            with pytest.raises(StorageUnavailable):
                engine.load(PATH)
            assert not index.is_replaced
            server.start()
            index.put(ids(2), ids(2), np.eye(4, dtype=np.float32)[1:2])
            index.remember(asdict(header(4, 2)))
            assert index.nearest_faces(np.eye(4, dtype=np.float32)[:2], 1) == [[Hit(1, 1, 1.0)], [Hit(2, 2, 1.0)]]
            assert engine.load(PATH)[0].seq == 2
    finally:
        server.kill()


def test_a_milvus_that_hangs_does_not_hang_others(milvus: MilvusServer, address: str) -> None:
    with engine_at(address) as engine:
        built(engine, 4).put(ids(1), ids(1), np.ones((1, 4), np.float32))
    with engine_at(address, within=1) as engine, engine_at(address, within=1) as newcomer:
        _, index = engine.load(PATH)
        with milvus.hanging(), ThreadPoolExecutor(9) as threads:
            for asked in [threads.submit(use) for use in [*uses(index), newcomer.stored_galleries]]:
                with pytest.raises(StorageUnavailable, match=r"Deadline|connect"):
                    asked.result()
        assert len(index) == 1


def test_calls_do_not_wait_for_each_other_while_milvus_hangs(
    milvus: MilvusServer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    ask = Milvus.ask

    def noted(self: Milvus, what: str, method: Callable[[Any], Any]) -> Any:
        def call(client: Any) -> Any:
            begun.append(what)
            return method(client)

        return ask(self, what, call)

    with engine_at(address, within=DEADLINE) as engine, ThreadPoolExecutor(9) as threads:
        index = built(engine, 4)
        index.put(ids(1), ids(1), np.ones((1, 4), np.float32))
        monkeypatch.setattr(Milvus, "ask", noted)
        with milvus.hanging():
            asked = [threads.submit(use) for use in uses(index)]
            wait_for(lambda: len(begun) >= len(asked), "all of them to ask Milvus")
            assert not any(one.done() for one in asked)
        for one in asked:
            one.result(DEADLINE)


def test_a_follower_over_milvus(store: Store, tmp_path: Path) -> None:
    """What was enrolled and deleted while Milvus was away is there, and gone, when it is back; for every process."""
    server = MilvusServer(tmp_path / "data")
    try:
        address = server.address()
        with engine_at(address) as engine, engine_at(address) as elsewhere:
            gallery = make_gallery(store)
            one, other = (IndexRegistry(store, tmp_path, made).get(gallery) for made in (engine, elsewhere))
            first = enroll_one(store, gallery, new_face("ana", 1))
            assert found(one, 1) == found(other, 1) == first
            server.kill()
            second = enroll_one(store, gallery, new_face("ben", 2))
            store.faces.delete(gallery.id, first)
            with pytest.raises(StorageUnavailable, match="Milvus at"):
                found(one, 2)
            server.start()
            assert found(one, 2) == found(other, 2) == second
            assert found(one, 1) == found(other, 1) is None
            assert (one.compare_with_database().different, other.compare_with_database().in_index) == (0, 1)
            one.save()
            third = enroll_one(store, gallery, new_face("cem", 3))
        with engine_at(address) as engine:
            later = IndexRegistry(store, tmp_path, engine).get(gallery)
            assert [found(later, image) for image in (1, 2, 3)] == [None, second, third]
            assert later.state().kind == "milvus"
            later.delete()
            assert engine.stored_galleries() == set()
    finally:
        server.kill()


def test_collections_of_galleries_that_were_deleted_elsewhere_go(
    store: Store, engine: MilvusEngine, tmp_path: Path
) -> None:
    indexes = IndexRegistry(store, tmp_path, engine)
    kept, gone = make_gallery(store), make_gallery(store, "gone")
    for gallery in (kept, gone):
        indexes.get(gallery).catch_up()
    store.galleries.delete("gone")
    later = IndexRegistry(store, tmp_path, engine)
    later.get(kept).catch_up()
    assert engine.stored_galleries() == {kept.id, gone.id}
    later.save()
    assert engine.stored_galleries() == {kept.id}


def found(index: SynchronizedIndex, image: int) -> int | None:
    """The face of that image's embedding, where it is in the index."""
    (hits,) = index.catch_up().nearest_identities(vector(image)[None], 1)
    return hits[0].face_id if hits and hits[0].score > 0.999 else None


def test_nobody_there() -> None:
    port = free_port()
    with engine_at(f"milvus://root:s%3Acret@127.0.0.1:{port}", NEVER) as engine, ThreadPoolExecutor(1) as thread:
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match=rf"^Milvus at http://127\.0\.0\.1:{port} could not") as raised:
                thread.submit(engine.load, PATH).result(DEADLINE)
            assert "cret" not in str(raised.value)


def test_it_is_found_by_who_came_too_early(tmp_path: Path) -> None:
    server = MilvusServer(tmp_path / "data")
    address = server.address()
    server.kill()
    try:
        with engine_at(address) as engine:
            with pytest.raises(StorageUnavailable):
                engine.stored_galleries()
            server.start()
            wait_for(lambda: finds_no_galleries(engine), "Milvus to be found")
    finally:
        server.kill()


def finds_no_galleries(engine: MilvusEngine) -> bool:
    try:
        return engine.stored_galleries() == set()
    except StorageUnavailable:
        return False


def test_a_file_of_milvus_lite(tmp_path: Path) -> None:
    with engine_at(f"milvus://{tmp_path}/faces.db") as engine:
        index, _ = engine.build(PATH, header(4, 1), of(ids(1), ids(2), np.eye(4, dtype=np.float32)[:1]))
        assert index.nearest_identities(np.eye(4, dtype=np.float32)[:1], 3) == [[Hit(2, 1, 1.0)]]
        assert engine.load(PATH)[0].seq == 1


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("milvus://db.example", Address("http://db.example:19530")),
        ("milvus://db.example:99/faces", Address("http://db.example:99", "faces")),
        ("milvus+https://tok%40en@db.example", Address("https://db.example:443", token="tok@en")),
        ("milvus://root:Milv%3Aus@db:1/", Address("http://db:1", token="root:Milv:us")),
        (
            "milvus://db?index=rabitq&shards=4&replicas=2&consistency=session&prefix=hall_2",
            Address("http://db:19530", "", "", INDEX_TYPES["rabitq"], 4, 2, "Session", "hall_2"),
        ),
    ],
)
def test_addresses(uri: str, expected: Address) -> None:
    assert parse(uri) == expected


def test_a_file_address(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    assert parse(f"milvus://{folder}/x.db?index=sq8") == Address(f"{folder}/x.db", index_type=INDEX_TYPES["sq8"])
    assert parse(f"milvus://{tmp_path}/a%20b/x.db").uri == f"{folder}/x.db"
    with pytest.raises(InvalidSetting, match="there is no folder"):
        parse(f"milvus://{tmp_path}/none/x.db")


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://db", "starts with 'http'; expected milvus://"),
        ("milvus://db:port", "cannot be read; expected milvus://"),
        ("milvus://db:99999", "cannot be read; expected milvus://"),
        ("milvus://", "names neither a host nor a .db file"),
        ("milvus:///data/faces", "names neither a host nor a .db file"),
        ("milvus+https:///data/faces.db", "names neither a host nor a .db file"),
        ("milvus://user:secret@/faces.db", "names neither a host nor a .db file"),
        ("milvus://user:secret@db/a/b", "'a/b' cannot be a database"),
        ("milvus://user:secret@db?index=hnsw", "index is 'hnsw'; expected index=flat|sq8|rabitq|rabitq8"),
        ("milvus://user:secret@db?shards=0", "shards is '0'"),
        ("milvus://user:secret@db?consistency=none", "consistency is 'none'"),
        ("milvus://user:secret@db?prefix=A-b", "prefix is 'A-b'"),
        ("milvus://user:secret@db?indx=flat", "indx is 'flat'"),
    ],
)
def test_bad_addresses_are_named_without_their_secrets(uri: str, problem: str) -> None:
    with pytest.raises(InvalidSetting) as raised:
        MilvusEngine(uri)
    assert problem in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_secret_is_not_shown() -> None:
    assert "cret" not in repr(parse("milvus://user:s%65cret@db"))


def test_importing_it_loads_no_client() -> None:
    code = (
        "import sys; import indexer.vectors.milvus.index; sys.exit('pymilvus' in sys.modules or 'grpc' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE)
