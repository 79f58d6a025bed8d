"""Galleries and Parquet files for tests, and what they contain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.app_context import AppContext
from indexer.enrollment.parquet.file import open_gallery_file
from indexer.enrollment.parquet.importer import RowResult, gallery_for, import_rows
from indexer.gallery.faces import NewFace
from indexer.models.packs import SFACE
from indexer.types import Gallery, Person
from tests.indexer.gallery.faces import face, image_hash, vector

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


def make_gallery(context: AppContext, name: str = "staff") -> Gallery:
    return context.store.galleries.create(name, SFACE.name, SFACE.fingerprint, SFACE.dim)


def new(person: Person, image: int) -> NewFace:
    return NewFace(person, image_hash(image), face(vector(image, DIM)))


def fill(context: AppContext, name: str = "staff") -> Gallery:
    """Creates a gallery: Ana has three faces, enrolled before and after Bob's one; Carl has none."""
    gallery = make_gallery(context, name)
    bob = Person("bob")
    for person, image in ((ANA, 1), (bob, 2), (ANA, 3), (Person("ana"), 4)):
        context.store.faces.enroll(gallery, [new(person, image)])
    context.store.identities.put(gallery.id, CARL)
    return gallery


def contents(context: AppContext, name: str = "staff") -> list[Any]:
    """Returns everything in a gallery except ids and creation times, ordered by external id."""
    gallery, store = context.store.galleries.get(name), context.store
    found: list[Any] = []
    for i in sorted(store.identities.list(gallery.id), key=lambda identity: identity.external_id):
        faces = store.faces.list(gallery.id, i.external_id)
        vectors = store.embeddings.of_faces(gallery, [f.id for f in faces]).vectors
        looks = [(f.image_sha256, f.detection.box, f.detection.landmarks.tolist(), f.detection.score) for f in faces]
        found.append((i.external_id, i.name, i.metadata, i.valid_from, i.valid_until, looks, vectors.tobytes()))
        found.append([f.quality for f in faces])
    return found


def import_file(context: AppContext, path: Path, name: str = "staff", model: str | None = None) -> list[RowResult]:
    with open_gallery_file(path) as file:
        return list(
            import_rows(
                context.store, gallery_for(context.store, context.packs, lambda: context.pack, name, file, model), file
            )
        )


def outcomes(results: Sequence[RowResult]) -> dict[str, int]:
    return {str(outcome): count for outcome, count in Counter(result.outcome for result in results).items()}


def floats(vectors: Sequence[object], kind: pa.DataType | None = None) -> pa.Array:
    """Returns a column of embeddings as other programs write it."""
    rows = [v.tolist() if isinstance(v, np.ndarray) else v for v in vectors]
    return pa.array(rows, kind or pa.list_(pa.float32()))


def write(path: Path, columns: Mapping[str, object], metadata: Mapping[bytes, bytes] | None = None) -> Path:
    pq.write_table(pa.table(dict(columns)).replace_schema_metadata(metadata), path)
    return path


def plain(*seeds: int) -> dict[str, object]:
    """Returns the required columns, with a face for each person."""
    return {"external_id": [f"p{seed}" for seed in seeds], "embedding": floats([vector(seed, DIM) for seed in seeds])}


GOOD = vector(1, DIM)
