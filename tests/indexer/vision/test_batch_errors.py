"""One item that the networks fail on keeps no other one's answer out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from indexer.errors import InvalidVector, ModelUnavailable
from indexer.vision.batch_errors import isolate_failures


def halves(numbers: Sequence[int]) -> list[int]:
    if 3 in numbers:
        raise InvalidVector("three has no direction")
    if 4 in numbers:
        raise ModelUnavailable("out of order")
    return [12 // number for number in numbers if number != 5]


def test_nothing_is_asked_of_nobody() -> None:
    def fail(numbers: Sequence[int]) -> list[int]:
        raise AssertionError

    assert isolate_failures([], fail) == []


def test_each_gets_its_answer_or_its_error() -> None:
    assert isolate_failures([1, 2], halves) == [12, 6]
    one, none, three, short, two = isolate_failures([1, 0, 3, 5, 2], halves)
    assert (one, two) == (12, 6)
    assert isinstance(none, ZeroDivisionError)
    assert isinstance(three, InvalidVector)
    assert str(short) == "0 results for 1 items"


@pytest.mark.parametrize("numbers", [[1, 4], [0, 4], [4]])
def test_what_no_item_is_to_blame_for_is_raised(numbers: list[int]) -> None:
    with pytest.raises(ModelUnavailable):
        isolate_failures(numbers, halves)
