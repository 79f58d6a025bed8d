"""The faces of a gallery in a collection of Milvus, which any number of processes share: an index beyond one machine.

Every face is scanned, exactly or in fewer bits and then scored from its vector: clusters and graphs lose mates among
faces. `docs/milvus.md` says how to size a cluster.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    ranking_key,
)
from indexer.vectors.milvus.client import ANSWER_WITHIN, CollectionGone, Milvus, Positions, parse

log = logging.getLogger(__name__)

BUILDING_FOR = 30.0
"""Seconds without a sign of life after which a collection that is being built is taken to be abandoned. There is a sign
with every part, which are 10,000 faces. The clocks of all machines are taken to agree within a part of it."""

MOST_HITS = 16_384
"""Rows that Milvus returns a query at most (`quotaAndLimits.limits.topK`), of searches and of queries alike."""

FACES_PER_IDENTITY = 8
"""Faces fetched for each identity asked for, before those of other identities alone are."""

RESCORED = 256
"""Faces fetched a query at least where the index does not score exactly. By 1-bit codes of a million faces with 512
numbers, 986 of 1,000 mates at a cosine of 0.4 were among the best 8, and all among these (`docs/milvus.md`)."""

WRITE_BYTES, READ_BYTES = 4 * 2**20, 16 * 2**20
"""Of embeddings in a request and in an answer: Milvus allows 64 MiB, and each must be done within ANSWER_WITHIN."""

REMOVED_AT_ONCE = 10_000
"""Their ids are written into one expression."""


class MilvusIndex(VectorIndex):
    """The collection of one gallery's embeddings by one pack. What one process wrote, all find. Thread-safe.

    The identities nearest to a query come by widening the search, not by Milvus' grouping search: that is not there for
    every type of index, and `milvus-lite` looks at ten faces for each identity asked for, so that a person of many
    photos hides others. Where the index is not exact, the best RESCORED faces are scored from their vectors.
    """

    kind = "milvus"
    erases_on_disk = True
    """As far as it can be had: Milvus compacts its files when a fifth of their rows is removed (`docs/milvus.md`)."""

    def __init__(self, milvus: Milvus, collection: str, dim: int) -> None:
        self.is_replaced = False
        """Whether the collection is gone: what another process has built in its place is to be loaded."""
        self.collection = collection
        self._milvus = milvus
        self._positions = Positions(milvus)
        self._dim = dim
        self._type = milvus.address.index_type
        self._counted: list[int] = []
        """How many faces it holds, once that was asked for; another list after each write, whoever asks meanwhile."""

    def __len__(self) -> int:
        counted = self._counted
        if not counted:
            (row,) = self._ask(
                "count faces",
                lambda c: c.query(
                    self.collection, output_fields=["count(*)"], consistency_level="Strong", timeout=self._milvus.within
                ),
            )
            counted.append(int(row["count(*)"]))
        return counted[0]

    def put(self, face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> None:
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        at_once = max(1, WRITE_BYTES // (4 * self._dim))
        for start in range(0, len(face_ids), at_once):
            part = slice(start, start + at_once)
            self._upsert(face_ids[part], identity_ids[part], rows[part])

    def remove(self, face_ids: Sequence[int]) -> None:
        ids = [int(face_id) for face_id in face_ids]
        for start in range(0, len(ids), REMOVED_AT_ONCE):
            self._delete(ids[start : start + REMOVED_AT_ONCE])

    def nearest_faces(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """At most MOST_HITS of each query; equals by face id among as many."""
        if k < 1:
            return [[] for _ in queries]
        return [hits[:k] for hits, _ in self._best(queries, k)]

    def nearest_identities(self, queries: Vectors, k: int) -> list[list[Hit]]:
        if k < 1:
            return [[] for _ in queries]
        found = self._best(queries, k * FACES_PER_IDENTITY)
        return [self._identities(query, k, *some) for query, some in zip(queries, found, strict=True)]

    def face_ids(self) -> NDArray[np.int64]:
        ids = [np.array([row["face_id"] for row in rows], np.int64) for rows in self._pages(["face_id"], MOST_HITS)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *ids]))

    def contents(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Vectors]:
        faces, identities = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        vectors: list[Vectors] = [np.empty((0, self._dim), np.float32)]
        at_once = min(MOST_HITS, max(1, READ_BYTES // (4 * self._dim)))
        for rows in self._pages(["face_id", "identity_id", "embedding"], at_once):
            faces.append(np.array([row["face_id"] for row in rows], np.int64))
            identities.append(np.array([row["identity_id"] for row in rows], np.int64))
            vectors.append(np.array([row["embedding"] for row in rows], np.float32))
        return np.concatenate(faces), np.concatenate(identities), np.concatenate(vectors)

    def position(self) -> dict[str, Any] | None:
        """What was remembered last, by any process: the fields of a `base.Header`. None when nothing was."""
        return self._positions.of(self.collection)

    def remember(self, state: Mapping[str, Any]) -> None:
        """That every change up to `state["seq"]` is in the collection. Nothing happens where a later one is known."""
        known = self.position()
        if known is None or known["seq"] < state["seq"]:
            self._positions.remember(self.collection, state)

    def _upsert(self, face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> None:
        rows = [
            {"face_id": face_id, "identity_id": identity_id, "embedding": vector}
            for face_id, identity_id, vector in zip(face_ids.tolist(), identity_ids.tolist(), vectors, strict=True)
        ]
        self._write("store faces", lambda c: c.upsert(self.collection, rows, timeout=self._milvus.within))

    def _delete(self, face_ids: list[int]) -> None:
        self._write("remove faces", lambda c: c.delete(self.collection, ids=face_ids, timeout=self._milvus.within))

    def _write(self, what: str, method: Callable[[Any], Any]) -> None:
        try:
            with self._milvus.writing:
                self._ask(what, method)
        finally:
            self._counted = []

    def _identities(self, query: NDArray[np.float32], k: int, hits: list[Hit], is_all: bool) -> list[Hit]:
        """The best face of each of the best `k` identities, of which `hits` are the best faces."""
        best = best_hit_per_identity(hits)
        count = k * FACES_PER_IDENTITY
        while len(best) < k and not is_all:
            count *= 4
            others = f"identity_id not in {[hit.identity_id for hit in best]}"
            ((hits, is_all),) = self._best(query[None], count, others)
            best += best_hit_per_identity(hits)
        return sorted(best, key=ranking_key)[:k]

    def _best(self, queries: Vectors, count: int, expression: str = "") -> list[tuple[list[Hit], bool]]:
        """For each query at least `count` of the best faces and all that score as the last of them, best first, equals
        by face id; and whether those are all that there are."""
        limit = min(max(count + 1, 0 if self._type.exact else RESCORED), MOST_HITS)
        answers: list[tuple[list[Hit], bool]] = [([], True)] * len(queries)
        left = list(range(len(queries)))
        while left:
            for i, answer in zip(left, self._fetch(queries[left], limit, expression), strict=True):
                answers[i] = answer
            left = [i for i in left if limit < MOST_HITS and _is_cut_in_equals(*answers[i], count)]
            limit = min(2 * limit, MOST_HITS)
        return answers

    def _fetch(self, queries: Vectors, limit: int, expression: str) -> list[tuple[list[Hit], bool]]:
        a_hit = 32 if self._type.exact else 4 * self._dim
        at_once = max(1, READ_BYTES // (limit * a_hit))
        return [
            answer
            for start in range(0, len(queries), at_once)
            for answer in self._search(queries[start : start + at_once], limit, expression)
        ]

    def _search(self, queries: Vectors, limit: int, expression: str) -> list[tuple[list[Hit], bool]]:
        wanted = np.ascontiguousarray(queries, dtype=np.float32)
        found = self._ask(
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
                timeout=self._milvus.within,
            ),
        )
        return [(self._hits(query, rows), len(rows) < limit) for query, rows in zip(wanted, found, strict=True)]

    def _hits(self, query: NDArray[np.float32], rows: Sequence[Mapping[str, Any]]) -> list[Hit]:
        if self._type.exact or not rows:
            scores = [float(row["distance"]) for row in rows]
        else:
            scores = (np.array([row["entity"]["embedding"] for row in rows], np.float32) @ query).tolist()
        hits = [
            Hit(int(row["entity"]["identity_id"]), int(row["face_id"]), score)
            for row, score in zip(rows, scores, strict=True)
        ]
        return sorted(hits, key=ranking_key)

    def _pages(self, fields: list[str], at_once: int) -> Iterator[list[dict[str, Any]]]:
        """All rows, by ascending face id. `pymilvus`' own iterator does the same with a request without a time-out."""
        after = -1
        while page := self._page(fields, after, at_once):
            yield page
            after = int(page[-1]["face_id"])

    def _page(self, fields: list[str], after: int, limit: int) -> list[dict[str, Any]]:
        page: list[dict[str, Any]] = self._ask(
            "read faces",
            lambda c: c.query(
                self.collection,
                filter=f"face_id > {after}",
                output_fields=fields,
                limit=limit,
                iterator="True",  # the lowest ids, in order
                reduce_stop_for_best="True",
                consistency_level="Strong",
                timeout=self._milvus.within,
            ),
        )
        return page

    def _ask(self, what: str, method: Callable[[Any], Any]) -> Any:
        try:
            return self._milvus.ask_loaded(self.collection, what, method)
        except CollectionGone:
            self.is_replaced = True
            raise


