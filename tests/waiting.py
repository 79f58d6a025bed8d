"""Waiting for conditions: tests never sleep for a guessed time, and one deadline suits every machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

DEADLINE = 300.0
"""Seconds after which a test gives up, longer than anything takes on a busy machine. Passing tests never reach it."""

_INTERVAL = 0.005


def wait_for(condition: Callable[[], Any], what: str = "the condition", seconds: float = DEADLINE) -> None:
    """Returns as soon as the condition is true. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for this: {what}"
        time.sleep(_INTERVAL)


async def wait_for_async(condition: Callable[[], Any], what: str = "the condition", seconds: float = DEADLINE) -> None:
    """Does the same while other tasks of the event loop go on."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for this: {what}"
        await asyncio.sleep(_INTERVAL)
