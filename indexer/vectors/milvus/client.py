"""A connection to Milvus that recovers from outages, and the positions of the indexes stored there.

`pymilvus` is imported when a connection is opened.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from indexer.errors import InvalidSetting, StorageUnavailable

T = TypeVar("T")

REQUEST_TIMEOUT_S = 5.0
"""Seconds that one request may take."""

CONNECT_TIMEOUT_S = 2.0
"""Seconds to open a connection; requests that find it broken wait for it one after another."""

SCHEMA_TIMEOUT_S = 60.0
"""Seconds that creating, loading or dropping a collection may take: several nodes are involved."""

RECONNECT_PAUSE_S = 0.5
"""Seconds after a failed connection attempt during which requests fail at once."""

CHANNEL_OPTIONS = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 500,
    "grpc.use_local_subchannel_pool": 1,
}
"""By default gRPC waits up to two minutes before it reconnects, shared by all channels to an address."""

COLLECTION_NOT_FOUND, COLLECTION_NOT_LOADED = 100, 101
"""Milvus' error codes (`pkg/util/merr/errors.go`)."""

PORT, TLS_PORT = 19530, 443

EXPECTED = "expected milvus://[TOKEN@]HOST[:PORT][/DATABASE], milvus+https://... or milvus:///FOLDER/FILE.db"


@dataclass(frozen=True)
class IndexType:
    """How Milvus scans faces, with the parameters of the index (`params`) and of each search."""

    name: str
    exact: bool
    params: Mapping[str, object] = field(default_factory=dict)
    search: Mapping[str, object] = field(default_factory=dict)


INDEX_TYPES = {
    "flat": IndexType("FLAT", exact=True),
    "sq8": IndexType("IVF_SQ8", exact=False, params={"nlist": 1}, search={"nprobe": 1}),
    "rabitq": IndexType("IVF_RABITQ", exact=False, params={"nlist": 1}, search={"nprobe": 1}),
    "rabitq8": IndexType(
        "IVF_RABITQ",
        exact=False,
        params={"nlist": 1, "refine": True, "refine_type": "SQ8"},
        search={"nprobe": 1, "refine_k": 4},
    ),
}
"""4 bytes, 1 byte or 1 bit per number, or 1 bit rescored from 1 byte. A single cluster (`nlist`) leaves no face out."""


class CollectionDropped(StorageUnavailable):
    """The collection was dropped: its gallery was deleted, or another process rebuilt its index."""


class _NotLoaded(StorageUnavailable):
    """The collection exists, but is not loaded into the memory of Milvus."""


@dataclass(frozen=True)
class Address:
    """The address of Milvus and the options of its collections."""

    uri: str
    """For `pymilvus`, without secrets: http://HOST:PORT, https://HOST:PORT, or the file of `milvus-lite`."""
    database: str = ""
    token: str = field(default="", repr=False)
    index_type: IndexType = INDEX_TYPES["flat"]
    shards: int = 1
    replicas: int = 1
    consistency: str = "Strong"
    """Of searches. With `Session`, this process sees its own writes at once, and those of others with a delay."""
    prefix: str = "whosthere"
    """Of collection names. Every installation needs its own prefix or its own database."""

    @property
    def is_lite(self) -> bool:
        return not self.uri.startswith("http")


