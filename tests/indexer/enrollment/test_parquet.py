"""Galleries go out as Parquet and come back the same; files from elsewhere come in; bad ones are refused by name."""

from __future__ import annotations

import json
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from indexer.app_context import AppContext
from indexer.enrollment.parquet import export
from indexer.enrollment.parquet import file as parquet_file
from indexer.enrollment.parquet.export import export_gallery
from indexer.enrollment.parquet.file import open_gallery_file
from indexer.enrollment.parquet.importer import RowResult, gallery_for, import_rows
from indexer.errors import Conflict, InvalidRequest, ModelUnavailable, NotFound, StorageUnavailable, WhosthereError
from indexer.gallery import export_reader as queries
from indexer.gallery.export_reader import FaceRecord, Record, Snapshot, snapshot_of
from indexer.gallery.faces import NewFace
from indexer.models.packs import BUFFALO_L, SFACE
from indexer.settings import read_settings
from indexer.types import Gallery, Outcome, Person, Reason, sha256, vector_to_bytes
from tests.indexer.cli.command import Command
from tests.indexer.gallery.faces import face, image_hash, vector
from tests.indexer.gallery.together import in_threads
from tests.indexer.vectors.disks import limited_file_size
from tests.postgres import Database
from tests.variants import SETTINGS

DIM = SFACE.dim
COLUMNS = [
    *("external_id", "name", "metadata", "valid_from", "valid_until", "face_id", "image_sha256", "box", "landmarks"),
    *("detection_score", "quality", "created_at", "embedding"),
]
LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)
ANA = Person(
    "ana",
    "Ana Größl",
    datetime(2024, 5, 1, 9, 30, 0, 123_456, UTC),
    LAST,
    {"no": 7, "tags": ["ä", None], "\u2028": 1.5},
)
CARL = Person("carl", None, None, datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=2))), {"department": "Sales"})

Open = Callable[[str], AppContext]


@pytest.fixture
def open_home(tmp_path: Path) -> Iterator[Open]:
    """Homes over databases by URL; over SQLite in the home's own folder where that is empty."""
    homes: list[AppContext] = []

    def make(url: str = "") -> AppContext:
        homes.append(AppContext(read_settings(SETTINGS, home=tmp_path / f"home{len(homes)}", database_url=url)))
        return homes[-1]

    yield make
    for home in homes:
        home.close()


@pytest.fixture
def home(open_home: Open) -> AppContext:
    return open_home("")


@pytest.fixture
def stored(open_home: Open, database: Database) -> AppContext:
    """A home over each kind of database."""
    return open_home(database.url)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.parquet"


def make_gallery(home: AppContext, name: str = "staff") -> Gallery:
    return home.store.galleries.create(name, SFACE.name, SFACE.fingerprint, SFACE.dim)


def new(person: Person, image: int) -> NewFace:
    return NewFace(person, image_hash(image), face(vector(image, DIM)))


def fill(home: AppContext, name: str = "staff") -> Gallery:
    """Ana has three faces, not enrolled one after the other; Bob has one, Carl none."""
    gallery = make_gallery(home, name)
    bob = Person("bob")
    for person, image in ((ANA, 1), (bob, 2), (ANA, 3), (Person("ana"), 4)):
        home.store.faces.enroll(gallery, [new(person, image)])
    home.store.identities.put(gallery.id, CARL)
    return gallery


def contents(home: AppContext, name: str = "staff") -> list[Any]:
    """Everything of a gallery but ids and the times of making; people by their external ids."""
    gallery, store = home.store.galleries.get(name), home.store
    told: list[Any] = []
    for i in sorted(store.identities.list(gallery.id), key=lambda identity: identity.external_id):
        faces = store.faces.list(gallery.id, i.external_id)
        vectors = store.embeddings.of_faces(gallery, [f.id for f in faces]).vectors
        looks = [(f.image_sha256, f.detection.box, f.detection.landmarks.tolist(), f.detection.score) for f in faces]
        told.append((i.external_id, i.name, i.metadata, i.valid_from, i.valid_until, looks, vectors.tobytes()))
        told.append([f.quality for f in faces])
    return told


def bring(home: AppContext, path: Path, name: str = "staff", model: str | None = None) -> list[RowResult]:
    with open_gallery_file(path) as file:
        return list(
            import_rows(home.store, gallery_for(home.store, home.packs, lambda: home.pack, name, file, model), file)
        )


def outcomes(results: Sequence[RowResult]) -> dict[str, int]:
    return {str(outcome): count for outcome, count in Counter(result.outcome for result in results).items()}


