"""The migrations create the tables of the models, by the program and by Alembic, also concurrently."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from indexer.errors import StorageUnavailable
from indexer.gallery import database
from indexer.gallery.database import current_version, migrate, newest_version
from indexer.gallery.identity_search import IdentityFilter
from indexer.gallery.schema import Base
from indexer.gallery.spelling import search_text
from indexer.gallery.store import Store
from indexer.types import vector_to_bytes
from search_service.store.api_keys import ApiKeyRepository
from search_service.store.schema import EventRow
from tests.indexer.gallery.faces import enroll_one, image_hash, make_gallery, new_face, vector
from tests.indexer.gallery.together import in_processes, in_threads
from tests.postgres import Database, connected, execute
from tests.waiting import DEADLINE

ROOT = Path(__file__).parent.parent
assert EventRow.metadata is Base.metadata, "the service's tables are declared, too"
TABLES = {table.name for table in Base.metadata.sorted_tables} | {"alembic_version"}


@pytest.fixture
def engine(empty_database: Database) -> Iterator[Engine]:
    with connected(empty_database.url) as engine:
        yield engine


def tables(engine: Engine) -> set[str]:
    return {name for name in inspect(engine).get_table_names() if not name.startswith("sqlite_")}


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        return list(compare_metadata(context, Base.metadata))


def test_migration_creates_all_tables(engine: Engine) -> None:
    assert current_version(engine) is None
    assert tables(engine) == set()
    migrate(engine)
    assert tables(engine) == TABLES
    assert current_version(engine) == newest_version()


def test_migrated_tables_match_the_models(engine: Engine) -> None:
    migrate(engine)
    assert differences(engine) == []


def test_difference_to_the_models_is_found(engine: Engine) -> None:
    migrate(engine)
    execute(engine, "DROP INDEX ix_faces_identity_id")
    execute(engine, "ALTER TABLE identities ADD COLUMN shoe_size INTEGER")
    assert sorted(found[0] for found in differences(engine)) == ["add_index", "remove_column"]


def test_constraints_have_the_names_of_the_models(engine: Engine) -> None:
    """`compare_metadata` does not compare these."""
    migrate(engine)
    inspector = inspect(engine)
    for table in Base.metadata.sorted_tables:
        if engine.dialect.name != "sqlite":  # where generated primary keys have no name
            assert inspector.get_pk_constraint(table.name)["name"] == f"pk_{table.name}"
        assert inspector.get_pk_constraint(table.name)["constrained_columns"] == [c.name for c in table.primary_key]
        found = {key["name"]: (key["referred_table"], key["options"]) for key in inspector.get_foreign_keys(table.name)}
        assert found == {
            key.name: (key.referred_table.name, {"ondelete": "CASCADE"}) for key in table.foreign_key_constraints
        }
    assert len(inspector.get_foreign_keys("faces")) == 2


def test_generated_ids_are_not_reused(engine: Engine) -> None:
    migrate(engine)
    if engine.dialect.name == "sqlite":
        query = "SELECT name, 'bigint' FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'"
    else:
        query = "SELECT table_name, data_type FROM information_schema.columns WHERE column_default LIKE 'nextval(%'"
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query))]
    assert dict(found) == dict.fromkeys(("galleries", "identities", "faces", "events", "deliveries"), "bigint")


def test_downgrade_to_base_and_upgrade(engine: Engine) -> None:
    migrate(engine)
    to(engine, "base", command.downgrade)
    assert tables(engine) == {"alembic_version"}
    assert current_version(engine) is None
    migrate(engine)
    assert tables(engine) == TABLES
    assert differences(engine) == []


def test_migrating_again_keeps_rows(engine: Engine) -> None:
    migrate(engine)
    store = Store(engine)
    gallery = make_gallery(store)
    enroll_one(store, gallery, new_face("ana", 1))
    migrate(engine)
    assert store.galleries.counts(gallery.id) == (1, 1)


def to(engine: Engine, revision: str, move: Callable[[Config, str], None] = command.upgrade) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        move(config, revision)


def test_embeddings_move_to_their_own_table(engine: Engine) -> None:
    """The embeddings of migration 0001 are read exactly, and a downgrade moves them back."""
    to(engine, "0001")
    galleries = {1: ("staff", "0123456789abcdef", 32), 2: ("guests", "fedcba9876543210", 8)}
    faces = {1: [1, 2, 3], 2: [4]}
    at = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    for gallery_id, (name, fingerprint, dim) in galleries.items():
        values = {"id": gallery_id, "name": name, "fingerprint": fingerprint, "dim": dim, "at": at}
        execute(engine, "INSERT INTO galleries VALUES (:id, :name, 'sface', :fingerprint, :dim, 7, :at)", values)
        person = "INSERT INTO identities VALUES (:id, :id, 'ana', NULL, '{}', NULL, NULL, :at, :at)"
        execute(engine, person, {"id": gallery_id, "at": at})
        for face_id in faces[gallery_id]:
            face = "INSERT INTO faces VALUES (:id, :g, :g, :sha, '[1, 2, 3, 4]', '[]', 1, '{}', :embedding, :at)"
            embedding = vector_to_bytes(vector(face_id, dim))
            values = {"id": face_id, "g": gallery_id, "sha": image_hash(face_id), "embedding": embedding, "at": at}
            execute(engine, face, values)
    migrate(engine)
    assert differences(engine) == []
    store = Store(engine)
    for gallery_id, (name, fingerprint, dim) in galleries.items():
        gallery = store.galleries.get(name)
        assert (gallery.id, gallery.fingerprint, gallery.dim, gallery.seq) == (gallery_id, fingerprint, dim, 7)
        found = store.embeddings.of_faces(gallery, [1, 2, 3, 4])
        assert found.face_ids.tolist() == faces[gallery_id]
        assert found.vectors.tobytes() == np.stack([vector(i, dim) for i in faces[gallery_id]]).tobytes()
    to(engine, "0001", command.downgrade)
    with engine.connect() as connection:
        back = connection.execute(text("SELECT embedding FROM faces ORDER BY id")).scalars().all()
    assert [bytes(one) for one in back] == [vector_to_bytes(vector(i, 32 if i < 4 else 8)) for i in (1, 2, 3, 4)]
    migrate(engine)
    assert len(store.embeddings.of_faces(store.galleries.get("staff"), [1, 2, 3]).face_ids) == 3


def test_former_search_keys_keep_what_they_opened(engine: Engine) -> None:
    to(engine, "0004")
    key = "INSERT INTO keys VALUES (:id, :id, '', :scopes, NULL, NULL, :at, NULL, NULL)"
    former = {"door": '["search"]', "both": '["search", "enroll"]', "root": '["admin"]'}
    for name, scopes in former.items():
        execute(engine, key, {"id": name, "scopes": scopes, "at": "2026-01-01 00:00:00"})
    migrate(engine)
    keys = {key.name: (sorted(key.scopes), key.daily_probes) for key in ApiKeyRepository(engine).list()}
    assert keys == {
        "door": (["investigate"], None),
        "both": (["enroll", "investigate"], None),
        "root": (["admin"], None),
    }
    to(engine, "0004", command.downgrade)
    with engine.connect() as connection:
        back = connection.execute(text("SELECT id, CAST(scopes AS TEXT) FROM keys")).all()
    assert {name: sorted(json.loads(scopes)) for name, scopes in back} == {
        "door": ["search"],
        "both": ["enroll", "search"],
        "root": ["admin"],
    }


def test_names_stored_before_are_found(engine: Engine) -> None:
    to(engine, "0004")
    at = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    execute(engine, "INSERT INTO galleries VALUES (1, 'staff', 'sface', '0123456789abcdef', 32, 7, :at)", {"at": at})
    people = {"EMP-1": "Ana Ruiz", "emp-2": None, "Zoë": "Łukasz", "e3": "STRAẞE"}
    for number, (external_id, name) in enumerate(people.items(), 1):
        person = "INSERT INTO identities VALUES (:id, 1, :external_id, :name, '{}', NULL, NULL, :at, :at)"
        execute(engine, person, {"id": number, "external_id": external_id, "name": name, "at": at})
    migrate(engine)
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT external_id, search_text FROM identities")).all()
    assert {row.external_id: row.search_text for row in stored} == {
        external_id: search_text(external_id, name) for external_id, name in people.items()
    }
    assert [person.name for person in Store(engine).identities.list(1, wanted=IdentityFilter("ana"))] == ["Ana Ruiz"]


def migrate_url(url: str) -> str | None:
    with connected(url) as engine:
        migrate(engine)
        return current_version(engine)


def test_four_processes_migrate_at_once(empty_database: Database, engine: Engine) -> None:
    assert in_processes(migrate_url, [(empty_database.url,)] * 4) == [newest_version()] * 4
    assert differences(engine) == []


def test_four_threads_migrate_at_once(empty_database: Database, engine: Engine) -> None:
    def one() -> str | None:
        return migrate_url(empty_database.url)

    assert in_threads([one] * 4) == [newest_version()] * 4
    assert differences(engine) == []


def test_alembic_runs_from_the_checkout(empty_database: Database, engine: Engine) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, "WHOSTHERE_DATABASE_URL": empty_database.url},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    assert current_version(engine) == newest_version()
    assert differences(engine) == []


def test_migrations_work_in_any_installation_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "50% off %(here)s"
    shutil.copytree(ROOT / "migrations", folder)
    monkeypatch.setattr(database, "_migrations_folder", lambda: folder)
    with connected(f"sqlite:///{tmp_path / 'x.db'}") as engine:
        migrate(engine)
        assert tables(engine) == TABLES


def test_database_of_a_newer_version_is_rejected(engine: Engine) -> None:
    migrate(engine)
    execute(engine, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StorageUnavailable, match="9999"):
        migrate(engine)
    assert current_version(engine) == "9999"


def test_newest_version_is_alembics_head() -> None:
    """The program reads it from the files' names, because Alembic takes long to load."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [newest_version()]
