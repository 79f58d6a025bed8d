"""Galleries as Parquet files: out of the database, and into it, from this program or from elsewhere.

A row is a face with what is said of its identity, or an identity that has no face. `_schema` has the columns that are
written, `COLUMNS` those that are taken. A row group or a batch is in memory at a time, however large the gallery is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Engine

from indexer.clock import now
from indexer.enrollment.enroller import rejection_of
from indexer.errors import Conflict, InvalidRequest, InvalidVector, NotFound, StorageUnavailable
from indexer.files import write_atomically
from indexer.gallery.export_reader import Record, Snapshot, snapshot_of
from indexer.gallery.faces import Enrolled, NewFace
from indexer.gallery.store import Store
from indexer.gallery.validation import check_person
from indexer.models.catalogue import Catalogue
from indexer.models.packs import Pack
from indexer.types import (
    Box,
    Detection,
    Face,
    Gallery,
    Outcome,
    Person,
    Quality,
    Reason,
    Vectors,
    check_vectors,
    sha256,
    vector_to_bytes,
    vectors_from_bytes,
)

FORMAT = 1
"""Raise it when a file means something that an older program would misread."""

HEADER = b"whosthere"
"""Key of the file's metadata under which `Header` stands, as JSON."""

ROW_GROUP = 10_000
"""Rows written at a time: 20 MB of 512-d embeddings."""

BATCH = 2_000
"""Rows read, checked and committed at a time."""

READ_BUFFER = 2**20
"""Bytes of each column that are read ahead. Without a bound a file of one row group would be read whole."""

ROUNDING = 1e-6
"""How far from 1 float32 arithmetic leaves the length of an embedding that was brought to 1: a few of its 6e-8."""

LARGEST = float(np.finfo(np.float32).max)
QUALITIES = tuple(f.name for f in fields(Quality) if f.name != "reasons")
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (the zone is the column's)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

Tell = Callable[[int, int], None]
"""Called with how many rows are done, and of how many."""


class Header(BaseModel):
    """What a file that this program wrote says of itself."""

    model_config = ConfigDict(frozen=True)

    format: int = Field(ge=1)
    gallery: str
    model: str
    fingerprint: str
    dim: int = Field(ge=1)
    identities: int
    faces: int
    made_at: datetime


@dataclass(frozen=True)
class Exported:
    gallery: Gallery
    identities: int
    faces: int
    bytes: int
    """Size of the file."""


@dataclass(frozen=True)
class RowResult:
    """What became of one row of a file. `row` counts from 0; `message` says why where it was rejected."""

    row: int
    external_id: str
    outcome: Outcome
    reason: Reason | None = None
    message: str | None = None


# Out


def export_gallery(engine: Engine, name: str, path: Path, tell: Tell = lambda done, total: None) -> Exported:
    """Writes the gallery, as it is at this moment, to `path`: whole, or not at all.

    Raises NotFound, and StorageUnavailable where the file cannot be written.
    """
    with snapshot_of(engine, name) as snapshot, closing(_file_parts(snapshot, tell)) as parts:
        try:
            write_atomically(path, parts)
        except OSError as error:
            raise StorageUnavailable(f"{path} cannot be written: {error.strerror or error}") from error
        return Exported(snapshot.gallery, snapshot.identities, snapshot.faces, path.stat().st_size)


class _Pipe:
    """A file to write to; what was written is taken out of it again."""

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


def _file_parts(snapshot: Snapshot, tell: Tell) -> Generator[bytes]:
    """The file, a row group at a time."""
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
            tell(done, max(done, snapshot.faces))
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
    return pa.schema(columns, metadata={HEADER: header.model_dump_json()})


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
    none = pa.array([f is None for f in faces])
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim, mask=none))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


# In: the file


