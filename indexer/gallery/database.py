"""Connections to the database (an SQLite file or PostgreSQL), migration of its tables, and the repositories' base."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from sqlalchemy import (
    URL,
    Connection,
    CursorResult,
    Engine,
    ExceptionContext,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    DBAPIError,
    InterfaceError,
    InternalError,
    InvalidatePoolError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from indexer.errors import InvalidRequest, InvalidSetting, StorageUnavailable
from indexer.files import make_private_file, make_private_folder

BUSY_SECONDS = 30
"""Time for which a writer waits for another one in SQLite."""

RETRY_SECONDS = 0.01
"""Delay between attempts at statements that SQLite refuses without waiting."""

MIGRATION_LOCK = 0x77686F73
"""Key of the PostgreSQL advisory lock held by the process that migrates."""

CONNECTIONS = 15
"""Connections of one process to PostgreSQL, which its threads use for a few milliseconds each. PostgreSQL allows 100 by
default (`max_connections`), enough for six processes."""

MOST_THREADS = 100
"""Connections to SQLite beyond those that stay open, more than a process has threads that use the database: a reader
never waits for the connection of a writer, who may wait for BUSY_SECONDS."""

CONNECT_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""libpq options that detect a lost server, in seconds, the last one in milliseconds. The system's limits, two minutes
for a connection and a quarter of an hour for a query, would block every thread. Options in the URL take precedence."""

CHECK_AFTER_SECONDS = 1.0
"""Idle time after which a connection is checked: PostgreSQL may have been restarted."""

LAST_USED = "used"
"""Key of the time at which a connection was returned to the pool."""

IDLE_TRANSACTION_SECONDS = 600
"""Time after which PostgreSQL ends an idle transaction, such as that of a machine that was switched off, and releases
its locks. An export writes to a disk between two queries, so the time is long."""

ACCESS_ERRORS = {"42501", "42P01"}
"""PostgreSQL's codes `insufficient_privilege` and `undefined_table`."""

DATA_ERRORS = "22"
"""PostgreSQL's class of data exceptions, whose message can quote a value."""


def open_database(url: str) -> Engine:
    """Returns an engine for `sqlite:///FILE` or `postgresql://...`, which connects when it is first used.

    Raises:
        InvalidSetting: The URL is not valid or not supported.
        StorageUnavailable: The folder of the SQLite file cannot be created.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):  # its message may quote a part of the password
        raise InvalidSetting(
            "the database URL cannot be read; expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/NAME, "
            "with `@`, `:` and `/` in the password written as %40, %3A and %2F"
        ) from None
    if backend == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = _create_engine(
            parsed,
            pool_size=CONNECTIONS,
            max_overflow=0,  # overflow connections would be opened and closed for every second query
            connect_args={name: value for name, value in CONNECT_OPTIONS.items() if name not in parsed.query},
        )
        event.listen(engine, "connect", _prepare_postgresql)
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", lambda connection, record, _: _check_alive(engine, connection, record))
        return engine
    if backend == "sqlite":
        file = unquote(url.partition(":///")[2].partition("?")[0])  # SQLAlchemy decodes it since version 2.1
        parsed = parsed.set(database=file or None)
        if parsed.database and parsed.database != ":memory:":
            folder = Path(parsed.database).parent
            try:
                make_private_folder(folder)
            except OSError as error:
                raise StorageUnavailable(f"the folder of the database cannot be created: {error}") from error
        engine = _create_engine(parsed, max_overflow=MOST_THREADS, connect_args={"timeout": BUSY_SECONDS})
        if parsed.database and parsed.database != ":memory:":
            event.listen(engine, "do_connect", _create_privately)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    raise InvalidSetting(f"databases of kind {backend!r} are not supported; expected sqlite:///... or postgresql://...")


def database_files(engine: Engine) -> list[Path]:
    """Returns the files of an SQLite database that exist, none for another one."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:":
        return []
    return [path for path in (Path(name + ending) for ending in ("", "-wal", "-shm", "-journal")) if path.is_file()]


def _create_engine(url: URL, **options: Any) -> Engine:
    try:
        engine = create_engine(url, hide_parameters=True, **options)
    except (NoSuchModuleError, ImportError) as error:
        raise InvalidSetting(f"the database URL names a driver that is not installed: {error}") from error
    event.listen(engine, "handle_error", _remove_values)
    return engine


def _remove_values(context: ExceptionContext) -> None:
    """Removes people's data from PostgreSQL's errors, which are logged: `Failing row contains (1, ana, Ana Ruiz)`."""
    error, wrapped = context.original_exception, context.sqlalchemy_exception
    message = getattr(getattr(error, "diag", None), "message_primary", None)  # None if the server sent no message
    if message is None:
        return
    if str(getattr(error, "sqlstate", "")).startswith(DATA_ERRORS):
        message = "a value does not fit"
    error.args = (message,)
    if wrapped is not None:
        wrapped.args = (f"({type(error).__name__}) {message}",)


def _prepare_postgresql(connection: Any, _: Any) -> None:
    """Sets the time zone to UTC: in the server's zone, the last day of the year 9999 can be beyond Python's range."""
    connection.execute("SET TIME ZONE 'UTC'")
    connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_TRANSACTION_SECONDS}s'")
    connection.commit()


