"""Alembic's entry. The program migrates by itself and hands its connection over; by hand, `alembic upgrade head`
takes WHOSTHERE_DATABASE_URL or the file in WHOSTHERE_HOME, as the program does."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, MetaData

from indexer.gallery.database import open_database
from indexer.settings import read_settings


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _run(connection)
        return
    import search_service.store.schema  # noqa: F401 (declares the service's tables)
    from indexer.gallery.schema import Base

    engine = open_database(read_settings().database_url)
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        _run(connection, Base.metadata)
    engine.dispose()


def _run(connection: Connection, tables: MetaData | None = None) -> None:
    """Runs the migrations. `tables` is what `alembic revision --autogenerate` compares the database with."""
    context.configure(connection=connection, target_metadata=tables, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run()
