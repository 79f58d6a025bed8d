"""Rows of a Parquet file as faces and identities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexer.errors import InvalidRequest, InvalidVector
from indexer.gallery.faces import NewFace
from indexer.gallery.validation import check_person
from indexer.types import Box, Detection, Face, Person, Quality, Reason, Vectors, check_vectors, sha256, vector_to_bytes

UNIT_LENGTH_TOLERANCE = 1e-6
"""How far float32 arithmetic leaves the length of a normalized embedding from 1: a few of its 6e-8."""

LARGEST = float(np.finfo(np.float32).max)
QUALITIES = tuple(f.name for f in fields(Quality) if f.name != "reasons")
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (the column has the zone)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, eq=False)
class FileRow:
    """A row that was read: a face, an identity without faces, or an error."""

    number: int
    external_id: str
    value: NewFace | Person | InvalidRequest


def read_rows(path: Path, batch: pa.RecordBatch, first: int, dim: int) -> list[FileRow]:
    """Reads the rows of a batch, the first of which has the number `first`."""
    columns = {name: _values(path, name, batch.column(name)) for name in batch.schema.names if name != "embedding"}
    vectors = _vectors(batch.column("embedding"), dim)
    rows = []
    for i, vector in enumerate(vectors):
        cells = {name: values[i] for name, values in columns.items()}
        try:
            value: NewFace | Person | InvalidRequest = _value(cells, vector)
        except InvalidRequest as error:
            value = error
        rows.append(FileRow(first + i, cells["external_id"] or "", value))
    return rows


def _values(path: Path, name: str, column: pa.Array) -> list[Any]:
    """Returns the cells as Python values; times as pairs of number and column type, for `_time`."""
    if pa.types.is_timestamp(column.type):
        return [(value, column.type) for value in column.cast(pa.int64()).to_pylist()]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the column {name!r} of {path} is not UTF-8 text: {error}") from error


def _vectors(column: pa.Array, dim: int) -> list[NDArray[np.float32] | InvalidVector | None]:
    """Returns each embedding as (dim,) float32 of unit length, an error, or None for a row without one."""
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
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
        return [_unit_row(row, dim) for row in numbers]  # find the wrong ones


def _unit_row(numbers: NDArray[np.floating], dim: int) -> NDArray[np.float32] | InvalidVector:
    try:
        return np.asarray(_unit(numbers[np.newaxis], dim)[0], dtype=np.float32)
    except InvalidVector as error:
        return error


def _unit(numbers: NDArray[np.floating], dim: int) -> Vectors:
    """Normalizes like `check_vectors`, but keeps vectors that have unit length in float32 bit for bit."""
    checked = check_vectors(numbers, dim)
    raw = numbers.astype(np.float32)
    exact = np.abs(np.linalg.norm(raw, axis=1, keepdims=True) - 1) <= UNIT_LENGTH_TOLERANCE
    return np.asarray(np.where(exact, raw, checked), dtype=np.float32)


def _value(cells: Mapping[str, Any], vector: NDArray[np.float32] | InvalidVector | None) -> NewFace | Person:
    """Returns the face, or the identity if there is no embedding. Raises InvalidRequest."""
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
    """Returns a time; without a zone if the column has none, which `check_person` refuses."""
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
    """Returns the numbers of a cell; zeros if it is empty."""
    value = cells.get(name)
    if value is None:
        return np.zeros(shape)
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of different lengths
        numbers = np.empty(0)
    # Other values give another dtype. Landmarks are float32, which bounds all numbers.
    if numbers.dtype.kind not in "fiu" or numbers.shape != shape or not (np.abs(numbers) <= LARGEST).all():
        expected = f"{'x'.join(map(str, shape))} finite numbers" if shape else "a finite number"
        raise InvalidRequest(f"{name} must be {expected}; got {str(value)[:80]}")
    return np.asarray(numbers, dtype=np.float64)


def _quality(cells: Mapping[str, Any]) -> Quality:
    """Returns the quality; zeros without reasons if the cell is empty."""
    quality = _json_object("quality", cells)
    measures = {name: float(_numbers(name, quality, ())) for name in QUALITIES}
    reasons = quality.get("reasons", [])
    if not isinstance(reasons, list) or not all(reason in set(Reason) for reason in map(str, reasons)):
        raise InvalidRequest(f"the reasons of quality must be some of {', '.join(Reason)}; got {reasons}")
    return Quality(**measures, reasons=tuple(map(Reason, reasons)))


def _image_sha256(cells: Mapping[str, Any]) -> str | None:
    text: str | None = cells.get("image_sha256")
    if text is not None and (len(text) != 64 or set(text) - set("0123456789abcdef")):
        raise InvalidRequest(f"image_sha256 must be 64 hexadecimal digits in lower case; got {text[:80]!r}")
    return text