class MilvusEngine(VectorEngine):
    """The indexes of all galleries in one Milvus; of a path, the number in its name counts (`5.index`).

    A collection belongs to one build. Until its position is remembered, which is last, nobody takes it for whole. Then
    its predecessor goes, whose users find it gone and load the new one.
    """

    def __init__(self, uri: str, within: float = ANSWER_WITHIN, building_for: float = BUILDING_FOR) -> None:
        """Raises InvalidSetting; Milvus is not asked yet."""
        self._milvus = Milvus(parse(uri), within)
        self._positions = Positions(self._milvus)
        self._building_for = building_for

    def load(self, path: Path) -> tuple[Header, MilvusIndex]:
        """What was remembered last of the gallery's index, by any process, and the index."""
        found = {name: state for name in self._collections(path) if (state := self._positions.of(name))}
        if not found:
            raise FileNotFoundError(f"Milvus at {self._milvus.address.uri} has no index {path.name}")
        name = max(found, key=lambda one: int(found[one]["seq"]))
        try:
            header = Header(**found[name])
        except TypeError as error:
            raise DamagedIndex(f"what Milvus at {self._milvus.address.uri} keeps of {name} is not a header") from error
        self._milvus.load(name)
        return header, MilvusIndex(self._milvus, name, header.dim)

    def build(self, path: Path, header: Header, faces: FacePages) -> tuple[MilvusIndex, bool]:
        """A new collection of these faces, in place of any before.

        Raises StorageUnavailable, also while another process builds one of the gallery.
        """
        before = self._collections(path)
        if self._positions.alive(before, self._building_for):
            raise StorageUnavailable(
                f"the index {path.name} is being built in Milvus by another process; ask again in a minute"
            )
        name = f"{self._start(path)}{_short(header.gallery_created + header.fingerprint)}_{secrets.token_hex(4)}"
        try:
            index = self._fill(name, header, faces())
        except BaseException:
            self._drop_quietly(name)
            raise
        for other in before:
            self._drop_quietly(other)
        return index, True

    def save(self, path: Path, header: Header, index: VectorIndex) -> bool:
        """Remembers how far `index` is: the faces are kept as soon as they are put."""
        if isinstance(index, MilvusIndex):
            index.remember(asdict(header))
        return isinstance(index, MilvusIndex)

    def delete(self, path: Path) -> None:
        for name in self._collections(path):
            self._drop(name)

    def stored_galleries(self) -> set[int]:
        pattern = re.compile(rf"{self._milvus.address.prefix}_(\d+)_[0-9a-f]+_[0-9a-f]+")
        return {int(found[1]) for name in self._milvus.collections() if (found := pattern.fullmatch(name))}

    def close(self) -> None:
        self._milvus.close()

    def _fill(self, name: str, header: Header, parts: Iterable[FaceVectors]) -> MilvusIndex:
        fields: dict[str, dict[str, Any]] = {
            "face_id": {"type": "INT64", "is_primary": True},
            "identity_id": {"type": "INT64"},
            "embedding": {"type": "FLOAT_VECTOR", "dim": header.dim},
        }
        self._positions.sign_of_life(name)
        with self._milvus.writing:
            self._milvus.create(name, fields, "embedding", self._milvus.address.index_type)
        index = MilvusIndex(self._milvus, name, header.dim)
        faces = 0
        for part in parts:
            index.put(part.face_ids, part.identity_ids, part.vectors)
            faces += len(part.face_ids)
            self._positions.sign_of_life(name)
        index.remember({**asdict(header), "faces": faces})
        self._positions.built(name)
        return index

    def _drop(self, name: str) -> None:
        self._milvus.drop(name)
        self._positions.forget(name)

    def _drop_quietly(self, name: str) -> None:
        """One that cannot be dropped now goes with the next build."""
        try:
            self._drop(name)
        except StorageUnavailable as error:
            log.warning("A collection is left over: %s", error)

    def _collections(self, path: Path) -> list[str]:
        """Those of the gallery: one at most that is whole, but for moments."""
        return [name for name in self._milvus.collections() if name.startswith(self._start(path))]

    def _start(self, path: Path) -> str:
        return f"{self._milvus.address.prefix}_{path.name.split('.')[0]}_"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_cut_in_equals(hits: list[Hit], is_all: bool, count: int) -> bool:
    return not is_all and len(hits) > count and hits[count - 1].score == hits[-1].score