def floats(vectors: Sequence[object], kind: pa.DataType | None = None) -> pa.Array:
    """A column of embeddings as others write it."""
    rows = [v.tolist() if isinstance(v, np.ndarray) else v for v in vectors]
    return pa.array(rows, kind or pa.list_(pa.float32()))


def write(path: Path, columns: Mapping[str, object], metadata: Mapping[bytes, bytes] | None = None) -> Path:
    pq.write_table(pa.table(dict(columns)).replace_schema_metadata(metadata), path)
    return path


def plain(*seeds: int) -> dict[str, object]:
    """The least that a file needs: a face a person."""
    return {"external_id": [f"p{seed}" for seed in seeds], "embedding": floats([vector(seed, DIM) for seed in seeds])}


# There and back


def test_a_gallery_comes_back_the_same_from_another_engine(
    open_home: Open, database: Database, home: AppContext, path: Path
) -> None:
    gallery = fill(home)
    there = open_home(database.url)
    made = export_gallery(home.migrated_engine, "staff", path)
    assert (made.gallery.name, made.identities, made.faces, made.bytes) == ("staff", 3, 4, path.stat().st_size)
    assert outcomes(bring(there, path)) == {"enrolled": 5}
    assert contents(there) == contents(home)
    copy = there.store.galleries.get("staff")
    assert (copy.model, copy.fingerprint, copy.dim) == (gallery.model, gallery.fingerprint, gallery.dim)

    back = open_home("")
    export_gallery(there.migrated_engine, "staff", path)
    bring(back, path, "again")
    assert contents(back, "again") == contents(home)

    probes = np.stack([vector(seed, DIM) for seed in (1, 2, 3, 99)])
    answers = [found(each, each.store.galleries.get(name), probes) for each, name in ((home, "staff"), (back, "again"))]
    assert answers[0] == answers[1]
    assert [hits[0] for hits in answers[0]][:3] == [("ana", 1.0), ("bob", 1.0), ("ana", 1.0)]


def found(home: AppContext, gallery: Gallery, probes: NDArray[np.float32]) -> list[list[tuple[str, float]]]:
    names = {person.id: person.external_id for person in home.store.identities.list(gallery.id)}
    answers = home.indexes.get(gallery).catch_up().nearest_identities(probes, 3)
    return [[(names[hit.identity_id], round(hit.score, 6)) for hit in hits] for hits in answers]


def test_importing_again_changes_nothing(stored: AppContext, path: Path) -> None:
    gallery = fill(stored)
    export_gallery(stored.migrated_engine, "staff", path)
    seq = stored.store.changes.last(gallery.id)
    results = bring(stored, path)
    assert outcomes(results) == {"unchanged": 5}
    assert [(r.row, r.external_id) for r in results] == [(0, "ana"), (1, "ana"), (2, "ana"), (3, "bob"), (4, "carl")]
    assert stored.store.changes.last(gallery.id) == seq


def test_what_the_file_says_updates_what_is_there(home: AppContext, path: Path) -> None:
    fill(home)
    export_gallery(home.migrated_engine, "staff", path)
    store, gallery = home.store, home.store.galleries.get("staff")
    store.identities.put(gallery.id, Person("ana", "Ana", metadata={"no": 8, "floor": 3}))
    store.identities.delete(gallery.id, "bob")
    assert outcomes(bring(home, path)) == {"unchanged": 4, "enrolled": 1}
    ana = store.identities.get(gallery.id, "ana")
    assert (ana.name, ana.valid_until, ana.metadata) == (ANA.name, LAST, {**ANA.metadata, "floor": 3})
    assert store.identities.get(gallery.id, "bob").faces == 1


def test_the_file(home: AppContext, path: Path) -> None:
    gallery = fill(home)
    before = datetime.now(UTC)
    export_gallery(home.migrated_engine, "staff", path)
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


def test_an_empty_gallery(home: AppContext, path: Path) -> None:
    make_gallery(home)
    export_gallery(home.migrated_engine, "staff", path)
    assert pq.read_metadata(path).num_rows == 0
    assert bring(home, path, "copy") == []
    assert home.store.galleries.get("copy").fingerprint == SFACE.fingerprint


