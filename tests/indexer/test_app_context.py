"""Tests that an AppContext creates each of its objects once, also with several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from indexer import app_context as module
from indexer.app_context import AppContext
from indexer.errors import NotFound
from indexer.files import write_atomically
from indexer.gallery.database import open_database
from indexer.models.packs import SFACE
from indexer.settings import read_settings
from indexer.types import LivenessMode
from tests.indexer.gallery.together import in_threads
from tests.variants import SETTINGS
from tests.waiting import wait_for


def test_usable_returns_named_pack_or_default_pack(tmp_path: Path) -> None:
    context = AppContext(read_settings(SETTINGS, home=tmp_path, model="sface"))
    assert [context.usable(name).name for name in (None, "", "sface")] == ["sface"] * 3
    with pytest.raises(NotFound):
        context.usable("arcface")
    context.close()


@pytest.fixture
def permissive_umask() -> Iterator[None]:
    former = os.umask(0)
    yield
    os.umask(former)


def modes(folder: Path) -> dict[str, int]:
    """Returns the permissions of everything in a folder, and its own as `.`."""
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


@pytest.mark.usefixtures("permissive_umask")
@pytest.mark.parametrize("database", ["home", "elsewhere"])
def test_data_is_private_with_every_umask_and_made_private_when_opened(tmp_path: Path, database: str) -> None:
    home, place = tmp_path / "new" / "home", tmp_path / "new" / database
    settings = read_settings(SETTINGS, home=home, database_url=f"sqlite:///{place / 'whosthere.db'}")

    def use(name: str) -> dict[str, int]:
        with closing(AppContext(settings)) as context:
            context.store.galleries.create(name, "sface", SFACE.fingerprint, SFACE.dim)
            write_atomically(settings.indexes_folder / name, [b"a snapshot"])
            (home / "models").mkdir(exist_ok=True)
            (home / "models" / "shared").touch()
            found = {f"{folder.name}/{path}": mode for folder in {home, place} for path, mode in modes(folder).items()}
        return {path: mode for path, mode in found.items() if "/models" not in path}

    created = use("staff")
    assert {mode for path, mode in created.items() if path.endswith(("/.", "indexes"))} == {0o700}
    assert {f"{database}/whosthere.db{ending}" for ending in ("", "-wal", "-shm")} <= set(created)
    assert all(mode & 0o077 == 0 for mode in created.values())
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    for folder in (home, place):
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    repaired = use("guests")
    assert {path: mode for path, mode in repaired.items() if mode & 0o077} == (
        {} if database == "home" else {"elsewhere/.": 0o755}
    )
    assert (home / "models" / "shared").stat().st_mode & 0o777 == 0o644


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


@pytest.mark.parametrize("setting", [None, *LivenessMode])
@pytest.mark.parametrize("wanted", [None, *LivenessMode])
def test_search_takes_the_stricter_and_enrollment_the_wanted_liveness(
    tmp_path: Path, setting: LivenessMode | None, wanted: LivenessMode | None
) -> None:
    context = AppContext(read_settings(SETTINGS, home=tmp_path, liveness=setting))
    order = [None, *LivenessMode]
    assert context.search_liveness(wanted) is (max(setting, wanted, key=order.index) or LivenessMode.OFF)
    assert context.enrollment_liveness(wanted) is (wanted or setting or LivenessMode.OFF)
    context.close()
