"""Conditional changes of identities, whose condition is checked under the lock of the change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import NoReturn

import pytest

from indexer.errors import InvalidRequest, NotFound
from indexer.gallery.change_log import ChangeKind
from indexer.gallery.identities import IdentityCheck
from indexer.gallery.store import Store
from indexer.types import Gallery, Identity, Person
from tests.indexer.gallery.faces import enroll_one, new_face
from tests.indexer.gallery.together import in_threads


class Mismatch(Exception):
    """The identity is not in the expected state."""


def only_before(current: Identity | None) -> None:
    if current is None or current.name != "before":
        raise Mismatch


def only_missing(current: Identity | None) -> None:
    if current is not None:
        raise Mismatch


def as_person(current: Identity) -> Person:
    return Person(current.external_id, current.name, current.valid_from, current.valid_until, current.metadata)


def test_failing_check_keeps_identity_unchanged(store: Store, gallery: Gallery) -> None:
    seen: list[Identity | None] = []

    def refuse(current: Identity | None) -> NoReturn:
        seen.append(current)
        raise Mismatch

    with pytest.raises(Mismatch):
        store.identities.put(gallery.id, Person("ana", "Ana"), check=refuse)
    with pytest.raises(NotFound):
        store.identities.get(gallery.id, "ana")
    enroll_one(store, gallery, new_face("ana", 1, name="Ana"))
    current, last = store.identities.get(gallery.id, "ana"), store.changes.last(gallery.id)
    with pytest.raises(Mismatch):
        store.identities.put(gallery.id, Person("ana", "Anna"), check=refuse)
    with pytest.raises(Mismatch):
        store.identities.delete(gallery.id, "ana", refuse)
    with pytest.raises(Mismatch):
        store.identities.change(gallery.id, "ana", refuse)
    assert seen == [None, current, current, current]
    assert (store.identities.get(gallery.id, "ana"), store.changes.last(gallery.id)) == (current, last)


def test_change_receives_current_identity(store: Store, gallery: Gallery) -> None:
    enroll_one(store, gallery, new_face("ana", 1, name="Ana", metadata={"a": 1}))
    before, last = store.identities.get(gallery.id, "ana"), store.changes.last(gallery.id) or 0
    changed = store.identities.change(gallery.id, "ana", lambda current: replace(as_person(current), name="Anna"))
    assert changed == store.identities.get(gallery.id, "ana")
    assert changed == replace(before, name="Anna", updated_at=changed.updated_at)
    assert changed.updated_at > before.updated_at
    assert [change.entry.kind for change in store.changes.since(gallery.id, last)] == [ChangeKind.IDENTITY_CHANGED]
    assert store.identities.change(gallery.id, "ana", as_person) == changed
    assert len(store.changes.since(gallery.id, last)) == 1
    with pytest.raises(NotFound, match="'ben'"):
        store.identities.change(gallery.id, "ben", as_person)


def test_change_to_invalid_person_is_rejected(store: Store, gallery: Gallery) -> None:
    start = datetime(2026, 1, 2, tzinfo=UTC)
    before, _ = store.identities.put(gallery.id, Person("ana", None, start))
    with pytest.raises(InvalidRequest, match="valid_until"):
        store.identities.change(gallery.id, "ana", lambda current: replace(as_person(current), valid_until=start))
    assert store.identities.get(gallery.id, "ana") == before


@pytest.mark.parametrize("check", [only_before, only_missing])
def test_one_of_many_conditional_changes_succeeds(store: Store, gallery: Gallery, check: IdentityCheck) -> None:
    if check is only_before:
        store.identities.put(gallery.id, Person("ana", "before"))

    def put(number: int) -> bool:
        try:
            store.identities.put(gallery.id, Person("ana", f"after-{number}"), check=check)
        except Mismatch:
            return False
        return True

    won = in_threads([partial(put, number) for number in range(8)])
    assert sum(won) == 1
    assert store.identities.get(gallery.id, "ana").name == f"after-{won.index(True)}"


def test_concurrent_changes_are_not_lost(store: Store, gallery: Gallery) -> None:
    store.identities.put(gallery.id, Person("ana", metadata={"n": 0}))

    def count(current: Identity) -> Person:
        return replace(as_person(current), metadata={"n": int(str(current.metadata["n"])) + 1})

    in_threads([lambda: store.identities.change(gallery.id, "ana", count)] * 8)
    assert store.identities.get(gallery.id, "ana").metadata == {"n": 8}
