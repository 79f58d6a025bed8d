"""Finds the items of a batch that cause its failure, so that the others still get results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from indexer.errors import InvalidVector, Overloaded, RejectedImage, WhosthereError
from indexer.types import Reason

Item = TypeVar("Item")
Result = TypeVar("Result")


def isolate_failures(
    items: Sequence[Item], process: Callable[[Sequence[Item]], Iterable[Result]]
) -> list[Result | Exception]:
    """Returns the result of `process` for each item, in order.

    If the batch fails, items are processed one by one, and the exception takes the place of the result for those that
    fail alone. Re-raises errors that are not caused by a single item, also those by which every item fails alone.
    """
    if not items:
        return []
    try:
        results: list[Result | Exception] = list(process(items))
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results for {len(items)} items")
    except Exception as error:
        if not may_be_of_item(error):
            raise
        if len(items) == 1:
            return [_too_little_memory() if isinstance(error, MemoryError) else error]
        alone = [result for item in items for result in isolate_failures([item], process)]
        if isinstance(alone[0], Exception) and len({_kind(result) for result in alone}) == 1:
            raise alone[0] from error
        return alone
    return results


def may_be_of_item(error: Exception) -> bool:
    """Returns whether a single item can cause this error: an unexpected one, or an embedding that is not valid."""
    return isinstance(error, InvalidVector) or not isinstance(error, WhosthereError)


def describe_error(error: BaseException) -> str:
    """Returns an error's type and message, for people."""
    return f"{type(error).__name__}: {error}"


def _kind(result: object) -> object:
    """Returns a value that is equal for equal errors, and for nothing else."""
    return describe_error(result) if isinstance(result, Exception) else id(result)


def _too_little_memory() -> Overloaded:
    return Overloaded("there is not enough memory to process an image now; try again soon")


def as_rejection(error: Exception) -> RejectedImage:
    """Returns the rejection of an image that could not be processed because of `error`."""
    message = f"the image cannot be processed: {describe_error(error)}"
    return RejectedImage(message, code=Reason.UNREADABLE_IMAGE)
