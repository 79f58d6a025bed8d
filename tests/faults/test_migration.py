"""A migration is killed with SIGKILL after each of its statements."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

from sqlalchemy import Engine, text

from indexer.gallery.database import newest_version, open_database
from indexer.models.packs import SFACE
from indexer.types import vector_to_bytes
from tests.faults import migrating
from tests.faults.installation import STAFF, NewInstallation, checked, embedding
from tests.indexer.gallery.faces import image_hash
from tests.postgres import Database
from tests.search_service.api.serving import ok
from tests.test_migrations import to
from tests.waiting import DEADLINE

OLDEST = "0001"
FACES = 5
POINTS = json.dumps([[30, 40], [70, 41], [50, 60], [35, 80], [66, 81]])
QUALITY = json.dumps({"size": 90, "sharpness": 12, "yaw": 0, "brightness": 130, "contrast": 44, "reasons": []})


def test_migration_survives_kill_after_every_statement(
    empty_database: Database, new_installation: NewInstallation
) -> None:
    """The database has the old version, unchanged, until it has the new one. Then the service starts with all data."""
    engine = open_database(empty_database.url)
    to(engine, OLDEST)
    kept = _enrolled(engine)
    engine.dispose()
    done = subprocess.run(
        [sys.executable, "-m", migrating.__name__, empty_database.url],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *killed, last = done.stdout.split()
    assert last == newest_version()
    first_new = killed.index(last) if last in killed else len(killed)
    assert set(killed[:first_new]) == {OLDEST}
    assert set(killed[first_new:]) <= {last}
    assert first_new > 20, "a migration has that many statements"
    with checked(new_installation(empty_database.url), kept) as client:
        for number, face_id in enumerate(kept):
            body = {"embedding": embedding(number).tolist(), "threshold": 0.99}
            (face,) = ok(client.post(f"{STAFF}/search", json=body))["faces"]
            assert face["candidates"][0]["face_id"] == face_id
            assert face["decision"] == "match"


def _enrolled(engine: Engine) -> dict[int, str]:
    """Inserts people of the gallery `staff` into the oldest version's tables. Returns the owners by face id."""
    at = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    kept = {}
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        connection.execute(
            text("INSERT INTO galleries VALUES (1, 'staff', :model, :fingerprint, :dim, 0, :at)"),
            {"model": SFACE.name, "fingerprint": SFACE.fingerprint, "dim": SFACE.dim, "at": at},
        )
        for n in range(FACES):
            values = {"id": n + 1, "who": f"p{n}", "at": at, "sha": image_hash(n), "metadata": "{}"}
            values |= {"embedding": vector_to_bytes(embedding(n)), "points": POINTS, "quality": QUALITY}
            connection.execute(
                text("INSERT INTO identities VALUES (:id, 1, :who, NULL, :metadata, NULL, NULL, :at, :at)"), values
            )
            face = "(:id, 1, :id, :sha, '[1, 2, 3, 4]', :points, 1, :quality, :embedding, :at)"
            connection.execute(text(f"INSERT INTO faces VALUES {face}"), values)
            kept[n + 1] = f"staff/p{n}"
    return kept
