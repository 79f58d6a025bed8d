"""Opening the database: SQLite in one file, or PostgreSQL by URL; and bringing its tables up to date."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, insert, inspect, make_url, text
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

BUSY_SECONDS = 30
"""How long a writer waits for another one in SQLite before it gives up."""

RETRY_SECONDS = 0.01
"""Between two tries of what SQLite refuses without waiting."""

MIGRATION_LOCK = 0x77686F73
"""Key of the PostgreSQL advisory lock under which one process migrates and the others wait."""

CONNECTIONS = 15
"""To PostgreSQL, of one process: its threads wait for one, each for a few milliseconds. PostgreSQL allows 100 unless
told otherwise, so six processes."""

UNREACHABLE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""When a server that has gone without a word is given up, in seconds, the last one in milliseconds: the system's own
two minutes for a connection and a quarter of an hour for a query would stop every thread. What the URL says goes
first."""

IDLE_SECONDS = 1.0
"""After which a connection may have been lost without anybody noticing, as when PostgreSQL was restarted."""

USED = "used"
"""Where a connection of the pool notes when it was given back."""

LOST_SECONDS = 600
"""After which PostgreSQL ends the transaction of somebody who says nothing more, as a machine that was switched off,
and others may change the gallery. An export writes to a disk between two queries."""

REFUSED = {"42501", "42P01"}
"""PostgreSQL's words for a role that may not, and for a table that is not there."""

QUOTING = "22"
"""PostgreSQL's class of errors about a value, which the message itself may quote."""


