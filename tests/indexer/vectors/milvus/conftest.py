"""A Milvus server for each test process, and an engine with its own collections for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from indexer.vectors.milvus.index import MilvusEngine
from tests.indexer.vectors.milvus.engines import engine_at
from tests.indexer.vectors.milvus.server import MilvusServer
from tests.indexer.vectors.milvus.server import milvus as milvus


@pytest.fixture
def address(milvus: MilvusServer) -> str:
    return milvus.address()


@pytest.fixture
def engine(address: str) -> Iterator[MilvusEngine]:
    with engine_at(address) as engine:
        yield engine
