"""Divides images into batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

MAX_BATCH_PIXELS = 48_000_000
"""Decoded pixels held in memory at a time: four photos of 12 MP, 144 MB."""

Item = TypeVar("Item")


def batch_by_pixels(items: Iterable[Item], pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yields the items in batches of at most MAX_BATCH_PIXELS; a single larger item is a batch too."""
    batch: list[Item] = []
    total = 0
    for item in items:
        size = pixels(item)
        if batch and total + size > MAX_BATCH_PIXELS:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
