"""Connections to the database: every failure is a domain error without passwords or people's data."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from indexer.errors import InvalidRequest, InvalidSetting, NotFound, StorageUnavailable
from indexer.gallery import database
from indexer.gallery.database import CONNECTIONS, Repository, current_version, migrate, open_database
from indexer.gallery.schema import EmbeddingRow
from indexer.gallery.store import Store
from indexer.types import Gallery, Person
from search_service.store.event_pages import EventFilter
from search_service.store.events import DEAD, EventRepository
from search_service.store.jobs import JobRepository
from search_service.store.webhooks import WebhookRepository
from tests.indexer.gallery.faces import DIM, enroll_one, make_gallery, new_face
from tests.indexer.gallery.together import in_threads
from tests.postgres import Database, Postgres, connected, execute, opened, running

PASSWORD = "hunter2"


def every_operation(store: Store, gallery_id: int) -> list[Callable[[], object]]:
    gallery = Gallery(gallery_id, "staff", "sface", "0123456789abcdef", DIM, 0, datetime(2026, 1, 1, tzinfo=UTC))
    return [
        lambda: make_gallery(store, "another"),
        lambda: store.galleries.get("staff"),
        lambda: store.galleries.list(),
        lambda: store.galleries.delete("staff"),
        lambda: store.galleries.counts(gallery_id),
        lambda: store.identities.put(gallery_id, Person("ana")),
        lambda: store.identities.get(gallery_id, "ana"),
        lambda: store.identities.list(gallery_id),
        lambda: store.faces.enroll(gallery, [new_face("ana", 1)]),
        lambda: store.faces.get(gallery_id, 1),
        lambda: store.changes.last(gallery_id),
        lambda: store.changes.since(gallery_id, 0),
        lambda: store.embeddings.of_faces(gallery, [1]),
        lambda: next(store.embeddings.pages(gallery)),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "whosthere.db",
        f"mysql://me:{PASSWORD}@localhost/x",
        f"postgres://me:{PASSWORD}@localhost/x",
        f"postgresql+psycopg2://me:{PASSWORD}@localhost/x",
        f"postgresql+nonsense://me:{PASSWORD}@localhost/x",
        f"postgresql://me:{PASSWORD}@localhost:port/x",
        f"postgresql://me:p@ss:{PASSWORD}@localhost/x",
        "sqlite+aiosqlite:///x",
    ],
)
def test_invalid_database_url_is_rejected(url: str) -> None:
    with pytest.raises(InvalidSetting, match="database") as caught:
        open_database(url)
    assert caught.value.code == "invalid_setting"
    assert PASSWORD not in "".join(traceback.format_exception_only(caught.value))
    if caught.value.__cause__ is not None:
        assert PASSWORD not in str(caught.value.__cause__)


def test_unreachable_server_raises_storage_unavailable() -> None:
    with opened(f"postgresql://me:{PASSWORD}@127.0.0.1:1/x") as store:
        for call in (lambda: migrate(store.engine), *every_operation(store, 1)):
            with pytest.raises(StorageUnavailable, match="does not answer") as caught:
                call()
            assert caught.value.code == "storage_unavailable"
            assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_unknown_connection_option_raises_storage_unavailable() -> None:
    engine = open_database(f"postgresql://me:{PASSWORD}@127.0.0.1:1/x?nonsense=1")
    with pytest.raises(StorageUnavailable, match="nonsense") as caught:
        migrate(engine)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_wrong_password_and_missing_database_raise_storage_unavailable(postgres: Postgres) -> None:
    hba = postgres.folder / "pg_hba.conf"
    hba.write_text("local all locked scram-sha-256\n" + hba.read_text())
    postgres.run("SELECT pg_reload_conf()")
    postgres.run("CREATE ROLE locked LOGIN PASSWORD 'right'")
    url = postgres.migrated()
    without_privileges = url.replace("postgres:@", "locked:right@")
    with opened(without_privileges) as store, pytest.raises(StorageUnavailable, match="permission denied"):
        store.galleries.list()
    for bad in (url.replace("postgres:@", f"locked:{PASSWORD}@"), postgres.url("nowhere")):
        with opened(bad) as store, pytest.raises(StorageUnavailable) as caught:
            store.galleries.list()
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_store_recovers_after_postgresql_stops() -> None:
    with running() as server, opened(server.migrated()) as store:
        gallery = make_gallery(store)
        face_id = enroll_one(store, gallery, new_face("ana", 1))
        in_threads([lambda: store.galleries.counts(gallery.id)] * 4)  # several connections wait in the pool
        server.stop()
        for call in every_operation(store, gallery.id):
            with pytest.raises(StorageUnavailable) as caught:
                call()
            assert caught.value.message
        server.start()
        assert store.galleries.get("staff").id == gallery.id
        assert store.faces.get(gallery.id, face_id).id == face_id
        assert enroll_one(store, gallery, new_face("ana", 2)) > face_id


def test_idle_connections_survive_a_restart_of_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHECK_AFTER_SECONDS", 0.0)  # every connection of the pool has been idle for longer
    with running() as server, opened(server.migrated()) as store:
        gallery = make_gallery(store)
        in_threads([lambda: store.galleries.counts(gallery.id)] * 4)
        server.stop()
        server.start()
        assert in_threads([lambda: store.galleries.counts(gallery.id)] * 8) == [(0, 0)] * 8


def test_many_threads_share_few_connections(postgres: Postgres) -> None:
    connections: list[object] = []
    with opened(postgres.migrated()) as store:
        event.listen(store.engine, "connect", lambda connection, _: connections.append(connection))
        for _ in range(3):
            in_threads([store.galleries.list] * 40)
    assert 1 <= len(connections) <= CONNECTIONS


def test_reading_leaves_no_postgresql_transaction_open(postgres: Postgres) -> None:
    class Reader(Repository):
        def status(self) -> int:
            with self._read() as session:
                session.execute(text("SELECT 1"))
                return int(session.connection().connection.driver_connection.info.transaction_status)  # type: ignore[union-attr]

    with connected(postgres.migrated()) as engine:
        assert Reader(engine).status() == 0  # IDLE of libpq
        with engine.connect() as connection:  # the same connection of the pool
            connection.execute(text("SELECT 1"))
            assert connection.connection.driver_connection.info.transaction_status == 2  # type: ignore[union-attr]


def test_query_to_lost_server_fails_in_bounded_time(postgres: Postgres) -> None:
    url = postgres.migrated()
    for given, expected in ((url, "10"), (f"{url}&connect_timeout=3", "3")):
        with connected(given) as engine, engine.connect() as connection:
            parameters = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
            assert parameters["connect_timeout"] == expected
            assert parameters["tcp_user_timeout"] == "25000"
            assert connection.scalar(text("SHOW idle_in_transaction_session_timeout")) == "10min"


def test_folder_that_cannot_be_created_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageUnavailable, match="folder of the database"):
        open_database(f"sqlite:///{tmp_path / 'file' / 'below' / 'x.db'}")


def test_folder_in_place_of_the_file_raises(tmp_path: Path) -> None:
    (tmp_path / "x.db").mkdir()
    check_unusable(f"sqlite:///{tmp_path / 'x.db'}")


def test_file_that_is_not_a_database_raises_storage_unavailable(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"These are not the pages of a database.\n" * 500)
    check_unusable(f"sqlite:///{tmp_path / 'x.db'}")


def check_unusable(url: str) -> None:
    with opened(url) as store:
        for call in (lambda: migrate(store.engine), *every_operation(store, 1)):
            with pytest.raises(StorageUnavailable, match="the database"):
                call()


def test_damaged_database_raises_storage_unavailable(tmp_path: Path, sqlite_template: Path) -> None:
    """The first page is intact; the others are not."""
    path = tmp_path / "x.db"
    shutil.copy(sqlite_template, path)
    with opened(f"sqlite:///{path}") as store:
        gallery = make_gallery(store)
        store.faces.enroll(gallery, [new_face(f"p{i}", i) for i in range(50)])
    data = bytearray(path.read_bytes())
    assert len(data) > 8 * 4096
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with opened(f"sqlite:///{path}") as store:
        for call in (lambda: store.galleries.list(), lambda: store.faces.enroll(gallery, [new_face("ana", 99)])):
            with pytest.raises(StorageUnavailable, match="malformed"):
                call()


def test_database_without_tables_raises_storage_unavailable(empty_database: Database) -> None:
    missing = r"no such table|does not exist"
    with opened(empty_database.url) as store, pytest.raises(StorageUnavailable, match=missing):
        store.galleries.list()


def test_folder_of_database_is_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "new.db"
    with connected(f"sqlite:///{path}") as engine:
        migrate(engine)
    assert path.is_file()


def test_new_file_written_by_another_process_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE something (id INTEGER)")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):  # at once, despite the timeout
        sqlite3.connect(path, timeout=30).execute("PRAGMA journal_mode = WAL")
    later = threading.Timer(0.2, other.rollback)
    later.start()
    with connected(f"sqlite:///{path}") as engine, engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    later.join()
    other.close()


def test_new_connections_release_no_lock_of_the_others(tmp_path: Path) -> None:
    """Otherwise another process that closes the database deletes its write-ahead log, and later changes with it."""
    path = tmp_path / "new.db"

    def seen_elsewhere() -> str:
        read = (
            "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM t').fetchone()[0])"
        )
        return subprocess.run([sys.executable, "-c", read, path], capture_output=True, check=True).stdout.decode()

    with connected(f"sqlite:///{path}") as engine:
        execute(engine, "CREATE TABLE t (n INTEGER)")
        with engine.connect() as one, engine.connect() as other:
            assert [connection.scalar(text("SELECT count(*) FROM t")) for connection in (one, other)] == [0, 0]
            for expected in ("0\n", "1\n"):
                assert seen_elsewhere() == expected
                execute(engine, "INSERT INTO t VALUES (1)")
    assert path.stat().st_mode & 0o777 == 0o600


def test_sqlite_syncs_every_commit(tmp_path: Path) -> None:
    names = ("journal_mode", "synchronous", "foreign_keys")
    with connected(f"sqlite:///{tmp_path / 'x.db'}") as engine, engine.connect() as connection:
        assert [connection.execute(text(f"PRAGMA {name}")).scalar() for name in names] == ["wal", 2, 1]


def test_postgresql_url_needs_no_driver(database: Database) -> None:
    with connected(database.url.replace("postgresql://", "postgresql+psycopg://")) as engine:
        assert current_version(engine) is not None


@pytest.mark.parametrize("odd", ["a\0b", "\ud800"])
def test_text_that_the_database_cannot_store_is_rejected(database: Database, odd: str) -> None:
    """SQLite accepts a NUL in queries, and finds nothing."""
    engine = open_database(database.url)
    store, events = Store(engine), EventRepository(engine)
    jobs, hooks = JobRepository(engine), WebhookRepository(engine)
    gallery = make_gallery(store)
    calls: list[Callable[[], object]] = [
        lambda: store.galleries.get(odd),
        lambda: store.galleries.delete(odd),
        lambda: store.identities.get(gallery.id, odd),
        lambda: store.identities.delete(gallery.id, odd),
        lambda: events.find(EventFilter(device=odd)),
        lambda: events.find(EventFilter(galleries=[odd])),
        lambda: events.latest(EventFilter(external_id=odd), 1),
        lambda: events.delete(gallery, odd),
        lambda: jobs.get(odd),
        lambda: jobs.latest([odd]),
        lambda: jobs.cancel(odd),
        lambda: hooks.get(odd),
        lambda: hooks.delete(odd),
        lambda: hooks.deliveries(odd, DEAD),
        lambda: hooks.replay(odd),
    ]
    for call in calls:
        if database.kind == "sqlite" and "\0" in odd:
            with suppress(NotFound):
                assert call() in ([], 0)
        else:
            with pytest.raises(InvalidRequest, match=r"a NUL|half of a surrogate pair") as caught:
                call()
            assert odd not in caught.value.message
    engine.dispose()


SECRET = "Ana-Ruiz-4711"
"""A value that no error may contain."""

BROKEN_RULES = {
    "UPDATE galleries SET name = :secret": "unique",
    "INSERT INTO galleries (name) VALUES (:secret)": "null",
    "INSERT INTO sightings (gallery_id, external_id, device, at, sure, event_id)"
    " VALUES (0, :secret, :secret, '2026-01-01', true, 0)": "foreign key",
}
"""Statements that violate a constraint, and a word of the error."""

BAD_VALUES = [
    "UPDATE galleries SET model = repeat(:secret, 20)",
    "UPDATE galleries SET dim = CAST(CAST(:secret AS TEXT) AS INTEGER)",
    "UPDATE galleries SET created_at = CAST(CAST(:secret AS TEXT) AS TIMESTAMP WITH TIME ZONE)",
]
"""Statements with a value that does not fit its column. SQLite accepts any value."""


def failure(url: str, sql: str) -> DBAPIError:
    """Runs a statement with SECRET and checks that its error and traceback do not contain it."""

    class Writer(Repository):
        def run(self) -> None:
            with self._write() as session:
                session.execute(text(sql), {"secret": SECRET})

    engine = open_database(url)
    store = Store(engine)
    for name in ("staff", SECRET):
        make_gallery(store, name)
    with pytest.raises(DBAPIError) as caught:
        Writer(engine).run()
    engine.dispose()
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert "[SQL: " in shown
    assert type(caught.value.orig).__name__ in str(caught.value)
    return caught.value


@pytest.mark.parametrize("sql", BROKEN_RULES)
def test_postgresql_errors_contain_no_row(database: Database, sql: str) -> None:
    assert BROKEN_RULES[sql] in str(failure(database.url, sql).orig).lower()


@pytest.mark.parametrize("sql", BAD_VALUES)
def test_postgresql_errors_contain_no_value(postgres: Postgres, sql: str) -> None:
    assert str(failure(postgres.migrated(), sql).orig) == "a value does not fit"


def test_errors_contain_no_embedding(database: Database) -> None:
    class Writer(Repository):
        def run(self, face_id: int) -> None:
            with self._write() as session:
                row = EmbeddingRow(face_id=face_id, fingerprint=gallery.fingerprint, embedding=vector)
                session.add(row)

    engine = open_database(database.url)
    store = Store(engine)
    gallery = make_gallery(store)
    vector = np.full(DIM, 0.1234567, np.float32).tobytes()
    with pytest.raises(IntegrityError) as caught:
        Writer(engine).run(enroll_one(store, gallery, new_face("ana", 1)))
    shown = "".join(traceback.format_exception(caught.value))
    for form in (repr(vector)[2:40], vector.hex()[:16], gallery.fingerprint):
        assert form not in shown
    engine.dispose()
