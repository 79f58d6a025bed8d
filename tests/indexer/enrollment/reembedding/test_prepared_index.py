"""The index of the new pack is built before the gallery is bound to it, so that a service never waits for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from indexer.enrollment.reembed import Missing, Reembedder
from indexer.gallery.store import Store
from indexer.types import Gallery, Tier
from indexer.vectors.base import FacePages, Header, VectorIndex
from indexer.vectors.engines import FaissEngine
from indexer.vectors.index_registry import IndexRegistry
from tests.indexer.enrollment.reembedding.numbered_images import FACES, NEW, OLD, Numbers, embedding, enroll, new_face
from tests.indexer.vectors.held_builds import HeldEngine
from tests.postgres import Database, opened
from tests.waiting import DEADLINE, wait_for

TIERS = pytest.mark.parametrize("tier", [Tier.EXACT, Tier.COMPRESSED])


class HookedEngine(FaissEngine):
    """Calls `hook` after each build, when the index is stored and the gallery not yet switched."""

    def __init__(self, tier: Tier, hook: Callable[[], object]) -> None:
        super().__init__(tier)
        self._hook = hook

    def build(self, path: Path, header: Header, faces: FacePages) -> tuple[VectorIndex, bool]:
        built = super().build(path, header, faces)
        self._hook()
        return built


def reembedder(store: Store, gallery: Gallery, folder: Path, engine: FaissEngine) -> Reembedder:
    """Returns what the command runs, in a process of its own."""
    return Reembedder(store, Numbers(NEW), gallery, indexes=IndexRegistry(store, folder, engine))


def index_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.index*"))


def best(index: VectorIndex, image: int) -> int:
    """Returns the face that is found for the embedding of that image by the new pack; 0 if it is in no index."""
    [[hit]] = index.nearest_faces(embedding(NEW, image)[None], 1)
    return hit.face_id if hit.score > 0.999 else 0


@TIERS
@pytest.mark.parametrize("restarted", [False, True])
def test_service_builds_no_index_after_the_switch(
    store: Store, gallery: Gallery, images: dict[int, int], tmp_path: Path, tier: Tier, restarted: bool
) -> None:
    """Also with faces that are enrolled and deleted between the build and the switch."""
    first, *_ = images

    def meanwhile() -> None:
        enroll(store, gallery, [new_face("p30", 30)])
        store.faces.delete(gallery.id, first)

    engine = HeldEngine(tier)
    service = IndexRegistry(store, tmp_path, engine)
    service.serve()
    assert len(service.get(gallery).catch_up(DEADLINE)) == FACES
    now = reembedder(store, gallery, tmp_path, HookedEngine(tier, meanwhile)).switch().gallery
    assert now.model == NEW.name
    if restarted:
        service = IndexRegistry(store, tmp_path, engine)
    index = service.get(store.galleries.get("staff")).catch_up(DEADLINE)
    assert engine.builds == 1
    assert len(index) == FACES
    assert [best(index, image) for face, image in images.items() if face != first] == list(images)[1:]
    assert best(index, images[first]) == 0
    assert best(index, 30) == max(index.face_ids())
    assert f"{gallery.id}.{NEW.fingerprint}.index" not in index_files(tmp_path)
    service.close()
    assert index_files(tmp_path) == [f"{gallery.id}.index"]
    again = IndexRegistry(store, tmp_path, engine).get(now)
    assert again.catch_up().face_ids().tolist() == index.face_ids().tolist()
    assert engine.builds == 1


def test_index_is_deleted_if_the_gallery_is_not_switched(
    store: Store, gallery: Gallery, images: dict[int, int], tmp_path: Path
) -> None:
    """A face that cannot be embedded was enrolled meanwhile."""

    def meanwhile() -> None:
        assert f"{gallery.id}.{NEW.fingerprint}.index.lock" in index_files(tmp_path)
        enroll(store, gallery, [new_face("no crop", 31, keep=False)])

    assert not reembedder(store, gallery, tmp_path, HookedEngine(Tier.COMPRESSED, meanwhile)).switch().switched
    assert index_files(tmp_path) == []


def test_no_index_is_built_if_faces_are_missing(
    store: Store, gallery: Gallery, some_missing: list[Missing], tmp_path: Path
) -> None:
    engine = HeldEngine(Tier.COMPRESSED)
    run = reembedder(store, gallery, tmp_path, engine)
    assert not run.switch().switched
    assert engine.builds == 0
    now = run.switch(drop_missing=True).gallery
    assert engine.builds == 1
    assert len(IndexRegistry(store, tmp_path, engine).get(now).catch_up()) == FACES
    assert engine.builds == 1


def test_switch_succeeds_without_room_for_the_index(
    store: Store, gallery: Gallery, images: dict[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "indexes"
    folder.write_text("not a folder")
    now = reembedder(store, gallery, folder, FaissEngine()).switch().gallery
    assert now.model == NEW.name
    assert "is not built before the switch" in caplog.text
    assert len(IndexRegistry(store, folder, FaissEngine()).get(now).catch_up()) == FACES


def _switch_and_die(url: str, folder: str) -> None:
    with opened(url) as store:
        engine = HookedEngine(Tier.COMPRESSED, lambda: os.kill(os.getpid(), signal.SIGKILL))
        reembedder(store, store.galleries.get("staff"), Path(folder), engine).switch()


def test_index_of_a_killed_run_is_deleted_and_that_of_a_running_one_is_kept(
    store: Store, database: Database, gallery: Gallery, images: dict[int, int], tmp_path: Path
) -> None:
    service = IndexRegistry(store, tmp_path, FaissEngine(Tier.COMPRESSED))
    killed = multiprocessing.get_context("spawn").Process(target=_switch_and_die, args=(database.url, str(tmp_path)))
    killed.start()
    killed.join(DEADLINE)
    assert killed.exitcode == -signal.SIGKILL
    left = f"{gallery.id}.{NEW.fingerprint}.index"
    assert left in index_files(tmp_path)
    service.save()
    assert index_files(tmp_path) == []

    def sweep() -> None:
        service.save()
        assert left in index_files(tmp_path)

    assert reembedder(store, gallery, tmp_path, HookedEngine(Tier.COMPRESSED, sweep)).switch().switched


def test_index_prepared_before_a_rollback_and_a_second_switch_is_not_used(
    store: Store, gallery: Gallery, images: dict[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The embeddings may have been computed again meanwhile, with other results."""
    now = reembedder(store, gallery, tmp_path, FaissEngine(Tier.COMPRESSED)).switch().gallery
    IndexRegistry(store, tmp_path, FaissEngine(Tier.COMPRESSED)).get(now).catch_up()
    back = Reembedder(store, Numbers(OLD), now).switch().gallery
    now = Reembedder(store, Numbers(NEW), back).switch().gallery
    caplog.set_level("INFO")
    engine = HeldEngine(Tier.COMPRESSED)
    index = IndexRegistry(store, tmp_path, engine).get(now)
    assert len(index.catch_up()) == FACES
    assert engine.builds == 1
    assert "re-embedded meanwhile" in caplog.text
    wait_for(lambda: index.state().snapshot_seq == now.seq, "the index to be stored")
