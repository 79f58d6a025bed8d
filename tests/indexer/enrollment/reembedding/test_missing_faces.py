"""Faces without a usable crop: listed, dropped, or embedded from their photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.enrollment.reembed import Missing, Progress, Reembedder, hash_images
from indexer.errors import InvalidRequest, InvalidVector
from indexer.gallery.change_log import ChangeKind
from indexer.gallery.store import Store
from indexer.types import Gallery, Vectors, sha256
from tests.indexer.enrollment.reembedding.numbered_images import (
    FACES,
    MAX_BYTES,
    NEW,
    OLD,
    Numbers,
    check,
    enroll,
    new_face,
    photo,
)


def test_missing_faces_are_listed_and_prevent_the_switch(
    store: Store, gallery: Gallery, images: dict[int, int], some_missing: list[Missing]
) -> None:
    run = Reembedder(store, Numbers(NEW), gallery)
    assert list(run.embed())[-1] == Progress(FACES, 3, FACES + 3)
    ended = run.switch()
    assert (ended.switched, ended.missing) == (False, 3)
    assert run.missing() == some_missing
    check(store, OLD, images | {face.face_id: 20 + i for i, face in enumerate(some_missing)})


def test_missing_faces_are_dropped_on_request(
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


def test_missing_faces_are_those_at_the_time_of_the_switch(
    store: Store, gallery: Gallery, images: dict[int, int], some_missing: list[Missing]
) -> None:
    """One was enrolled and one was deleted after the last batch."""
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


def test_faces_are_embedded_again_if_their_embeddings_were_deleted(
    store: Store, gallery: Gallery, images: dict[int, int], some_missing: list[Missing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embeddings are deleted and started again just before the switch."""
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


def test_photos_replace_missing_crops(
    store: Store, gallery: Gallery, images: dict[int, int], some_missing: list[Missing], tmp_path: Path
) -> None:
    """The face at the enrolled position is used; a photo that has changed since it was hashed is not."""
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


def test_missing_folder_of_photos_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere cannot be read: No such file.*; expected photos or"):
        hash_images([Path("nowhere")], MAX_BYTES)


def test_damaged_crop_does_not_affect_other_faces(
    store: Store, gallery: Gallery, images: dict[int, int], tmp_path: Path
) -> None:
    """Its photo is used instead if there is one."""
    damaged = [replace(new_face("eve", image), crop=b"nonsense") for image in (30, 31)]
    with_photo, without = enroll(store, gallery, damaged)
    (tmp_path / "photo").write_bytes(photo(30))
    run = Reembedder(store, Numbers(NEW), gallery, hash_images([tmp_path], MAX_BYTES))
    assert not run.switch().switched
    assert [face.face_id for face in run.missing()] == [without]
    run.switch(drop_missing=True)
    check(store, NEW, images | {with_photo: 30})


def test_crop_that_the_network_fails_on_does_not_affect_other_faces(
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
