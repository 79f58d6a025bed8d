from __future__ import annotations

import pytest

from indexer.gallery.store import Store
from indexer.types import Gallery
from tests.indexer.gallery.faces import make_gallery


@pytest.fixture
def gallery(store: Store) -> Gallery:
    """An empty gallery."""
    return make_gallery(store)
