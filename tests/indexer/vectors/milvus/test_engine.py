"""Indexes in Milvus are shared by processes, and visible only when they are complete."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import StorageUnavailable
from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.types import Hit
from indexer.vectors.base import DamagedIndex
from indexer.vectors.index_registry import IndexRegistry
from indexer.vectors.milvus.client import CollectionDropped
from indexer.vectors.milvus.index import MilvusEngine
from tests.indexer.gallery.faces import make_gallery
from tests.indexer.vectors.milvus.engines import (
    PATH,
    all_operations,
    build_empty,
    engine_at,
    header,
    ids,
    no_pages,
    one_page,
    random_vectors,
    unit_faces,
)
from tests.indexer.vectors.milvus.server import MilvusServer
from tests.waiting import DEADLINE


def test_index_survives_a_crash_of_milvus(milvus: MilvusServer, address: str) -> None:
    vectors = random_vectors(np.random.default_rng(1), 30, 8)
    with engine_at(address) as engine:
        with pytest.raises(FileNotFoundError, match=r"Milvus at http://127\.0\.0\.1:\d+ has no index 7\.index"):
            engine.load(PATH)
        index, _ = engine.build(PATH, header(8, 5), one_page(np.arange(1, 31), np.arange(1, 31), vectors))
        index.remove([30])
        assert engine.save(PATH, header(8, 6), index)
    milvus.kill()
    milvus.start()
    with engine_at(address) as engine:
        found, index = engine.load(PATH)
        assert found == header(8, 6)
        assert index.face_ids().tolist() == list(range(1, 30))
        assert [hit.face_id for (hit,) in index.nearest_faces(vectors[:29], 1)] == list(range(1, 30))


def test_saved_position_only_increases(engine: MilvusEngine, address: str) -> None:
    index = build_empty(engine, 4)
    with engine_at(address) as other:
        _, same = other.load(PATH)
        index.save_position(asdict(header(4, 12)))
        same.save_position(asdict(header(4, 9)))
        assert index.position() == same.position() == asdict(header(4, 12))
        same._positions.save(same.collection, asdict(header(4, 10)))  # by a process that read the position earlier
        assert index.position() == asdict(header(4, 12))
        assert other.load(PATH)[0] == header(4, 12)


WRITING_PROCESS = """
import sys
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
from indexer.vectors.milvus.index import MilvusEngine
header, index = MilvusEngine(sys.argv[1]).load(Path("7.index"))
index.put(np.array([50]), np.array([5]), np.eye(4, dtype=np.float32)[3:])
index.remove([1])
index.save_position(asdict(replace(header, seq=header.seq + 2)))
"""


def test_writes_of_another_process_are_found_at_once(engine: MilvusEngine, address: str) -> None:
    index, _ = engine.build(PATH, header(4, 3), unit_faces(1, 2))
    subprocess.run([sys.executable, "-c", WRITING_PROCESS, address], check=True, timeout=DEADLINE)
    assert index.nearest_faces(np.eye(4, dtype=np.float32)[3:], 1) == [[Hit(5, 50, 1.0)]]
    assert index.face_ids().tolist() == [2, 50]
    position = index.position()
    assert position is not None
    assert position["seq"] == 5


KILLED_BUILD = """
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


def test_incomplete_index_of_a_killed_build_is_not_loaded(engine: MilvusEngine, address: str) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED_BUILD, address], check=False, timeout=DEADLINE).returncode == 9
    assert engine.stored_galleries() == {7}
    with pytest.raises(FileNotFoundError):
        engine.load(PATH)
    with pytest.raises(StorageUnavailable, match="being built in Milvus by another process"):
        build_empty(engine, 4)
    with engine_at(address, heartbeat_timeout=0) as later:
        index, _ = later.build(PATH, header(4, 2), unit_faces(3))
        assert later._collections(PATH) == [index.collection]
        assert later.load(PATH)[1].face_ids().tolist() == [3]