def parse(uri: str) -> Address:
    """Parses an address.

    It is milvus://[USER:PASSWORD@ or TOKEN@]HOST[:PORT][/DATABASE][?index=flat&shards=1&replicas=1&prefix=whosthere].

    Raises InvalidSetting, without secrets in its message.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidSetting(f"the address of Milvus cannot be read; {EXPECTED}") from error
    if parts.scheme not in ("milvus", "milvus+https"):
        raise InvalidSetting(f"the address of Milvus starts with {parts.scheme!r}; {EXPECTED}")
    shown = _shown(parts)
    options = _options(shown, parts)
    if host is None:
        if parts.netloc or parts.scheme != "milvus" or not parts.path.endswith(".db"):
            raise InvalidSetting(f"{shown} names neither a host nor a .db file; {EXPECTED}")
        path = Path(unquote(parts.path))
        if not path.parent.is_dir():
            raise InvalidSetting(f"{shown}: there is no folder {path.parent}")
        return Address(str(path), **options)
    database = unquote(parts.path.strip("/"))
    if database and not re.fullmatch(r"[A-Za-z_]\w{0,254}", database, re.ASCII):
        raise InvalidSetting(f"{shown}: {database!r} cannot be a database; expected letters, digits and _")
    tls = parts.scheme == "milvus+https"
    secret = [unquote(part) for part in (parts.username, parts.password) if part]
    return Address(
        f"{'https' if tls else 'http'}://{host}:{port or (TLS_PORT if tls else PORT)}",
        database,
        ":".join(secret),
        **options,
    )


def _shown(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _options(shown: str, parts: SplitResult) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "index" and value in INDEX_TYPES:
            options["index_type"] = INDEX_TYPES[value]
        elif name in ("shards", "replicas") and re.fullmatch("[1-9]|1[0-6]", value):
            options[name] = int(value)
        elif name == "consistency" and value in ("strong", "session"):
            options[name] = value.capitalize()
        elif name == "prefix" and re.fullmatch("[a-z][a-z0-9_]{0,62}", value):
            options[name] = value
        else:
            raise InvalidSetting(
                f"{shown}: {name} is {value!r}; expected index={'|'.join(INDEX_TYPES)}, consistency=strong|session, "
                "shards or replicas of 1 to 16, or a prefix of lower-case letters, digits and _"
            )
    return options


class MilvusConnection:
    """A connection that is opened on first use and recovers from outages. Thread-safe."""

    def __init__(self, address: Address, timeout: float = REQUEST_TIMEOUT_S) -> None:
        """Raises InvalidSetting if a package is missing. Does not connect yet."""
        for package in ["pymilvus", "milvus_lite"] if address.is_lite else ["pymilvus"]:
            if find_spec(package) is None:
                name = package.replace("_", "-")
                raise InvalidSetting(f"an index in Milvus needs {name}, which is not installed: pip install {name}")
        self.address = address
        self.timeout = timeout
        self.write_lock: AbstractContextManager[object] = threading.RLock() if address.is_lite else nullcontext()
        """Held while writing: `milvus-lite` supports one writer at a time."""
        self._client: Any = None
        self._connecting = threading.Lock()
        self._last_failure = -RECONNECT_PAUSE_S

    def call(self, what: str, method: Callable[[Any], T]) -> T:
        """Returns `method(client)`. Raises StorageUnavailable with the reason; `what` names the operation."""
        client = self._connected(what)
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            return method(client)
        except (MilvusException, grpc.RpcError, ValueError) as error:  # ValueError: another thread closed the channel
            raise self._error(what, error) from error

    def call_loaded(self, collection: str, what: str, method: Callable[[Any], T]) -> T:
        """Calls as `call` does and loads the collection if needed.

        `milvus-lite` does not remember which collections were loaded, and administrators can release them.
        """
        try:
            return self.call(what, method)
        except _NotLoaded:
            self.load(collection)
            return self.call(what, method)

    def query(self, collection: str, what: str, **options: Any) -> list[dict[str, Any]]:
        """Returns the rows that match, including those that other processes have just written."""
        consistent = {"consistency_level": "Strong", "timeout": self.timeout}
        return list(self.call_loaded(collection, what, lambda c: c.query(collection, **consistent, **options)))

    def upsert(self, collection: str, what: str, rows: list[dict[str, Any]]) -> None:
        with self.write_lock:
            self.call_loaded(collection, what, lambda c: c.upsert(collection, rows, timeout=self.timeout))

    def delete(self, collection: str, what: str, **options: Any) -> None:
        with self.write_lock:
            self.call_loaded(collection, what, lambda c: c.delete(collection, timeout=self.timeout, **options))

    def load(self, collection: str) -> None:
        """Loads the collection into the memory of Milvus, where it stays until it is released."""
        replicas = {} if self.address.is_lite else {"replica_number": self.address.replicas}
        self.call("load a collection", lambda c: c.load_collection(collection, timeout=SCHEMA_TIMEOUT_S, **replicas))

    def create(
        self, collection: str, fields: Mapping[str, Mapping[str, Any]], vectors: str, index_type: IndexType
    ) -> None:
        """Creates and loads a collection that is indexed by inner product of the field `vectors`."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        for name, field_options in fields.items():
            arguments = {key: value for key, value in field_options.items() if key != "type"}
            schema.add_field(name, DataType[field_options["type"]], **arguments)
        indexed = MilvusClient.prepare_index_params()
        nested = {"params": dict(index_type.params)}  # accepted by Milvus, required by `milvus-lite`
        indexed.add_index(vectors, index_type=index_type.name, metric_type="IP", params=nested)
        options = {"consistency_level": "Strong", "num_shards": self.address.shards, "timeout": SCHEMA_TIMEOUT_S}
        self.call("create a collection", lambda c: c.create_collection(collection, schema=schema, **options))
        # With `sync`, `pymilvus` would sleep before it looks at the empty collection.
        options = {"sync": False, "timeout": SCHEMA_TIMEOUT_S}
        self.call("index a collection", lambda c: c.create_index(collection, indexed, **options))
        self.load(collection)

    def drop(self, collection: str) -> None:
        with self.write_lock:
            self.call("drop a collection", lambda c: c.drop_collection(collection, timeout=SCHEMA_TIMEOUT_S))

    def collections(self) -> list[str]:
        return list(self.call("list collections", lambda c: c.list_collections(timeout=self.timeout)))

    def close(self) -> None:
        with self._connecting:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _connected(self, what: str) -> Any:
        with self._connecting:
            if self._client is None:
                if time.monotonic() - self._last_failure < RECONNECT_PAUSE_S:
                    raise StorageUnavailable(f"Milvus at {self.address.uri} could not {what}: it is not reachable")
                try:
                    self._client = _connect(self.address, min(self.timeout, CONNECT_TIMEOUT_S))
                except Exception as error:  # of pymilvus, gRPC or milvus-lite
                    self._last_failure = time.monotonic()
                    raise self._error(what, error) from error
            return self._client

    def _error(self, what: str, error: Exception) -> StorageUnavailable:
        reason = getattr(error, "message", None) or _grpc_reason(error)
        if self.address.token:
            reason = reason.replace(self.address.token, "...")
        code = getattr(error, "code", None)
        kind = {COLLECTION_NOT_FOUND: CollectionDropped, COLLECTION_NOT_LOADED: _NotLoaded}.get(
            code if isinstance(code, int) else 0, StorageUnavailable
        )
        return kind(f"Milvus at {self.address.uri} could not {what}: {reason}")


