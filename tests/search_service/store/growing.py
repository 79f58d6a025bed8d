"""Fills the tables that grow with any number of rows, in one statement each."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Engine, bindparam, text

from indexer.gallery.schema import UtcDateTime
from indexer.gallery.store import Store
from indexer.types import vector_to_bytes
from search_service.store.webhooks import WebhookRepository
from tests.indexer.gallery.faces import enroll_one, make_gallery, new_face, vector

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)

NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows)"

QUALITY = '{"size": 1, "sharpness": 1, "yaw": 1, "brightness": 1, "contrast": 1}'

SQL = {
    "sqlite": {
        "MINUTE": "strftime('%Y-%m-%d %H:%M:00.000000', '2026-11-01 12:00', i || ' minutes')",
        "BYTES": "BLOB",
        "QUALITY": QUALITY,
    },
    "postgresql": {
        "MINUTE": "timestamptz '2026-11-01 12:00Z' + i * interval '1 minute'",
        "BYTES": "BYTEA",
        "QUALITY": QUALITY,
    },
}
"""What the rows of TABLES have in place of these words."""

TABLES = {
    "identities": (
        "(gallery_id, external_id, name, search_text, metadata, created_at, updated_at) SELECT "
        "CAST(:gallery AS INTEGER), 'p-' || i, 'Ana ' || i, 'p-' || i || ' ana ' || i, '{}', :noon, :noon FROM n"
    ),
    "faces": (
        "(gallery_id, identity_id, image_sha256, box, landmarks, detection_score, quality, created_at) SELECT "
        "CAST(:gallery AS INTEGER), i, 'hash ' || i, '[1, 2, 3, 4]', '[]', 1, 'QUALITY', :noon FROM n"
    ),
    "embeddings": "(face_id, fingerprint, embedding) SELECT i, '0123456789abcdef', CAST(:embedding AS BYTES) FROM n",
    "changes": (
        "(gallery_id, seq, kind, identity_id, face_id, at) SELECT "
        "CAST(:gallery AS INTEGER), i, 'face_added', i, i, :noon FROM n"
    ),
    "events": (
        "(gallery_id, at, external_id, name, device, decision, threshold) SELECT CAST(:gallery AS INTEGER), MINUTE, "
        "'p-' || i % 300, 'Ana', 'door ' || i % 300, CASE i % 300 WHEN 0 THEN 'review' ELSE 'match' END, 0.4 FROM n"
    ),
    "sightings": (
        "(gallery_id, external_id, device, event_id, at, sure) SELECT "
        "CAST(:gallery AS INTEGER), 'p-' || i, 'door', i, :noon, CAST(1 AS BOOLEAN) FROM n"
    ),
    "deliveries": (
        "(webhook_id, event_id, state, attempts, since, next_at) SELECT "
        "CAST(:webhook AS VARCHAR), i, 'dead', 9, :noon, :noon FROM n"
    ),
    "answers": (
        "(owner, key, request_sha256, locked_until, expires_at) SELECT 'owner', 'key ' || i, 'x', :noon, :noon FROM n"
    ),
}


def fill(engine: Engine, count: int) -> None:
    """Fills a migrated database: the gallery `staff` gets `count` rows of each table, and `visitors` one face."""
    store = Store(engine)
    staff, visitors = make_gallery(store), make_gallery(store, "visitors")
    webhook, _ = WebhookRepository(engine).create("http://127.0.0.1:9/", staff, ["review"])
    given = {
        "rows": count,
        "gallery": staff.id,
        "webhook": webhook.id,
        "embedding": vector_to_bytes(vector(1)),
    }
    kind = engine.dialect.name
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        for table, rows in TABLES.items():
            for word, sql in SQL[kind].items():
                rows = rows.replace(word, sql)
            insertion = text(f"{NUMBERS} INSERT INTO {table} {rows}")
            if ":noon" in rows:
                insertion = insertion.bindparams(bindparam("noon", NOON, UtcDateTime()))
            connection.execute(
                insertion, {name: value for name, value in given.items() if f":{name}" in insertion.text}
            )
        connection.execute(
            text("UPDATE galleries SET seq = :rows, identities = :rows, faces = :rows WHERE id = :gallery"), given
        )
    enroll_one(store, visitors, new_face("visitor", 1))
    if kind == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
