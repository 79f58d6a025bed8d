from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.settings import read_settings
from indexer.vectors import builds
from search_service.service_context import ServiceContext
from tests.variants import SETTINGS
from tests.waiting import DEADLINE


@pytest.fixture(scope="session", autouse=True)
def patient_callers() -> Iterator[None]:
    """Makes requests wait for short builds of indexes, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builds, "PATIENCE_S", DEADLINE)
        yield


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServiceContext]:
    """An empty home folder, without models."""
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    yield context
    context.close()
