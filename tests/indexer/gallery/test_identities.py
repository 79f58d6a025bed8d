"""Tests of creating, changing, listing and deleting identities."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from indexer.errors import InvalidRequest, NotFound
from indexer.gallery.change_log import ChangeKind, Entry
from indexer.gallery.faces import NewFace
from indexer.gallery.schema import IdentityRow
from indexer.gallery.store import Store
from indexer.gallery.validation import MAX_METADATA_BYTES, MAX_METADATA_DEPTH
from indexer.types import Gallery, Identity, NamedIdentity, Person
from tests.indexer.gallery.faces import enroll_one, make_gallery, new_face
from tests.postgres import Database, Postgres, opened

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
METADATA: dict[str, object] = {
    "team": "Bögen & 東京 😀",
    "quote": "\"'\\ \u2028 \0",
    "floor": -3,
    "big": 2**60,
    "share": 0.1,
    "tags": ["a", None, True, {"x": []}],
    "": {},
}


def test_put_creates_identity(store: Store, gallery: Gallery) -> None:
    person = Person("b-17", "Ana Ñandú", NOON, NOON + timedelta(days=1), {"team": "red"})
    before = datetime.now(UTC)
    identity, created = store.identities.put(gallery.id, person)
    assert created
    assert (identity.external_id, identity.name, identity.metadata) == ("b-17", "Ana Ñandú", {"team": "red"})
    assert (identity.valid_from, identity.valid_until, identity.faces) == (NOON, NOON + timedelta(days=1), 0)
    assert before <= identity.created_at == identity.updated_at <= datetime.now(UTC)
    assert store.identities.get(gallery.id, "b-17") == identity
    assert [c.entry for c in store.changes.since(gallery.id, 0)] == [Entry(ChangeKind.IDENTITY_CHANGED, identity.id)]


def test_put_replaces_all_values(store: Store, gallery: Gallery) -> None:
    first, _ = store.identities.put(gallery.id, Person("ana", "Ana", NOON, None, {"team": "red", "floor": 2}))
    enroll_one(store, gallery, new_face("ana", 1))
    second, created = store.identities.put(gallery.id, Person("ana", None, None, NOON, {"floor": 3}))
    assert not created
    assert (second.id, second.name, second.valid_from, second.valid_until) == (first.id, None, None, NOON)
    assert second.metadata == {"floor": 3}
    assert second.faces == 1
    assert second.created_at == first.created_at < second.updated_at
    assert store.identities.get(gallery.id, "ana") == second


def test_put_without_replace_keeps_values(store: Store, gallery: Gallery) -> None:
    first, created = store.identities.put(gallery.id, Person("ana", "Ana"), replace=False)
    assert created
    again, created = store.identities.put(gallery.id, Person("ana", "Other", metadata={"x": 1}), replace=False)
    assert (again, created) == (first, False)
    assert store.changes.last(gallery.id) == 1


def test_putting_the_same_values_again_is_no_change(store: Store, gallery: Gallery) -> None:
    person = Person("ana", "Ana", NOON, None, METADATA)
    first, _ = store.identities.put(gallery.id, person)
    assert store.identities.put(gallery.id, person) == (first, False)
    assert store.changes.last(gallery.id) == 1


def test_metadata_is_stored_exactly(store: Store, gallery: Gallery) -> None:
    store.identities.put(gallery.id, Person("ana", metadata=METADATA))
    assert store.identities.get(gallery.id, "ana").metadata == METADATA
    assert store.identities.list(gallery.id)[0].metadata == METADATA


@pytest.mark.parametrize("hours", [-11, 0, 5.75, 14])
def test_dates_are_the_same_moment_in_every_zone(store: Store, gallery: Gallery, hours: float) -> None:
    there = (NOON + timedelta(microseconds=123456)).astimezone(timezone(timedelta(hours=hours)))
    store.identities.put(gallery.id, Person("ana", valid_from=there, valid_until=there + MICROSECOND))
    found = store.identities.get(gallery.id, "ana")
    assert found.valid_from == NOON + timedelta(microseconds=123456)
    assert found.valid_until == NOON + timedelta(microseconds=123457)
    assert found.valid_from.utcoffset() == timedelta(0)


def test_latest_date_is_stored_in_any_server_time_zone(postgres: Postgres) -> None:
    url = postgres.migrated()
    name = url.split("?")[0].rsplit("/", 1)[1]
    postgres.run(f"ALTER DATABASE {name} SET timezone TO 'Pacific/Auckland'")
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    first = datetime(1, 1, 1, tzinfo=UTC)
    with opened(url) as store:
        gallery = make_gallery(store)
        store.identities.put(gallery.id, Person("ana", valid_from=first, valid_until=last))
        assert store.identities.get(gallery.id, "ana").valid_until == last
    postgres.run(f"ALTER DATABASE {name} SET timezone TO 'America/Los_Angeles'")
    with opened(url) as store:
        assert store.identities.get(gallery.id, "ana").valid_from == first


def test_latest_date_is_stored(store: Store, gallery: Gallery) -> None:
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    first = datetime(1, 1, 1, tzinfo=UTC)
    store.identities.put(gallery.id, Person("ana", valid_from=first, valid_until=last))
    found = store.identities.get(gallery.id, "ana")
    assert (found.valid_from, found.valid_until) == (first, last)


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else 1


BAD: list[tuple[Person, str]] = [
    (Person(""), "external_id"),
    (Person(" ana"), "external_id"),
    (Person("a\nb"), "external_id"),
    (Person("x" * 201), "external_id"),
    (Person("ana", name=""), "name"),
    (Person("ana", name="Ana\0"), "name"),
    (Person("ana", name="x" * 201), "name"),
    (Person("ana", valid_from=NOON, valid_until=NOON), "must be after"),
    (Person("ana", valid_from=NOON, valid_until=NOON - MICROSECOND), "must be after"),
    (Person("ana", valid_from=datetime(2026, 1, 1)), "time zone"),  # noqa: DTZ001
    (Person("ana", valid_from=NOON, valid_until=datetime(2027, 1, 1)), "time zone"),  # noqa: DTZ001
    (Person("ana", valid_from=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))), "valid_from .*years"),
    (Person("ana", valid_until=datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))), "valid_until .*years"),
    (Person("ana", metadata={"x": float("nan")}), "JSON"),
    (Person("ana", metadata={"x": [float("inf")]}), "JSON"),
    (Person("ana", metadata={"x": NOON}), "JSON"),
    (Person("ana", metadata={"x": b"bytes"}), "JSON"),
    (Person("ana", metadata={"x": "\ud800"}), "JSON: .* not valid Unicode"),
    (Person("ana", metadata={"x": nested(MAX_METADATA_DEPTH + 1)}), "JSON: more than 32 lists and objects"),
    (Person("ana", metadata={"x": "x" * 16 * 2**10}), "metadata of 'ana' would be 16,392 bytes .* 16,384 at most"),
]


@pytest.mark.parametrize(("person", "message"), BAD)
def test_invalid_person_is_rejected_and_not_stored(
    store: Store, gallery: Gallery, person: Person, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        store.identities.put(gallery.id, person)
    assert caught.value.code == "invalid_request"
    good = new_face("good", 1)
    bad = type(good)(person, new_face("bad", 2).image_sha256, good.face)
    with pytest.raises(InvalidRequest, match=message):
        store.faces.enroll(gallery, [good, bad])
    with pytest.raises(InvalidRequest, match=message):
        store.faces.enroll(gallery, [good, person])
    assert store.galleries.counts(gallery.id) == (0, 0)
    assert store.changes.last(gallery.id) == 0


LARGEST = {"x": "é" * 8188}
"""Metadata of the largest accepted size: 16,384 bytes with `{"x":""}`."""

MORE = {"y": 1}


def test_largest_metadata_is_accepted(store: Store, gallery: Gallery) -> None:
    assert len(json.dumps(LARGEST, ensure_ascii=False, separators=(",", ":")).encode()) == MAX_METADATA_BYTES
    assert store.identities.put(gallery.id, Person("ana", metadata=LARGEST))[0].metadata == LARGEST
    with pytest.raises(InvalidRequest, match="metadata of 'ana' would be 16,385 bytes"):
        store.identities.put(gallery.id, Person("ana", metadata={"x": LARGEST["x"] + "x"}))


def test_joined_metadata_has_the_same_limit(store: Store, gallery: Gallery) -> None:
    """Enrolling and merging both join metadata."""
    store.faces.enroll(gallery, [new_face("ana", 1, metadata=LARGEST)])
    store.identities.put(gallery.id, Person("ben", metadata=MORE))
    items: list[NewFace | Person] = [
        new_face("ana", 2, metadata=MORE),
        Person("ana", metadata=MORE),
        new_face("tom", 3, metadata=MORE),
        new_face("tom", 4, metadata=LARGEST),
        new_face("ana", 5, metadata=LARGEST),
    ]
    problems = [enrolled.problem for enrolled in store.faces.enroll(gallery, items)]
    assert [None if problem is None else problem[:34] for problem in problems] == [
        "the metadata of 'ana' would be 16,",
        "the metadata of 'ana' would be 16,",
        None,
        "the metadata of 'tom' would be 16,",
        None,
    ]
    assert {p.external_id: (p.metadata, p.faces) for p in store.identities.list(gallery.id)} == {
        "ana": (LARGEST, 2),
        "ben": (MORE, 0),
        "tom": (MORE, 1),
    }
    last = store.changes.last(gallery.id)
    for into, other in (("ana", "ben"), ("ben", "ana")):
        with pytest.raises(InvalidRequest, match=f"metadata of '{into}' would be 16,390 bytes"):
            store.identities.merge(gallery.id, into, other)
    assert store.changes.last(gallery.id) == last
    assert store.galleries.counts(gallery.id) == (3, 3)


def test_oversized_stored_metadata_stays_and_can_shrink(store: Store, gallery: Gallery) -> None:
    store.faces.enroll(gallery, [new_face("ana", 1)])
    much = {"x": "x" * 20_000, "y": "y" * 20_000}
    with Session(store.engine) as session, session.begin():
        session.execute(update(IdentityRow).values(details=much))
    assert store.identities.get(gallery.id, "ana").metadata == much
    enroll_one(store, gallery, new_face("ana", 2, name="Ana"))
    [result] = store.faces.enroll(gallery, [Person("ana", metadata={"z": 1})])
    assert "would be 40,021 bytes" in (result.problem or "")
    store.identities.put(gallery.id, Person("ben", "Ben"))
    store.identities.merge(gallery.id, "ana", "ben")

    def changed(name: str, metadata: Mapping[str, object]) -> Callable[[Identity], Person]:
        return lambda there: Person("ana", name, metadata=metadata)

    found = store.identities.change(gallery.id, "ana", changed("Anna", much))
    assert (found.name, found.metadata, found.faces) == ("Anna", much, 2)
    with pytest.raises(InvalidRequest, match="would be 20,008 bytes"):
        store.identities.change(gallery.id, "ana", changed("Anna", {"x": much["x"]}))
    assert store.identities.change(gallery.id, "ana", changed("Anna", MORE)).metadata == MORE


def test_identities_are_listed_in_pages(store: Store) -> None:
    gallery, other = make_gallery(store), make_gallery(store, "other")
    for i in (5, 3, 1, 4, 2):
        store.identities.put(gallery.id, Person(f"p{i}"))
        store.identities.put(other.id, Person(f"q{i}"))
    enroll_one(store, gallery, new_face("p3", 1))
    enroll_one(store, gallery, new_face("p3", 2))
    seen: list[tuple[str, int]] = []
    sizes = []
    after = 0
    while page := store.identities.list(gallery.id, after, 2):
        seen += [(person.external_id, person.faces) for person in page]
        sizes.append(len(page))
        after = page[-1].id
    assert seen == [("p5", 0), ("p3", 2), ("p1", 0), ("p4", 0), ("p2", 0)]
    assert sizes == [2, 2, 1]
    assert [person.external_id for person in store.identities.list(gallery.id)] == ["p5", "p3", "p1", "p4", "p2"]


def test_valid_returns_identities_within_their_dates(store: Store, gallery: Gallery) -> None:
    """Valid at or after `valid_from` and before `valid_until`."""
    day = timedelta(days=1)
    windows: dict[str, tuple[datetime | None, datetime | None]] = {
        "always": (None, None),
        "from": (NOON, None),
        "until": (None, NOON),
        "window": (NOON, NOON + day),
    }
    ids: dict[str, int] = {}
    for who, (start, end) in windows.items():
        ids[who] = store.identities.put(gallery.id, Person(who, valid_from=start, valid_until=end))[0].id

    def valid(at: datetime) -> set[str]:
        found = store.identities.valid([*ids.values(), 10**6], at)
        assert {identity.id for identity in found.values()} == set(found)
        return {identity.external_id for identity in found.values()}

    assert valid(NOON - MICROSECOND) == {"always", "until"}
    assert valid(NOON) == {"always", "from", "window"}
    assert valid(NOON + day - MICROSECOND) == {"always", "from", "window"}
    assert valid(NOON + day) == {"always", "from"}
    assert valid(NOON.astimezone(timezone(timedelta(hours=9)))) == {"always", "from", "window"}
    assert store.identities.valid([], NOON) == {}
    assert set(store.identities.valid([ids["always"]] * 2, NOON)) == {ids["always"]}


def test_valid_returns_all_values_of_many_identities(store: Store, gallery: Gallery) -> None:
    store.faces.enroll(gallery, [new_face(f"p{i}", i, name=f"Number {i}") for i in range(1203)])
    people = store.identities.list(gallery.id)
    assert len(people) == 1203
    assert all(person.faces == 1 for person in people)
    everybody = {p.id: NamedIdentity(p.id, p.external_id, p.name, p.metadata, p.faces) for p in people}
    assert store.identities.valid(everybody, NOON) == everybody


def test_deleting_an_identity_deletes_its_faces(store: Store, gallery: Gallery) -> None:
    kept = enroll_one(store, gallery, new_face("bob", 3))
    removed = [enroll_one(store, gallery, new_face("ana", image)) for image in (1, 2)]
    ana = store.identities.get(gallery.id, "ana")
    before = store.changes.last(gallery.id) or 0
    assert store.identities.delete(gallery.id, "ana") == 2
    with pytest.raises(NotFound) as caught:
        store.identities.get(gallery.id, "ana")
    assert caught.value.code == "identity_not_found"
    assert store.galleries.counts(gallery.id) == (1, 1)
    assert store.faces.get(gallery.id, kept).identity_id == store.identities.get(gallery.id, "bob").id
    entries = [change.entry for change in store.changes.since(gallery.id, before)]
    assert sorted(entries[:2], key=lambda e: e.face_id or 0) == [
        Entry(ChangeKind.FACE_REMOVED, ana.id, f) for f in removed
    ]
    assert entries[2:] == [Entry(ChangeKind.IDENTITY_REMOVED, ana.id)]
    assert store.identities.valid([ana.id], NOON) == {}


def test_missing_identity_is_not_found(store: Store, gallery: Gallery) -> None:
    calls: list[Any] = [store.identities.get, store.faces.list, store.identities.delete]
    for call in calls:
        with pytest.raises(NotFound, match="'nobody'") as caught:
            call(gallery.id, "nobody")
        assert caught.value.code == "identity_not_found"
    assert store.changes.last(gallery.id) == 0


def test_identity_in_deleted_gallery_raises_not_found(store: Store, gallery: Gallery, database: Database) -> None:
    store.galleries.delete("staff")
    with pytest.raises(NotFound) as caught:
        store.identities.put(gallery.id, Person("ana"))
    assert caught.value.code == "gallery_not_found"
