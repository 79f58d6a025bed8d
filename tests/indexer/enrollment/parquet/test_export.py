"""Exported galleries: complete, of one state, and equal after an import."""

from __future__ import annotations

import json
import stat
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from indexer.app_context import AppContext
from indexer.enrollment.parquet import export
from indexer.enrollment.parquet import file as parquet_file
from indexer.enrollment.parquet.export import export_gallery
from indexer.errors import NotFound
from indexer.gallery import export_reader as queries
from indexer.gallery.export_reader import snapshot_of
from indexer.models.packs import SFACE
from indexer.types import Gallery, Person
from tests.indexer.enrollment.parquet.galleries import (
    ANA,
    COLUMNS,
    DIM,
    LAST,
    Open,
    contents,
    fill,
    import_file,
    make_gallery,
    new,
    outcomes,
)
from tests.indexer.gallery.faces import image_hash, vector
from tests.indexer.gallery.together import in_threads
from tests.postgres import Database


def test_gallery_is_equal_after_a_round_trip_through_another_engine(
    open_home: Open, database: Database, context: AppContext, path: Path
) -> None:
    gallery = fill(context)
    there = open_home(database.url)
    made = export_gallery(context.migrated_engine, "staff", path)
    assert (made.gallery.name, made.identities, made.faces, made.bytes) == ("staff", 3, 4, path.stat().st_size)
    assert outcomes(import_file(there, path)) == {"enrolled": 5}
    assert contents(there) == contents(context)
    copy = there.store.galleries.get("staff")
    assert (copy.model, copy.fingerprint, copy.dim) == (gallery.model, gallery.fingerprint, gallery.dim)

    back = open_home("")
    export_gallery(there.migrated_engine, "staff", path)
    import_file(back, path, "again")
    assert contents(back, "again") == contents(context)

    probes = np.stack([vector(seed, DIM) for seed in (1, 2, 3, 99)])
    answers = [
        found(each, each.store.galleries.get(name), probes) for each, name in ((context, "staff"), (back, "again"))
    ]
    assert answers[0] == answers[1]
    assert [hits[0] for hits in answers[0]][:3] == [("ana", 1.0), ("bob", 1.0), ("ana", 1.0)]


def found(context: AppContext, gallery: Gallery, probes: NDArray[np.float32]) -> list[list[tuple[str, float]]]:
    names = {person.id: person.external_id for person in context.store.identities.list(gallery.id)}
    answers = context.indexes.get(gallery).catch_up().nearest_identities(probes, 3)
    return [[(names[hit.identity_id], round(hit.score, 6)) for hit in hits] for hits in answers]


def test_importing_again_changes_nothing(stored: AppContext, path: Path) -> None:
    gallery = fill(stored)
    export_gallery(stored.migrated_engine, "staff", path)
    seq = stored.store.changes.last(gallery.id)
    results = import_file(stored, path)
    assert outcomes(results) == {"unchanged": 5}
    assert [(r.row, r.external_id) for r in results] == [(0, "ana"), (1, "ana"), (2, "ana"), (3, "bob"), (4, "carl")]
    assert stored.store.changes.last(gallery.id) == seq


def test_import_updates_identities_and_adds_missing_faces(context: AppContext, path: Path) -> None:
    fill(context)
    export_gallery(context.migrated_engine, "staff", path)
    store, gallery = context.store, context.store.galleries.get("staff")
    store.identities.put(gallery.id, Person("ana", "Ana", metadata={"no": 8, "floor": 3}))
    store.identities.delete(gallery.id, "bob")
    assert outcomes(import_file(context, path)) == {"unchanged": 4, "enrolled": 1}
    ana = store.identities.get(gallery.id, "ana")
    assert (ana.name, ana.valid_until, ana.metadata) == (ANA.name, LAST, {**ANA.metadata, "floor": 3})
    assert store.identities.get(gallery.id, "bob").faces == 1


