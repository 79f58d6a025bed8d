"""How Milvus is reached: its address, a connection that comes back, and how far the indexes there are.

`pymilvus` is imported when a connection is made.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from indexer.errors import InvalidSetting, StorageUnavailable

T = TypeVar("T")

ANSWER_WITHIN = 5.0
"""Seconds that Milvus may take for one request."""

CONNECT_WITHIN = 2.0
"""Seconds until a connection must stand; requests that find it broken wait for it one after another."""

CREATE_WITHIN = 60.0
"""Seconds that creating, loading or dropping a collection may take: several nodes take part."""

PAUSE = 0.5
"""Seconds after a connection could not be made in which none is tried: whoever waited for it fails with it."""

CHANNEL_OPTIONS = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 500,
    "grpc.use_local_subchannel_pool": 1,
}
"""gRPC waits up to two minutes, for all channels to an address together, before it tries a lost server again."""

COLLECTION_GONE, COLLECTION_NOT_LOADED = 100, 101
"""Milvus' error codes (`pkg/util/merr/errors.go`)."""

PORT, TLS_PORT = 19530, 443

EXPECTED = "expected milvus://[TOKEN@]HOST[:PORT][/DATABASE], milvus+https://... or milvus:///FOLDER/FILE.db"


@dataclass(frozen=True)
class IndexType:
    """How Milvus scans the faces. `params` are of the index, `search` of each search."""

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
"""4 bytes, 1 byte and 1 bit a number, and 1 bit with 1 byte for the best. With one cluster no face is left out."""


class CollectionGone(StorageUnavailable):
    """The collection was dropped: its gallery was deleted, or another process made its index anew."""


class _NotLoaded(StorageUnavailable):
    """The collection is there, and not in the memory of Milvus."""


@dataclass(frozen=True)
class Address:
    """Where Milvus is, and how collections are made there."""

    uri: str
    """As `pymilvus` takes it, without secrets: http://HOST:PORT, https://HOST:PORT, or the file of `milvus-lite`."""
    database: str = ""
    token: str = field(default="", repr=False)
    index_type: IndexType = INDEX_TYPES["flat"]
    shards: int = 1
    replicas: int = 1
    consistency: str = "Strong"
    """Of searches. `Session` finds at once what this process wrote, and what others wrote when Milvus gets to it."""
    prefix: str = "whosthere"
    """Of the names of collections. Every installation needs its own, or a database of its own."""

    @property
    def is_lite(self) -> bool:
        return not self.uri.startswith("http")


def parse(uri: str) -> Address:
    """milvus://[USER:PASSWORD@ or TOKEN@]HOST[:PORT][/DATABASE][?index=flat&shards=1&replicas=1&prefix=whosthere].

    Raises InvalidSetting, in which no secret is.
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
                "shards or replicas of 1 to 16, or a prefix of small letters, digits and _"
            )
    return options


class Milvus:
    """A connection, made when it is first needed; it comes back after an outage. Thread-safe."""

    def __init__(self, address: Address, within: float = ANSWER_WITHIN) -> None:
        """Raises InvalidSetting where a package is missing; Milvus is not asked yet."""
        for package in ["pymilvus", "milvus_lite"] if address.is_lite else ["pymilvus"]:
            if find_spec(package) is None:
                name = package.replace("_", "-")
                raise InvalidSetting(f"an index in Milvus needs {name}, which is not installed: pip install {name}")
        self.address = address
        self.within = within
        self.writing: AbstractContextManager[object] = threading.Lock() if address.is_lite else nullcontext()
        """`milvus-lite` takes one writer at a time."""
        self._client: Any = None
        self._connecting = threading.Lock()
        self._failed_at = -PAUSE

    def ask(self, what: str, method: Callable[[Any], T]) -> T:
        """What `method` makes of the client. Raises StorageUnavailable, which says that `what` failed, and why."""
        client = self._connected(what)
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            return method(client)
        except (MilvusException, grpc.RpcError, ValueError) as error:  # ValueError: another thread closed the channel
            raise self._error(what, error) from error

    def ask_loaded(self, collection: str, what: str, method: Callable[[Any], T]) -> T:
        """As `ask`. `milvus-lite` forgets at its end which collections were loaded, and people release them."""
        try:
            return self.ask(what, method)
        except _NotLoaded:
            self.load(collection)
            return self.ask(what, method)

    def load(self, collection: str) -> None:
        """Into the memory of Milvus; it stays there until it is released."""
        more = {} if self.address.is_lite else {"replica_number": self.address.replicas}
        self.ask("load a collection", lambda c: c.load_collection(collection, timeout=CREATE_WITHIN, **more))

    def create(
        self, collection: str, fields: Mapping[str, Mapping[str, Any]], vectors: str, index_type: IndexType
    ) -> None:
        """One that is indexed by inner product of the field `vectors`, and loaded."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        for name, options in fields.items():
            more = {key: value for key, value in options.items() if key != "type"}
            schema.add_field(name, DataType[options["type"]], **more)
        indexed = MilvusClient.prepare_index_params()
        nested = {"params": dict(index_type.params)}  # Milvus takes them so too, and `milvus-lite` not otherwise
        indexed.add_index(vectors, index_type=index_type.name, metric_type="IP", params=nested)
        asked = {"consistency_level": "Strong", "num_shards": self.address.shards, "timeout": CREATE_WITHIN}
        self.ask("create a collection", lambda c: c.create_collection(collection, schema=schema, **asked))
        waiting = {"sync": False, "timeout": CREATE_WITHIN}  # nothing is in it yet; `pymilvus` would sleep first
        self.ask("index a collection", lambda c: c.create_index(collection, indexed, **waiting))
        self.load(collection)

    def drop(self, collection: str) -> None:
        with self.writing:
            self.ask("drop a collection", lambda c: c.drop_collection(collection, timeout=CREATE_WITHIN))

    def collections(self) -> list[str]:
        return list(self.ask("list collections", lambda c: c.list_collections(timeout=self.within)))

    def close(self) -> None:
        with self._connecting:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _connected(self, what: str) -> Any:
        with self._connecting:
            if self._client is None:
                if time.monotonic() - self._failed_at < PAUSE:
                    raise StorageUnavailable(f"Milvus at {self.address.uri} could not {what}: it is not there")
                try:
                    self._client = _connect(self.address, min(self.within, CONNECT_WITHIN))
                except Exception as error:  # of pymilvus, gRPC or, for a file, of milvus-lite
                    self._failed_at = time.monotonic()
                    raise self._error(what, error) from error
            return self._client

    def _error(self, what: str, error: Exception) -> StorageUnavailable:
        reason = getattr(error, "message", None) or _grpc_reason(error)
        if self.address.token:
            reason = reason.replace(self.address.token, "...")
        code = getattr(error, "code", None)
        kind = {COLLECTION_GONE: CollectionGone, COLLECTION_NOT_LOADED: _NotLoaded}.get(
            code if isinstance(code, int) else 0, StorageUnavailable
        )
        return kind(f"Milvus at {self.address.uri} could not {what}: {reason}")