def test_there_are_more_than_fit_in_a_page(stored: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of identities, of faces, of rows written and of rows read."""
    for module, name in (
        (queries, "MAX_QUERY_VALUES"),
        (queries, "FACES_HELD"),
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
    assert outcomes(bring(stored, path, "copy")) == {"enrolled": 55}
    assert contents(stored, "copy") == contents(stored)


def test_no_such_gallery(home: AppContext, path: Path) -> None:
    with pytest.raises(NotFound, match="'nobody'"):
        export_gallery(home.migrated_engine, "nobody", path)
    assert not path.exists()


# One state


def test_a_snapshot_does_not_see_what_comes_after(stored: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_export_while_others_enrol_is_of_one_state(
    stored: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction gives somebody who is there a second face and brings somebody new with two."""
    monkeypatch.setattr(queries, "MAX_QUERY_VALUES", 2)
    gallery = make_gallery(stored)
    stored.store.faces.enroll(gallery, [new(Person(f"old{i}"), i) for i in range(40)])
    enrolled, stop = threading.Event(), threading.Event()

    def enrol() -> None:
        for i in range(40):
            later = [new(Person(f"old{39 - i}"), 100 + i), *(new(Person(f"new{i}"), 200 + 2 * i + k) for k in (0, 1))]
            stored.store.faces.enroll(gallery, later)
            if i == 3:
                enrolled.set()
            if stop.is_set():
                return

    thread = threading.Thread(target=enrol)
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


# From elsewhere


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.list_(pa.float32()),
        pa.list_(pa.float16(), DIM),
        pa.list_(pa.float64(), DIM),
        pa.large_list(pa.float16()),
    ],
    ids=str,
)
def test_a_file_needs_an_id_and_an_embedding(stored: AppContext, path: Path, kind: pa.DataType) -> None:
    vectors = [vector(1, DIM), vector(2, DIM), vector(3, DIM)]
    leaf = kind.value_type
    rows = [v.astype(leaf.to_pandas_dtype()) for v in vectors] if leaf == pa.float16() else vectors
    write(path, {"external_id": ["ana", "bob", "ana"], "embedding": floats([list(row) for row in rows], kind)})
    assert outcomes(bring(stored, path)) == {"enrolled": 3}
    gallery = stored.store.galleries.get("staff")
    assert (gallery.model, gallery.fingerprint) == ("sface", SFACE.fingerprint)
    ana, bob = stored.store.identities.list(gallery.id)
    assert (ana.external_id, ana.faces, ana.name, ana.metadata, ana.valid_from) == ("ana", 2, None, {}, None)
    [one] = stored.store.faces.list(gallery.id, "bob")
    kept = stored.store.embeddings.of_faces(gallery, [one.id]).vectors
    assert np.abs(kept[0] - vectors[1]).max() < (1e-3 if leaf == pa.float16() else 1e-7)
    assert abs(np.linalg.norm(kept[0]) - 1) < 1e-6
    if leaf == pa.float32():
        assert kept.tobytes() == vectors[1].tobytes()
    assert one.image_sha256 == sha256(vector_to_bytes(kept[0]))
    assert not one.detection.landmarks.any()
    assert (one.detection.box.area, one.detection.score) == (0, 0)
    assert (one.quality.size, one.quality.reasons) == (0, ())
    assert bob.id == one.identity_id
    seq = stored.store.changes.last(gallery.id)
    assert outcomes(bring(stored, path)) == {"unchanged": 3}
    assert stored.store.changes.last(gallery.id) == seq


def test_columns_as_others_write_them(home: AppContext, path: Path) -> None:
    """Encoded as dictionaries, large, of other units, without any value, without landmarks, and of no concern."""
    time = datetime(2024, 5, 1, 9, 30, tzinfo=UTC)
    columns = {
        "shoe_size": [42.0, 43.5],
        "embedding": floats([vector(1, DIM), None], pa.list_(pa.float32(), DIM)),
        "external_id": pa.array(["ana", "bob"]).dictionary_encode(),
        "name": pa.array(["Ana", None], pa.large_string()),
        "metadata": pa.array(['{"a": {"b": [1]}}', None]).dictionary_encode(),
        "valid_from": pa.array([time, None], pa.timestamp("ns", "Europe/Berlin")),
        "valid_until": pa.array([None, time], pa.timestamp("s", "+02:00")),
        "image_sha256": pa.nulls(2),
        "box": pa.array([[1, 2, 3, 4], None], pa.list_(pa.int32())),
        "detection_score": pa.array([1, None], pa.int8()),
        "created_at": ["yesterday", "today"],
    }
    assert outcomes(bring(home, write(path, columns))) == {"enrolled": 2}
    gallery = home.store.galleries.get("staff")
    ana, bob = (home.store.identities.get(gallery.id, external_id) for external_id in ("ana", "bob"))
    assert (ana.name, ana.metadata, ana.valid_from, ana.valid_until) == ("Ana", {"a": {"b": [1]}}, time, None)
    assert (bob.name, bob.metadata, bob.valid_until, bob.faces) == (None, {}, time, 0)
    [one] = home.store.faces.list(gallery.id, "ana")
    box = one.detection.box
    assert (box.x, box.y, box.w, box.h, one.detection.score) == (1, 2, 3, 4, 1)


