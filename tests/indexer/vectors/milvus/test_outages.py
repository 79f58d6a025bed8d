"""Outages of Milvus raise clear errors, and the index recovers from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import StorageUnavailable
from indexer.gallery.store import Store
from indexer.types import Hit
from indexer.vectors.index_registry import IndexRegistry
from indexer.vectors.milvus.client import MilvusConnection
from indexer.vectors.milvus.index import MilvusEngine
from tests.indexer.gallery.faces import enroll_one, make_gallery, new_face
from tests.indexer.vectors.milvus.engines import (
    NO_TIMEOUT_S,
    PATH,
    all_operations,
    build_empty,
    engine_at,
    header,
    ids,
    matched_face,
    unit_faces,
)
from tests.indexer.vectors.milvus.server import MilvusServer, free_port
from tests.waiting import DEADLINE, wait_for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MilvusServer]:
    """A separate server that a test can stop."""
    server = MilvusServer(tmp_path / "data")
    yield server
    server.kill()


def test_index_raises_a_clear_error_during_an_outage(server: MilvusServer) -> None:
    with engine_at(server.address(), timeout=NO_TIMEOUT_S) as engine, ThreadPoolExecutor(1) as thread:
        index, _ = engine.build(PATH, header(4, 1), unit_faces(1))
        server.kill()
        more: list[Callable[[], object]] = [index.position, lambda: index.save_position(asdict(header(4, 2)))]
        for use in all_operations(index) + more:
            with pytest.raises(StorageUnavailable, match=r"^Milvus at http://127\.0\.0\.1:\d+ could not \w+"):
                thread.submit(use).result(DEADLINE)
        with pytest.raises(StorageUnavailable):
            engine.load(PATH)
        assert not index.is_replaced
        server.start()
        index.put(ids(2), ids(2), np.eye(4, dtype=np.float32)[1:2])
        index.save_position(asdict(header(4, 2)))
        assert index.nearest_faces(np.eye(4, dtype=np.float32)[:2], 1) == [[Hit(1, 1, 1.0)], [Hit(2, 2, 1.0)]]
        assert engine.load(PATH)[0].seq == 2


def test_hanging_milvus_causes_timeouts(milvus: MilvusServer, address: str) -> None:
    with engine_at(address) as engine:
        build_empty(engine, 4).put(ids(2), ids(2), np.ones((1, 4), np.float32))
    with engine_at(address, timeout=1) as engine, engine_at(address, timeout=1) as unconnected:
        _, index = engine.load(PATH)
        with milvus.hanging(), ThreadPoolExecutor(9) as threads:
            for result in [threads.submit(use) for use in [*all_operations(index), unconnected.stored_galleries]]:
                with pytest.raises(StorageUnavailable, match=r"Deadline|connect"):
                    result.result()
        # Milvus may execute writes after their timeout: those of face 1 have no known result.
        assert set(index.face_ids().tolist()) - {1} == {2}


def test_requests_do_not_wait_for_each_other(
    milvus: MilvusServer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    call = MilvusConnection.call

    def recorded(self: MilvusConnection, what: str, method: Callable[[Any], Any]) -> Any:
        def begin(client: Any) -> Any:
            begun.append(what)
            return method(client)

        return call(self, what, begin)

    with engine_at(address, timeout=DEADLINE) as engine, ThreadPoolExecutor(9) as threads:
        index = build_empty(engine, 4)
        index.put(ids(1), ids(1), np.ones((1, 4), np.float32))
        monkeypatch.setattr(MilvusConnection, "call", recorded)
        with milvus.hanging():
            results = [threads.submit(use) for use in all_operations(index)]
            wait_for(lambda: len(begun) >= len(results), "all requests to begin")
            assert not any(result.done() for result in results)
        for result in results:
            result.result(DEADLINE)


def test_synchronized_indexes_catch_up_after_an_outage(store: Store, tmp_path: Path, server: MilvusServer) -> None:
    """Every process sees the faces enrolled and deleted during the outage."""
    address = server.address()
    with engine_at(address) as engine, engine_at(address) as other_engine:
        gallery = make_gallery(store)
        one, other = (IndexRegistry(store, tmp_path, some).get(gallery) for some in (engine, other_engine))
        first = enroll_one(store, gallery, new_face("ana", 1))
        assert matched_face(one, 1) == matched_face(other, 1) == first
        server.kill()
        second = enroll_one(store, gallery, new_face("ben", 2))
        store.faces.delete(gallery.id, first)
        with pytest.raises(StorageUnavailable, match="Milvus at"):
            matched_face(one, 2)
        server.start()
        assert matched_face(one, 2) == matched_face(other, 2) == second
        assert matched_face(one, 1) == matched_face(other, 1) is None
        assert (one.compare_with_database().different, other.compare_with_database().in_index) == (0, 1)
        one.save()
        third = enroll_one(store, gallery, new_face("cem", 3))
    with engine_at(address) as engine:
        later = IndexRegistry(store, tmp_path, engine).get(gallery)
        assert [matched_face(later, image) for image in (1, 2, 3)] == [None, second, third]
        assert later.state().kind == "milvus"
        later.delete()
        assert engine.stored_galleries() == set()


def test_missing_server_raises_without_the_password() -> None:
    port = free_port()
    with engine_at(f"milvus://root:s%3Acret@127.0.0.1:{port}", NO_TIMEOUT_S) as engine, ThreadPoolExecutor(1) as thread:
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match=rf"^Milvus at http://127\.0\.0\.1:{port} could not") as raised:
                thread.submit(engine.load, PATH).result(DEADLINE)
            assert "cret" not in str(raised.value)


def test_server_started_later_is_found(server: MilvusServer) -> None:
    server.kill()
    with engine_at(server.address()) as engine:
        with pytest.raises(StorageUnavailable):
            engine.stored_galleries()
        server.start()
        wait_for(lambda: is_found(engine), "Milvus to be found")


def is_found(engine: MilvusEngine) -> bool:
    try:
        return engine.stored_galleries() == set()
    except StorageUnavailable:
        return False