def test_failed_build_keeps_the_previous_index(engine: MilvusEngine) -> None:
    index, _ = engine.build(PATH, header(4, 1), unit_faces(1))

    def failing_pages() -> Iterator[FaceVectors]:
        yield FaceVectors(ids(2), ids(2), np.eye(4, dtype=np.float32)[:1])
        raise RuntimeError("the database failed")

    with pytest.raises(RuntimeError, match="the database failed"):
        engine.build(PATH, header(4, 2), failing_pages)
    assert engine._collections(PATH) == [index.collection]
    assert engine.load(PATH)[1].face_ids().tolist() == index.face_ids().tolist() == [1]


def test_rebuilt_index_replaces_the_one_in_use(engine: MilvusEngine, address: str) -> None:
    old = build_empty(engine, 4)
    with engine_at(address) as other:
        other.build(PATH, header(4, 8), unit_faces(4))
        other.build(Path("71.index"), replace(header(4), gallery_id=71), no_pages)
    for use in all_operations(old):
        with pytest.raises(CollectionDropped, match=r"Milvus at .* could not"):
            use()
    assert old.is_replaced
    found, new = engine.load(PATH)
    assert (found.seq, found.faces, new.is_replaced) == (8, 1, False)
    assert new.face_ids().tolist() == [4]
    assert engine.stored_galleries() == {7, 71}


def test_index_of_another_pack_and_dimension_replaces_the_previous_one(engine: MilvusEngine) -> None:
    first = build_empty(engine, 4)
    second, _ = engine.build(PATH, header(6, 2, "beef"), one_page(ids(1), ids(1), np.eye(6, dtype=np.float32)[:1]))
    assert first.collection.rpartition("_")[0] != second.collection.rpartition("_")[0]
    assert engine._collections(PATH) == [second.collection]
    found, index = engine.load(PATH)
    assert found == replace(header(6, 2, "beef"), faces=1)
    with pytest.raises(StorageUnavailable, match="could not store faces"):
        index.put(ids(2), ids(2), np.eye(4, dtype=np.float32)[:1])
    assert len(index) == 1


def test_delete_removes_everything_of_one_gallery(engine: MilvusEngine) -> None:
    index = build_empty(engine, 4)
    engine.build(Path("71.index"), replace(header(4), gallery_id=71), no_pages)
    engine.delete(PATH)
    engine.delete(PATH)
    assert engine.stored_galleries() == {71}
    assert index.position() is None
    with pytest.raises(FileNotFoundError):
        engine.load(PATH)
    assert engine.load(Path("71.index"))[0].gallery_id == 71


def test_state_with_other_fields_is_damaged(engine: MilvusEngine) -> None:
    index = build_empty(engine, 4)
    index.save_position({"seq": 99, "unknown": "field"})
    with pytest.raises(DamagedIndex, match="is not a valid header"):
        engine.load(PATH)


def test_registry_deletes_collections_of_deleted_galleries(store: Store, engine: MilvusEngine, tmp_path: Path) -> None:
    indexes = IndexRegistry(store, tmp_path, engine)
    kept, deleted = make_gallery(store), make_gallery(store, "visitors")
    for gallery in (kept, deleted):
        indexes.get(gallery).catch_up()
    store.galleries.delete("visitors")
    later = IndexRegistry(store, tmp_path, engine)
    later.get(kept).catch_up()
    assert engine.stored_galleries() == {kept.id, deleted.id}
    later.save()
    assert engine.stored_galleries() == {kept.id}


def test_file_of_milvus_lite_can_be_used(tmp_path: Path) -> None:
    with engine_at(f"milvus://{tmp_path}/faces.db") as engine:
        index, _ = engine.build(PATH, header(4, 1), one_page(ids(1), ids(2), np.eye(4, dtype=np.float32)[:1]))
        assert index.nearest_identities(np.eye(4, dtype=np.float32)[:1], 3) == [[Hit(2, 1, 1.0)]]
        assert engine.load(PATH)[0].seq == 1


def test_import_does_not_load_pymilvus() -> None:
    code = (
        "import sys; import indexer.vectors.milvus.index; sys.exit('pymilvus' in sys.modules or 'grpc' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE)
