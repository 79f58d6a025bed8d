"""Score distributions measured on the galleries themselves, in SQL: shared by all processes and kept over restarts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, exists, func, select

from indexer.gallery import change_log
from indexer.gallery.database import Repository
from indexer.gallery.schema import CalibrationRow, FaceRow, IdentityRow
from indexer.types import Gallery


@dataclass(frozen=True)
class Calibration:
    """How often the best candidate of a person who is not enrolled scores above t, at one change of the gallery."""

    method: int
    """Version of the method; another version of the program may use another one."""
    seq: int
    """Sequence number of the gallery's last change at that time."""
    people: int
    """Number of people whose scores it is computed from."""
    faces: int
    """Number of faces in the gallery at that time."""
    points: tuple[tuple[float, float], ...]
    """Rates and their cosines, in falling order of the rates."""
    scale: float
    """Increase of the cosine by which the rate falls by a factor e, beyond the last point."""
    made_at: datetime


FIND = select(
    *(CalibrationRow.method, CalibrationRow.seq, CalibrationRow.people),
    *(CalibrationRow.faces, CalibrationRow.curve, CalibrationRow.made_at),
).where(
    CalibrationRow.gallery_id == bindparam("gallery_id"),
    CalibrationRow.fingerprint == bindparam("fingerprint"),
)


class CalibrationRepository(Repository):
    """The calibrations of one database's galleries, by the pack of their embeddings. Thread-safe.

    `put` and `delete` raise NotFound if the gallery was deleted and Conflict if it was re-embedded since `gallery` was
    read.
    """

    def find(self, gallery: Gallery) -> Calibration | None:
        """Returns the calibration by the pack that `gallery` was read with."""
        key = {"gallery_id": gallery.id, "fingerprint": gallery.fingerprint}
        with self._read_rows() as connection:
            row = connection.execute(FIND, key).one_or_none()
        if row is None:
            return None
        points = tuple((rate, cosine) for rate, cosine in row.curve["points"])
        return Calibration(row.method, row.seq, row.people, row.faces, points, row.curve["scale"], row.made_at)

    def put(self, gallery: Gallery, calibration: Calibration) -> None:
        """Stores a calibration in place of the former one."""
        with self._write() as session:
            change_log.lock_with_pack(session, gallery)
            session.merge(
                CalibrationRow(
                    gallery_id=gallery.id,
                    fingerprint=gallery.fingerprint,
                    method=calibration.method,
                    seq=calibration.seq,
                    people=calibration.people,
                    faces=calibration.faces,
                    curve={"points": [list(point) for point in calibration.points], "scale": calibration.scale},
                    made_at=calibration.made_at,
                )
            )

    def delete(self, gallery: Gallery) -> None:
        """Deletes the calibration of a gallery that has become too small for one."""
        with self._write() as session:
            change_log.lock_with_pack(session, gallery)
            row = session.get(CalibrationRow, (gallery.id, gallery.fingerprint))
            if row is not None:
                session.delete(row)

    def count_people(self, gallery: Gallery, limit: int | None = None) -> int:
        """Returns how many identities of the gallery have faces, counting up to `limit`."""
        has_faces = exists().where(FaceRow.identity_id == IdentityRow.id)
        people = select(IdentityRow.id).where(IdentityRow.gallery_id == gallery.id, has_faces).limit(limit)
        with self._read() as session:
            return session.scalar(select(func.count()).select_from(people.subquery())) or 0
