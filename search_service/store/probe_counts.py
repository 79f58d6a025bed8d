"""How many different probes were searched with each API key on each day, in SQL: shared by all processes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta

from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from indexer.gallery.database import Repository, change_rows
from search_service.store.schema import ApiKeyRow, ProbeCountRow

KEPT = timedelta(days=7)
"""For which counts are kept."""


class ProbeCountRepository(Repository):
    """The counts of one database. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    def add(self, day: date, counts: Mapping[str, int]) -> None:
        """Adds to the counts of a day, by key id, and deletes those of days long before."""
        with self._write() as session:
            change_rows(session, delete(ProbeCountRow).where(ProbeCountRow.day < day - KEPT))
            known = set(session.scalars(select(ApiKeyRow.id).where(ApiKeyRow.id.in_(counts))))
            for key_id in sorted(known):  # in one order, so that two processes never wait for each other
                added = self._insert(ProbeCountRow).values(key_id=key_id, day=day, probes=counts[key_id])
                total = ProbeCountRow.probes + added.excluded.probes
                session.execute(added.on_conflict_do_update(index_elements=["key_id", "day"], set_={"probes": total}))

    def of_day(self, day: date) -> dict[str, int]:
        """Returns the counts of a day by key id."""
        query = select(ProbeCountRow.key_id, ProbeCountRow.probes).where(ProbeCountRow.day == day)
        with self._read_rows() as connection:
            return {row.key_id: row.probes for row in connection.execute(query)}
