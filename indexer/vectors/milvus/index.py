"""An index in a Milvus collection, shared by any number of processes and machines.

Every face is scanned, exactly or in fewer bits with rescoring, because clusters and graphs lose mates among faces.
`docs/milvus.md` describes how to size a cluster.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import StorageUnavailable
from indexer.gallery.embeddings import FaceVectors
from indexer.types import Hit, Vectors
from indexer.vectors.base import (
    DamagedIndex,
    FacePages,
    Header,
    VectorEngine,
    VectorIndex,
    best_hit_per_identity,
    inner_products,
    ranking_key,
)
from indexer.vectors.milvus.client import REQUEST_TIMEOUT_S, CollectionDropped, MilvusConnection, PositionStore, parse

log = logging.getLogger(__name__)

HEARTBEAT_TIMEOUT_S = 30.0
"""Seconds without a heartbeat after which the build of a collection counts as abandoned. There is one after every page
of 10,000 faces. The clocks of all machines must agree much better than this."""

MAX_HITS = 16_384
"""Most rows that Milvus returns for a search or a query (`quotaAndLimits.limits.topK`)."""

FACES_PER_IDENTITY = 8
"""Faces fetched per requested identity, before the search is repeated without the identities found."""

RESCORED = 256
"""Least number of faces fetched and rescored per query if the index is not exact. With 1-bit codes of a million faces
of 512 numbers, 986 of 1,000 mates at a cosine of 0.4 were among the best 8, and all among these (`docs/milvus.md`)."""

WRITE_BYTES, READ_BYTES = 4 * 2**20, 16 * 2**20
"""Embeddings in one request and one answer: Milvus allows 64 MiB, and each must finish in REQUEST_TIMEOUT_S."""

DELETE_BATCH = 10_000
"""Faces deleted in one request."""


class MilvusIndex(VectorIndex):
    """The collection of one gallery's embeddings by one pack. All processes see each other's writes. Thread-safe.

    The nearest identities are found by fetching more faces instead of Milvus' grouping search: that does not support
    every index type, and `milvus-lite` looks at ten faces per requested identity, so that a person with many photos
    hides others. If the index is not exact, the best RESCORED faces are scored from their vectors.
    """

    kind = "milvus"
    erases_on_disk = True
    """Eventually: Milvus compacts its files when a fifth of their rows is removed (`docs/milvus.md`)."""

    def __init__(self, milvus: MilvusConnection, collection: str, dim: int) -> None:
        self.collection = collection
        self._milvus = milvus
        self._positions = PositionStore(milvus)
        self._dim = dim
        self._type = milvus.address.index_type
        self._counted: list[int] = []
        """The number of faces once counted. Each write replaces the list, so that a concurrent count is not kept."""

    def __len__(self) -> int:
        counted = self._counted
        if not counted:
            (row,) = self._query("count faces", output_fields=["count(*)"])
            counted.append(int(row["count(*)"]))
        return counted[0]

    def put(self, face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> None:
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        at_once = max(1, WRITE_BYTES // (4 * self._dim))
        for start in range(0, len(face_ids), at_once):
            part = slice(start, start + at_once)
            faces = zip(face_ids[part].tolist(), identity_ids[part].tolist(), rows[part], strict=True)
            data = [{"face_id": f, "identity_id": i, "embedding": vector} for f, i, vector in faces]
            with self._writing():
                self._milvus.upsert(self.collection, "store faces", data)

    def remove(self, face_ids: Sequence[int]) -> None:
        ids = [int(face_id) for face_id in face_ids]
        for start in range(0, len(ids), DELETE_BATCH):
            with self._writing():
                self._milvus.delete(self.collection, "remove faces", ids=ids[start : start + DELETE_BATCH])

    def nearest_faces(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """Returns at most MAX_HITS per query; equal scores are ordered by face id among as many."""
        if k < 1:
            return [[] for _ in queries]
        return [hits[:k] for hits, _ in self._best(queries, k)]

    def nearest_identities(self, queries: Vectors, k: int) -> list[list[Hit]]:
        if k < 1:
            return [[] for _ in queries]
        found = self._best(queries, k * FACES_PER_IDENTITY)
        return [self._identities(query, k, *some) for query, some in zip(queries, found, strict=True)]

    def face_ids(self) -> NDArray[np.int64]:
        ids = [np.array([row["face_id"] for row in rows], np.int64) for rows in self._pages(["face_id"], MAX_HITS)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *ids]))

    def contents(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Vectors]:
        faces, identities = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        vectors: list[Vectors] = [np.empty((0, self._dim), np.float32)]
        at_once = min(MAX_HITS, max(1, READ_BYTES // (4 * self._dim)))
        for rows in self._pages(["face_id", "identity_id", "embedding"], at_once):
            faces.append(np.array([row["face_id"] for row in rows], np.int64))
            identities.append(np.array([row["identity_id"] for row in rows], np.int64))
            vectors.append(np.array([row["embedding"] for row in rows], np.float32))
        return np.concatenate(faces), np.concatenate(identities), np.concatenate(vectors)

    def position(self) -> dict[str, Any] | None:
        """Returns the state last saved by any process: the fields of a `Header`; None if there is none."""
        return self._positions.load(self.collection)

    def save_position(self, state: Mapping[str, Any]) -> None:
        """Saves that the collection contains every change up to `state["seq"]`, unless a later one is saved."""
        known = self.position()
        if known is None or known["seq"] < state["seq"]:
            self._positions.save(self.collection, state)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._noting_drop():
                yield
        finally:
            self._counted = []

    @contextmanager
    def _noting_drop(self) -> Iterator[None]:
        """Sets `is_replaced` if the collection was dropped."""
        try:
            yield
        except CollectionDropped:
            self.is_replaced = True
            raise

    def _query(self, what: str, **options: Any) -> list[dict[str, Any]]:
        with self._noting_drop():
            return self._milvus.query(self.collection, what, **options)

    def _identities(self, query: NDArray[np.float32], k: int, hits: list[Hit], is_all: bool) -> list[Hit]:
        """Returns the best face of each of the best `k` identities, starting from the best faces `hits`."""
        best = best_hit_per_identity(hits)
        count = k * FACES_PER_IDENTITY
        while len(best) < k and not is_all:
            count *= 4
            others = f"identity_id not in {[hit.identity_id for hit in best]}"
            ((hits, is_all),) = self._best(query[None], count, others)
            best += best_hit_per_identity(hits)
        return sorted(best, key=ranking_key)[:k]

    def _best(self, queries: Vectors, count: int, expression: str = "") -> list[tuple[list[Hit], bool]]:
        """Returns for each query at least the `count` best faces and all that tie with the last, and whether these are
        all faces."""
        limit = min(max(count + 1, 0 if self._type.exact else RESCORED), MAX_HITS)
        answers: list[tuple[list[Hit], bool]] = [([], True)] * len(queries)
        pending = list(range(len(queries)))
        while pending:
            for i, answer in zip(pending, self._fetch(queries[pending], limit, expression), strict=True):
                answers[i] = answer
            pending = [i for i in pending if limit < MAX_HITS and _is_cut_within_tie(*answers[i], count)]
            limit = min(2 * limit, MAX_HITS)
        return answers

    def _fetch(self, queries: Vectors, limit: int, expression: str) -> list[tuple[list[Hit], bool]]:
        hit_bytes = 32 if self._type.exact else 4 * self._dim
        at_once = max(1, READ_BYTES // (limit * hit_bytes))
        return [
            answer
            for start in range(0, len(queries), at_once)
            for answer in self._search(queries[start : start + at_once], limit, expression)
        ]

    def _search(self, queries: Vectors, limit: int, expression: str) -> list[tuple[list[Hit], bool]]:
        wanted = np.ascontiguousarray(queries, dtype=np.float32)
        with self._noting_drop():
            found = self._milvus.call_loaded(
                self.collection,
                "search",
                lambda c: c.search(
                    self.collection,
                    data=list(wanted),
                    filter=expression,
                    limit=limit,
                    output_fields=["identity_id"] if self._type.exact else ["identity_id", "embedding"],
                    search_params={"metric_type": "IP", "params": dict(self._type.search)},
                    anns_field="embedding",
                    consistency_level=self._milvus.address.consistency,
                    timeout=self._milvus.timeout,
                ),
            )
        return [(self._hits(query, rows), len(rows) < limit) for query, rows in zip(wanted, found, strict=True)]

    def _hits(self, query: NDArray[np.float32], rows: Sequence[Mapping[str, Any]]) -> list[Hit]:
        if self._type.exact or not rows:
            scores = [float(row["distance"]) for row in rows]
        else:
            scores = inner_products(np.array([row["entity"]["embedding"] for row in rows], np.float32), query).tolist()
        hits = [
            Hit(int(row["entity"]["identity_id"]), int(row["face_id"]), score)
            for row, score in zip(rows, scores, strict=True)
        ]
        return sorted(hits, key=ranking_key)

    def _pages(self, fields: list[str], at_once: int) -> Iterator[list[dict[str, Any]]]:
        """Returns all rows by ascending face id. `pymilvus`' own iterator sends a request without a timeout."""
        after = -1
        while page := self._page(fields, after, at_once):
            yield page
            after = int(page[-1]["face_id"])

    def _page(self, fields: list[str], after: int, limit: int) -> list[dict[str, Any]]:
        lowest_ids = {"iterator": "True", "reduce_stop_for_best": "True"}  # in ascending order
        return self._query("read faces", filter=f"face_id > {after}", output_fields=fields, limit=limit, **lowest_ids)