def _grpc_reason(error: Exception) -> str:
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error)


def _connect(address: Address, timeout: float) -> Any:
    from pymilvus import MilvusClient

    for name in ("pymilvus", "pymilvus.milvus_client", "milvus_lite"):  # they also log what they raise
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return MilvusClient(
        address.uri,
        token=address.token,
        db_name=address.database,
        timeout=timeout,
        dedicated=True,
        grpc_options=dict(CHANNEL_OPTIONS),
    )


class PositionStore:
    """Stores the last change applied to each collection, in a separate collection.

    Milvus' collection properties are not meant for frequent updates, and a row in the gallery's own collection would
    appear among the hits. There is one row per collection and change, and the highest counts: a late writer adds a
    lower one.
    """

    def __init__(self, milvus: MilvusConnection) -> None:
        self._milvus = milvus
        self._name = f"{milvus.address.prefix}_positions"

    def load(self, collection: str) -> dict[str, Any] | None:
        """Returns the last saved state: the fields of a `Header`; None if there is none."""
        states = [row for row in self._rows(f'collection == "{collection}"') if row["seq"] >= 0]
        best = max(states, key=lambda row: int(row["seq"]), default=None)
        return dict(json.loads(best["state"])) if best else None

    def save(self, collection: str, state: Mapping[str, Any]) -> None:
        seq = int(state["seq"])
        self._write(f"{collection}/{seq}", collection, seq, json.dumps(dict(state)))
        self._delete(f'collection == "{collection}" and seq >= 0 and seq < {seq}')

    def heartbeat(self, collection: str) -> None:
        """Records that `collection` is being built."""
        self._write(f"{collection}/building", collection, -1, "")

    def finish_build(self, collection: str) -> None:
        self._delete(f'collection == "{collection}" and seq == -1')

    def is_building(self, collections: Iterable[str], heartbeat_timeout: float) -> bool:
        """Returns whether one of `collections` is being built, with a heartbeat in the last seconds."""
        wanted, since = set(collections), time.time() - heartbeat_timeout
        rows = self._rows("seq == -1") if wanted else []
        return any(row["collection"] in wanted and row["at"] > since for row in rows)

    def delete(self, collection: str) -> None:
        self._delete(f'collection == "{collection}"')

    def _rows(self, expression: str) -> list[dict[str, Any]]:
        try:
            fields = ["collection", "seq", "at", "state"]
            what = "read the position of an index"
            return self._milvus.query(self._name, what, filter=expression, output_fields=fields)
        except CollectionDropped:  # nothing was saved yet
            return []

    def _write(self, key: str, collection: str, seq: int, state: str) -> None:
        unused = [0.0, 0.0]  # every collection needs vectors
        row = {"key": key, "collection": collection, "seq": seq, "at": time.time(), "state": state, "nothing": unused}
        what = "save the position of an index"
        with self._milvus.write_lock:
            try:
                self._milvus.upsert(self._name, what, [row])
            except CollectionDropped:
                self._create()
                self._milvus.upsert(self._name, what, [row])

    def _delete(self, expression: str) -> None:
        with suppress(CollectionDropped):
            self._milvus.delete(self._name, "delete the position of an index", filter=expression)

    def _create(self) -> None:
        text: dict[str, Any] = {"type": "VARCHAR", "max_length": 4096}
        fields: dict[str, dict[str, Any]] = {
            "key": {"type": "VARCHAR", "max_length": 512, "is_primary": True},
            "collection": text,
            "seq": {"type": "INT64"},
            "at": {"type": "DOUBLE"},
            "state": text,
            "nothing": {"type": "FLOAT_VECTOR", "dim": 2},
        }
        self._milvus.create(self._name, fields, "nothing", INDEX_TYPES["flat"])
