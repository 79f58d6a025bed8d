"""Identities are found by words in their external id and name, and by values of their metadata."""

from __future__ import annotations

import pytest

from indexer.errors import InvalidRequest
from indexer.gallery.identity_search import IdentityFilter, parse_metadata
from indexer.gallery.spelling import MAX_SEARCH_BYTES, search_text
from indexer.gallery.store import Store
from indexer.types import Gallery, Person
from tests.indexer.gallery.faces import new_face

PEOPLE = (
    Person("emp-0042", "Łukasz Żółć", metadata={"site": "Berlin", "floor": 3, "active": True}),
    Person("emp-0043", "Ana Ruiz-Martín", metadata={"site": "berlin", "floor": "3", "active": False}),
    Person("EMP-0142", "STRAẞE 100%", metadata={"half": 1.5, "none": None}),
    Person("zoe_1", None),
    Person("山田", "İpek Æther"),
)


@pytest.fixture
def people(store: Store, gallery: Gallery) -> Store:
    for person in PEOPLE:
        store.identities.put(gallery.id, person)
    return store


def found(store: Store, gallery: Gallery, query: str = "", **metadata: str) -> list[str]:
    people = store.identities.list(gallery.id, wanted=IdentityFilter(query, metadata))
    return [person.external_id for person in people]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("  ", [0, 1, 2, 3, 4]),
        ("emp-00", [0, 1]),
        ("042", [0]),
        ("LUKASZ", [0]),
        ("zolc", [0]),
        ("Z\u0307o\u0301łc\u0301", [0]),
        ("ruiz ana", [1]),
        ("martin", [1]),
        ("arti", [1]),
        ("strasse", [2]),
        ("0%", [2]),
        ("%", [2]),
        ("zoe_", [3]),
        ("_", [3]),
        ("田", [4]),
        ("ipek aether", [4]),
        ("0042 ana", []),
        ("'", []),
        ("\\", []),
    ],
)
def test_every_word_occurs_regardless_of_case_and_accents(
    people: Store, gallery: Gallery, query: str, numbers: list[int]
) -> None:
    assert found(people, gallery, query) == [PEOPLE[number].external_id for number in numbers]


@pytest.mark.parametrize(
    ("metadata", "numbers"),
    [
        ({"site": "Berlin"}, [0]),
        ({"floor": "3"}, [0, 1]),
        ({"floor": "3", "active": "false"}, [1]),
        ({"active": "true"}, [0]),
        ({"half": "1.5"}, [2]),
        ({"none": "null"}, []),
        ({"none": ""}, []),
        ({"si": "Berlin"}, []),
        ({'a"b.c': "1"}, []),
    ],
)
def test_metadata_has_the_values(people: Store, gallery: Gallery, metadata: dict[str, str], numbers: list[int]) -> None:
    assert found(people, gallery, **metadata) == [PEOPLE[number].external_id for number in numbers]


def test_search_reads_pages_and_only_its_gallery(people: Store, gallery: Gallery) -> None:
    other = people.galleries.create("visitors", "sface", "0123456789abcdef", 32)
    people.identities.put(other.id, Person("emp-0044"))
    wanted = IdentityFilter("emp")
    first = people.identities.list(gallery.id, 0, 2, wanted)
    second = people.identities.list(gallery.id, first[-1].id, 2, wanted)
    assert [person.external_id for person in (*first, *second)] == ["emp-0042", "emp-0043", "EMP-0142"]


def test_changed_names_are_found_and_former_ones_are_not(people: Store, gallery: Gallery) -> None:
    people.identities.change(gallery.id, "zoe_1", lambda person: Person(person.external_id, "Zoë Fischer"))
    people.identities.merge(gallery.id, "山田", "zoe_1")
    people.faces.enroll(gallery, [new_face("emp-0043", 1, name="Ana Weber"), new_face("new", 2, name="Ben Fischer")])
    assert found(people, gallery, "weber") == ["emp-0043"]
    assert found(people, gallery, "fischer") == ["new"]
    assert found(people, gallery, "ruiz") == []


@pytest.mark.parametrize("pairs", [["site"], ["=x"], ["a=1", "a=2"]])
def test_metadata_filter_without_one_value_is_rejected(pairs: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="KEY=VALUE"):
        parse_metadata(pairs)


def test_longest_name_is_stored(store: Store, gallery: Gallery) -> None:
    """U+FDFA is 18 letters in other forms, and PostgreSQL indexes texts of a limited size."""
    long = Person("\U0001f600" * 200, "\ufdfa" * 200)
    store.identities.put(gallery.id, long)
    assert found(store, gallery, "\U0001f600") == [long.external_id]
    assert len(search_text("한" * 200, "ẞ" * 200).encode()) <= MAX_SEARCH_BYTES
