"""Finds the items of a batch that cause its failure, so that the others still get results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from indexer.errors import InvalidVector, RejectedImage, WhosthereError
from indexer.types import Reason

Item = TypeVar("Item")
Result = TypeVar("Result")


def isolate_failures(
    items: Sequence[Item], process: Callable[[Sequence[Item]], Iterable[Result]]
) -> list[Result | Exception]:
    """Returns the result of `process` for each item, in order.

    If the batch fails, items are processed one by one, and the exception takes the place of the result for those that
    fail alone. Re-raises errors that are not caused by a single item.
    """
    if not items:
        return []
    try:
        results: list[Result | Exception] = list(process(items))
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results for {len(items)} items")
    except Exception as error:
        if isinstance(error, WhosthereError) and not isinstance(error, InvalidVector):
            raise
        if len(items) == 1:
            return [error]
        return [result for item in items for result in isolate_failures([item], process)]
    return results


def as_rejection(error: Exception) -> RejectedImage:
    """Returns the rejection of an image that could not be processed because of `error`."""
    message = f"the image cannot be processed: {type(error).__name__}: {error}"
    return RejectedImage(message, code=Reason.UNREADABLE_IMAGE)
