"""Fixtures for tests of enrollment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.enrollment.similar_faces import PACK, index_of
from tests.indexer.gallery.faces import DIM
from tests.postgres import Database, opened


@pytest.fixture
def sqlite_store(sqlite_template: Path, tmp_path: Path) -> Iterator[Store]:
    path = tmp_path / "truth.db"
    path.write_bytes(sqlite_template.read_bytes())
    with opened(Database("sqlite", f"sqlite:///{path}").url) as store:
        yield store


@pytest.fixture
def gallery(store: Store) -> Gallery:
    return store.galleries.create("staff", PACK.name, PACK.fingerprint, DIM)


@pytest.fixture
def index(store: Store, gallery: Gallery, tmp_path: Path) -> SynchronizedIndex:
    return index_of(store, gallery, tmp_path / "indexes")
