"""Which of several items is to blame where the networks fail on them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from indexer.errors import InvalidVector, RejectedImage, WhosthereError
from indexer.types import Reason

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def isolate_failures(
    items: Sequence[Item], ask: Callable[[Sequence[Item]], Iterable[Answer]]
) -> list[Answer | Exception]:
    """What `ask` answers to each item, in order. Where it fails on all of them they are asked for one by one, and the
    error stands in the place of those that it fails on alone. Errors that no item is to blame for are raised."""
    if not items:
        return []
    try:
        answers: list[Answer | Exception] = list(ask(items))
        if len(answers) != len(items):
            raise RuntimeError(f"the pipeline answered {len(answers)} times to {len(items)} images")
    except Exception as error:
        if isinstance(error, WhosthereError) and not isinstance(error, InvalidVector):
            raise
        return [answer for item in items for answer in isolate_failures([item], ask)] if len(items) > 1 else [error]
    return answers


def as_rejection(error: Exception) -> RejectedImage:
    """What is told of the one to blame, where the others go on."""
    message = f"the image cannot be processed: {type(error).__name__}: {error}"
    return RejectedImage(message, code=Reason.UNREADABLE_IMAGE)
