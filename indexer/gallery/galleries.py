"""Galleries in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, InvalidRequest, NotFound
from indexer.gallery import change_log
from indexer.gallery.database import Repository, change_rows
from indexer.gallery.schema import FaceRow, GalleryRow, IdentityRow
from indexer.gallery.validation import check_url_name
from indexer.types import Gallery

GALLERY_BY_NAME = select(
    *(GalleryRow.id, GalleryRow.name, GalleryRow.model, GalleryRow.fingerprint),
    *(GalleryRow.dim, GalleryRow.seq, GalleryRow.created_at),
).where(GalleryRow.name == bindparam("name"))


COUNTS = select(GalleryRow.identities, GalleryRow.faces).where(GalleryRow.id == bindparam("id"))

ROWS = select(
    select(func.count()).where(IdentityRow.gallery_id == bindparam("id")).scalar_subquery(),
    select(func.count()).where(FaceRow.gallery_id == bindparam("id")).scalar_subquery(),
)


class GalleryRepository(Repository):
    """The galleries of one database. Thread-safe; each call is one transaction."""

    def create(self, name: str, model: str, fingerprint: str, dim: int) -> Gallery:
        """Creates a gallery bound to a model pack.

        Args:
            name: The gallery's name, without a slash.
            model: Name of the pack.
            fingerprint: Fingerprint of the pack.
            dim: Numbers in an embedding by the pack.

        Raises:
            Conflict: There is a gallery of that name already.
            InvalidRequest: The name is not valid.
        """
        check_url_name("a gallery's name", name)
        if "/" in name:
            raise InvalidRequest(f"a gallery's name must not contain a slash; got {name!r}")
        row = GalleryRow(name=name, model=model, fingerprint=fingerprint, dim=dim, seq=0, created_at=now())
        try:
            with self._write() as session:
                session.add(row)
                session.flush()
                return _gallery(row)
        except IntegrityError as error:
            raise Conflict(f"there is a gallery {name!r} already", code="gallery_exists") from error

    def get(self, name: str) -> Gallery:
        """Returns the gallery of that name. Raises NotFound."""
        with self._read_rows() as connection:
            return read_gallery(connection, name)

    def delete(self, name: str) -> Gallery:
        """Deletes the gallery with everything in it. Raises NotFound."""
        gallery = self.get(name)
        with self._write() as session:
            session.execute(delete(GalleryRow).where(GalleryRow.id == gallery.id))
        return gallery

    def counts(self, gallery_id: int) -> tuple[int, int]:
        """Returns how many identities and faces the gallery has."""
        with self._read() as session:
            return read_counts(session, gallery_id)

    def counted(self, gallery_id: int) -> tuple[int, int]:
        """Counts the rows of identities and faces, which `counts` must equal. Reads all of them."""
        with self._read() as session:
            identities, faces = session.execute(ROWS, {"id": gallery_id}).one()
            return identities, faces

    def correct_counts(self, gallery_id: int) -> None:
        """Makes `counts` equal to the rows of a gallery whose counts were not kept. Raises NotFound."""
        with self._write() as session:
            change_log.lock(session, gallery_id)
            identities, faces = session.execute(ROWS, {"id": gallery_id}).one()
            counts = update(GalleryRow).where(GalleryRow.id == gallery_id).values(identities=identities, faces=faces)
            change_rows(session, counts)

    def list(
        self, after: int = 0, limit: int | None = None, names: AbstractSet[str] | None = None
    ) -> Sequence[Gallery]:
        """Returns galleries with an id above `after`, oldest first; only those of `names` (MAX_QUERY_VALUES at most)
        if given."""
        query = select(GalleryRow).where(GalleryRow.id > after).order_by(GalleryRow.id).limit(limit)
        if names is not None:
            query = query.where(GalleryRow.name.in_(names))
        with self._read() as session:
            return [_gallery(row) for row in session.scalars(query)]


def read_gallery(reader: Session | Connection, name: str) -> Gallery:
    """Returns the gallery of that name. Raises NotFound."""
    row = reader.execute(GALLERY_BY_NAME, {"name": name}).one_or_none()
    if row is None:
        raise NotFound(f"there is no gallery {name!r}", code="gallery_not_found")
    return _gallery(row)


def read_counts(session: Session, gallery_id: int) -> tuple[int, int]:
    """Returns how many identities and faces the gallery has; none if it was deleted."""
    found = session.execute(COUNTS, {"id": gallery_id}).one_or_none()
    return (found.identities, found.faces) if found is not None else (0, 0)


def _gallery(row: Any) -> Gallery:
    return Gallery(row.id, row.name, row.model, row.fingerprint, row.dim, row.seq, row.created_at)
