"""The change log: how an index learns what happened to its gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Executable, and_, bindparam, insert, select, update
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, NotFound
from indexer.gallery.schema import ChangeRow, GalleryRow
from indexer.types import Gallery


class Kind(StrEnum):
    FACE_ADDED = "face_added"
    """It is new, or another identity's than before: who has it puts it in anew."""
    FACE_REMOVED = "face_removed"
    IDENTITY_CHANGED = "identity_changed"
    """It is new, or its name, metadata or dates are."""
    IDENTITY_REMOVED = "identity_removed"
    REEMBEDDED = "reembedded"
    """Every face has an embedding by another pack now. It concerns no identity: its `identity_id` is 0."""


@dataclass(frozen=True)
class Entry:
    """What happened, before it has a number. `face_id` is None where it concerns the identity alone."""

    kind: Kind
    identity_id: int
    face_id: int | None = None


@dataclass(frozen=True)
class Change:
    seq: int
    entry: Entry
    at: datetime

    @property
    def mark(self) -> str:
        """Tells this change from another one of the same number: after a backup was restored, numbers come again."""
        return f"{self.at.isoformat()} {self.entry.kind} {self.entry.identity_id} {self.entry.face_id}"


@dataclass(frozen=True)
class Position:
    """Where a gallery's log stands: the number of its last change, and the mark of the change that was asked for."""

    last: int
    mark: str
    """Empty where there is no change of that number."""
    fingerprint: str
    """Of the pack that the gallery's embeddings are by."""


def lock(session: Session, gallery_id: int) -> int:
    """Keeps others from changing the gallery until the transaction ends; the number of its last change.

    So changes are committed in the order of their numbers: whoever reads change N has N - 1 as well.
    Raises NotFound when the gallery was deleted meanwhile.
    """
    return _lock(session, gallery_id)[0]


def lock_as(session: Session, gallery: Gallery) -> int:
    """As `lock`; raises Conflict when the gallery's embeddings are no longer by the pack that `gallery` names."""
    seq, fingerprint = _lock(session, gallery.id)
    check_pack_is(gallery, fingerprint)
    return seq


def check_pack_is(gallery: Gallery, fingerprint: str) -> None:
    """Raises Conflict unless `fingerprint`, the gallery's now, is the one that `gallery` was read with."""
    if fingerprint != gallery.fingerprint:
        raise Conflict(
            f"gallery {gallery.name!r} was re-embedded meanwhile: this was begun with {gallery.model} "
            f"{gallery.fingerprint}, and its embeddings are by {fingerprint} now; run it again",
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
        raise NotFound("the gallery was deleted meanwhile", code="gallery_not_found")
    return found.seq, found.fingerprint


def record(session: Session, gallery_id: int, last: int, entries: Sequence[Entry]) -> None:
    """Appends `entries` after number `last`, which `lock` returned in the same transaction."""
    if not entries:
        return
    at = now()
    rows = [
        {
            "gallery_id": gallery_id,
            "seq": last + i,
            "kind": str(entry.kind),
            "identity_id": entry.identity_id,
            "face_id": entry.face_id,
            "at": at,
        }
        for i, entry in enumerate(entries, 1)
    ]
    session.execute(insert(ChangeRow), rows)
    session.execute(
        update(GalleryRow)
        .where(GalleryRow.id == gallery_id)
        .values(seq=last + len(rows))
        .execution_options(synchronize_session=False)
    )


def since(session: Session, gallery_id: int, seq: int, limit: int) -> list[Change]:
    """The next changes after number `seq`, in order, `limit` at most."""
    rows = session.scalars(
        select(ChangeRow)
        .where(ChangeRow.gallery_id == gallery_id, ChangeRow.seq > seq)
        .order_by(ChangeRow.seq)
        .limit(limit)
    )
    return [_change(row) for row in rows]


def _position(wanted: Any) -> Executable:
    """Of the gallery `id`, with its change number `wanted` where there is one."""
    change = ChangeRow.seq, ChangeRow.kind, ChangeRow.identity_id, ChangeRow.face_id, ChangeRow.at
    return (
        select(GalleryRow.seq.label("last"), GalleryRow.fingerprint, *change)
        .outerjoin(ChangeRow, and_(ChangeRow.gallery_id == GalleryRow.id, ChangeRow.seq == wanted))
        .where(GalleryRow.id == bindparam("id"))
    )


LAST_POSITION, POSITION = _position(GalleryRow.seq), _position(bindparam("seq"))


def position(connection: Connection, gallery_id: int, seq: int | None) -> Position | None:
    """The end of the log, and the mark of change `seq` or of the last one; None when the gallery is gone."""
    asked = LAST_POSITION if seq is None else POSITION
    found = connection.execute(asked, {"id": gallery_id, "seq": seq}).one_or_none()
    if found is None:
        return None
    return Position(found.last, _change(found).mark if found.seq is not None else "", found.fingerprint)


def _change(row: Any) -> Change:
    return Change(row.seq, Entry(Kind(row.kind), row.identity_id, row.face_id), row.at)
