"""Which photos are enrolled, and which are searched."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from indexer.enrollment.rows import Row
from indexer.errors import InvalidRequest
from indexer.types import Person
from search_service.evaluation.protocol import Protocol, split


def rows(**counts: int) -> list[Row]:
    def fail(_: int) -> bytes:
        raise AssertionError("a split reads nothing")

    return [
        Row(f"{name}/{number}", Person(name, metadata={"a": 1}), fail)
        for name, count in counts.items()
        for number in range(1, count + 1)
    ]


def names(some: Sequence[Row]) -> list[str]:
    return [row.image for row in some]


def test_one_photo_of_each_person_is_enrolled_and_the_others_are_searched() -> None:
    parts = split(rows(ana=3, ben=2, cleo=1), 1)
    assert names(parts.enrolled) == ["ana/1", "ben/1"]
    assert names(parts.mated) == ["ana/2", "ana/3", "ben/2"]
    assert names(parts.strangers) == ["cleo/1"]


def test_people_with_few_photos_are_enrolled_with_all_but_one_and_not_searched() -> None:
    parts = split(rows(ana=5, ben=3, cleo=2, dora=1), 3)
    assert names(parts.enrolled) == ["ana/1", "ana/2", "ana/3", "ben/1", "ben/2", "cleo/1"]
    assert names(parts.mated) == ["ana/4", "ana/5"]
    assert names(parts.strangers) == ["dora/1"]


def test_rows_without_a_person_are_counted_and_metadata_is_left_out() -> None:
    parts = split([*rows(ana=2, ben=1), *(Row("odd", Person(""), row.read) for row in rows(x=2))], 1)
    assert parts.unlabelled == 2
    assert all(not row.person.metadata for row in parts.enrolled)


@pytest.mark.parametrize(
    ("counts", "photos", "expected"),
    [
        ({"ana": 1, "ben": 1}, 1, "of 2 people, none has more than 1 photo: .*expected several photos of some people"),
        ({"ana": 3, "ben": 2}, 3, "of 2 people, none has more than 3 photos"),
        ({"ana": 3}, 1, "the 3 photos are of 1 person by their folders or names; expected a folder of folders"),
        ({}, 1, "the given paths hold no photos"),
    ],
)
def test_photos_with_nobody_to_search_for_are_refused(counts: dict[str, int], photos: int, expected: str) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        split(rows(**counts), photos)


@pytest.mark.parametrize(
    ("photos", "draws", "seed", "named"), [(0, 100, 0, "photos"), (1, 99, 0, "draws"), (1, 100, -1, "seed")]
)
def test_senseless_settings_are_refused(photos: int, draws: int, seed: int, named: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{named} is"):
        Protocol(photos, None, draws, seed)
