"""Identities in SQL: the enrolled people and what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import InvalidRequest, NotFound
from indexer.gallery import change_log
from indexer.gallery.change_log import ChangeKind, Entry
from indexer.gallery.database import Repository, change_rows, insert_returning_ids
from indexer.gallery.identity_search import EVERYBODY, IdentityFilter, conditions
from indexer.gallery.schema import FaceRow, IdentityRow, batches
from indexer.gallery.spelling import normalize_text, search_text, spellings
from indexer.gallery.validation import check_metadata, check_person
from indexer.types import Gallery, Identity, NamedIdentity, Person

FACE_COUNT = select(func.count()).where(FaceRow.identity_id == IdentityRow.id).scalar_subquery()

WITH_FACE_COUNT = select(IdentityRow, FACE_COUNT)

ID_IN_IDS = IdentityRow.id.in_(bindparam("ids", expanding=True))

VALID_BY_ID = select(IdentityRow.id, IdentityRow.external_id, IdentityRow.name, IdentityRow.details, FACE_COUNT).where(
    or_(IdentityRow.valid_from.is_(None), IdentityRow.valid_from <= bindparam("at")),
    or_(IdentityRow.valid_until.is_(None), IdentityRow.valid_until > bindparam("at")),
    ID_IN_IDS,
)

FIELDS = ("name", "valid_from", "valid_until", "metadata")

Updated = tuple[str, ...]
"""The FIELDS of an identity that changed."""

IdentityCheck = Callable[[Identity | None], None]
"""Receives the current identity, or None if there is none, while it is locked. The change is not made if it raises."""


def _no_check(identity: Identity | None) -> None:
    """Accepts every identity."""


class IdentityRepository(Repository):
    """The identities of one database's galleries. Thread-safe; each call is one transaction."""

    def put(
        self, gallery_id: int, person: Person, replace: bool = True, check: IdentityCheck = _no_check
    ) -> tuple[Identity, bool]:
        """Creates the identity, or replaces its name, dates and metadata if `replace` is set.

        Returns:
            The identity, and whether it is new.

        Raises:
            InvalidRequest: The person's description is not valid.
            NotFound: The gallery was deleted.
        """
        check_person(person)
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            row = _find_row(session, gallery_id, person.external_id)
            created = row is None
            check(None if row is None else _identity(row, _count_faces(session, row.id)))
            if row is None:
                row = IdentityRow(**_row_values(gallery_id, _normalized(person)))
                session.add(row)
            if created or (replace and _update_row(row, person, replace_all=True)):
                session.flush()
                entries = [Entry(ChangeKind.IDENTITY_CHANGED, row.id)]
                change_log.record(session, gallery_id, last, entries, identities=int(created))
            return _identity(row, _count_faces(session, row.id)), created

    def change(self, gallery_id: int, external_id: str, change: Callable[[Identity], Person]) -> Identity:
        """Replaces name, dates and metadata by what `change` returns for the current identity, under one lock.

        The external id stays. Raises NotFound, and the errors of `change`.
        """
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            row = required_row(session, gallery_id, external_id)
            faces = _count_faces(session, row.id)
            before = _identity(row, faces)
            person = change(before)
            check_person(person, before.metadata)
            if _update_row(row, person, replace_all=True):
                session.flush()
                change_log.record(session, gallery_id, last, [Entry(ChangeKind.IDENTITY_CHANGED, row.id)])
            return _identity(row, faces)

    def add_missing(self, gallery: Gallery, people: Sequence[Person]) -> set[str]:
        """Creates the identities of `people` that do not exist, in one transaction, and returns their external ids.

        The first of several people with the same external id counts.

        Raises:
            Conflict: The gallery was re-embedded since `gallery` was read.
            NotFound: The gallery was deleted.
        """
        for person in people:
            check_person(person)
        with self._write() as session:
            last = change_log.lock_with_pack(session, gallery)
            stored = stored_ids(session, gallery.id, people)
            wanted: dict[str, Person] = {}
            for person in people:
                wanted.setdefault(stored[person.external_id], person)
            existing = find_rows(session, gallery.id, wanted)
            missing = [replace(p, external_id=key) for key, p in wanted.items() if key not in existing]
            created = insert_returning_ids(session, IdentityRow, [_row_values(gallery.id, p) for p in missing])
            entries = [Entry(ChangeKind.IDENTITY_CHANGED, identity_id) for identity_id in created]
            change_log.record(session, gallery.id, last, entries, identities=len(created))
            return {given for given, key in stored.items() if key not in existing}

    def get(self, gallery_id: int, external_id: str) -> Identity:
        """Returns the identity. Raises NotFound."""
        with self._read() as session:
            row = required_row(session, gallery_id, external_id)
            return _identity(row, _count_faces(session, row.id))

    def ids(self, gallery_id: int, external_ids: Iterable[str]) -> dict[str, int]:
        """Returns, by external id as given, the ids of the identities that exist."""
        people = [Person(external_id) for external_id in external_ids]
        with self._read() as session:
            stored = stored_ids(session, gallery_id, people)
            rows = find_rows(session, gallery_id, stored.values())
            return {given: rows[key].id for given, key in stored.items() if key in rows}

    def valid(self, ids: Iterable[int], at: datetime) -> dict[int, NamedIdentity]:
        """Returns, by id, the identities of `ids` that exist and are valid at that time."""
        found: dict[int, NamedIdentity] = {}
        with self._read_rows() as connection:
            for batch in batches(list(ids)):
                rows = connection.execute(VALID_BY_ID, {"ids": batch, "at": at})
                found |= {row.id: NamedIdentity(*row) for row in rows}
        return found

    def by_id(self, ids: Iterable[int]) -> dict[int, Identity]:
        """Returns, by id, the identities of `ids` that exist, valid or not."""
        found: dict[int, Identity] = {}
        with self._read() as session:
            for batch in batches(list(ids)):
                rows = session.execute(WITH_FACE_COUNT.where(ID_IN_IDS), {"ids": batch})
                found |= {row.id: _identity(row, count) for row, count in rows}
        return found

    def merge(self, gallery_id: int, into: str, other: str) -> tuple[Identity, int]:
        """Moves the faces of `other` to `into` and deletes `other`, in one transaction.

        Name and metadata keys that `into` does not have are taken from `other`; dates are not, because a missing date
        means unlimited validity.

        Returns:
            The remaining identity, and the number of faces moved.

        Raises:
            NotFound: One of the two does not exist.
            InvalidRequest: Both are the same identity, or their joined metadata is too large.
        """
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            kept, removed = (required_row(session, gallery_id, external_id) for external_id in (into, other))
            if kept.id == removed.id:
                raise InvalidRequest(f"identity {into!r} cannot be merged with itself; name two identities")
            of_removed = FaceRow.identity_id == removed.id
            moved = list(session.scalars(select(FaceRow.id).where(of_removed).order_by(FaceRow.id)))
            change_rows(session, update(FaceRow).where(of_removed).values(identity_id=kept.id))
            name = kept.name if kept.name is not None else removed.name
            joined = Person(into, name, kept.valid_from, kept.valid_until, {**removed.details, **kept.details})
            check_metadata(joined, kept.details)
            entries = []
            if _update_row(kept, joined, replace_all=True):
                entries.append(Entry(ChangeKind.IDENTITY_CHANGED, kept.id))
            entries += [Entry(ChangeKind.FACE_ADDED, kept.id, face_id) for face_id in moved]
            entries.append(Entry(ChangeKind.IDENTITY_REMOVED, removed.id))
            change_log.record(session, gallery_id, last, entries, identities=-1)
            session.delete(removed)
            session.flush()
            return _identity(kept, _count_faces(session, kept.id)), len(moved)

    def delete(self, gallery_id: int, external_id: str, check: IdentityCheck = _no_check) -> int:
        """Deletes the identity with all its faces and returns how many faces it had. Raises NotFound."""
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            row = required_row(session, gallery_id, external_id)
            face_ids = list(session.scalars(select(FaceRow.id).where(FaceRow.identity_id == row.id)))
            check(_identity(row, len(face_ids)))
            entries = [Entry(ChangeKind.FACE_REMOVED, row.id, face_id) for face_id in face_ids]
            entries.append(Entry(ChangeKind.IDENTITY_REMOVED, row.id))
            change_log.record(session, gallery_id, last, entries, identities=-1, faces=-len(face_ids))
            session.delete(row)
            return len(face_ids)

    def list(
        self, gallery_id: int, after: int = 0, limit: int | None = None, wanted: IdentityFilter = EVERYBODY
    ) -> Sequence[Identity]:
        """Returns the identities with an id above `after`, oldest first."""
        query = WITH_FACE_COUNT.where(IdentityRow.gallery_id == gallery_id, IdentityRow.id > after)
        with self._read() as session:
            query = query.where(*conditions(wanted, session))
            rows = session.execute(query.order_by(IdentityRow.id).limit(limit))
            return [_identity(row, count) for row, count in rows]