def open_database(url: str) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql://...`. Connects lazily. Raises InvalidSetting on another URL."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):  # which may quote a piece of the password
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
            max_overflow=0,  # connections beyond the pool would be made anew for every second query
            connect_args={name: value for name, value in UNREACHABLE.items() if name not in parsed.query},
        )
        event.listen(engine, "connect", _prepare_postgresql)
        event.listen(engine, "checkin", _used)
        event.listen(engine, "checkout", lambda connection, record, _: _check_alive(engine, connection, record))
        return engine
    if backend == "sqlite":
        file = unquote(url.partition(":///")[2].partition("?")[0])  # SQLAlchemy decodes it from 2.1 on
        parsed = parsed.set(database=file or None)
        if parsed.database and parsed.database != ":memory:":
            folder = Path(parsed.database).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageUnavailable(f"the folder of the database cannot be made: {error}") from error
        engine = _create_engine(parsed, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    raise InvalidSetting(f"databases of kind {backend!r} are not supported; expected sqlite:///... or postgresql://...")


def _create_engine(url: URL, **options: Any) -> Engine:
    try:
        engine = create_engine(url, hide_parameters=True, **options)
    except (NoSuchModuleError, ImportError) as error:
        raise InvalidSetting(f"the database URL names a driver that is not there: {error}") from error
    event.listen(engine, "handle_error", _quote_nothing)
    return engine


def _quote_nothing(context: ExceptionContext) -> None:
    """Leaves of an error of PostgreSQL what tells of tables and rules. The rest quotes rows, and errors are logged:
    `Failing row contains (1, ana, Ana Ruiz)`."""
    error, wrapped = context.original_exception, context.sqlalchemy_exception
    told = getattr(getattr(error, "diag", None), "message_primary", None)  # None where the server has said nothing
    if told is None:
        return
    if str(getattr(error, "sqlstate", "")).startswith(QUOTING):
        told = "a value does not fit"
    error.args = (told,)
    if wrapped is not None:
        wrapped.args = (f"({type(error).__name__}) {told}",)


def _prepare_postgresql(connection: Any, _: Any) -> None:
    """Times come back in UTC: in the server's own zone, the last day of the year 9999 may be past what Python knows."""
    connection.execute("SET TIME ZONE 'UTC'")
    connection.execute(f"SET idle_in_transaction_session_timeout = '{LOST_SECONDS}s'")
    connection.commit()


def _used(_: Any, record: ConnectionPoolEntry) -> None:
    record.info[USED] = time.monotonic()


def _check_alive(engine: Engine, connection: Any, record: ConnectionPoolEntry) -> None:
    """Asks the server only where a connection has been idle: asked each time, it is waited for more often than for what
    was to be asked, and while all cores compute each wait is long. Of connections that are lost within the second one
    fails, and all are made anew."""
    used = record.info.get(USED)
    if used is not None and time.monotonic() - used > IDLE_SECONDS:
        try:
            engine.dialect.do_ping(connection)
            connection.rollback()
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error  # the pool makes another one


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    cursor = connection.cursor()
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")  # what is acknowledged outlives a power cut, not only a crash
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Write-ahead logging, a mark in the file: while others write it SQLite may say "locked" without waiting."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(RETRY_SECONDS)


def _begin_sqlite(connection: Connection) -> None:
    """Writers take the lock at once: taking it later fails when somebody wrote in between."""
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def storage_errors() -> Iterator[None]:
    """Database failures as StorageUnavailable, and text that no database takes as InvalidRequest."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "a text is not valid Unicode, as ids and names are: it holds half of a surrogate pair"
        ) from error
    except (OperationalError, InterfaceError, InternalError) as error:
        raise StorageUnavailable(f"the database does not answer: {error.orig}") from error
    except PoolTimeoutError as error:
        raise StorageUnavailable(f"the database does not answer: {error}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StorageUnavailable(f"the connection to the database was lost: {error.orig}") from error
        if error.statement is None:
            raise StorageUnavailable(f"the database cannot be used: {error.orig}") from error
        if isinstance(error, DataError) and "NUL" in str(error.orig):  # PostgreSQL's driver; SQLite finds nothing
            raise InvalidRequest("a text holds a NUL, as no id and no name does") from error
        if getattr(error.orig, "sqlstate", None) in REFUSED:
            raise StorageUnavailable(f"the database refuses: {error.orig}") from error
        if type(error) is DatabaseError:  # SQLite's word for a file that is damaged or no database
            raise StorageUnavailable(f"the database cannot be read: {error.orig}") from error
        raise


class Repository:
    """What asks one database about one thing: each call of a subclass is a transaction or several. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        """The tables must be there."""
        # In PostgreSQL each statement sees what was committed before it, within a transaction or without: beginning and
        # ending one are two more waits for the server. In SQLite a transaction reads from one state.
        level = {"isolation_level": "AUTOCOMMIT"} if engine.dialect.name == "postgresql" else {}
        self._readers = engine.execution_options(**level)
        self._writers = engine.execution_options(writing=True)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with storage_errors(), Session(self._readers) as session:
            yield session

    @contextmanager
    def _read_rows(self) -> Iterator[Connection]:
        """For what every search asks: columns instead of objects, by statements that are made once."""
        with storage_errors(), self._readers.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with storage_errors(), Session(self._writers) as session, session.begin():
            yield session


def insert_returning_ids(session: Session, table: Any, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Inserts rows into a table with an `id` column and returns the new ids in the order of `rows`."""
    if not rows:
        return []
    return list(session.scalars(insert(table).returning(table.id, sort_by_parameter_order=True), list(rows)))


def lock_until_commit(connection: Connection, key: int) -> None:
    """Waits for PostgreSQL's advisory lock `key` and holds it until the transaction ends. SQLite has one writer
    anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def migrate(engine: Engine) -> None:
    """Brings the tables to the newest version; returns at once where they are. Safe to run by several at a time."""
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
                raise StorageUnavailable(f"the database was made by another version of whosthere: {error}") from error


def current_version(engine: Engine) -> str | None:
    """The migration the database is at; None when it is empty."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def newest_version() -> str:
    """The migration this program expects: the highest number in `migrations/versions`. Every start asks, and Alembic,
    which would say the same, takes a tenth of a second to load."""
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
    config.set_main_option("script_location", folder.replace("%", "%%"))  # an option is a template
    return config
