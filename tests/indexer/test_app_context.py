"""A home makes each of its parts once, however many ask for it at the same moment."""

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


def test_the_pack_of_that_name_or_the_one_for_new_galleries(tmp_path: Path) -> None:
    home = AppContext(read_settings(SETTINGS, home=tmp_path, model="sface"))
    assert [home.usable(name).name for name in (None, "", "sface")] == ["sface"] * 3
    with pytest.raises(NotFound):
        home.usable("arcface")
    home.close()


class NotedLock:
    """A lock that knows which threads have asked for it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.threads: set[int] = set()

    def __enter__(self) -> None:
        self.threads.add(threading.get_ident())
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def test_every_part_is_made_once_and_under_the_homes_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.12 on, `cached_property` has no lock of its own."""
    free: list[bool] = []
    making = NotedLock()

    def slowly(url: str) -> Engine:
        wait_for(lambda: len(making.threads) == 8, "the other threads to ask for it, too")
        thread = threading.Thread(target=lambda: free.append(making.lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        return open_database(url)

    monkeypatch.setattr(module, "open_database", slowly)
    home = AppContext(read_settings(SETTINGS, home=tmp_path))
    monkeypatch.setattr(home, "making", making)
    stores = in_threads([lambda: home.store] * 8)
    indexes = in_threads([lambda: home.indexes] * 8)
    home.close()
    assert free == [False]
    assert len({id(part) for part in (*stores, *indexes)}) == 2
