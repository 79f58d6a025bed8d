"""Imports and exports that are interrupted, concurrent or large."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.app_context import AppContext
from indexer.enrollment.parquet import export
from indexer.enrollment.parquet import file as parquet_file
from indexer.enrollment.parquet.export import export_gallery
from indexer.enrollment.parquet.file import open_gallery_file
from indexer.enrollment.parquet.importer import gallery_for, import_rows
from indexer.errors import Conflict, StorageUnavailable
from indexer.gallery.export_reader import FaceRecord, Record, Snapshot
from indexer.types import Gallery, Outcome, Person, vector_to_bytes
from tests.indexer.enrollment.parquet.galleries import (
    DIM,
    fill,
    floats,
    import_file,
    outcomes,
    plain,
    write,
)
from tests.indexer.gallery.faces import image_hash, vector
from tests.indexer.gallery.together import in_threads
from tests.indexer.vectors.disks import limited_file_size


def test_interrupted_import_is_continued(stored: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "BATCH", 4)
    write(path, plain(*range(10)))
    with open_gallery_file(path) as file:
        gallery = gallery_for(stored.store, stored.packs, lambda: stored.pack, "staff", file)
        results = import_rows(stored.store, gallery, file)
        assert next(results).outcome is Outcome.ENROLLED
        results.close()
    assert stored.store.galleries.counts(gallery.id) == (4, 4)
    assert outcomes(import_file(stored, path)) == {"unchanged": 4, "enrolled": 6}
    assert stored.store.galleries.counts(gallery.id) == (10, 10)


def test_concurrent_imports_enroll_each_row_once(
    stored: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "BATCH", 4)
    rows = {
        "external_id": [f"p{i}" for i in range(30)],
        "embedding": floats([vector(i, DIM) for i in range(20)] + [None] * 10),
    }
    write(path, rows)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    results = in_threads([lambda: import_file(stored, path)] * 2)
    assert outcomes(results[0] + results[1]) == {"enrolled": 30, "unchanged": 30}
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits
    assert stored.store.galleries.counts(stored.store.galleries.get("staff").id) == (30, 20)


def test_import_is_continued_after_a_full_disk(
    context: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "BATCH", 100)
    write(path, plain(*range(1000)))
    with open_gallery_file(path) as file:
        gallery = gallery_for(context.store, context.packs, lambda: context.pack, "staff", file)
        with limited_file_size(500_000), pytest.raises(StorageUnavailable):
            list(import_rows(context.store, gallery, file))
    there = context.store.galleries.counts(gallery.id)[1]
    assert 0 < there < 1000
    assert outcomes(import_file(context, path)) == {"unchanged": there, "enrolled": 1000 - there}


def test_full_disk_keeps_the_existing_file(context: AppContext, path: Path) -> None:
    fill(context)
    path.write_bytes(b"the old one")
    with limited_file_size(3000), pytest.raises(StorageUnavailable, match=r"some\.parquet cannot be written: File too"):
        export_gallery(context.migrated_engine, "staff", path)
    assert path.read_bytes() == b"the old one"
    assert [other.name for other in path.parent.iterdir() if other.name.startswith("some")] == ["some.parquet"]


def test_import_fails_when_the_gallery_is_reembedded_meanwhile(
    context: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "BATCH", 2)
    with open_gallery_file(write(path, plain(1, 2, 3, 4))) as file:
        gallery = gallery_for(context.store, context.packs, lambda: context.pack, "staff", file)
        results = import_rows(context.store, gallery, file)
        next(results)
        store = context.store
        store.reembeddings.start(gallery, "other", "aaaa", DIM)
        faces = store.embeddings.of_faces(gallery, [1, 2])
        store.reembeddings.put(gallery, "aaaa", faces.face_ids.tolist(), faces.vectors)
        assert store.reembeddings.switch(gallery, "aaaa").switched
        with pytest.raises(Conflict, match="re-embedded meanwhile"):
            list(results)


def test_reading_keeps_one_batch_in_memory(path: Path) -> None:
    """The file is a single row group with 41 MB of embeddings, as other programs may write it."""
    n = 20_000
    vectors = pa.array(np.random.default_rng(0).standard_normal(n * 512, dtype=np.float32))
    embedding = pa.FixedSizeListArray.from_arrays(vectors, 512).cast(pa.list_(pa.float32()))
    pq.write_table(
        pa.table({"external_id": [f"p{i}" for i in range(n)], "embedding": embedding}), path, row_group_size=n
    )
    del vectors, embedding
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    with open_gallery_file(path) as file:
        assert file.rows == n
        for batch in file.batches():
            rows += len(batch)
            most = max(most, pa.total_allocated_bytes() - before)
    assert rows == n
    assert most < 15e6


def test_writing_keeps_one_row_group_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ROW_GROUP", 1_000)
    n, at = 20_000, datetime.now(UTC)
    numbers = np.random.default_rng(0)

    def records() -> Iterator[Record]:
        for i in range(n):
            embedding = vector_to_bytes(numbers.standard_normal(512, dtype=np.float32))
            seen = FaceRecord(i, image_hash(i), [0.0] * 4, [[0.0, 0.0]] * 5, 0.9, {"size": 90.0}, at, embedding)
            yield Record(Person(f"p{i}"), seen)

    gallery = Gallery(1, "staff", "ir50", "aaaa", 512, 0, at)
    before, most, size = pa.total_allocated_bytes(), 0, 0
    reports: list[tuple[int, int, int]] = []
    parts = export._file_parts(
        Snapshot(gallery, n, n, records()), lambda done, total: reports.append((done, total, size))
    )
    with path.open("wb") as out:
        for part in parts:
            size += out.write(part)
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10e6
    assert [(done, total) for done, total, _ in reports] == [(done, n) for done in range(1_000, n + 1, 1_000)]
    assert all(written >= done * 512 * 4 for done, _, written in reports)
    assert pq.read_metadata(path).num_rows == n
