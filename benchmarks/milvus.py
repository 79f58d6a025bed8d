"""Measures the index types of Milvus over faces, and the size of a face in PostgreSQL.

    python -m benchmarks.milvus [--faces 1000000] [--dim 512]

Milvus itself is not run: its engine uses FAISS' indexes, which are timed here on one thread, one query at a time, over
random faces that are spread evenly. Mates are faces rotated to a cosine of 0.4, counted as found among the best 8, 40,
64 and 256, which `indexer.vectors.milvus` would rescore from their vectors. PostgreSQL comes from its wheel and has the
program's tables. Writes benchmarks/results/milvus.csv.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, create_engine, insert, make_url, text

from benchmarks import lfw
from benchmarks.lfw import Cell
from indexer.gallery.schema import Base
from indexer.types import normalize
from indexer.vectors.milvus.client import INDEX_TYPES
from indexer.vectors.milvus.index import RESCORED
from indexer.vectors.self_check import perturbed
from tests.postgres import Postgres

FACTORIES = {
    "flat": "Flat",
    "sq8": "IVF1,SQ8",
    "rabitq": "IVF1,RaBitQ",
    "rabitq8": "IVF1,RaBitQ,Refine(SQ8)",
}
"""FAISS' names of the index types."""

AT_ONCE = 50_000
COSINE = 0.4
MATES = 1000
SLOW_MATES = 100
"""Queries for the types that take as long as an exact scan."""
BEST = (8, 40, 64, RESCORED)
ROWS = 100_000
"""Faces in PostgreSQL, one for each person."""


def faces(count: int, dim: int) -> Iterator[NDArray[np.float32]]:
    """Generates the same faces each time, AT_ONCE at a time."""
    random = np.random.default_rng(0)
    for start in range(0, count, AT_ONCE):
        part = random.standard_normal((min(AT_ONCE, count - start), dim), dtype=np.float32)
        yield normalize(part)


def build(kind: str, count: int, dim: int) -> Any:
    index = faiss.index_factory(dim, FACTORIES[kind], faiss.METRIC_INNER_PRODUCT)
    for part in faces(count, dim):
        if not index.is_trained:
            index.train(part)
        index.add(part)
    if "refine_k" in INDEX_TYPES[kind].search:
        refined: Any = index
        refined.k_factor = INDEX_TYPES[kind].search["refine_k"]
    return index


def scans(count: int, dim: int) -> list[dict[str, Cell]]:
    """Times all types in turns, so that other load affects all of them."""
    indexes = {kind: build(kind, count, dim) for kind in FACTORIES}
    mates = np.random.default_rng(2).choice(count, MATES, replace=False)
    parts = [part[mates[mates // AT_ONCE == n] % AT_ONCE] for n, part in enumerate(faces(count, dim))]
    order = np.argsort(mates // AT_ONCE, kind="stable")
    shuffled = np.random.default_rng(3).permutation(MATES)
    cosines = np.full((MATES, 1), COSINE, np.float32)
    probes = perturbed(np.concatenate(parts), cosines, np.random.default_rng(1))[shuffled]
    wanted = mates[order][shuffled]
    times: dict[str, list[float]] = {kind: [] for kind in indexes}
    ranks: dict[str, list[int]] = {kind: [] for kind in indexes}
    for number, (probe, mate) in enumerate(zip(probes, wanted, strict=True)):
        for kind, index in indexes.items():
            if number < SLOW_MATES or "rabitq" in kind:
                begun = time.perf_counter()
                _, found = index.search(probe[None], RESCORED)
                times[kind].append(1000 * (time.perf_counter() - begun))
                ranks[kind].append(int(np.flatnonzero(found[0] == mate)[0]) if mate in found[0] else count)
    return [
        {
            "what": kind,
            "faces": count,
            "dim": dim,
            "mates": len(ranks[kind]),
            "ms a query": float(np.median(times[kind][:SLOW_MATES])),
            **{f"mates not among best {best}": sum(rank >= best for rank in ranks[kind]) for best in BEST},
        }
        for kind in indexes
    ]


def fill(connection: Connection, dim: int) -> None:
    tables, at = Base.metadata.tables, datetime.now(UTC)
    gallery = {"id": 1, "name": "g", "model": "ir50", "fingerprint": "f" * 64, "dim": dim, "seq": 0, "created_at": at}
    connection.execute(insert(tables["galleries"]).values(gallery))
    quality = {
        "size": 112.31,
        "sharpness": 213.12,
        "yaw": -0.0312,
        "brightness": 123.2,
        "contrast": 54.1,
        "reasons": [],
    }
    number = 1
    for part in faces(ROWS, dim):
        ids = range(number, number + len(part))
        number += len(part)
        face = {"gallery_id": 1, "box": [31.2, 22.9, 51.4, 66.0], "landmarks": [[43.512, 48.134]] * 5}
        face |= {"detection_score": 0.9412, "quality": quality, "created_at": at}
        person = {"gallery_id": 1, "metadata": {}, "valid_from": None, "valid_until": None, "created_at": at}
        rows = {
            "identities": [
                {**person, "id": i, "external_id": f"emp-{i:08d}", "name": f"First Last {i}", "updated_at": at}
                for i in ids
            ],
            "faces": [
                {**face, "id": i, "identity_id": i, "image_sha256": hashlib.sha256(str(i).encode()).hexdigest()}
                for i in ids
            ],
            "embeddings": [
                {"face_id": i, "fingerprint": "f" * 64, "embedding": v.astype("<f4").tobytes()}
                for i, v in zip(ids, part, strict=True)
            ],
            "changes": [
                {"gallery_id": 1, "seq": i, "kind": "face_added", "identity_id": i, "face_id": i, "at": at} for i in ids
            ],
        }
        for name, some in rows.items():
            connection.execute(insert(tables[name]), some)


def database(dim: int) -> list[dict[str, Cell]]:
    """Returns the bytes per face of each table, including indexes and out-of-line values."""
    with tempfile.TemporaryDirectory() as folder:
        server = Postgres(Path(folder))
        server.start()
        try:
            server.run("create database size")
            url = make_url(server.url("size")).set(drivername="postgresql+psycopg")
            engine = create_engine(url, isolation_level="AUTOCOMMIT")
            Base.metadata.create_all(engine)
            with engine.connect() as connection:
                fill(connection, dim)
                return [_bytes(connection, name, dim) for name in ("embeddings", "faces", "identities", "changes")]
        finally:
            server.close()


def _bytes(connection: Connection, name: str, dim: int) -> dict[str, Cell]:
    connection.execute(text(f"vacuum analyze {name}"))
    total = connection.execute(text(f"select pg_total_relation_size('{name}')")).scalar_one()
    return {"what": f"PostgreSQL, {name}", "faces": ROWS, "dim": dim, "bytes a face": round(total / ROWS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    wanted = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rows = scans(wanted.faces, wanted.dim)
    lfw.write_results(lfw.RESULTS / "milvus.csv", rows + database(wanted.dim))


if __name__ == "__main__":
    main()
