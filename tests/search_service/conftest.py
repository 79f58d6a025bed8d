from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.home import Home
from indexer.settings import read_settings
from tests.variants import SETTINGS


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """An empty one, without models."""
    home = Home(read_settings(SETTINGS, home=tmp_path))
    yield home
    home.close()