def _grpc_reason(error: Exception) -> str:
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error)


def _connect(address: Address, within: float) -> Any:
    from pymilvus import MilvusClient

    for name in ("pymilvus", "pymilvus.milvus_client", "milvus_lite"):  # they log what they raise
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return MilvusClient(
        address.uri,
        token=address.token,
        db_name=address.database,
        timeout=within,
        dedicated=True,
        grpc_options=dict(CHANNEL_OPTIONS),
    )


class Positions:
    """The change that each collection has reached, in a collection of their own: what changes with every batch is no
    matter for Milvus' schema, and in a gallery's own collection it would be among the hits.

    A row a collection and change: whoever is late adds a lower one, and the highest counts.
    """

    def __init__(self, milvus: Milvus) -> None:
        self._milvus = milvus
        self._name = f"{milvus.address.prefix}_positions"

    def of(self, collection: str) -> dict[str, Any] | None:
        states = [row for row in self._rows(f'collection == "{collection}"') if row["seq"] >= 0]
        best = max(states, key=lambda row: int(row["seq"]), default=None)
        return dict(json.loads(best["state"])) if best else None

    def remember(self, collection: str, state: Mapping[str, Any]) -> None:
        seq = int(state["seq"])
        self._write(f"{collection}/{seq}", collection, seq, json.dumps(dict(state)))
        self._delete(f'collection == "{collection}" and seq >= 0 and seq < {seq}')

    def sign_of_life(self, collection: str) -> None:
        """`collection` is being built."""
        self._write(f"{collection}/building", collection, -1, "")

    def built(self, collection: str) -> None:
        self._delete(f'collection == "{collection}" and seq == -1')

    def alive(self, collections: Iterable[str], within: float) -> str | None:
        """One of `collections` that is being built and whose last sign of life is less than `within` seconds old."""
        wanted, since = set(collections), time.time() - within
        rows = self._rows("seq == -1") if wanted else []
        return next((r["collection"] for r in rows if r["collection"] in wanted and r["at"] > since), None)

    def forget(self, collection: str) -> None:
        self._delete(f'collection == "{collection}"')

    def _rows(self, expression: str) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = self._ask(
                "read the position of an index",
                lambda c: c.query(
                    self._name,
                    filter=expression,
                    output_fields=["collection", "seq", "at", "state"],
                    consistency_level="Strong",
                    timeout=self._milvus.within,
                ),
            )
            return rows
        except CollectionGone:  # nothing was remembered yet
            return []

    def _write(self, key: str, collection: str, seq: int, state: str) -> None:
        nothing = [0.0, 0.0]  # Milvus has no collection without vectors
        row = {"key": key, "collection": collection, "seq": seq, "at": time.time(), "state": state, "nothing": nothing}
        with self._milvus.writing:
            try:
                self._upsert(row)
            except CollectionGone:
                self._create()
                self._upsert(row)

    def _upsert(self, row: dict[str, Any]) -> None:
        self._ask("note the position of an index", lambda c: c.upsert(self._name, row, timeout=self._milvus.within))

    def _delete(self, expression: str) -> None:
        try:
            with self._milvus.writing:
                self._ask(
                    "forget the position of an index",
                    lambda c: c.delete(self._name, filter=expression, timeout=self._milvus.within),
                )
        except CollectionGone:
            pass

    def _ask(self, what: str, method: Callable[[Any], Any]) -> Any:
        return self._milvus.ask_loaded(self._name, what, method)

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
