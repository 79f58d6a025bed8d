"""Exports a gallery to a Parquet file."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine

from indexer.clock import now
from indexer.enrollment.parquet.file import FORMAT, HEADER_KEY, Header, ProgressListener
from indexer.errors import StorageUnavailable
from indexer.files import write_atomically
from indexer.gallery.export_reader import Record, Snapshot, snapshot_of
from indexer.types import Gallery, vectors_from_bytes

ROW_GROUP = 10_000
"""Rows written at a time: 20 MB of 512-d embeddings."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    gallery: Gallery
    identities: int
    faces: int
    bytes: int
    """Size of the file."""


def export_gallery(
    engine: Engine, name: str, path: Path, progress: ProgressListener = lambda done, total: None
) -> Exported:
    """Writes the gallery, as it is at this moment, to `path`, atomically.

    Raises:
        NotFound: There is no such gallery.
        StorageUnavailable: The file cannot be written.
    """
    with snapshot_of(engine, name) as snapshot, closing(_file_parts(snapshot, progress)) as parts:
        try:
            write_atomically(path, parts)
        except OSError as error:
            raise StorageUnavailable(f"{path} cannot be written: {error.strerror or error}") from error
        return Exported(snapshot.gallery, snapshot.identities, snapshot.faces, path.stat().st_size)


class _Pipe:
    """A file object for PyArrow whose written bytes are taken out again."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def take(self) -> list[bytes]:
        parts, self._parts = self._parts, []
        return parts


def _file_parts(snapshot: Snapshot, progress: ProgressListener) -> Generator[bytes]:
    """Yields the bytes of the file, a row group at a time."""
    schema = _schema(snapshot)
    pipe, done = _Pipe(), 0
    with pq.ParquetWriter(
        pipe,
        schema,
        compression={"embedding.list.element": "none"} | dict.fromkeys(_flat_columns(schema), "zstd"),
        use_dictionary=["external_id", "name", "metadata"],
        write_statistics=["external_id", "face_id"],
        write_page_checksum=True,
    ) as writer:
        while records := list(islice(snapshot.records, ROW_GROUP)):
            writer.write_batch(_batch(records, schema, snapshot.gallery.dim))
            yield from pipe.take()
            done += len(records)
            progress(done, max(done, snapshot.faces))
    yield from pipe.take()


def _schema(snapshot: Snapshot) -> pa.Schema:
    gallery = snapshot.gallery
    header = Header(
        format=FORMAT,
        gallery=gallery.name,
        model=gallery.model,
        fingerprint=gallery.fingerprint,
        dim=gallery.dim,
        identities=snapshot.identities,
        faces=snapshot.faces,
        made_at=now(),
    )
    time = pa.timestamp("us", tz="UTC")
    columns = [
        pa.field("external_id", pa.string(), nullable=False),
        ("name", pa.string()),
        ("metadata", pa.string()),
        ("valid_from", time),
        ("valid_until", time),
        ("face_id", pa.int64()),
        ("image_sha256", pa.string()),
        ("box", pa.list_(pa.float64(), 4)),
        ("landmarks", pa.list_(pa.list_(pa.float64(), 2), 5)),
        ("detection_score", pa.float64()),
        ("quality", pa.string()),
        ("created_at", time),
        ("embedding", pa.list_(pa.float32(), gallery.dim)),
    ]
    return pa.schema(columns, metadata={HEADER_KEY: header.model_dump_json()})


def _flat_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if not pa.types.is_nested(field.type)]


def _batch(records: Sequence[Record], schema: pa.Schema, dim: int) -> pa.RecordBatch:
    people, faces = [r.person for r in records], [r.face for r in records]
    values = {
        "external_id": [p.external_id for p in people],
        "name": [p.name for p in people],
        "metadata": [json.dumps(dict(p.metadata)) for p in people],
        "valid_from": [p.valid_from for p in people],
        "valid_until": [p.valid_until for p in people],
        "face_id": [f and f.id for f in faces],
        "image_sha256": [f and f.image_sha256 for f in faces],
        "box": [f and f.box for f in faces],
        "landmarks": [f and f.landmarks for f in faces],
        "detection_score": [f and f.detection_score for f in faces],
        "quality": [f and json.dumps(dict(f.quality)) for f in faces],
        "created_at": [f and f.created_at for f in faces],
    }
    arrays = [pa.array(values[field.name], field.type) for field in schema if field.name in values]
    vectors = vectors_from_bytes([f.embedding if f else bytes(4 * dim) for f in faces], dim)
    missing = pa.array([f is None for f in faces])
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim, mask=missing))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
