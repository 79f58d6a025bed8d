"""The self-check of a compressed index measures its recall and makes it sufficient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.vectors import compressed, mapped_file, product_codes, self_check
from tests.indexer.vectors.compressed_faces import (
    build_index,
    faces_of,
    random_units,
)
from tests.indexer.vectors.compressed_faces import file as file
from tests.indexer.vectors.compressed_faces import people as people


def test_self_check_reports_recall_and_rescored_rows(file: Path) -> None:
    index = compressed.open_index(mapped_file.read(file))
    checked = index.checked
    assert checked is not None
    assert checked.mates_found >= self_check.TARGET_RECALL
    assert checked.threshold == pytest.approx(0.4, abs=0.05)
    assert checked.same_identity >= 0.99
    assert checked.rescored == index.rescored == self_check.MIN_RESCORED
    assert 0 < checked.query_ms < 1000


def test_inaccurate_codes_are_balanced_by_more_rescored_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_codes, "SUBQUANTIZERS", 8)
    monkeypatch.setattr(self_check, "MIN_RESCORED", 16)
    monkeypatch.setattr(self_check, "MATED_PROBES", 2000)
    faces = faces_of(random_units(5000, 64, 5))
    checked = build_index(tmp_path, faces).checked
    assert checked is not None
    assert checked.rescored > 16
    assert checked.mates_found >= self_check.TARGET_RECALL
    monkeypatch.setattr(self_check, "MAX_RESCORED", 32)
    worse = build_index(tmp_path, faces).checked
    assert worse is not None
    assert worse.rescored == 32
    assert worse.mates_found < self_check.TARGET_RECALL
    monkeypatch.setattr(self_check, "MIN_RESCORED", 20)
    most = build_index(tmp_path, faces).checked
    assert most is not None
    assert most.rescored == 32


def test_metadata_and_rescored_rows_are_stored_in_the_file(tmp_path: Path) -> None:
    base = compressed.build(tmp_path / "1.index", 16, [faces_of(random_units(300, 16, 1))], {"of": "a test"})
    assert base.metadata["of"] == "a test"
    index = compressed.open_index(base)
    assert index.checked is not None
    wider = replace(base, metadata={"checked": {**base.metadata["checked"], "rescored": 512}})
    assert compressed.open_index(wider).rescored == 512


def test_empty_index_has_no_self_check_report(tmp_path: Path) -> None:
    index = build_index(tmp_path, faces_of(np.empty((0, 16), np.float32)))
    assert index.checked is None
    assert index.nearest_identities(random_units(2, 16, 1), 3) == [[], []]
    assert compressed.open_index(mapped_file.read(tmp_path / "1.index")).checked is None
