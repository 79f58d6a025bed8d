"""Alembic's entry. The program migrates by itself and hands its connection over; by hand, `alembic upgrade head`
takes WHOSTHERE_DATABASE_URL or the file in WHOSTHERE_HOME, as the program does."""

from __future__ import annotations

from alembic import context

from indexer.gallery.database import open_database
from indexer.gallery.schema import Base
from indexer.settings import read_settings


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _run(connection)
        return
    engine = open_database(read_settings().database_url)
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        _run(connection)
    engine.dispose()


def _run(connection: object) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)  # type: ignore[arg-type]
    with context.begin_transaction():
        context.run_migrations()


run()