def test_a_column_of_embeddings_without_any(home: AppContext, path: Path) -> None:
    write(path, {"external_id": ["ana", "bob", "ana"], "embedding": pa.nulls(3)})
    assert [r.outcome for r in bring(home, path)] == [Outcome.ENROLLED, Outcome.ENROLLED, Outcome.UNCHANGED]
    assert home.store.galleries.counts(home.store.galleries.get("staff").id) == (2, 0)


GOOD = vector(1, DIM)


def bad(name: str, value: object, kind: pa.DataType | None = None) -> Any:
    return pytest.param({name: pa.array([None, value], kind)}, id=f"{name}-{str(value)[:20]}")


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"external_id": ["ana", None]}, "an external_id must be 1 to 200"),
        ({"external_id": ["ana", " bob"]}, "an external_id must be 1 to 200"),
        ({"external_id": ["ana", ".."]}, "cannot be part of a URL"),
        ({"name": [None, "a\nb"]}, "a name must be"),
        ({"embedding": floats([GOOD, GOOD[:-1]])}, f"an embedding must have {DIM} numbers; got {DIM - 1}"),
        ({"embedding": floats([GOOD, []])}, f"an embedding must have {DIM} numbers; got 0"),
        ({"embedding": floats([GOOD, GOOD * 1.01])}, "an embedding must have length 1; got 1.01"),
        ({"embedding": floats([GOOD, GOOD * 0])}, "an embedding must have length 1; got 0"),
        ({"embedding": floats([GOOD, [np.nan, *GOOD[1:]]])}, "a number that is not finite"),
        ({"embedding": floats([GOOD, [None, *GOOD[1:]]])}, "a number that is not finite"),
        ({"embedding": floats([GOOD, [1e300, *GOOD[1:]]], pa.list_(pa.float64()))}, "a number that is not finite"),
        ({"metadata": [None, "{"]}, "metadata is not JSON"),
        ({"metadata": [None, "[" * 100_000]}, "metadata is not JSON"),
        ({"metadata": [None, "[1]"]}, "metadata must be a JSON object; got '[1]'"),
        ({"metadata": [None, '{"a": NaN}']}, "must be JSON"),
        ({"metadata": [None, '{"a": "\\ud800"}']}, "must be JSON: '\\ud800' is not valid Unicode"),
        ({"metadata": [None, '{"a": ' * 40 + "1" + "}" * 40]}, "more than 32 lists and objects are nested"),
        ({"metadata": [None, '{"a": "' + "x" * 20_000 + '"}']}, "metadata of 'bob' would be 20,008 bytes of JSON"),
        ({"valid_from": pa.array([None, datetime(2024, 5, 1)], pa.timestamp("us"))}, "must have a time zone"),  # noqa: DTZ001
        (
            {"valid_from": pa.array([None, 10**15], pa.timestamp("s", "UTC"))},
            "valid_from (1000000000000000000 ms after 1970)",
        ),
        (
            {
                "valid_from": pa.array([None, 10], pa.timestamp("s", "UTC")),
                "valid_until": pa.array([None, 10], pa.timestamp("s", "UTC")),
            },
            "valid_until (1970-01-01T00:00:10+00:00) must be after",
        ),
        ({"image_sha256": [None, "ABC"]}, "image_sha256 must be 64 hexadecimal digits"),
        ({"box": [None, [1.0, 2.0, 3.0]]}, "box must be 4 finite numbers; got [1.0, 2.0, 3.0]"),
        ({"box": [None, [1.0, 2.0, None, 4.0]]}, "box must be 4 finite numbers"),
        ({"landmarks": [None, [[1.0, 2.0]] * 4]}, "landmarks must be 5x2 finite numbers"),
        ({"landmarks": [None, [[1.0, 2.0]] * 4 + [[1.0]]]}, "landmarks must be 5x2 finite numbers"),
        ({"landmarks": [None, [[1e39, 2.0]] * 5]}, "landmarks must be 5x2 finite numbers"),
        ({"detection_score": [None, np.inf]}, "detection_score must be a finite number; got inf"),
        ({"quality": [None, "3"]}, "quality must be a JSON object"),
        ({"quality": [None, '{"size": "large"}']}, "size must be a finite number; got large"),
        ({"quality": [None, '{"reasons": ["ugly"]}']}, "the reasons of quality must be some of"),
        ({"quality": [None, '{"reasons": "no_face"}']}, "the reasons of quality must be some of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_row_is_named_and_the_others_come_in(
    home: AppContext, path: Path, columns: dict[str, object], why: str
) -> None:
    rows = {"external_id": ["ana", "bob"], "embedding": floats([GOOD, vector(2, DIM)])} | columns
    first, second = bring(home, write(path, rows))
    assert (first.outcome, first.message) == (Outcome.ENROLLED, None)
    assert (second.row, second.external_id) == (1, rows["external_id"][1] or "")
    assert (second.outcome, second.reason) == (Outcome.REJECTED, Reason.INVALID_ROW)
    assert why in (second.message or "")
    assert home.store.galleries.counts(home.store.galleries.get("staff").id) == (1, 1)