def test_exported_file_has_the_documented_columns(context: AppContext, path: Path) -> None:
    gallery = fill(context)
    before = datetime.now(UTC)
    export_gallery(context.migrated_engine, "staff", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # embeddings are biometric data
    table = pq.read_table(path)
    assert table.column_names == COLUMNS
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), DIM)
    header = json.loads(table.schema.metadata[b"whosthere"])
    assert before <= datetime.fromisoformat(header.pop("made_at")) <= datetime.now(UTC)
    assert header == {
        "format": 1,
        "gallery": "staff",
        "model": "sface",
        "fingerprint": gallery.fingerprint,
        "dim": DIM,
        "identities": 3,
        "faces": 4,
    }
    rows = table.to_pylist()
    assert [row["external_id"] for row in rows] == ["ana", "ana", "ana", "bob", "carl"]
    assert [row["face_id"] for row in rows] == [1, 3, 4, 2, None]
    first, *_, last = rows
    assert first["embedding"] == vector(1, DIM).tolist()
    assert (first["box"], first["landmarks"][1]) == ([10.25, 20.5, 80.0, 100.75], [70.0, 41.0])
    assert (first["name"], first["valid_from"], first["valid_until"]) == (ANA.name, ANA.valid_from, LAST)
    assert json.loads(first["metadata"]) == ANA.metadata
    assert json.loads(first["quality"])["reasons"] == ["face_badly_lit", "detection_unsure"]
    assert before - timedelta(minutes=1) < first["created_at"] < before
    assert {name for name, value in last.items() if value is not None} == {"external_id", "metadata", "valid_until"}


def test_empty_gallery_is_exported_and_imported(context: AppContext, path: Path) -> None:
    make_gallery(context)
    export_gallery(context.migrated_engine, "staff", path)
    assert pq.read_metadata(path).num_rows == 0
    assert import_file(context, path, "copy") == []
    assert context.store.galleries.get("copy").fingerprint == SFACE.fingerprint


def test_gallery_larger_than_a_page_is_exported_and_imported(
    stored: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of identities, of faces, of written rows and of read rows."""
    for module, name in (
        (queries, "MAX_QUERY_VALUES"),
        (queries, "FACES_AT_ONCE"),
        (export, "ROW_GROUP"),
        (parquet_file, "BATCH"),
    ):
        monkeypatch.setattr(module, name, 3)
    gallery = make_gallery(stored)
    stored.store.faces.enroll(gallery, [new(Person(f"p{image % 7}"), image) for image in range(50)])
    for number in range(7, 12):
        stored.store.identities.put(gallery.id, Person(f"p{number}"))
    export_gallery(stored.migrated_engine, "staff", path)
    assert pq.read_metadata(path).num_row_groups == 19
    assert outcomes(import_file(stored, path, "copy")) == {"enrolled": 55}
    assert contents(stored, "copy") == contents(stored)


def test_missing_gallery_is_not_exported(context: AppContext, path: Path) -> None:
    with pytest.raises(NotFound, match="'nobody'"):
        export_gallery(context.migrated_engine, "nobody", path)
    assert not path.exists()


def test_snapshot_does_not_see_later_changes(stored: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MAX_QUERY_VALUES", 1)
    gallery = fill(stored)
    with snapshot_of(stored.engine, "staff") as snapshot:
        records = [next(snapshot.records)]

        def change() -> None:
            stored.store.faces.enroll(gallery, [new(Person("dora"), 5), new(Person("bob"), 6)])
            stored.store.identities.put(gallery.id, Person("carl", "Carl"))
            stored.store.identities.delete(gallery.id, "ana")

        in_threads([change])
        records += snapshot.records
    assert [(r.person.external_id, r.person.name, r.face and r.face.image_sha256) for r in records] == [
        ("ana", ANA.name, image_hash(1)),
        ("ana", ANA.name, image_hash(3)),
        ("ana", ANA.name, image_hash(4)),
        ("bob", None, image_hash(2)),
        ("carl", None, None),
    ]
    assert (snapshot.identities, snapshot.faces) == (3, 4)


def test_export_during_enrollment_has_one_consistent_state(
    stored: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction adds a second face to an existing identity, and a new identity with two."""
    monkeypatch.setattr(queries, "MAX_QUERY_VALUES", 2)
    gallery = make_gallery(stored)
    stored.store.faces.enroll(gallery, [new(Person(f"old{i}"), i) for i in range(40)])
    enrolled, stop = threading.Event(), threading.Event()

    def enroll_more() -> None:
        for i in range(40):
            later = [new(Person(f"old{39 - i}"), 100 + i), *(new(Person(f"new{i}"), 200 + 2 * i + k) for k in (0, 1))]
            stored.store.faces.enroll(gallery, later)
            if i == 3:
                enrolled.set()
            if stop.is_set():
                return

    thread = threading.Thread(target=enroll_more)
    thread.start()
    try:
        assert enrolled.wait(60)
        made = export_gallery(stored.migrated_engine, "staff", path)
    finally:
        stop.set()
        thread.join()
    faces = Counter(pq.read_table(path)["external_id"].to_pylist())
    committed = sum(name.startswith("new") for name in faces)
    assert committed >= 4
    assert faces == {f"old{i}": 1 + (39 - i < committed) for i in range(40)} | {f"new{i}": 2 for i in range(committed)}
    assert (made.identities, made.faces) == (len(faces), faces.total())
