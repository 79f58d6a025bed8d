"""Fixtures for tests of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.app_context import AppContext
from indexer.settings import read_settings
from tests.indexer.enrollment.parquet.galleries import (
    Open,
)
from tests.postgres import Database
from tests.variants import SETTINGS


@pytest.fixture
def open_home(tmp_path: Path) -> Iterator[Open]:
    """Opens homes with the database of a URL; without one, with SQLite in the home's folder."""
    opened: list[AppContext] = []

    def make(url: str = "") -> AppContext:
        opened.append(AppContext(read_settings(SETTINGS, home=tmp_path / f"home{len(opened)}", database_url=url)))
        return opened[-1]

    yield make
    for context in opened:
        context.close()


@pytest.fixture
def context(open_home: Open) -> AppContext:
    return open_home("")


@pytest.fixture
def stored(open_home: Open, database: Database) -> AppContext:
    """A home with each kind of database."""
    return open_home(database.url)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.parquet"
