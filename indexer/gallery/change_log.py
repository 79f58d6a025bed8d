"""The change log: an append-only, numbered list of the changes to each gallery, from which indexes catch up.

The functions run inside the transaction that makes a change; `ChangeLog` reads the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Executable, and_, bindparam, insert, select, update
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, NotFound
from indexer.gallery.database import Repository, change_rows
from indexer.gallery.schema import ChangeRow, GalleryRow
from indexer.types import Gallery


class ChangeKind(StrEnum):
    FACE_ADDED = "face_added"
    """The face is new, or was moved to another identity: an index adds it or replaces it."""
    FACE_REMOVED = "face_removed"
    IDENTITY_CHANGED = "identity_changed"
    """The identity is new, or its name, metadata or dates changed."""
    IDENTITY_REMOVED = "identity_removed"
    REEMBEDDED = "reembedded"
    """The gallery was bound to another pack, by which every face has an embedding. `identity_id` is 0."""


@dataclass(frozen=True)
class Entry:
    """A change before it has a number. `face_id` is None if it concerns only the identity."""

    kind: ChangeKind
    identity_id: int
    face_id: int | None = None


@dataclass(frozen=True)
class Change:
    seq: int
    entry: Entry
    at: datetime

    @property
    def mark(self) -> str:
        """Identifies this change. Restoring a backup can reuse sequence numbers, so the number is not enough."""
        return f"{self.at.isoformat()} {self.entry.kind} {self.entry.identity_id} {self.entry.face_id}"


@dataclass(frozen=True)
class LogPosition:
    """The end of a gallery's change log, and the mark of the requested change."""

    last: int
    """Sequence number of the last change."""
    mark: str
    """`Change.mark` of the requested change; empty if there is no change of that number."""
    fingerprint: str
    """Fingerprint of the pack that the gallery is bound to."""


def lock(session: Session, gallery_id: int) -> int:
    """Locks the gallery against other changes until the transaction ends and returns its last sequence number.

    Changes are therefore committed in the order of their numbers: a reader of change N has also seen N - 1.

    Raises:
        NotFound: The gallery was deleted meanwhile.
    """
    return _lock(session, gallery_id)[0]


def lock_with_pack(session: Session, gallery: Gallery) -> int:
    """Locks as `lock` does. Raises Conflict if the gallery is no longer bound to the pack that `gallery` names."""
    seq, fingerprint = _lock(session, gallery.id)
    check_pack_unchanged(gallery, fingerprint)
    return seq


def check_pack_unchanged(gallery: Gallery, fingerprint: str) -> None:
    """Raises Conflict unless `fingerprint`, the gallery's current one, is the one that `gallery` was read with."""
    if fingerprint != gallery.fingerprint:
        raise Conflict(
            f"gallery {gallery.name!r} was re-embedded meanwhile: this operation began with {gallery.model} "
            f"{gallery.fingerprint}, and the gallery's embeddings are now by {fingerprint}; run it again",
            code="model_mismatch",
        )


def _lock(session: Session, gallery_id: int) -> tuple[int, str]:
    found = session.execute(
        update(GalleryRow)
        .where(GalleryRow.id == gallery_id)
        .values(seq=GalleryRow.seq)
        .returning(GalleryRow.seq, GalleryRow.fingerprint)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if found is None:
        raise gallery_deleted()
    return found.seq, found.fingerprint


def gallery_deleted() -> NotFound:
    return NotFound("the gallery was deleted meanwhile", code="gallery_not_found")


def record(
    session: Session, gallery_id: int, last: int, entries: Sequence[Entry], identities: int = 0, faces: int = 0
) -> None:
    """Appends `entries` after number `last`, which `lock` returned in the same transaction.

    `identities` and `faces` are how many the gallery has gained, or lost if negative.
    """
    if not entries:
        return
    at = now()
    rows = [
        {
            "gallery_id": gallery_id,
            "seq": seq,
            "kind": str(entry.kind),
            "identity_id": entry.identity_id,
            "face_id": entry.face_id,
            "at": at,
        }
        for seq, entry in enumerate(entries, last + 1)
    ]
    session.execute(insert(ChangeRow), rows)
    after = {
        "seq": last + len(rows),
        "identities": GalleryRow.identities + identities,
        "faces": GalleryRow.faces + faces,
    }
    change_rows(session, update(GalleryRow).where(GalleryRow.id == gallery_id).values(after))


def _select_position(wanted_seq: Any) -> Executable:
    """Returns the query for the gallery `id` and its change of number `wanted_seq`, if there is one."""
    change = ChangeRow.seq, ChangeRow.kind, ChangeRow.identity_id, ChangeRow.face_id, ChangeRow.at
    return (
        select(GalleryRow.seq.label("last"), GalleryRow.fingerprint, *change)
        .outerjoin(ChangeRow, and_(ChangeRow.gallery_id == GalleryRow.id, ChangeRow.seq == wanted_seq))
        .where(GalleryRow.id == bindparam("id"))
    )


LAST_POSITION, POSITION = _select_position(GalleryRow.seq), _select_position(bindparam("seq"))


class ChangeLog(Repository):
    """Reads the change logs of one database's galleries. Thread-safe."""

    def last(self, gallery_id: int) -> int | None:
        """Returns the number of the gallery's last change; None if the gallery was deleted."""
        with self._read() as session:
            return session.scalar(select(GalleryRow.seq).where(GalleryRow.id == gallery_id))

    def position(self, gallery_id: int, seq: int | None = None) -> LogPosition | None:
        """Returns the end of the log with the mark of change `seq`, or of the last one; None if the gallery was
        deleted."""
        query = LAST_POSITION if seq is None else POSITION
        with self._read_rows() as connection:
            found = connection.execute(query, {"id": gallery_id, "seq": seq}).one_or_none()
        if found is None:
            return None
        return LogPosition(found.last, _change(found).mark if found.seq is not None else "", found.fingerprint)

    def since(self, gallery_id: int, seq: int, limit: int = 10_000) -> list[Change]:
        """Returns the changes after number `seq`, in order, `limit` at most."""
        query = select(ChangeRow).where(ChangeRow.gallery_id == gallery_id, ChangeRow.seq > seq)
        with self._read() as session:
            return [_change(row) for row in session.scalars(query.order_by(ChangeRow.seq).limit(limit))]


def _change(row: Any) -> Change:
    return Change(row.seq, Entry(ChangeKind(row.kind), row.identity_id, row.face_id), row.at)