class MilvusEngine(VectorEngine):
    """Stores the indexes of all galleries in one Milvus. Of a path, only the number in its name matters (`5.index`).

    Every build has its own collection. Saving its position completes the build; then the previous collection is
    dropped, whose users get CollectionDropped and load the new one.
    """

    def __init__(
        self, uri: str, timeout: float = REQUEST_TIMEOUT_S, heartbeat_timeout: float = HEARTBEAT_TIMEOUT_S
    ) -> None:
        """Raises InvalidSetting. Does not connect yet."""
        self._milvus = MilvusConnection(parse(uri), timeout)
        self._positions = PositionStore(self._milvus)
        self._heartbeat_timeout = heartbeat_timeout

    def load(self, path: Path) -> tuple[Header, MilvusIndex]:
        """Returns the collection with the highest saved position."""
        found = {name: state for name in self._collections(path) if (state := self._positions.load(name))}
        if not found:
            raise FileNotFoundError(f"Milvus at {self._milvus.address.uri} has no index {path.name}")
        name = max(found, key=lambda one: int(found[one]["seq"]))
        try:
            header = Header(**found[name])
        except TypeError as error:
            raise DamagedIndex(
                f"the state of {name} in Milvus at {self._milvus.address.uri} is not a valid header"
            ) from error
        self._milvus.load(name)
        return header, MilvusIndex(self._milvus, name, header.dim)

    def build(self, path: Path, header: Header, faces: FacePages) -> tuple[MilvusIndex, bool]:
        """Builds a new collection and drops the previous one.

        Raises StorageUnavailable, also while another process builds an index of the gallery.
        """
        before = self._collections(path)
        if self._positions.is_building(before, self._heartbeat_timeout):
            raise StorageUnavailable(
                f"the index {path.name} is being built in Milvus by another process; try again in a minute"
            )
        name = f"{self._prefix(path)}{_short(header.gallery_created + header.fingerprint)}_{secrets.token_hex(4)}"
        try:
            index = self._fill(name, header, faces())
        except BaseException:
            self._drop_quietly(name)
            raise
        for other in before:
            self._drop_quietly(other)
        return index, True

    def save(self, path: Path, header: Header, index: VectorIndex) -> bool:
        """Saves the position of the index. Its faces are stored by `put`."""
        if isinstance(index, MilvusIndex):
            index.save_position(asdict(header))
        return isinstance(index, MilvusIndex)

    def delete(self, path: Path) -> None:
        for name in self._collections(path):
            self._drop(name)

    def stored_galleries(self) -> set[int]:
        pattern = re.compile(rf"{self._milvus.address.prefix}_(\d+)_[0-9a-f]+_[0-9a-f]+")
        return {int(found[1]) for name in self._milvus.collections() if (found := pattern.fullmatch(name))}

    def close(self) -> None:
        self._milvus.close()

    def _fill(self, name: str, header: Header, pages: Iterable[FaceVectors]) -> MilvusIndex:
        fields: dict[str, dict[str, Any]] = {
            "face_id": {"type": "INT64", "is_primary": True},
            "identity_id": {"type": "INT64"},
            "embedding": {"type": "FLOAT_VECTOR", "dim": header.dim},
        }
        self._positions.heartbeat(name)
        with self._milvus.write_lock:
            self._milvus.create(name, fields, "embedding", self._milvus.address.index_type)
        index = MilvusIndex(self._milvus, name, header.dim)
        faces = 0
        for page in pages:
            index.put(page.face_ids, page.identity_ids, page.vectors)
            faces += len(page.face_ids)
            self._positions.heartbeat(name)
        index.save_position({**asdict(header), "faces": faces})
        self._positions.finish_build(name)
        return index

    def _drop(self, name: str) -> None:
        self._milvus.drop(name)
        self._positions.delete(name)

    def _drop_quietly(self, name: str) -> None:
        """Drops a collection; one that cannot be dropped now is dropped by the next build."""
        try:
            self._drop(name)
        except StorageUnavailable as error:
            log.warning("A collection could not be dropped: %s", error)

    def _collections(self, path: Path) -> list[str]:
        """Returns the collections of the gallery: one, and others during a build or after a failed one."""
        return [name for name in self._milvus.collections() if name.startswith(self._prefix(path))]

    def _prefix(self, path: Path) -> str:
        return f"{self._milvus.address.prefix}_{path.name.split('.')[0]}_"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_cut_within_tie(hits: list[Hit], is_all: bool, count: int) -> bool:
    return not is_all and len(hits) > count and hits[count - 1].score == hits[-1].score
