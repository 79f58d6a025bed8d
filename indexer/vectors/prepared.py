"""Builds the index of a gallery by another pack before the gallery is bound to that pack.

The process that re-embeds stores it in a file with the pack's fingerprint in its name. After the switch it becomes the
gallery's index, and every process loads it instead of building one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from indexer.errors import StorageUnavailable, WhosthereError
from indexer.files import exclusive_lock, remove_leftovers
from indexer.gallery.change_log import check_pack_unchanged
from indexer.gallery.store import Store
from indexer.types import Gallery
from indexer.vectors.base import VectorEngine, header_of

log = logging.getLogger(__name__)


def prepared_path(folder: Path, gallery: Gallery) -> Path:
    """Returns the path of an index that is prepared for the pack of `gallery`."""
    return folder / f"{gallery.id}.{gallery.fingerprint}.index"


@contextmanager
def prepared(store: Store, folder: Path, engine: VectorEngine, gallery: Gallery, future: Gallery) -> Iterator[None]:
    """Builds and stores the index of `future`, which is `gallery` bound to another pack, for a block that binds it.

    The block also runs without the index, for example on a full disk. If it does not bind the gallery to that pack, the
    index is deleted.
    """
    path = prepared_path(folder, future)
    with ExitStack() as stack:
        try:
            is_alone = engine.can_prepare and stack.enter_context(_lock(path))
            if is_alone:
                stack.callback(_delete_unless_bound, store, engine, path, future)
                _build(store, engine, path, gallery, future)
        except (WhosthereError, OSError) as error:
            log.warning("The next index of gallery %s is not built before the switch: %s", gallery.name, error)
        yield


def delete_unused(folder: Path, files: Iterable[Path], fingerprints: Mapping[int, str]) -> None:
    """Deletes those of the files that killed processes have prepared.

    Args:
        folder: The folder of the indexes.
        files: Files in it, whose names begin with the id of a gallery.
        fingerprints: Fingerprint of the pack that each gallery is bound to, by the gallery's id.
    """
    parts = [path.name.split(".") for path in files]
    found = {(int(name[0]), name[1]) for name in parts if len(name) > 2 and name[2] == "index"}
    for gallery_id, fingerprint in found:
        if fingerprints.get(gallery_id) != fingerprint:
            path = folder / f"{gallery_id}.{fingerprint}.index"
            try:
                with _lock(path) as is_alone:
                    if is_alone:
                        path.unlink(missing_ok=True)
                        remove_leftovers(path)
            except OSError as error:
                log.warning("%s of a process that was killed could not be deleted: %s", path, error)


def _lock(path: Path) -> AbstractContextManager[bool]:
    """Locks a prepared index; yields False if another process is preparing it. Raises OSError."""
    return exclusive_lock(path.with_name(f"{path.name}.lock"))


def _build(store: Store, engine: VectorEngine, path: Path, gallery: Gallery, future: Gallery) -> None:
    engine.delete(path)  # of a run that was killed
    position = store.changes.position(gallery.id)
    if position is None:
        return  # the block finds out
    check_pack_unchanged(gallery, position.fingerprint)
    faces = store.reembeddings.count(gallery.id, future.fingerprint)
    header = header_of(future, position.last, position.mark, faces)
    index, is_stored = engine.build(path, header, lambda: store.reembeddings.pages(future))
    if not is_stored:
        engine.save(path, header, index)


def _delete_unless_bound(store: Store, engine: VectorEngine, path: Path, future: Gallery) -> None:
    try:
        position = store.changes.position(future.id)
        if position is None or position.fingerprint != future.fingerprint:
            engine.delete(path)
    except (StorageUnavailable, OSError) as error:
        log.warning("%s may be left behind: %s", path, error)
