"""Fixtures of the command's tests, shared with those of the indexer's commands."""

from __future__ import annotations

from tests.indexer.cli.conftest import demo as demo
from tests.indexer.cli.conftest import empty as empty
from tests.indexer.cli.conftest import prepared_models as prepared_models
from tests.indexer.cli.conftest import staff as staff
from tests.indexer.cli.conftest import staffed_home as staffed_home
