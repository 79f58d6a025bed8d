"""Reads and describes photos in chunks, on several threads and within bounds of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from indexer.enrollment.rows import Row
from indexer.errors import RejectedImage, WhosthereError
from indexer.types import Pick
from indexer.vision.batch_errors import as_rejection, describe_error, isolate_failures, may_be_of_item
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import FacePipeline, ImageResult

CHUNK = 16
"""Photos that one thread processes at a time, and that enrollment commits together."""

MAX_CHUNK_BYTES = 64 * 2**20
"""Bytes of photo files that one thread holds at a time, or one larger photo. Together with the pixels of
`batches.MAX_BATCH_PIXELS`, 144 MB, or one photo of 300 MB (`decode.Limits`), this bounds the memory of a thread."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Networks(Protocol):
    """A FacePipeline, or an object that uses one."""

    def check(self) -> None: ...


class FaceDescriber(Networks, Protocol):
    """Networks that describe faces."""

    def load(self) -> None: ...

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]: ...


def process_chunks(
    rows: Sequence[Row], process: Callable[[Sequence[Row]], Result], workers: int, name: str
) -> Generator[Result]:
    """Yields the result of `process` for each chunk of rows, in order, computed by threads a few chunks ahead."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    waiting: deque[Future[Result]] = deque()
    try:
        for chunk in _chunks(rows):
            waiting.append(pool.submit(process, chunk))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yields CHUNK rows at a time, or fewer so that photos whose identity is a guess from their numbered names stay
    together: their faces decide on it."""
    start = 0
    while start < len(rows):
        end = min(start + CHUNK, len(rows))
        whole = end
        while start < whole < len(rows) and _is_same_guess(rows[whole - 1], rows[whole]):
            whole -= 1
        yield rows[start : whole if whole > start else end]
        start = whole if whole > start else end


def _is_same_guess(one: Row, other: Row) -> bool:
    same = one.person.external_id == other.person.external_id
    return same and (one.stem is not None or other.stem is not None)


def read_batches(rows: Sequence[Row], max_bytes: int) -> Iterator[list[tuple[Row, bytes | RejectedImage]]]:
    """Yields rows with their photos, or why they cannot be read, as many together as MAX_CHUNK_BYTES allows.

    `max_bytes` is the limit of one photo.
    """
    batch: list[tuple[Row, bytes | RejectedImage]] = []
    for row in rows:
        try:
            batch.append((row, row.read(max_bytes)))
        except RejectedImage as rejection:
            batch.append((row, rejection.without_traceback()))
        held = sum(len(image) for _, image in batch if isinstance(image, bytes))
        if held + max_bytes > MAX_CHUNK_BYTES:  # the next photo may be as large as allowed
            yield batch
            batch = []
    if batch:
        yield batch


def describe_or_reject(
    pipeline: FaceDescriber,
    images: Sequence[bytes],
    pick: Pick | None,
    gate: bool = False,
    liveness: LivenessCheck | None = None,
) -> list[ImageResult]:
    """Describes images. One that the pipeline fails on is rejected. Raises as `process_each` does."""
    return _or_reject(process_each(pipeline, images, lambda some: pipeline.describe(some, pick, gate, liveness)))


def detect_or_reject(
    pipeline: FacePipeline, images: Sequence[bytes], pick: Pick | None, liveness: LivenessCheck | None = None
) -> list[ImageResult]:
    """Detects the faces of images in the same way, without embedding them."""
    return _or_reject(process_each(pipeline, images, lambda some: pipeline.detect(some, pick, liveness)))


def _or_reject(results: Sequence[ImageResult | Exception]) -> list[ImageResult]:
    return [one if isinstance(one, ImageResult) else ImageResult(rejection=as_rejection(one)) for one in results]


def process_each(
    networks: Networks, items: Sequence[Item], process: Callable[[Sequence[Item]], Iterable[Result]]
) -> list[Result | Exception]:
    """Returns the result of `process`, which uses the networks, for each item, or the error that this item causes.

    Raises:
        ModelUnavailable: The networks fail on every image.
        WhosthereError: Another error that is not caused by a single item.
    """
    try:
        results = isolate_failures(items, process)
    except Exception as error:
        if not may_be_of_item(error):
            raise
        results = [error] * len(items)
    failed = [place for place, result in enumerate(results) if isinstance(result, Exception)]
    if failed:
        networks.check()
    for place in failed:  # again, as the networks may have failed for a moment only
        (results[place],) = isolate_failures([items[place]], process)
    errors = [result for result in results if isinstance(result, Exception)]
    for one in errors:
        if not may_be_of_item(one):
            raise one
    if len(errors) == len(items) > 1 and len({describe_error(one) for one in errors}) == 1:
        raise WhosthereError(
            f"all {len(items)} photos fail with the same error: {describe_error(errors[0])}"
        ) from errors[0]
    return results
