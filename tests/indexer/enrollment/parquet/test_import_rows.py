"""Rows of Parquet files that other programs wrote, valid and invalid."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexer.app_context import AppContext
from indexer.models.packs import SFACE
from indexer.types import Outcome, Reason, sha256, vector_to_bytes
from tests.indexer.enrollment.parquet.galleries import (
    DIM,
    GOOD,
    floats,
    import_file,
    outcomes,
    write,
)
from tests.indexer.gallery.faces import vector


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.list_(pa.float32()),
        pa.list_(pa.float16(), DIM),
        pa.list_(pa.float64(), DIM),
        pa.large_list(pa.float16()),
        pa.list_view(pa.float32()),
        pa.large_list_view(pa.float64()),
        pa.fixed_shape_tensor(pa.float32(), [DIM]),
    ],
    ids=str,
)
def test_file_needs_only_an_id_and_an_embedding(stored: AppContext, path: Path, kind: pa.DataType) -> None:
    vectors = [vector(1, DIM), vector(2, DIM), vector(3, DIM)]
    leaf = kind.value_type
    rows = [v.astype(leaf.to_pandas_dtype()) for v in vectors] if leaf == pa.float16() else vectors
    write(path, {"external_id": ["ana", "bob", "ana"], "embedding": floats([list(row) for row in rows], kind)})
    assert outcomes(import_file(stored, path)) == {"enrolled": 3}
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
    assert outcomes(import_file(stored, path)) == {"unchanged": 3}
    assert stored.store.changes.last(gallery.id) == seq


TEXTS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
)


@pytest.mark.parametrize("kind", [*TEXTS, pa.json_(), pa.json_(pa.large_string()), pa.json_(pa.string_view())], ids=str)
def test_every_kind_of_text_is_read(context: AppContext, path: Path, kind: pa.DataType) -> None:
    """JSON is Parquet's logical type, in which DuckDB writes such columns."""
    plain = kind if kind in TEXTS else pa.string()
    columns = {
        "external_id": pa.array(["ana", "bob"], pa.string()).cast(plain),
        "name": pa.array(["Ana", None], pa.string()).cast(plain),
        "metadata": text(['{"a": {"b": [1]}}', None], kind),
        "quality": text([None, '{"size": 80}'], kind),
        "image_sha256": pa.array(["a" * 64, None], pa.string()).cast(plain),
        "embedding": floats([GOOD, vector(2, DIM)]),
    }
    assert outcomes(import_file(context, write(path, columns))) == {"enrolled": 2}
    gallery = context.store.galleries.get("staff")
    ana, bob = context.store.identities.list(gallery.id)
    assert (ana.external_id, ana.name, ana.metadata) == ("ana", "Ana", {"a": {"b": [1]}})
    assert (bob.external_id, bob.name, bob.metadata) == ("bob", None, {})
    [first], [second] = (context.store.faces.list(gallery.id, one.external_id) for one in (ana, bob))
    assert (first.image_sha256, second.quality.size) == ("a" * 64, 80)


def text(values: list[str | None], kind: pa.DataType) -> pa.Array:
    plain = pa.array(values, pa.string())
    if isinstance(kind, pa.JsonType):
        return pa.ExtensionArray.from_storage(kind, plain.cast(kind.storage_type))
    return plain.cast(kind)


def test_columns_of_other_programs_are_read(context: AppContext, path: Path) -> None:
    """Dictionary-encoded, large, in other units, without values, missing, and unknown columns."""
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
    assert outcomes(import_file(context, write(path, columns))) == {"enrolled": 2}
    gallery = context.store.galleries.get("staff")
    ana, bob = (context.store.identities.get(gallery.id, external_id) for external_id in ("ana", "bob"))
    assert (ana.name, ana.metadata, ana.valid_from, ana.valid_until) == ("Ana", {"a": {"b": [1]}}, time, None)
    assert (bob.name, bob.metadata, bob.valid_until, bob.faces) == (None, {}, time, 0)
    [one] = context.store.faces.list(gallery.id, "ana")
    box = one.detection.box
    assert (box.x, box.y, box.w, box.h, one.detection.score) == (1, 2, 3, 4, 1)


def test_column_without_any_embedding_is_imported(context: AppContext, path: Path) -> None:
    write(path, {"external_id": ["ana", "bob", "ana"], "embedding": pa.nulls(3)})
    assert [r.outcome for r in import_file(context, path)] == [Outcome.ENROLLED, Outcome.ENROLLED, Outcome.UNCHANGED]
    assert context.store.galleries.counts(context.store.galleries.get("staff").id) == (2, 0)


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
def test_only_the_invalid_row_is_rejected(
    context: AppContext, path: Path, columns: dict[str, object], why: str
) -> None:
    rows = {"external_id": ["ana", "bob"], "embedding": floats([GOOD, vector(2, DIM)])} | columns
    first, second = import_file(context, write(path, rows))
    assert (first.outcome, first.message) == (Outcome.ENROLLED, None)
    assert (second.row, second.external_id) == (1, rows["external_id"][1] or "")
    assert (second.outcome, second.reason) == (Outcome.REJECTED, Reason.INVALID_ROW)
    assert why in (second.message or "")
    assert context.store.galleries.counts(context.store.galleries.get("staff").id) == (1, 1)


def test_embedding_of_another_identity_is_rejected(context: AppContext, path: Path) -> None:
    write(path, {"external_id": ["ana", "bob", "ana"], "embedding": floats([GOOD, GOOD, GOOD])})
    results = import_file(context, path)
    assert [r.outcome for r in results] == [Outcome.ENROLLED, Outcome.REJECTED, Outcome.UNCHANGED]
    assert results[1].reason is Reason.LOOKS_LIKE_ANOTHER_IDENTITY
    assert "enrolled for identity 'ana'" in (results[1].message or "")


def test_row_whose_dates_contradict_earlier_ones_is_rejected(context: AppContext, path: Path) -> None:
    start = pa.array([datetime(2024, 5, 1, tzinfo=UTC), None], pa.timestamp("us", "UTC"))
    end = pa.array([None, datetime(2023, 5, 1, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    for embeddings in (floats([GOOD, vector(2, DIM)]), pa.nulls(2)):
        write(path, {"external_id": ["ana"] * 2, "embedding": embeddings, "valid_from": start, "valid_until": end})
        results = import_file(context, path, f"gallery{embeddings.null_count}")
        assert [r.outcome for r in results] == [Outcome.ENROLLED, Outcome.REJECTED]
        assert results[1].reason is Reason.INVALID_ROW
        assert "'ana' would be valid until 2023-05-01" in (results[1].message or "")


def test_row_whose_merged_metadata_is_too_large_is_rejected(context: AppContext, path: Path) -> None:
    halves = [f'{{"{key}": "{"x" * 9_000}"}}' for key in "ab"]
    for embeddings in (floats([GOOD, vector(2, DIM)]), pa.nulls(2)):
        write(path, {"external_id": ["ana"] * 2, "embedding": embeddings, "metadata": halves})
        results = import_file(context, path, f"gallery{embeddings.null_count}")
        assert [r.outcome for r in results] == [Outcome.ENROLLED, Outcome.REJECTED]
        assert results[1].reason is Reason.INVALID_ROW
        assert "metadata of 'ana' would be 18,015 bytes" in (results[1].message or "")
