"""Fixtures for tests of model packs and their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.indexer.models.pulling import Models
from tests.indexer.models.web_server import WebServer, run_web_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with run_web_server() as running:
        yield running


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path / "models")
