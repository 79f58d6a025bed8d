"""Long batches give way to small images between their slices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from indexer.slices import end_slice
from indexer.types import Pick
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import ImageResult
from search_service import inference_queue
from search_service.inference_queue import InferenceQueue
from tests import photos
from tests.search_service.queueing import LARGEST, HeldPipeline, add, run, running_queue, start_computing
from tests.waiting import DEADLINE


class SlicedPipeline(HeldPipeline):
    """Ends a slice in the middle of each image."""

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        results = super().describe(images, pick, gate, liveness)
        end_slice()
        return results


async def order_of_answers(queue: InferenceQueue, held: HeldPipeline, first: bytes, *others: bytes) -> list[int]:
    """Returns the places of images in the order of their answers; the others arrive while the first is computed."""
    answered: list[int] = []

    def note(place: int, _: object) -> None:
        answered.append(place)

    tasks = [await start_computing(queue, held, first)]
    tasks += await add(*(queue.describe([image], held, LARGEST) for image in others))
    for place, task in enumerate(tasks):
        task.add_done_callback(partial(note, place))
    held.go.set()
    await asyncio.gather(*tasks)
    return answered


@pytest.mark.parametrize(
    ("patience", "order", "sizes"),
    [(0.0, ["small", "tiny", "first", "large"], [1, 2, 1]), (DEADLINE, ["first", "large", "small", "tiny"], [1, 3])],
    ids=["long", "short"],
)
def test_small_images_are_answered_between_the_slices_of_a_long_batch(
    monkeypatch: pytest.MonkeyPatch, patience: float, order: list[str], sizes: list[int]
) -> None:
    monkeypatch.setattr(inference_queue, "PATIENCE_SECONDS", patience)
    sliced = SlicedPipeline()
    large = photos.encode(np.zeros((3000, 3000, 3), np.uint8), "PNG", compress_level=1)
    with running_queue() as queue:
        answered = run(lambda: order_of_answers(queue, sliced, large, large, b"x", b"y"))
    assert ([("first", "large", "small", "tiny")[place] for place in answered], sliced.sizes) == (order, sizes)


def test_batches_give_way_to_each_other_up_to_a_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_queue, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(inference_queue, "MAX_DEPTH", 2)
    with running_queue(max_batch=1) as queue:
        sliced = SlicedPipeline()
        assert run(lambda: order_of_answers(queue, sliced, *(b"%d" % n for n in range(5)))) == [2, 1, 0, 4, 3]
