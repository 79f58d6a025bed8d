"""Runs functions at the same moment, in threads or in separate processes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

from tests.waiting import DEADLINE

Answer = TypeVar("Answer")

_barrier: list[Barrier] = []


def in_threads(functions: Sequence[Callable[[], Answer]]) -> list[Answer]:
    barrier = threading.Barrier(len(functions))

    def call(function: Callable[[], Answer]) -> Answer:
        barrier.wait(DEADLINE)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(call, functions))


def in_processes(function: Callable[..., Answer], arguments: Sequence[tuple[Any, ...]]) -> list[Answer]:
    """Returns the results of `function` for each of `arguments`, each in a fresh interpreter."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(arguments))
    with ProcessPoolExecutor(len(arguments), mp_context=context, initializer=_keep, initargs=(barrier,)) as pool:
        futures = [pool.submit(_call, function, some) for some in arguments]
        return [future.result(DEADLINE) for future in futures]


def _keep(barrier: Barrier) -> None:
    _barrier.append(barrier)


def _call(function: Callable[..., Answer], arguments: tuple[Any, ...]) -> Answer:
    _barrier[-1].wait(DEADLINE)
    return function(*arguments)
