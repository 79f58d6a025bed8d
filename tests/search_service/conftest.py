from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.settings import read_settings
from indexer.vectors import builds
from search_service.api import streams
from search_service.service_context import ServiceContext
from tests.variants import SETTINGS
from tests.waiting import DEADLINE


@pytest.fixture(scope="session", autouse=True)
def patient_callers() -> Iterator[None]:
    """Makes requests wait for short builds of indexes, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builds, "PATIENCE_S", DEADLINE)
        yield


@pytest.fixture(scope="session", autouse=True)
def short_streams() -> Iterator[None]:
    """Makes streams of events end when they have sent what is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "LONGEST_SECONDS", 0.0)
        yield


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServiceContext]:
    """An empty home folder, without models."""
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    yield context
    context.close()
