"""Parquet files of galleries: their header, and which columns are read.

A row is a face with its identity, or an identity without faces. One row group or batch is in memory at a time.
"""

from __future__ import annotations

import re
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from indexer.errors import InvalidRequest

FORMAT = 1
"""Raise it when older versions would misread a new file."""

HEADER_KEY = b"whosthere"
"""Key of the file's metadata that holds the `Header` as JSON."""

BATCH = 2_000
"""Rows read, checked and committed at a time."""

READ_BUFFER = 2**20
"""Bytes of each column read ahead. Without a bound, a file of one row group would be read as a whole."""

MEMORY = 2**30
"""Bytes that a batch may take while it is read and checked, on Linux. BATCH rows of 4,096 numbers with 16 KiB of
metadata take 0.1 GB; some writers store a row group in one page. Compressed text can grow by a factor of 50,000."""

PROCESS_STATUS = Path("/proc/self/status")

_LIMIT_LOCK = threading.Lock()
"""Held while the process's limit is changed. Of two overlapping blocks, the last to end would restore the limit of the
other one, which would then hold for good."""

ProgressListener = Callable[[int, int], None]
"""Called with the number of rows done and the total."""


class Header(BaseModel):
    """The header of a file that this program wrote."""

    model_config = ConfigDict(frozen=True)

    format: int = Field(ge=1)
    gallery: str
    model: str
    fingerprint: str
    dim: int = Field(ge=1)
    identities: int
    faces: int
    made_at: datetime


class GalleryFile:
    """An open Parquet file with the columns of a gallery; see `open_gallery_file`."""

    def __init__(self, path: Path, file: pq.ParquetFile) -> None:
        """Raises InvalidRequest if a column is missing, duplicate or of another type, or the header is damaged."""
        self.path = path
        self._file = file
        schema = file.schema_arrow
        for name in COLUMNS:
            _check_column(path, schema, name)
        self._columns = [name for name in COLUMNS if name in schema.names]
        self.header = _header(path, schema.metadata or {})
        self.rows: int = file.metadata.num_rows
        embedding = schema.field("embedding").type
        if _is_vector(embedding):
            embedding = embedding.storage_type
        self.dim: int | None = embedding.list_size if pa.types.is_fixed_size_list(embedding) else None
        """Numbers in each embedding; None if the column's type does not say."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows, BATCH at a time. Raises InvalidRequest if the file is damaged."""
        with _reading(self.path):
            yield from self._file.iter_batches(BATCH, columns=self._columns, use_threads=False)

    @contextmanager
    def bounded_memory(self) -> Iterator[None]:
        """Limits what the process may allocate in the block to MEMORY; one block runs at a time.

        Raises InvalidRequest if that is too little.
        """
        with _LIMIT_LOCK:
            limits = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, _limit_above(limits))
            try:
                yield
            except MemoryError as error:
                raise InvalidRequest(
                    f"{self.path} has rows that need more than {MEMORY:,} bytes of memory, {BATCH:,} at a time"
                ) from error
            finally:
                resource.setrlimit(resource.RLIMIT_DATA, limits)


def _limit_above(limits: tuple[int, int]) -> tuple[int, int]:
    """Returns the limits with a soft one MEMORY above what the process has allocated, where that is known."""
    soft, hard = limits
    if not PROCESS_STATUS.exists():
        return limits
    (used,) = re.findall(r"^VmData:\s+(\d+) kB", PROCESS_STATUS.read_text(), re.MULTILINE)
    wanted = int(used) * 1024 + MEMORY
    return min([wanted, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]), hard


@contextmanager
def open_gallery_file(path: Path) -> Iterator[GalleryFile]:
    """Opens a file. Raises InvalidRequest if it is not a Parquet file of a gallery."""
    with _reading(path):
        file = pq.ParquetFile(path, buffer_size=READ_BUFFER, pre_buffer=False, page_checksum_verification=True)
    with file:
        yield GalleryFile(path, file)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise InvalidRequest(f"{path} cannot be read as a Parquet file: {error}") from error


def _header(path: Path, metadata: Mapping[bytes, bytes]) -> Header | None:
    if HEADER_KEY not in metadata:
        return None
    try:
        header = Header.model_validate_json(metadata[HEADER_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise InvalidRequest(f"the header of {path} cannot be read: {problem}") from error
    if header.format > FORMAT:
        raise InvalidRequest(
            f"{path} has format {header.format} of a newer whosthere; this version reads formats up to {FORMAT}"
        )
    return header


LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def _is_list(kind: pa.DataType) -> bool:
    return any(fits(kind) for fits in LISTS)


def _is_vector(kind: pa.DataType) -> bool:
    """Returns whether cells are tensors of one dimension, which are stored as lists."""
    return isinstance(kind, pa.FixedShapeTensorType) and len(kind.shape) == 1


def _is_embedding(kind: pa.DataType) -> bool:
    return (_is_list(kind) or _is_vector(kind)) and bool(pa.types.is_floating(kind.value_type))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_json(kind: pa.DataType) -> bool:
    """Returns whether cells are text, or of Parquet's logical type JSON as DuckDB writes it."""
    return _is_text(kind) or isinstance(kind, pa.JsonType)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


TEXT = (_is_text, "text")
JSON = (_is_json, "text with JSON")
TIME = (pa.types.is_timestamp, "timestamps")

COLUMNS: Mapping[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "external_id": TEXT,
    "embedding": (_is_embedding, "lists of floats"),
    "name": TEXT,
    "metadata": JSON,
    "valid_from": TIME,
    "valid_until": TIME,
    "image_sha256": TEXT,
    "box": (lambda kind: _is_list(kind) and _is_number(kind.value_type), "lists of 4 floats or integers"),
    "landmarks": (
        lambda kind: _is_list(kind) and _is_list(kind.value_type) and _is_number(kind.value_type.value_type),
        "lists of 5 lists of 2 floats or integers",
    ),
    "detection_score": (_is_number, "floats or integers"),
    "quality": JSON,
}
"""The columns read from a file: a check of the type, and its description for people."""

REQUIRED = ("external_id", "embedding")


def _check_column(path: Path, schema: pa.Schema, name: str) -> None:
    fits, expected = COLUMNS[name]
    count = schema.names.count(name)
    if count > 1:
        raise InvalidRequest(f"{path} has {count} columns named {name!r}")
    if count == 0:
        if name in REQUIRED:
            raise InvalidRequest(f"{path} has no column {name!r}; it has {', '.join(schema.names) or 'none'}")
        return
    kind = schema.field(name).type
    # Other writers give a column without values the type null.
    if not fits(kind) and not pa.types.is_null(kind):
        raise InvalidRequest(f"the column {name!r} of {path} is of type {kind}; expected {expected}")
