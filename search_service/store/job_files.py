"""The files of bulk enrollments in SQL, in parts, so that any worker can read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from sqlalchemy import delete, insert, select, update

from indexer.clock import now
from indexer.gallery.database import Repository, change_rows
from search_service.store.schema import JobPartRow, JobRow

PART_BYTES = 2**20
"""Size of the parts in which a file is stored. A worker reads one at a time."""

PARTS_AT_ONCE = 16
"""Parts written or deleted in one transaction: other writers wait for 16 MiB, not for 2 GiB."""


class JobFiles(Repository):
    """The files of one database's jobs. Thread-safe; methods use several transactions."""

    def write(self, job_id: str, parts: Iterable[bytes]) -> None:
        """Stores the file of a job that is being received; each transaction renews the job's lease."""
        numbered = enumerate(parts)
        while batch := list(islice(numbered, PARTS_AT_ONCE)):
            rows = [{"job_id": job_id, "place": place, "data": data} for place, data in batch]
            renew = update(JobRow).where(JobRow.id == job_id).values(locked_until=now())
            with self._write() as session:
                session.execute(insert(JobPartRow), rows)
                change_rows(session, renew)

    def read(self, job_id: str) -> Iterator[bytes]:
        """Yields the parts of the file."""
        place = 0
        while True:
            query = select(JobPartRow.data).where(JobPartRow.job_id == job_id, JobPartRow.place == place)
            with self._read() as session:
                data = session.scalar(query)
            if data is None:
                return
            yield data
            place += 1

    def delete(self, job_id: str) -> None:
        """Deletes the file."""
        batch = select(JobPartRow.place).where(JobPartRow.job_id == job_id).limit(PARTS_AT_ONCE)
        while True:
            with self._write() as session:
                places = list(session.scalars(batch))
                session.execute(delete(JobPartRow).where(JobPartRow.job_id == job_id, JobPartRow.place.in_(places)))
            if len(places) < PARTS_AT_ONCE:
                return