def stored_ids(session: Session, gallery_id: int, people: Iterable[Person]) -> dict[str, str]:
    """Returns the external ids of `people` as they are stored, or will be if their identities do not exist yet."""
    given = {person.external_id for person in people}
    known = find_rows(session, gallery_id, {form for one in given if not one.isascii() for form in spellings(one)})
    return {one: next((form for form in spellings(one) if form in known), normalize_text(one)) for one in given}


def find_rows(session: Session, gallery_id: int, external_ids: Iterable[str]) -> dict[str, IdentityRow]:
    """Returns the existing rows by external id, spelled exactly as given."""
    query = select(IdentityRow).where(IdentityRow.gallery_id == gallery_id)
    rows: dict[str, IdentityRow] = {}
    for batch in batches(list(set(external_ids))):
        rows |= {row.external_id: row for row in session.scalars(query.where(IdentityRow.external_id.in_(batch)))}
    return rows


def required_row(session: Session, gallery_id: int, external_id: str) -> IdentityRow:
    """Returns the row of an identity. Raises NotFound."""
    row = _find_row(session, gallery_id, external_id)
    if row is None:
        raise NotFound(f"there is no identity {external_id!r} in this gallery", code="identity_not_found")
    return row


def upsert(
    session: Session,
    gallery_id: int,
    rows: Mapping[str, IdentityRow],
    people: Sequence[Person],
    needed: AbstractSet[str],
) -> tuple[dict[str, int], list[Entry], list[Updated]]:
    """Updates the identities of `people` by what is given about them; what is not given stays.

    Args:
        session: The transaction.
        gallery_id: The gallery.
        rows: The existing rows by external id, as `find_rows` returns them.
        people: Descriptions in order; the later of two about the same person counts.
        needed: External ids of the people that are created if they do not exist.

    Returns:
        The identities' ids by external id, the entries for the change log, and what each of `people` changed.
    """
    missing: dict[str, Person] = {}
    for person in people:
        if person.external_id in needed and person.external_id not in rows:
            missing[person.external_id] = join(missing.get(person.external_id, Person(person.external_id)), person)
    new_ids = insert_returning_ids(session, IdentityRow, [_row_values(gallery_id, p) for p in missing.values()])
    ids = {external_id: row.id for external_id, row in rows.items()} | dict(zip(missing, new_ids, strict=True))
    changed = dict.fromkeys(new_ids)
    updates: list[Updated] = []
    for person in people:
        row = rows.get(person.external_id)
        updates.append(_update_row(row, person, replace_all=False) if row is not None else ())
        if row is not None and updates[-1]:
            changed[row.id] = None
    session.flush()
    return ids, [Entry(ChangeKind.IDENTITY_CHANGED, identity_id) for identity_id in changed], updates


