from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.settings import read_settings
from search_service.service_context import ServiceContext
from tests.variants import SETTINGS


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServiceContext]:
    """An empty home folder, without models."""
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    yield context
    context.close()
