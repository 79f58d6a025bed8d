"""Outages of Milvus raise clear errors, and everything works again afterwards."""

from __future__ import annotations

from collections.abc import Callable
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
from tests.indexer.vectors.milvus.engines import address as address
from tests.indexer.vectors.milvus.engines import engine as engine
from tests.indexer.vectors.milvus.server import MilvusServer, free_port
from tests.indexer.vectors.milvus.server import milvus as milvus
from tests.waiting import DEADLINE, wait_for


def test_index_raises_a_clear_error_during_an_outage(tmp_path: Path) -> None:
    server = MilvusServer(tmp_path / "data")
    try:
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
    finally:
        server.kill()


def test_hanging_milvus_causes_timeouts(milvus: MilvusServer, address: str) -> None:
    with engine_at(address) as engine:
        build_empty(engine, 4).put(ids(2), ids(2), np.ones((1, 4), np.float32))
    with engine_at(address, timeout=1) as engine, engine_at(address, timeout=1) as newcomer:
        _, index = engine.load(PATH)
        with milvus.hanging(), ThreadPoolExecutor(9) as threads:
            for asked in [threads.submit(use) for use in [*all_operations(index), newcomer.stored_galleries]]:
                with pytest.raises(StorageUnavailable, match=r"Deadline|connect"):
                    asked.result()
        # Milvus may execute writes whose caller has given up: those of face 1, of which no result is known.
        assert set(index.face_ids().tolist()) - {1} == {2}


def test_requests_do_not_wait_for_each_other(
    milvus: MilvusServer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    ask = MilvusConnection.call

    def noted(self: MilvusConnection, what: str, method: Callable[[Any], Any]) -> Any:
        def call(client: Any) -> Any:
            begun.append(what)
            return method(client)

        return ask(self, what, call)

    with engine_at(address, timeout=DEADLINE) as engine, ThreadPoolExecutor(9) as threads:
        index = build_empty(engine, 4)
        index.put(ids(1), ids(1), np.ones((1, 4), np.float32))
        monkeypatch.setattr(MilvusConnection, "call", noted)
        with milvus.hanging():
            asked = [threads.submit(use) for use in all_operations(index)]
            wait_for(lambda: len(begun) >= len(asked), "all of them to ask Milvus")
            assert not any(one.done() for one in asked)
        for one in asked:
            one.result(DEADLINE)


def test_synchronized_indexes_catch_up_after_an_outage(store: Store, tmp_path: Path) -> None:
    """Every process sees the faces enrolled and deleted during the outage."""
    server = MilvusServer(tmp_path / "data")
    try:
        address = server.address()
        with engine_at(address) as engine, engine_at(address) as elsewhere:
            gallery = make_gallery(store)
            one, other = (IndexRegistry(store, tmp_path, made).get(gallery) for made in (engine, elsewhere))
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
    finally:
        server.kill()


def test_missing_server_raises_without_the_password() -> None:
    port = free_port()
    with engine_at(f"milvus://root:s%3Acret@127.0.0.1:{port}", NO_TIMEOUT_S) as engine, ThreadPoolExecutor(1) as thread:
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match=rf"^Milvus at http://127\.0\.0\.1:{port} could not") as raised:
                thread.submit(engine.load, PATH).result(DEADLINE)
            assert "cret" not in str(raised.value)


def test_server_started_later_is_found(tmp_path: Path) -> None:
    server = MilvusServer(tmp_path / "data")
    address = server.address()
    server.kill()
    try:
        with engine_at(address) as engine:
            with pytest.raises(StorageUnavailable):
                engine.stored_galleries()
            server.start()
            wait_for(lambda: is_found(engine), "Milvus to be found")
    finally:
        server.kill()


def is_found(engine: MilvusEngine) -> bool:
    try:
        return engine.stored_galleries() == set()
    except StorageUnavailable:
        return False