def join(before: Person, after: Person) -> Person:
    """Returns everything given about one person; the later value counts."""

    def kept(field: str) -> Any:
        given = getattr(after, field)
        return getattr(before, field) if given is None and field not in after.cleared else given

    metadata = {key: value for key, value in before.metadata.items() if key not in after.cleared}
    dates = kept("valid_from"), kept("valid_until")
    return Person(before.external_id, kept("name"), *dates, {**metadata, **after.metadata})


def _find_row(session: Session, gallery_id: int, external_id: str) -> IdentityRow | None:
    forms = spellings(external_id)
    rows = find_rows(session, gallery_id, forms)
    return next((rows[form] for form in forms if form in rows), None)


def _normalized(person: Person) -> Person:
    return replace(person, external_id=normalize_text(person.external_id))


def _row_values(gallery_id: int, person: Person) -> dict[str, Any]:
    at = now()
    return {
        "gallery_id": gallery_id,
        "external_id": person.external_id,
        "name": person.name,
        "search_text": search_text(person.external_id, person.name),
        "details": dict(person.metadata),
        "valid_from": person.valid_from,
        "valid_until": person.valid_until,
        "created_at": at,
        "updated_at": at,
    }


def _update_row(row: IdentityRow, person: Person, replace_all: bool) -> Updated:
    """Writes a person's description to their row and returns the names of the fields that changed."""
    stored = Person(row.external_id, row.name, row.valid_from, row.valid_until, row.details)
    after = person if replace_all else join(stored, person)
    changed = tuple(name for name in FIELDS if getattr(stored, name) != getattr(after, name))
    for name in changed:
        if name == "metadata":
            row.details = dict(after.metadata)
        else:
            setattr(row, name, getattr(after, name))
    if changed:
        row.search_text = search_text(row.external_id, row.name)
        row.updated_at = now()
    return changed


def _count_faces(session: Session, identity_id: int) -> int:
    return session.scalar(select(func.count()).where(FaceRow.identity_id == identity_id)) or 0


def _identity(row: IdentityRow, faces: int) -> Identity:
    return Identity(
        row.id,
        row.external_id,
        row.name,
        row.details,
        row.valid_from,
        row.valid_until,
        faces,
        row.created_at,
        row.updated_at,
    )
