"""What a gallery's own scores say of its thresholds, in SQL: the same for every process, and after a restart."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, func, select

from indexer.gallery import change_log
from indexer.gallery.database import Repository
from indexer.gallery.schema import CalibrationRow, FaceRow
from indexer.types import Gallery


@dataclass(frozen=True)
class Calibration:
    """How often a stranger's best candidate scores above t, when the gallery was as it was at one change."""

    method: int
    """The way it was computed; the program that reads it may know another one."""
    seq: int
    """Number of the gallery's last change then."""
    people: int
    """How many had a score that it is made from."""
    faces: int
    """How many the gallery held."""
    points: tuple[tuple[float, float], ...]
    """Rates and their cosines, rates falling."""
    scale: float
    """Cosine by which the rate falls by a factor e, beyond the last point."""
    made_at: datetime


FIND = select(
    *(CalibrationRow.method, CalibrationRow.seq, CalibrationRow.people),
    *(CalibrationRow.faces, CalibrationRow.curve, CalibrationRow.made_at),
).where(
    CalibrationRow.gallery_id == bindparam("gallery_id"),
    CalibrationRow.fingerprint == bindparam("fingerprint"),
)


class Calibrations(Repository):
    """The calibrations of one database's galleries, by the pack of their embeddings. Thread-safe."""

    def find(self, gallery: Gallery) -> Calibration | None:
        """By the pack that `gallery` was read with."""
        asked = {"gallery_id": gallery.id, "fingerprint": gallery.fingerprint}
        with self._read_rows() as connection:
            row = connection.execute(FIND, asked).one_or_none()
        if row is None:
            return None
        points = tuple((rate, cosine) for rate, cosine in row.curve["points"])
        return Calibration(row.method, row.seq, row.people, row.faces, points, row.curve["scale"], row.made_at)

    def put(self, gallery: Gallery, made: Calibration) -> None:
        """Takes the place of what was there. Raises NotFound when the gallery is gone, Conflict when re-embedded."""
        with self._write() as session:
            change_log.lock_as(session, gallery)
            session.merge(
                CalibrationRow(
                    gallery_id=gallery.id,
                    fingerprint=gallery.fingerprint,
                    method=made.method,
                    seq=made.seq,
                    people=made.people,
                    faces=made.faces,
                    curve={"points": [list(point) for point in made.points], "scale": made.scale},
                    made_at=made.made_at,
                )
            )

    def forget(self, gallery: Gallery) -> None:
        """Where there is nothing to be said any more. Raises as `put`."""
        with self._write() as session:
            change_log.lock_as(session, gallery)
            row = session.get(CalibrationRow, (gallery.id, gallery.fingerprint))
            if row is not None:
                session.delete(row)

    def people(self, gallery: Gallery, most: int | None = None) -> int:
        """How many people have faces in the gallery, counted up to `most`."""
        some = select(FaceRow.identity_id).where(FaceRow.gallery_id == gallery.id).distinct().limit(most)
        with self._read() as session:
            return session.scalar(select(func.count()).select_from(some.subquery())) or 0
