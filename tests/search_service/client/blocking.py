"""Wraps the async client in the interface of the sync one, so that both run the same tests."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from search_service.client import AsyncClient, Client
from search_service.client.async_client import Handle


class _Blocking:
    def __init__(self, target: Handle[Any], runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return self._as_sync(getattr(self._target, name))

    def _as_sync(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            return self._as_sync(self._runner.run(value))
        if isinstance(value, AsyncIterator):
            return self._each(value)
        if isinstance(value, Handle):
            return _Blocking(value, self._runner)
        if inspect.ismethod(value):
            return lambda *args, **kwargs: self._as_sync(value(*args, **kwargs))
        return value

    def _each(self, entries: AsyncIterator[Any]) -> Iterator[Any]:
        async def next_entry() -> Any:
            return await anext(entries, None)

        while (entry := self._runner.run(next_entry())) is not None:
            yield entry


def blocking(client: AsyncClient, runner: asyncio.Runner) -> Client:
    return cast(Client, _Blocking(client, runner))
