"""A gallery is re-embedded while it is used and changed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from indexer.enrollment import reembed
from indexer.enrollment.reembed import Progress, Reembedder
from indexer.errors import Conflict
from indexer.gallery.store import Store
from indexer.models.packs import Pack
from indexer.types import Gallery
from indexer.vectors.engines import FaissEngine
from indexer.vectors.index_registry import IndexRegistry
from tests.indexer.enrollment.reembedding.numbered_images import (
    BATCH,
    FACES,
    NEW,
    OLD,
    THIRD,
    Numbers,
    check,
    embedding,
    enroll,
    new_face,
)
from tests.indexer.gallery.together import in_threads
from tests.postgres import Database, opened


def test_searches_use_the_old_embeddings_until_the_switch(
    store: Store, gallery: Gallery, images: dict[int, int], tmp_path: Path
) -> None:
    indexes = IndexRegistry(store, tmp_path, FaissEngine())

    def best(pack: Pack, image: int) -> int:
        """Returns the image of the best hit for a probe, searched as the service does."""
        index = indexes.get(store.galleries.get("staff")).catch_up()
        [[hit]] = index.nearest_faces(embedding(pack, image)[None], 1)
        assert hit.score == pytest.approx(1)
        return images[hit.face_id]

    pipeline = Numbers(NEW)
    run = Reembedder(store, pipeline, gallery)
    reports = []
    for progress in run.embed():
        reports.append(progress)
        check(store, OLD, images)
        assert best(OLD, 3) == 3
    assert reports == [Progress(done, 0, FACES) for done in (0, 4, 8, 10)]
    assert run.missing() == []
    ended = run.switch()
    assert (ended.switched, ended.missing, ended.gallery) == (True, 0, store.galleries.get("staff"))
    assert pipeline.images == list(range(FACES))
    check(store, NEW, images)
    for image in range(FACES):
        assert best(NEW, image) == image


def test_stopped_run_is_continued(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    stopped = Reembedder(store, Numbers(NEW), gallery).embed()
    assert [next(stopped) for _ in range(2)] == [Progress(0, 0, FACES), Progress(BATCH, 0, FACES)]
    stopped.close()
    check(store, OLD, images)
    pipeline = Numbers(NEW)
    run = Reembedder(store, pipeline, gallery)
    assert list(run.embed()) == [Progress(done, 0, FACES) for done in (4, 8, 10)]
    assert pipeline.images == [4, 5, 6, 7, 8, 9]
    assert run.switch().switched
    check(store, NEW, images)


def die(batches: int) -> None:
    if batches == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def reembed_and_die(url: str) -> None:
    reembed.BATCH = 3
    with opened(url) as store:
        Reembedder(store, Numbers(NEW, die), store.galleries.get("staff")).switch()


def test_killed_run_is_continued(store: Store, database: Database, gallery: Gallery, images: dict[int, int]) -> None:
    killed = multiprocessing.get_context("spawn").Process(target=reembed_and_die, args=(database.url,))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    check(store, OLD, images)
    [stored] = store.reembeddings.packs(gallery.id)
    assert (stored.model, stored.fingerprint, stored.was_bound) == (NEW.name, NEW.fingerprint, False)
    assert store.reembeddings.count(gallery.id, NEW.fingerprint) == 6
    pipeline = Numbers(NEW)
    assert Reembedder(store, pipeline, gallery).switch().switched
    assert pipeline.images == [6, 7, 8, 9]
    check(store, NEW, images)


def test_error_keeps_the_finished_embeddings(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    def fail(batches: int) -> None:
        if batches == 2:
            raise Conflict("the pack has changed")

    with pytest.raises(Conflict, match="pack has changed"):
        Reembedder(store, Numbers(NEW, fail), gallery).switch()
    check(store, OLD, images)
    assert store.reembeddings.count(gallery.id, NEW.fingerprint) == BATCH


def test_faces_may_be_enrolled_and_deleted_meanwhile(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    """Also between the last batch and the switch."""
    first, *_, last = images

    def meanwhile(batches: int) -> None:
        if batches == 1:
            store.faces.delete(gallery.id, last)  # not embedded yet
            store.faces.delete(gallery.id, first)  # in the batch that is being computed
            del images[first], images[last]
        if batches in (1, 2, 3, 4):
            [new] = enroll(store, gallery, [new_face(f"late{batches}", 100 + batches)])
            images[new] = 100 + batches

    pipeline = Numbers(NEW, meanwhile)
    run = Reembedder(store, pipeline, gallery)
    for _ in run.embed():
        pass
    [new] = enroll(store, gallery, [new_face("last", 200)])
    images[new] = 200
    check(store, OLD, images)
    ended = run.switch()
    assert (ended.switched, ended.missing) == (True, 0)
    assert len(pipeline.images) == len(set(pipeline.images)) == len(images) + 1
    check(store, NEW, images)


def test_face_enrolled_just_before_the_switch_is_embedded(
    store: Store, gallery: Gallery, images: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    switch, attempts = store.reembeddings.switch, []

    def late(*args: object) -> object:
        attempts.append(args)
        if len(attempts) == 1:
            [new] = enroll(store, gallery, [new_face("late", 200)])
            images[new] = 200
        return switch(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(store.reembeddings, "switch", late)
    assert Reembedder(store, Numbers(NEW), gallery).switch().switched
    assert len(attempts) == 2
    check(store, NEW, images)


def test_switching_back_restores_identical_embeddings(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    now = Reembedder(store, Numbers(NEW), gallery).switch().gallery
    ids = enroll(store, now, [new_face("late", image, pack=NEW) for image in (50, 51)])
    images |= dict(zip(ids, (50, 51), strict=True))
    store.identities.delete(gallery.id, "p0")
    gone = [face_id for face_id, image in images.items() if image < 2]
    for face_id in gone:
        del images[face_id]
    check(store, NEW, images)
    pipeline = Numbers(OLD)
    back = Reembedder(store, pipeline, now)
    assert list(back.embed()) == [Progress(FACES - 2, 0, FACES), Progress(FACES, 0, FACES)]
    assert back.switch().switched
    assert pipeline.images == [50, 51]
    check(store, OLD, images)
    again = Numbers(NEW)
    assert Reembedder(store, again, store.galleries.get("staff")).switch().switched
    assert again.images == []
    check(store, NEW, images)


def test_of_two_runs_to_one_pack_one_switches(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    def run() -> bool:
        try:
            return Reembedder(store, Numbers(NEW), gallery).switch().switched
        except Conflict:
            return False

    assert sorted(in_threads([run] * 2)) == [False, True]
    check(store, NEW, images)


def test_of_two_runs_to_different_packs_one_switches(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    first, second = Reembedder(store, Numbers(NEW), gallery), Reembedder(store, Numbers(THIRD), gallery)
    one, other = first.embed(), second.embed()
    for _ in zip(one, other, strict=True):
        check(store, OLD, images)
    assert first.switch().switched
    with pytest.raises(Conflict, match="re-embedded meanwhile"):
        second.switch()
    check(store, NEW, images)
    last = Reembedder(store, pipeline := Numbers(THIRD), store.galleries.get("staff"))
    assert last.switch().switched
    assert pipeline.images == []
    check(store, THIRD, images)
    assert {
        pack.model: store.reembeddings.count(gallery.id, pack.fingerprint)
        for pack in store.reembeddings.packs(gallery.id)
    } == {
        "old": FACES,
        "new": FACES,
    }


def test_gallery_is_not_reembedded_with_its_own_pack(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    with pytest.raises(Conflict, match=r"bound to old .* already"):
        Reembedder(store, Numbers(OLD), gallery).switch()
    assert store.reembeddings.packs(gallery.id) == []
