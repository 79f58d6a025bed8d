"""An item that fails does not affect the results of the others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from indexer.errors import InvalidVector, ModelUnavailable, Overloaded
from indexer.vision.batch_errors import isolate_failures


def halves(numbers: Sequence[int]) -> list[int]:
    if 3 in numbers:
        raise InvalidVector("three has no direction")
    if 4 in numbers:
        raise ModelUnavailable("out of order")
    return [12 // number for number in numbers if number != 5]


def test_empty_batch_is_not_processed() -> None:
    def fail(numbers: Sequence[int]) -> list[int]:
        raise AssertionError

    assert isolate_failures([], fail) == []


def test_each_item_gets_its_result_or_its_error() -> None:
    assert isolate_failures([1, 2], halves) == [12, 6]
    one, none, three, short, two = isolate_failures([1, 0, 3, 5, 2], halves)
    assert (one, two) == (12, 6)
    assert isinstance(none, ZeroDivisionError)
    assert isinstance(three, InvalidVector)
    assert str(short) == "0 results for 1 items"


@pytest.mark.parametrize("numbers", [[1, 4], [0, 4], [4]])
def test_errors_not_caused_by_an_item_are_raised(numbers: list[int]) -> None:
    with pytest.raises(ModelUnavailable):
        isolate_failures(numbers, halves)


@pytest.mark.parametrize("error", [ZeroDivisionError, InvalidVector])
def test_error_by_which_every_item_fails_is_raised(error: type[Exception]) -> None:
    with pytest.raises(error):
        isolate_failures([0, 0] if error is ZeroDivisionError else [3, 3, 3], halves)


def test_different_errors_are_those_of_the_items() -> None:
    assert [type(one) for one in isolate_failures([0, 3], halves)] == [ZeroDivisionError, InvalidVector]


def test_too_little_memory_is_a_temporary_error() -> None:
    def need_memory(numbers: Sequence[int]) -> list[int]:
        if sum(numbers) > 8:
            raise MemoryError
        return list(numbers)

    one, nine = isolate_failures([1, 9], need_memory)
    assert one == 1
    assert isinstance(nine, Overloaded)
