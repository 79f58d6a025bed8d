"""Tests that an AppContext creates each of its objects once, also with several threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine

from indexer import app_context as module
from indexer.app_context import AppContext
from indexer.errors import NotFound
from indexer.gallery.database import open_database
from indexer.settings import read_settings
from tests.indexer.gallery.together import in_threads
from tests.variants import SETTINGS
from tests.waiting import wait_for


def test_usable_returns_named_pack_or_default_pack(tmp_path: Path) -> None:
    context = AppContext(read_settings(SETTINGS, home=tmp_path, model="sface"))
    assert [context.usable(name).name for name in (None, "", "sface")] == ["sface"] * 3
    with pytest.raises(NotFound):
        context.usable("arcface")
    context.close()


class RecordingLock:
    """A lock that records which threads tried to acquire it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.threads: set[int] = set()

    def __enter__(self) -> None:
        self.threads.add(threading.get_ident())
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def test_objects_are_created_once_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since Python 3.12, `cached_property` has no lock."""
    free: list[bool] = []
    lock = RecordingLock()

    def open_slowly(url: str) -> Engine:
        wait_for(lambda: len(lock.threads) == 8, "the other threads to try the lock")
        thread = threading.Thread(target=lambda: free.append(lock.lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        return open_database(url)

    monkeypatch.setattr(module, "open_database", open_slowly)
    context = AppContext(read_settings(SETTINGS, home=tmp_path))
    monkeypatch.setattr(context, "lock", lock)
    stores = in_threads([lambda: context.store] * 8)
    indexes = in_threads([lambda: context.indexes] * 8)
    context.close()
    assert free == [False]
    assert len({id(part) for part in (*stores, *indexes)}) == 2