def test_one_face_for_two_people(home: AppContext, path: Path) -> None:
    write(path, {"external_id": ["ana", "bob", "ana"], "embedding": floats([GOOD, GOOD, GOOD])})
    results = bring(home, path)
    assert [r.outcome for r in results] == [Outcome.ENROLLED, Outcome.REJECTED, Outcome.UNCHANGED]
    assert results[1].reason is Reason.LOOKS_LIKE_ANOTHER_IDENTITY
    assert "enrolled for identity 'ana'" in (results[1].message or "")


def test_dates_that_clash_with_what_was_said_before(home: AppContext, path: Path) -> None:
    start = pa.array([datetime(2024, 5, 1, tzinfo=UTC), None], pa.timestamp("us", "UTC"))
    end = pa.array([None, datetime(2023, 5, 1, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    for embeddings in (floats([GOOD, vector(2, DIM)]), pa.nulls(2)):
        write(path, {"external_id": ["ana"] * 2, "embedding": embeddings, "valid_from": start, "valid_until": end})
        results = bring(home, path, f"gallery{embeddings.null_count}")
        assert [r.outcome for r in results] == [Outcome.ENROLLED, Outcome.REJECTED]
        assert results[1].reason is Reason.INVALID_ROW
        assert "'ana' would be valid until 2023-05-01" in (results[1].message or "")


def test_metadata_that_is_too_much_together(home: AppContext, path: Path) -> None:
    halves = [f'{{"{key}": "{"x" * 9_000}"}}' for key in "ab"]
    for embeddings in (floats([GOOD, vector(2, DIM)]), pa.nulls(2)):
        write(path, {"external_id": ["ana"] * 2, "embedding": embeddings, "metadata": halves})
        results = bring(home, path, f"gallery{embeddings.null_count}")
        assert [r.outcome for r in results] == [Outcome.ENROLLED, Outcome.REJECTED]
        assert results[1].reason is Reason.INVALID_ROW
        assert "metadata of 'ana' would be 18,015 bytes" in (results[1].message or "")


# Files that are none


def test_not_parquet(path: Path, tmp_path: Path) -> None:
    for data in (b"", b"external_id,embedding\n", b"PAR1" * 30):
        path.write_bytes(data)
        with (
            pytest.raises(InvalidRequest, match=r"some\.parquet cannot be read as a Parquet file"),
            open_gallery_file(path),
        ):
            pass
    for wrong in (tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(InvalidRequest, match=f"{wrong} cannot be read as a Parquet file"), open_gallery_file(wrong):
            pass


def test_a_damaged_file_is_an_error_and_never_a_wrong_embedding(home: AppContext, path: Path) -> None:
    fill(home)
    export_gallery(home.migrated_engine, "staff", path)
    right, whole = contents(home), path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(InvalidRequest, match=r"some\.parquet cannot be read"):
            bring(home, path)
    vectors = whole.index(vector(3, DIM).tobytes())
    path.write_bytes(whole[:vectors] + bytes([whole[vectors] ^ 1]) + whole[vectors + 1 :])
    with pytest.raises(InvalidRequest, match=r"some\.parquet cannot be read.*CRC"):
        bring(home, path, "copy")
    numbers = np.random.default_rng(0)
    for n in range(150):
        at = int(numbers.integers(len(whole)))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(numbers.integers(8)))]) + whole[at + 1 :])
        try:
            results = bring(home, path, f"copy{n}")
        except WhosthereError:
            continue
        if outcomes(results) == {"enrolled": 5}:
            assert contents(home, f"copy{n}")[0][-1] == right[0][-1]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"embedding": floats([GOOD])}, "has no column 'external_id'; it has embedding"),
        ({"external_id": ["ana"]}, "has no column 'embedding'; it has external_id"),
        ({**plain(1), "external_id": [7]}, "the column 'external_id' of .* is of type int64; expected text"),
        ({**plain(1), "external_id": [b"ana"]}, "the column 'external_id' of .* is of type binary; expected text"),
        ({**plain(1), "embedding": [0.5]}, "'embedding' of .* is of type double; expected lists of floats"),
        ({**plain(1), "embedding": [[1, 2]]}, "'embedding' of .* expected lists of floats"),
        ({**plain(1), "embedding": [["a"]]}, "'embedding' of .* expected lists of floats"),
        ({**plain(1), "metadata": [{"a": 1}]}, "'metadata' of .* is of type struct<a: int64>; expected text"),
        ({**plain(1), "valid_from": ["2024-05-01"]}, "'valid_from' of .* is of type string; expected timestamps"),
        ({**plain(1), "box": ["1,2,3,4"]}, "'box' of .* expected lists of 4 numbers"),
        ({**plain(1), "landmarks": [[1.0] * 10]}, "'landmarks' of .* expected lists of 5 lists of 2 numbers"),
        ({**plain(1), "detection_score": ["high"]}, "'detection_score' of .* expected numbers"),
        (
            {**plain(1), "embedding": floats([[1.0, 0.0]], pa.list_(pa.float32(), 2))},
            f"'embedding' of .* holds 2 numbers a face; expected {DIM}, as model pack sface",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_columns_that_will_not_do(home: AppContext, path: Path, columns: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        bring(home, write(path, columns))
    assert "some.parquet" in caught.value.message
    assert home.store.galleries.list() == []


def test_two_columns_of_one_name(home: AppContext, path: Path) -> None:
    ids = pa.array(["ana"])
    pq.write_table(pa.table([ids, floats([GOOD]), ids], names=["external_id", "embedding", "external_id"]), path)
    with pytest.raises(InvalidRequest, match=r"some\.parquet has 2 columns named 'external_id'"):
        bring(home, path)


def test_text_that_is_none(home: AppContext, path: Path) -> None:
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"Gr\xf6\xdfl"]).buffers())
    with pytest.raises(InvalidRequest, match=r"the column 'name' of .*some\.parquet is not UTF-8"):
        bring(home, write(path, plain(1) | {"name": latin}))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"{", "cannot be read"),
        (b'{"format": 1}', "cannot be read: gallery: Field required"),
        (
            json.dumps(
                {"format": 2, "gallery": "g", "model": "m", "fingerprint": "f", "dim": 1, "identities": 1, "faces": 1}
                | {"made_at": "2026-01-01T00:00:00Z"}
            ).encode(),
            "has format 2 of a newer whosthere",
        ),
    ],
)
def test_a_header_that_cannot_be_read(home: AppContext, path: Path, header: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        bring(home, write(path, plain(1), {b"whosthere": header}))
    assert "some.parquet" in caught.value.message


# Which gallery


def header(model: str, fingerprint: str, dim: int = DIM) -> dict[bytes, bytes]:
    said = parquet_file.Header(
        format=1,
        gallery="staff",
        model=model,
        fingerprint=fingerprint,
        dim=dim,
        identities=1,
        faces=1,
        made_at=datetime.now(UTC),
    )
    return {b"whosthere": said.model_dump_json().encode()}


def test_a_gallery_is_bound_to_the_pack_of_the_file(home: AppContext, path: Path) -> None:
    """Also to one that is not installed here, and whose files' hashes only the file tells."""
    wide = {"external_id": ["ana"], "embedding": floats([vector(1, 512)])}
    assert outcomes(bring(home, write(path, wide, header("ir50", "0123456789abcdef", 512)))) == {"enrolled": 1}
    made = home.store.galleries.get("staff")
    assert (made.model, made.fingerprint, made.dim) == ("ir50", "0123456789abcdef", 512)
    assert outcomes(bring(home, write(path, wide), "other", "buffalo_l")) == {"enrolled": 1}
    made = home.store.galleries.get("other")
    assert (made.model, made.fingerprint, made.dim) == ("buffalo_l", BUFFALO_L.fingerprint, 512)
    with pytest.raises(ModelUnavailable, match="ir50 is not installed"):
        bring(home, path, "third", "ir50")


@pytest.mark.parametrize(
    ("metadata", "model", "there", "why"),
    [
        (
            header("ir50", "aaaa"),
            None,
            True,
            "by model pack ir50 aaaa, and gallery 'staff' by model pack sface {sface}",
        ),
        (
            header("sface", "aaaa"),
            None,
            True,
            "by model pack sface aaaa, and gallery 'staff' by model pack sface {sface}",
        ),
        (
            header("sface", "aaaa"),
            None,
            False,
            "by model pack sface aaaa, and model pack sface {sface} is installed",
        ),
        (header("ir50", "aaaa"), "sface", False, "by model pack ir50 aaaa, and model pack sface {sface} was requested"),
        (header("ir50", "aaaa"), "sface", True, "by model pack ir50 aaaa, and model pack sface {sface} was requested"),
        (
            None,
            "buffalo_l",
            True,
            "by model pack buffalo_l {buffalo_l}, and gallery 'staff' by model pack sface {sface}",
        ),
        (None, "ir50", True, "by model pack ir50, and gallery 'staff' by model pack sface {sface}"),
    ],
)
def test_packs_are_never_mixed(
    home: AppContext, path: Path, metadata: Mapping[bytes, bytes] | None, model: str | None, there: bool, why: str
) -> None:
    if there:
        make_gallery(home)
    with pytest.raises(Conflict) as caught:
        bring(home, write(path, plain(1), metadata), model=model)
    assert caught.value.code == "model_mismatch"
    named = why.format(sface=SFACE.fingerprint, buffalo_l=BUFFALO_L.fingerprint)
    assert caught.value.message == f"{path} holds embeddings {named}; a gallery never mixes packs"
    assert sum(home.store.galleries.counts(gallery.id)[0] for gallery in home.store.galleries.list()) == 0


def test_a_pack_that_nobody_knows(home: AppContext, path: Path) -> None:
    for metadata, model in ((header("mine", "aaaa"), None), (None, "mine")):
        with pytest.raises(NotFound, match="no model pack 'mine'"):
            bring(home, write(path, plain(1), metadata), model=model)
    gallery = home.store.galleries.create("staff", "mine", "aaaa", DIM)
    assert outcomes(bring(home, write(path, plain(1), header("mine", "aaaa")))) == {"enrolled": 1}
    assert home.store.galleries.counts(gallery.id) == (1, 1)


# Ends too early


def test_an_interrupted_import_goes_on(stored: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "BATCH", 4)
    write(path, plain(*range(10)))
    with open_gallery_file(path) as file:
        gallery = gallery_for(stored.store, stored.packs, lambda: stored.pack, "staff", file)
        results = import_rows(stored.store, gallery, file)
        assert next(results).outcome is Outcome.ENROLLED
        results.close()
    assert stored.store.galleries.counts(gallery.id) == (4, 4)
    assert outcomes(bring(stored, path)) == {"unchanged": 4, "enrolled": 6}
    assert stored.store.galleries.counts(gallery.id) == (10, 10)


def test_two_imports_at_once(stored: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "BATCH", 4)
    rows = {
        "external_id": [f"p{i}" for i in range(30)],
        "embedding": floats([vector(i, DIM) for i in range(20)] + [None] * 10),
    }
    write(path, rows)
    results = in_threads([lambda: bring(stored, path)] * 2)
    assert outcomes(results[0] + results[1]) == {"enrolled": 30, "unchanged": 30}
    assert stored.store.galleries.counts(stored.store.galleries.get("staff").id) == (30, 20)


def test_a_full_disk_ends_an_import_and_it_goes_on(
    home: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "BATCH", 100)
    write(path, plain(*range(1000)))
    with open_gallery_file(path) as file:
        gallery = gallery_for(home.store, home.packs, lambda: home.pack, "staff", file)
        with limited_file_size(500_000), pytest.raises(StorageUnavailable):
            list(import_rows(home.store, gallery, file))
    there = home.store.galleries.counts(gallery.id)[1]
    assert 0 < there < 1000
    assert outcomes(bring(home, path)) == {"unchanged": there, "enrolled": 1000 - there}


def test_a_full_disk_leaves_the_file_that_was_there(home: AppContext, path: Path) -> None:
    fill(home)
    path.write_bytes(b"the old one")
    with limited_file_size(3000), pytest.raises(StorageUnavailable, match=r"some\.parquet cannot be written: File too"):
        export_gallery(home.migrated_engine, "staff", path)
    assert path.read_bytes() == b"the old one"
    assert [other.name for other in path.parent.iterdir() if other.name.startswith("some")] == ["some.parquet"]


def test_a_gallery_that_is_reembedded_meanwhile(home: AppContext, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "BATCH", 2)
    with open_gallery_file(write(path, plain(1, 2, 3, 4))) as file:
        gallery = gallery_for(home.store, home.packs, lambda: home.pack, "staff", file)
        results = import_rows(home.store, gallery, file)
        next(results)
        store = home.store
        store.reembeddings.start(gallery, "other", "aaaa", DIM)
        faces = store.embeddings.of_faces(gallery, [1, 2])
        store.reembeddings.put(gallery, "aaaa", faces.face_ids.tolist(), faces.vectors)
        assert store.reembeddings.switch(gallery, "aaaa").switched
        with pytest.raises(Conflict, match="re-embedded meanwhile"):
            list(results)


# However large


def test_reading_holds_a_batch_at_a_time(path: Path) -> None:
    """Also of a file that is one row group, whose 41 MB of embeddings others may have written."""
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


def test_writing_holds_a_row_group_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    told: list[tuple[int, int, int]] = []
    parts = export._file_parts(Snapshot(gallery, n, n, records()), lambda done, total: told.append((done, total, size)))
    with path.open("wb") as out:
        for part in parts:
            size += out.write(part)
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10e6
    assert [(done, total) for done, total, _ in told] == [(done, n) for done in range(1_000, n + 1, 1_000)]
    assert all(written >= done * 512 * 4 for done, _, written in told)
    assert pq.read_metadata(path).num_rows == n


# The commands


@pytest.fixture
def command(home: AppContext) -> Command:
    return Command(home.settings.home)


def test_the_commands(home: AppContext, command: Command, path: Path) -> None:
    fill(home)
    made = command.ok("gallery", "export", "staff", path, "--json").json
    assert made.pop("seconds") >= 0
    assert made == {
        "gallery": "staff",
        "model": "sface",
        "identities": 3,
        "faces": 4,
        "file": str(path),
        "bytes": path.stat().st_size,
    }
    summary = command.ok("gallery", "import", "copy", path, "--json").json
    assert summary.pop("seconds") >= 0
    expected = {"gallery": "copy", "model": "sface", "rows": 5, "enrolled": 5, "unchanged": 0, "rejected": 0}
    assert summary == {**expected, "identities": 3, "faces": 4, "rejections": []}
    assert contents(home, "copy") == contents(home)
    ran = command.ok("gallery", "export", "staff", path)
    assert "Gallery staff (sface): 3 identities with 4 faces written to" in ran.out
    ran = command.ok("gallery", "import", "copy", path)
    assert ran.out.startswith("5 rows: 0 enrolled, 5 unchanged, 0 rejected, in ")
    assert ran.out.endswith("Gallery copy (sface) holds 3 identities with 4 faces.\n")


def test_the_command_names_bad_rows(command: Command, path: Path) -> None:
    write(path, {"external_id": ["ana"] + ["bob"] * 25, "embedding": floats([GOOD] + [GOOD[1:]] * 25)})
    ran = command("gallery", "import", "staff", path, "--model", "sface", "--json")
    assert ran.code == 3
    counted = {key: ran.json[key] for key in ("rows", "enrolled", "rejected", "identities", "faces")}
    assert counted == {"rows": 26, "enrolled": 1, "rejected": 25, "identities": 1, "faces": 1}
    assert len(ran.json["rejections"]) == 25
    assert ran.json["rejections"][0] == {
        "row": 1,
        "external_id": "bob",
        "reason": "invalid_row",
        "message": f"an embedding must have {DIM} numbers; got {DIM - 1}",
    }
    ran = command("gallery", "import", "staff", path)
    assert ran.code == 3
    assert "... and 5 more" in ran.out
    assert ran.out.count("invalid_row") == 20


def test_the_command_tells_no_more_rejections_than_fit(
    command: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.cli.parquet.MOST_REJECTIONS", 3)
    write(path, {"external_id": ["bob"] * 5, "embedding": floats([[1.0]] * 5)})
    ran = command("gallery", "import", "staff", path, "--json")
    assert (ran.json["rejected"], len(ran.json["rejections"])) == (5, 3)


def test_how_the_commands_fail(home: AppContext, command: Command, path: Path, tmp_path: Path) -> None:
    make_gallery(home)
    path.write_bytes(b"no")
    cases: list[tuple[Sequence[str | Path], int, str]] = [
        (["import", "staff", path], 2, "some.parquet cannot be read as a Parquet file"),
        (["import", "staff", tmp_path / "none"], 2, "does not exist"),
        (
            ["import", "staff", write(tmp_path / "a", plain(1)), "--model", "buffalo_l"],
            1,
            "a gallery never mixes packs",
        ),
        (["import", "staff", tmp_path / "a", "--model", "nothing"], 2, "no model pack 'nothing'"),
        (["import", "a/b", tmp_path / "a"], 2, "must not contain a slash"),
        (["export", "nobody", path], 1, "there is no gallery 'nobody'"),
        (["export", "staff", tmp_path], 2, "is a directory"),
        (["export", "staff", path / "under"], 1, "cannot be written"),
    ]
    for arguments, code, why in cases:
        ran = command("gallery", *arguments)
        assert (ran.code, ran.out) == (code, ""), ran
        assert why in ran.err
