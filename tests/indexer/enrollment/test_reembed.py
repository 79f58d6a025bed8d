"""A gallery is re-embedded while it is used: nothing is lost, nothing is mixed, and the way back is open.

Most of it runs over pipelines that look at no pixels, for speed; the last tests over the real one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.enrollment import reembed
from indexer.enrollment.enroller import Enroller
from indexer.enrollment.reembed import Missing, Progress, Reembedder, hash_images
from indexer.enrollment.rows import Row
from indexer.errors import Conflict, InvalidRequest, InvalidVector
from indexer.gallery.change_log import ChangeKind
from indexer.gallery.faces import NewFace
from indexer.gallery.store import Store
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, Pack
from indexer.types import Box, Gallery, Outcome, Person, Pick, Vectors, sha256
from indexer.vectors.engines import FaissEngine
from indexer.vectors.index_registry import IndexRegistry
from indexer.vision import crops
from indexer.vision.pipeline import FacePipeline, ImageResult
from tests.indexer.gallery.faces import face, vector
from tests.indexer.gallery.together import in_threads
from tests.photos import aligned_face, astronaut, six_people
from tests.postgres import Database, opened

OLD = replace(SFACE, name="old", dim=16)
NEW = replace(SFACE, name="new", dim=24)
THIRD = replace(SFACE, name="third", dim=8)

BATCH = 4
FACES = 10

MAX_BYTES = 10_000_000


def embedding(pack: Pack, image: int) -> NDArray[np.float32]:
    """What a pack makes of image number `image`."""
    return vector(1000 * pack.dim + image, pack.dim)


def photo(image: int) -> bytes:
    return b"photo %d" % image


def crop(image: int) -> NDArray[np.uint8]:
    """A crop that tells the number of its image."""
    return np.full((112, 112, 3), image, np.uint8)


class Numbers(FacePipeline):
    """Tells embeddings by the number of an image, of its crop as of its photo."""

    def __init__(self, pack: Pack, then: Callable[[int], None] = lambda batches: None) -> None:
        super().__init__(pack, ModelFiles(Path("nowhere")))
        self.images: list[int] = []
        self.batches = 0
        self._then = then

    def load(self) -> None:
        pass

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        numbers = [int(one[0, 0, 0]) for one in crops]
        self.images += numbers
        self.batches += 1
        self._then(self.batches)
        return np.stack([embedding(self.pack, number) for number in numbers])

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[ImageResult]:
        """Each photo shows the person, and another one to their right."""
        seen = []
        for number in (int(image.split()[1]) for image in images):
            found = replace(face(embedding(self.pack, number)), crop=crop(number))
            box = found.detection.box
            beside = replace(found.detection, box=Box(box.x + box.w, box.y, box.w, box.h))
            stranger = replace(found, detection=beside, embedding=embedding(self.pack, 255))
            seen.append(ImageResult((found,) if gate else (stranger, found)))
            self.images.append(number)
        return seen


def new_face(external_id: str, image: int, keep: bool = True, pack: Pack = OLD) -> NewFace:
    kept = crops.encode(crop(image)) if keep else None
    return NewFace(Person(external_id), sha256(photo(image)), face(embedding(pack, image)), kept)


def enroll(store: Store, gallery: Gallery, faces: Sequence[NewFace]) -> list[int]:
    return [answer.face_id or 0 for answer in store.faces.enroll(gallery, faces)]


def check(store: Store, pack: Pack, images: dict[int, int]) -> None:
    """The gallery holds the faces of these images, by face id, embedded by that pack, and nothing else."""
    gallery = store.galleries.get("staff")
    assert (gallery.model, gallery.fingerprint, gallery.dim) == (pack.name, pack.fingerprint, pack.dim)
    parts = list(store.embeddings.pages(gallery))
    found = {f: v for part in parts for f, v in zip(part.face_ids.tolist(), part.vectors, strict=True)}
    assert set(found) == set(images)
    for face_id, image in images.items():
        assert found[face_id].tobytes() == embedding(pack, image).tobytes()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reembed, "BATCH", BATCH)
    monkeypatch.setattr(reembed, "PHOTOS", 3)


@pytest.fixture
def gallery(store: Store) -> Gallery:
    return store.galleries.create("staff", OLD.name, OLD.fingerprint, OLD.dim)


@pytest.fixture
def images(store: Store, gallery: Gallery) -> dict[int, int]:
    """Images 0 to 9 by face id, all enrolled with their crops, two a person."""
    ids = enroll(store, gallery, [new_face(f"p{image // 2}", image) for image in range(FACES)])
    return dict(zip(ids, range(FACES), strict=True))


def test_old_answers_until_the_switch_and_new_ones_after(
    store: Store, gallery: Gallery, images: dict[int, int], tmp_path: Path
) -> None:
    indexes = IndexRegistry(store, tmp_path, FaissEngine())

    def best(pack: Pack, image: int) -> int:
        """The face found for that image as a probe, as a service finds it."""
        index = indexes.get(store.galleries.get("staff")).catch_up()
        [[hit]] = index.nearest_faces(embedding(pack, image)[None], 1)
        assert hit.score == pytest.approx(1)
        return images[hit.face_id]

    pipeline = Numbers(NEW)
    run = Reembedder(store, pipeline, gallery)
    told = []
    for progress in run.embed():
        told.append(progress)
        check(store, OLD, images)
        assert best(OLD, 3) == 3
    assert told == [Progress(done, 0, FACES) for done in (0, 4, 8, 10)]
    assert run.missing() == []
    ended = run.switch()
    assert (ended.switched, ended.missing, ended.gallery) == (True, 0, store.galleries.get("staff"))
    assert pipeline.images == list(range(FACES))
    check(store, NEW, images)
    for image in range(FACES):
        assert best(NEW, image) == image


def test_it_goes_on_where_it_was_stopped(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
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


def test_it_goes_on_where_it_was_killed(
    store: Store, database: Database, gallery: Gallery, images: dict[int, int]
) -> None:
    killed = multiprocessing.get_context("spawn").Process(target=reembed_and_die, args=(database.url,))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    check(store, OLD, images)
    [beside] = store.reembeddings.packs(gallery.id)
    assert (beside.model, beside.fingerprint, beside.was_bound) == (NEW.name, NEW.fingerprint, False)
    assert store.reembeddings.count(gallery.id, NEW.fingerprint) == 6
    pipeline = Numbers(NEW)
    assert Reembedder(store, pipeline, gallery).switch().switched
    assert pipeline.images == [6, 7, 8, 9]
    check(store, NEW, images)


def test_an_error_in_the_middle_loses_nothing(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    def fail(batches: int) -> None:
        if batches == 2:
            raise Conflict("the machine is on fire")

    with pytest.raises(Conflict, match="on fire"):
        Reembedder(store, Numbers(NEW, fail), gallery).switch()
    check(store, OLD, images)
    assert store.reembeddings.count(gallery.id, NEW.fingerprint) == BATCH


def test_faces_come_and_go_meanwhile(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    """Also in the moment before the switch."""
    first, *_, last = images

    def meanwhile(batches: int) -> None:
        if batches == 1:
            store.faces.delete(gallery.id, last)  # not embedded yet
            store.faces.delete(gallery.id, first)  # of the batch that is computed this moment
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


def test_a_face_enrolled_between_the_last_look_and_the_switch(
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


@pytest.fixture
def some_missing(store: Store, gallery: Gallery, images: dict[int, int]) -> list[Missing]:
    """Three faces more without crops, images 20 to 22."""
    faces = [new_face("no crop", image, keep=False) for image in (20, 21, 22)]
    ids = enroll(store, gallery, faces)
    return [Missing(face_id, "no crop", new.image_sha256) for face_id, new in zip(ids, faces, strict=True)]


def test_missing_faces_are_listed_and_the_switch_refused(
    store: Store, gallery: Gallery, images: dict[int, int], some_missing: list[Missing]
) -> None:
    run = Reembedder(store, Numbers(NEW), gallery)
    assert list(run.embed())[-1] == Progress(FACES, 3, FACES + 3)
    ended = run.switch()
    assert (ended.switched, ended.missing) == (False, 3)
    assert run.missing() == some_missing
    check(store, OLD, images | {face.face_id: 20 + i for i, face in enumerate(some_missing)})


def test_missing_faces_are_dropped_when_asked_for(
    store: Store, gallery: Gallery, images: dict[int, int], some_missing: list[Missing]
) -> None:
    before = store.changes.last(gallery.id) or 0
    ended = Reembedder(store, Numbers(NEW), gallery).switch(drop_missing=True)
    assert (ended.switched, ended.missing) == (True, 3)
    check(store, NEW, images)
    entries = [change.entry for change in store.changes.since(gallery.id, before)]
    assert [entry.kind for entry in entries] == [ChangeKind.FACE_REMOVED] * 3 + [ChangeKind.REEMBEDDED]
    assert [entry.face_id for entry in entries[:3]] == [face.face_id for face in some_missing]
    assert store.identities.get(gallery.id, "no crop").faces == 0


def test_the_missing_are_those_that_the_switch_found(
    store: Store, gallery: Gallery, images: dict[int, int], some_missing: list[Missing]
) -> None:
    """One came and one went since the last look."""
    run = Reembedder(store, Numbers(NEW), gallery)
    for _ in run.embed():
        pass
    late = new_face("late", 30, keep=False)
    [new] = enroll(store, gallery, [late])
    store.faces.delete(gallery.id, some_missing[0].face_id)
    ended = run.switch(drop_missing=True)
    assert (ended.switched, ended.missing) == (True, 3)
    assert run.missing() == [*some_missing[1:], Missing(new, "late", late.image_sha256)]
    check(store, NEW, images)


def test_a_face_is_never_dropped_unlooked_at(
    store: Store, gallery: Gallery, images: dict[int, int], some_missing: list[Missing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody forgets the embeddings and begins anew just before the switch: what was there is made again."""
    switch = store.reembeddings.switch
    forgotten: list[int] = []

    def forget(*args: object) -> object:
        if not forgotten:
            forgotten.append(store.reembeddings.delete(gallery.id, NEW.fingerprint))
            store.reembeddings.start(gallery, NEW.name, NEW.fingerprint, NEW.dim)
        return switch(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(store.reembeddings, "switch", forget)
    ended = Reembedder(store, Numbers(NEW), gallery).switch(drop_missing=True)
    assert forgotten == [FACES]
    assert (ended.switched, ended.missing) == (True, 3)
    check(store, NEW, images)


def test_photos_stand_in_for_crops(
    store: Store, gallery: Gallery, images: dict[int, int], some_missing: list[Missing], tmp_path: Path
) -> None:
    """The face where the enrolled one was is taken; a photo that has changed since it was hashed is none."""
    for image in (20, 21, 22, 3):
        (tmp_path / "below").mkdir(exist_ok=True)
        (tmp_path / "below" / str(image)).write_bytes(photo(image))
    (tmp_path / "below" / "large").write_bytes(bytes(1000))
    found = hash_images([tmp_path, tmp_path / "below" / "20"], 100)
    assert found == {sha256(photo(i)): tmp_path / "below" / str(i) for i in (20, 21, 22, 3)}
    (tmp_path / "below" / "21").write_bytes(photo(7))
    (tmp_path / "below" / "22").unlink()
    pipeline = Numbers(NEW)
    run = Reembedder(store, pipeline, gallery, found)
    assert list(run.embed())[-1] == Progress(FACES + 1, 2, FACES + 3)
    assert sorted(pipeline.images) == [*range(FACES), 20]
    assert run.missing() == some_missing[1:]
    assert run.switch(drop_missing=True).switched
    check(store, NEW, images | {some_missing[0].face_id: 20})


def test_folders_that_are_not_there() -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere cannot be read: No such file.*; expected photos or"):
        hash_images([Path("nowhere")], MAX_BYTES)


def test_the_way_back_gives_the_same_bits(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
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


def test_two_at_once_towards_one_pack(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    def run() -> bool:
        try:
            return Reembedder(store, Numbers(NEW), gallery).switch().switched
        except Conflict:
            return False

    assert sorted(in_threads([run] * 2)) == [False, True]
    check(store, NEW, images)


def test_two_at_once_towards_different_packs(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
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


def test_towards_its_own_pack(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    with pytest.raises(Conflict, match=r"bound to old .* already"):
        Reembedder(store, Numbers(OLD), gallery).switch()
    assert store.reembeddings.packs(gallery.id) == []


def test_a_damaged_crop_keeps_no_other_face_out(
    store: Store, gallery: Gallery, images: dict[int, int], tmp_path: Path
) -> None:
    """Its photo stands in where there is one."""
    damaged = [replace(new_face("eve", image), crop=b"nonsense") for image in (30, 31)]
    with_photo, without = enroll(store, gallery, damaged)
    (tmp_path / "photo").write_bytes(photo(30))
    run = Reembedder(store, Numbers(NEW), gallery, hash_images([tmp_path], MAX_BYTES))
    assert not run.switch().switched
    assert [face.face_id for face in run.missing()] == [without]
    run.switch(drop_missing=True)
    check(store, NEW, images | {with_photo: 30})


def test_a_crop_that_the_network_fails_on_keeps_no_other_face_out(
    store: Store, gallery: Gallery, images: dict[int, int]
) -> None:
    class Fails(Numbers):
        def embed(self, crops: NDArray[np.uint8]) -> Vectors:
            if (crops[:, 0, 0, 0] == 6).any():
                raise InvalidVector("the network answered with an embedding that has no direction")
            return super().embed(crops)

    run = Reembedder(store, Fails(NEW), gallery)
    assert list(run.embed())[-1] == Progress(FACES - 1, 1, FACES)
    assert [images[face.face_id] for face in run.missing()] == [6]


def rows_of(images: Sequence[int]) -> list[Row]:
    return [Row(str(image), Person(f"e{image}"), lambda _, image=image: photo(image)) for image in images]  # type: ignore[misc]


@pytest.mark.parametrize("keep", [True, False])
def test_enrolling_keeps_crops_when_asked_to(store: Store, gallery: Gallery, keep: bool) -> None:
    enroller = Enroller(store, Numbers(OLD), gallery, MAX_BYTES, workers=2, keep_crops=keep)
    assert {result.outcome for result in enroller.enroll(rows_of(range(40)))} == {Outcome.ENROLLED}
    kept = [face.crop for face in store.reembeddings.missing(gallery.id, NEW.fingerprint, 0, 100)]
    assert len(kept) == 40
    if keep:
        assert [int(crops.decode(file or b"")[0, 0, 0]) for file in kept] == list(range(40))
    else:
        assert kept == [None] * 40


def test_an_enrolment_that_meets_the_switch_can_be_run_again(
    store: Store, gallery: Gallery, images: dict[int, int]
) -> None:
    """What it has committed before is there, embedded anew; what comes after is refused, not mixed in."""
    results = Enroller(store, Numbers(OLD), gallery, MAX_BYTES, 1, keep_crops=True).enroll(rows_of(range(100, 160)))
    before = [next(results) for _ in range(16)]
    now = Reembedder(store, Numbers(NEW), gallery).switch().gallery
    with pytest.raises(Conflict, match="run it again") as caught:
        list(results)
    assert caught.value.code == "model_mismatch"
    check(store, NEW, images | {result.face_id or 0: 100 + i for i, result in enumerate(before)})
    again = list(Enroller(store, Numbers(NEW), now, MAX_BYTES, 1).enroll(rows_of(range(100, 160))))
    assert [result.outcome for result in again] == [Outcome.UNCHANGED] * 16 + [Outcome.ENROLLED] * 44
    check(store, NEW, images | {result.face_id or 0: 100 + i for i, result in enumerate(again)})


# With the real networks


OTHER = replace(SFACE, name="other", mirror=False)


@pytest.fixture(scope="module")
def other(models_folder: Path) -> FacePipeline:
    """The same networks without the mirrored crop: another pack, whose embeddings differ."""
    return FacePipeline(OTHER, ModelFiles(models_folder))


def test_real_faces_from_crops_and_photos(
    store: Store, pipeline: FacePipeline, other: FacePipeline, tmp_path: Path
) -> None:
    """What lies in the gallery after is what the other pack makes of the photos itself."""
    photos = {"astronaut": astronaut(), "hanks": aligned_face(), "group": six_people()}
    for name, data in photos.items():
        (tmp_path / name).write_bytes(data)
    gallery = store.galleries.create("staff", SFACE.name, SFACE.fingerprint, SFACE.dim)

    def add(names: Sequence[str], keep: bool) -> None:
        rows = [Row(name, Person(name), lambda _, name=name: photos[name]) for name in names]  # type: ignore[misc]
        enrolled = list(Enroller(store, pipeline, gallery, MAX_BYTES, 2, keep).enroll(rows, Pick.CENTER))
        assert [result.outcome for result in enrolled] == [Outcome.ENROLLED] * len(names), enrolled

    add(["astronaut"], keep=True)
    add(["group"], keep=False)
    before = {p.external_id: _embedding(store, gallery, p.external_id) for p in store.identities.list(gallery.id)}
    assert not Reembedder(store, other, gallery).switch().switched
    now = Reembedder(store, other, gallery, hash_images([tmp_path], MAX_BYTES)).switch().gallery
    assert (now.model, now.fingerprint) == ("other", OTHER.fingerprint)
    for name, old in before.items():
        expected = other.describe([photos[name]], Pick.CENTER)[0].faces[0].embedding
        found = _embedding(store, now, name)
        # Enrolling embeds two crops of each face, nearer and wider; what was kept is the one between them.
        assert float(found @ expected) > (0.98 if name == "astronaut" else 0.999)
        assert float(found @ old) < 0.999
    back = Reembedder(store, pipeline, now).switch().gallery
    for name, old in before.items():
        assert _embedding(store, back, name).tobytes() == old.tobytes()


def _embedding(store: Store, gallery: Gallery, external_id: str) -> NDArray[np.float32]:
    [stored] = store.faces.list(gallery.id, external_id)
    [found] = store.embeddings.of_faces(gallery, [stored.id]).vectors
    return np.asarray(found)
