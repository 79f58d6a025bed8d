"""Fixtures for the tests of vector indexes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.gallery.store import Store
from tests.indexer.vectors.indexed_gallery import Backup, IndexedGallery, backed_up, use_small_limits


@pytest.fixture
def indexed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IndexedGallery:
    """A gallery that is large enough for a compressed index after a few more faces."""
    use_small_limits(monkeypatch.setattr)
    return IndexedGallery(store, tmp_path / "indexes")


@pytest.fixture
def backup(sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backup]:
    use_small_limits(monkeypatch.setattr)
    with backed_up(sqlite_template, tmp_path) as made:
        yield made