def _note_use(_: Any, record: ConnectionPoolEntry) -> None:
    record.info[LAST_USED] = time.monotonic()


def _check_alive(engine: Engine, connection: Any, record: ConnectionPoolEntry) -> None:
    """Checks a connection that has been idle. Checking before each use would double the waits for the server, which are
    long while all cores compute. If a connection fails without a check, the pool replaces all of them."""
    used = record.info.get(LAST_USED)
    if used is not None and time.monotonic() - used > CHECK_AFTER_SECONDS:
        try:
            engine.dialect.do_ping(connection)
            connection.rollback()
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error  # the pool opens another one


def _create_privately(_: Any, __: Any, arguments: list[str], ___: Any) -> None:
    """Creates an SQLite file, if needed, that only its owner can read. SQLite gives its other files the same
    permissions."""
    with suppress(OSError):  # which connecting reports
        make_private_file(Path(arguments[0]))


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions
    cursor = connection.cursor()
    _set_write_ahead_log(cursor)
    cursor.execute("PRAGMA synchronous = FULL")  # commits survive a power failure, not only a crash
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _set_write_ahead_log(cursor: sqlite3.Cursor) -> None:
    """Turns on the write-ahead log, retrying: while others write, SQLite can report "locked" without waiting."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def _begin_sqlite(connection: Connection) -> None:
    """Begins a transaction. Writers take the write lock at once, which would fail later if others wrote meanwhile."""
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raises database failures as StorageUnavailable, and text that no database accepts as InvalidRequest."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidRequest("a text is not valid Unicode: it contains half of a surrogate pair") from error
    except (OperationalError, InterfaceError, InternalError) as error:
        raise StorageUnavailable(f"the database does not answer: {error.orig}") from error
    except PoolTimeoutError as error:
        raise StorageUnavailable(f"the database does not answer: {error}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StorageUnavailable(f"the connection to the database was lost: {error.orig}") from error
        if error.statement is None:
            raise StorageUnavailable(f"the database cannot be used: {error.orig}") from error
        if isinstance(error, DataError) and "NUL" in str(error.orig):  # PostgreSQL's driver; SQLite accepts it
            raise InvalidRequest("a text contains a NUL character") from error
        if getattr(error.orig, "sqlstate", None) in ACCESS_ERRORS:
            raise StorageUnavailable(f"the database refuses access: {error.orig}") from error
        if type(error) is DatabaseError:  # SQLite's error for a file that is damaged or not a database
            raise StorageUnavailable(f"the database cannot be read: {error.orig}") from error
        raise


class Repository:
    """The base of classes that each contain the queries of one subject. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        """Uses a database whose tables exist."""
        # In PostgreSQL each statement sees what was committed before it, in a transaction or not, and beginning and
        # ending one are two more round trips. In SQLite a transaction reads from one state.
        level = {"isolation_level": "AUTOCOMMIT"} if engine.dialect.name == "postgresql" else {}
        self._readers = engine.execution_options(**level)
        self._writers = engine.execution_options(writing=True)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        """Opens a session for reading."""
        with storage_errors(), Session(self._readers) as session:
            yield session

    @contextmanager
    def _read_rows(self) -> Iterator[Connection]:
        """Opens a connection for the queries of every search, which read columns instead of objects."""
        with storage_errors(), self._readers.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """Opens a session for writing; commits at the end of the block, or rolls back if it raises."""
        with storage_errors(), Session(self._writers) as session, session.begin():
            yield session


def is_sqlite(database: Engine | Connection) -> bool:
    return database.dialect.name == "sqlite"


def insert_returning_ids(session: Session, table: Any, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Inserts rows into a table with an `id` column and returns the new ids in the order of `rows`."""
    if not rows:
        return []
    return list(session.scalars(insert(table).returning(table.id, sort_by_parameter_order=True), list(rows)))


def change_rows(session: Session, statement: Any) -> int:
    """Executes an UPDATE or DELETE and returns how many rows it changed. Objects loaded before are not updated."""
    done = session.execute(statement.execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", done).rowcount


def lock_until_commit(connection: Connection, key: int) -> None:
    """Waits for PostgreSQL's advisory lock `key` and holds it until the transaction ends. SQLite has one writer
    anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def migrate(engine: Engine) -> None:
    """Migrates the tables to the newest version. Several processes can call it at the same time."""
    with storage_errors():
        if current_version(engine) == newest_version():
            return
        from alembic import command
        from alembic.util import CommandError

        with engine.connect().execution_options(writing=True) as connection, connection.begin():
            lock_until_commit(connection, MIGRATION_LOCK)
            config = _alembic_config()
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise StorageUnavailable(
                    f"the database was created by another version of whosthere: {error}"
                ) from error


def current_version(engine: Engine) -> str | None:
    """Returns the database's migration; None if it is empty."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def newest_version() -> str:
    """Returns the migration that this program expects: the highest number in `migrations/versions`.

    Alembic returns the same, but takes a tenth of a second to load, at every start.
    """
    folder = _migrations_folder() / "versions"
    return max(file.name[:4] for file in folder.iterdir() if file.name[:4].isdecimal())


def _migrations_folder() -> Path:
    """Returns the folder of the Alembic scripts: inside this package when installed, else at the repository's root."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    folder = str(_migrations_folder())
    config.set_main_option("script_location", folder.replace("%", "%%"))  # options are templates
    return config