class GalleryFile:
    """An opened Parquet file that has the columns of a gallery. `opened` makes it."""

    def __init__(self, path: Path, file: pq.ParquetFile) -> None:
        """Raises InvalidRequest where a column is missing, twice there or of another type, or the header is damaged."""
        self.path = path
        self._file = file
        schema = file.schema_arrow
        for name in COLUMNS:
            _check_column(path, schema, name)
        self._columns = [name for name in COLUMNS if name in schema.names]
        self.header = _header(path, schema.metadata or {})
        self.rows: int = file.metadata.num_rows
        embedding = schema.field("embedding").type
        self.dim: int | None = embedding.list_size if pa.types.is_fixed_size_list(embedding) else None
        """Numbers in each embedding, where the column's type says so."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        with _reading(self.path):
            yield from self._file.iter_batches(BATCH, columns=self._columns, use_threads=False)


@contextmanager
def opened(path: Path) -> Iterator[GalleryFile]:
    """Raises InvalidRequest where it is no Parquet file, or not one of a gallery."""
    with _reading(path):
        file = pq.ParquetFile(path, buffer_size=READ_BUFFER, pre_buffer=False, page_checksum_verification=True)
    with file:
        yield GalleryFile(path, file)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InvalidRequest(f"{path} cannot be read as a Parquet file: {error}") from error


def _header(path: Path, metadata: Mapping[bytes, bytes]) -> Header | None:
    if HEADER not in metadata:
        return None
    try:
        header = Header.model_validate_json(metadata[HEADER])
    except ValidationError as error:
        first = error.errors()[0]
        told = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise InvalidRequest(f"what {path} says of itself cannot be read: {told}") from error
    if header.format > FORMAT:
        raise InvalidRequest(
            f"{path} is of format {header.format}, made by a newer whosthere; this one reads formats up to {FORMAT}"
        )
    return header


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


TEXT = (_is_text, "text")
TIME = (pa.types.is_timestamp, "timestamps")

COLUMNS: Mapping[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "external_id": TEXT,
    "embedding": (lambda kind: _is_list(kind) and pa.types.is_floating(kind.value_type), "lists of floats"),
    "name": TEXT,
    "metadata": TEXT,
    "valid_from": TIME,
    "valid_until": TIME,
    "image_sha256": TEXT,
    "box": (lambda kind: _is_list(kind) and _is_number(kind.value_type), "lists of 4 numbers"),
    "landmarks": (
        lambda kind: _is_list(kind) and _is_list(kind.value_type) and _is_number(kind.value_type.value_type),
        "lists of 5 lists of 2 numbers",
    ),
    "detection_score": (_is_number, "numbers"),
    "quality": TEXT,
}
"""What is taken from a file: which types a column may have, in code and in words."""

REQUIRED = ("external_id", "embedding")


def _check_column(path: Path, schema: pa.Schema, name: str) -> None:
    fits, expected = COLUMNS[name]
    count = schema.names.count(name)
    if count > 1:
        raise InvalidRequest(f"{path} has {count} columns of the name {name!r}")
    if count == 0:
        if name in REQUIRED:
            raise InvalidRequest(f"{path} has no column {name!r}; it has {', '.join(schema.names) or 'none'}")
        return
    kind = schema.field(name).type
    # A column without any value has no type where others write it.
    if not fits(kind) and not pa.types.is_null(kind):
        raise InvalidRequest(f"the column {name!r} of {path} is of type {kind}; expected {expected}")


# In: which gallery


@dataclass(frozen=True)
class _Maker:
    """A model pack as somebody names it. `fingerprint` is empty where it is not known."""

    model: str
    fingerprint: str
    dim: int

    def __str__(self) -> str:
        return f"model pack {self.model} {self.fingerprint}".rstrip()

    def differs(self, other: _Maker) -> bool:
        """A pack of another name is the same one where the fingerprint is: that is what embeddings depend on."""
        if self.fingerprint and other.fingerprint:
            return (self.fingerprint, self.dim) != (other.fingerprint, other.dim)
        return (self.model, self.dim) != (other.model, other.dim)


def gallery_for(
    store: Store,
    packs: Catalogue,
    default_pack: Callable[[], Pack],
    name: str,
    file: GalleryFile,
    model: str | None = None,
) -> Gallery:
    """The gallery of that name that the file's faces may come into, made where it is missing.

    It is bound to the pack that the file names, which need not be installed; else to `model`, else to
    `default_pack`. A file that names none, with no `model`, is taken to be by the pack of a gallery that is there.

    Raises Conflict where two of file, `model` and gallery are of different packs, NotFound for a pack that is not
    known, ModelUnavailable, and InvalidRequest where the file's embeddings have another dimension.
    """
    asked = _known_pack(packs, model) if model else None
    said = _Maker(file.header.model, file.header.fingerprint, file.header.dim) if file.header else None
    if said and asked:
        _check_same(file, said, asked, f"{asked} was asked for")
    wanted = said or asked
    try:
        gallery = store.galleries.get(name)
    except NotFound:
        maker = wanted or _known_pack(packs, default_pack().name)
        known = _known_pack(packs, maker.model)
        _check_same(file, maker, known, f"{known} is what this program has")
        _check_dim(file, maker)
        # A pack whose files are not here has no fingerprint yet, unless the file tells it; else this raises.
        fingerprint = maker.fingerprint or packs.find(maker.model).fingerprint
        try:
            return store.galleries.create(name, maker.model, fingerprint, maker.dim)
        except Conflict:  # somebody else made it this moment
            gallery = store.galleries.get(name)
    bound = _Maker(gallery.model, gallery.fingerprint, gallery.dim)
    if wanted:
        _check_same(file, wanted, bound, f"gallery {name!r} by {bound}")
    _check_dim(file, bound)
    return gallery


def _known_pack(packs: Catalogue, model: str) -> _Maker:
    pack = packs.find(model)
    return _Maker(pack.name, pack.fingerprint if pack.has_known_hashes else "", pack.dim)


def _check_same(file: GalleryFile, made_by: _Maker, other: _Maker, other_is: str) -> None:
    if made_by.differs(other):
        raise Conflict(
            f"{file.path} holds embeddings by {made_by}, and {other_is}; a gallery never mixes packs",
            code="model_mismatch",
        )


def _check_dim(file: GalleryFile, maker: _Maker) -> None:
    if file.dim is not None and file.dim != maker.dim:
        raise InvalidRequest(
            f"the column 'embedding' of {file.path} holds {file.dim} numbers a face; expected {maker.dim}, as {maker} "
            "makes them"
        )


# In: the rows


def import_rows(
    store: Store, gallery: Gallery, file: GalleryFile, tell: Tell = lambda done, total: None
) -> Generator[RowResult]:
    """Enrols the file's faces and identities, BATCH rows at a time, identities without faces in a transaction before
    the rest; one result a row, in order, each after it is committed. What is in already is unchanged, so that a run
    that ended early goes on where it was.

    Raises Conflict when the gallery is re-embedded meanwhile, InvalidRequest where the file is damaged.
    """
    done = 0
    for batch in file.batches():
        rows = _read_rows(file.path, batch, done, gallery.dim)
        yield from _commit(store, gallery, rows)
        done += len(rows)
        tell(done, file.rows)


@dataclass(frozen=True, eq=False)
class _Row:
    """A row that was read: a face, or a person alone, or what is wrong with it."""

    number: int
    external_id: str
    said: NewFace | Person | InvalidRequest


def _commit(store: Store, gallery: Gallery, rows: Sequence[_Row]) -> list[RowResult]:
    said = [row.said for row in rows if not isinstance(row.said, InvalidRequest)]
    people = [one for one in said if isinstance(one, Person)]
    made = store.identities.add_missing(gallery, people) if people else set()
    became = iter(store.faces.enroll(gallery, said) if said else ())
    results = []
    for row in rows:
        if isinstance(row.said, InvalidRequest):
            results.append(_rejected(row, Reason.INVALID_ROW, row.said.message))
        elif isinstance(row.said, NewFace):
            results.append(_answered(row, next(became)))
        else:
            is_new = row.external_id in made
            made -= {row.external_id}  # a second row of that person made nothing
            results.append(_answered(row, next(became), is_new))
    return results


def _answered(row: _Row, became: Enrolled, is_new: bool = False) -> RowResult:
    rejection = rejection_of(became)
    if rejection is not None:
        return _rejected(row, Reason(rejection.code), rejection.message)
    return RowResult(row.number, row.external_id, Outcome.ENROLLED if is_new else became.outcome)


def _rejected(row: _Row, reason: Reason, message: str) -> RowResult:
    return RowResult(row.number, row.external_id, Outcome.REJECTED, reason, message)


def _read_rows(path: Path, batch: pa.RecordBatch, first: int, dim: int) -> list[_Row]:
    columns = {name: _values(path, name, batch.column(name)) for name in batch.schema.names if name != "embedding"}
    vectors = _vectors(batch.column("embedding"), dim)
    rows = []
    for i, vector in enumerate(vectors):
        cells = {name: values[i] for name, values in columns.items()}
        try:
            said: NewFace | Person | InvalidRequest = _said(cells, vector)
        except InvalidRequest as error:
            said = error
        rows.append(_Row(first + i, cells["external_id"] or "", said))
    return rows


def _values(path: Path, name: str, column: pa.Array) -> list[Any]:
    """The cells as Python has them; times of whatever unit as `_time` wants them."""
    if pa.types.is_timestamp(column.type):
        return [(value, column.type) for value in column.cast(pa.int64()).to_pylist()]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the column {name!r} of {path} is not UTF-8 text: {error}") from error


def _vectors(column: pa.Array, dim: int) -> list[NDArray[np.float32] | InvalidVector | None]:
    """Each embedding as (dim,) float32 of unit length, or what is wrong with it; None where the row has none."""
    if pa.types.is_null(column.type):
        return [None] * len(column)
    lengths = pc.list_value_length(column)
    fits = pc.fill_null(pc.equal(lengths, dim), False)
    numbers = column.filter(fits).flatten().to_numpy(zero_copy_only=False)  # a null among them becomes NaN
    checked = iter(_unit_rows(numbers.reshape(-1, dim), dim))
    return [
        next(checked)
        if fit
        else None
        if length is None
        else InvalidVector(f"an embedding must have {dim} numbers; got {length}")
        for fit, length in zip(fits.to_pylist(), lengths.to_pylist(), strict=True)
    ]


def _unit_rows(numbers: NDArray[np.floating], dim: int) -> Sequence[NDArray[np.float32] | InvalidVector]:
    try:
        return list(_unit(numbers, dim))
    except InvalidVector:
        return [_unit_row(row, dim) for row in numbers]  # which ones?


def _unit_row(numbers: NDArray[np.floating], dim: int) -> NDArray[np.float32] | InvalidVector:
    try:
        return np.asarray(_unit(numbers[np.newaxis], dim)[0], dtype=np.float32)
    except InvalidVector as error:
        return error


def _unit(numbers: NDArray[np.floating], dim: int) -> Vectors:
    """As `check_vectors`, but what has unit length as far as float32 can tell is kept bit for bit."""
    checked = check_vectors(numbers, dim)
    raw = numbers.astype(np.float32)
    exact = np.abs(np.linalg.norm(raw, axis=1, keepdims=True) - 1) <= ROUNDING
    return np.asarray(np.where(exact, raw, checked), dtype=np.float32)


# In: one row


def _said(cells: Mapping[str, Any], vector: NDArray[np.float32] | InvalidVector | None) -> NewFace | Person:
    """Raises InvalidRequest."""
    person = Person(
        cells["external_id"] or "",
        cells.get("name"),
        _time("valid_from", cells),
        _time("valid_until", cells),
        _json_object("metadata", cells),
    )
    check_person(person)
    if vector is None:
        return person
    if isinstance(vector, InvalidVector):
        raise vector
    x, y, w, h = _numbers("box", cells, (4,)).tolist()
    detection = Detection(
        Box(x, y, w, h),
        _numbers("landmarks", cells, (5, 2)).astype(np.float32),
        float(_numbers("detection_score", cells, ())),
    )
    image = _image_sha256(cells) or sha256(vector_to_bytes(vector))
    return NewFace(person, image, Face(detection, _quality(cells), vector))


def _time(name: str, cells: Mapping[str, Any]) -> datetime | None:
    """Without a zone where the column has none; `check_person` refuses that."""
    value, kind = cells.get(name) or (None, None)
    if value is None or kind is None:
        return None
    try:
        time = EPOCH + timedelta(microseconds=value * 10**6 // PER_SECOND[kind.unit])
    except OverflowError as error:
        raise InvalidRequest(f"{name} ({value} {kind.unit} after 1970) is not in the years 1 to 9999") from error
    return time if kind.tz is None else time.replace(tzinfo=UTC)


def _json_object(name: str, cells: Mapping[str, Any]) -> dict[str, Any]:
    text = cells.get(name)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not JSON: {error}; got {text[:40]!r}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be a JSON object; got {text[:40]!r}")
    return value


def _numbers(name: str, cells: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Zeros where the file has none."""
    value = cells.get(name)
    if value is None:
        return np.zeros(shape)
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of different lengths
        numbers = np.empty(0)
    # What is no number makes another type. Landmarks are float32, and so nothing may be larger than that.
    if numbers.dtype.kind not in "fiu" or numbers.shape != shape or not (np.abs(numbers) <= LARGEST).all():
        expected = f"{'x'.join(map(str, shape))} finite numbers" if shape else "a finite number"
        raise InvalidRequest(f"{name} must be {expected}; got {str(value)[:80]}")
    return np.asarray(numbers, dtype=np.float64)


def _quality(cells: Mapping[str, Any]) -> Quality:
    """Zeros, and no reasons, where the file has none."""
    said = _json_object("quality", cells)
    measures = {name: float(_numbers(name, said, ())) for name in QUALITIES}
    reasons = said.get("reasons", [])
    if not isinstance(reasons, list) or not all(reason in set(Reason) for reason in map(str, reasons)):
        raise InvalidRequest(f"the reasons of quality must be some of {', '.join(Reason)}; got {reasons}")
    return Quality(**measures, reasons=tuple(map(Reason, reasons)))


def _image_sha256(cells: Mapping[str, Any]) -> str | None:
    text: str | None = cells.get("image_sha256")
    if text is not None and (len(text) != 64 or set(text) - set("0123456789abcdef")):
        raise InvalidRequest(f"image_sha256 must be 64 hexadecimal digits in lower case; got {text[:80]!r}")
    return text
