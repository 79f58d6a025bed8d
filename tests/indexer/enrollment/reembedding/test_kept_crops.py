"""Enrollment keeps crops for re-embedding, and re-embedding with the real networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.enrollment.enroller import Enroller
from indexer.enrollment.reembed import Reembedder, hash_images
from indexer.enrollment.rows import Row
from indexer.errors import Conflict
from indexer.gallery.store import Store
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Gallery, Outcome, Person, Pick
from indexer.vision import crops
from indexer.vision.pipeline import FacePipeline
from tests.indexer.enrollment.reembedding.numbered_images import (
    MAX_BYTES,
    NEW,
    OLD,
    Numbers,
    check,
    photo,
)
from tests.photos import aligned_face, astronaut, six_people


def rows_of(images: Sequence[int]) -> list[Row]:
    return [Row(str(image), Person(f"e{image}"), lambda _, image=image: photo(image)) for image in images]  # type: ignore[misc]


@pytest.mark.parametrize("keep", [True, False])
def test_enrollment_keeps_crops_on_request(store: Store, gallery: Gallery, keep: bool) -> None:
    enroller = Enroller(store, Numbers(OLD), gallery, MAX_BYTES, workers=2, keep_crops=keep)
    assert {result.outcome for result in enroller.enroll(rows_of(range(40)))} == {Outcome.ENROLLED}
    kept = [face.crop for face in store.reembeddings.missing(gallery.id, NEW.fingerprint, 0, 100)]
    assert len(kept) == 40
    if keep:
        assert [int(crops.decode(file or b"")[0, 0, 0]) for file in kept] == list(range(40))
    else:
        assert kept == [None] * 40


def test_enrollment_ended_by_the_switch_can_be_repeated(store: Store, gallery: Gallery, images: dict[int, int]) -> None:
    """What was committed before is re-embedded; what follows is refused instead of mixed in."""
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


OTHER = replace(SFACE, name="other", mirror=False)


@pytest.fixture(scope="module")
def other(models_folder: Path) -> FacePipeline:
    """The same networks without the mirrored crop: another pack, whose embeddings differ."""
    return FacePipeline(OTHER, ModelFiles(models_folder))


def test_real_networks_embed_crops_and_photos(
    store: Store, pipeline: FacePipeline, other: FacePipeline, tmp_path: Path
) -> None:
    """Afterwards the gallery has the embeddings that the other pack computes from the photos."""
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
        # Enrolling embeds two crops of each face, a closer and a wider one; the kept crop is between them.
        assert float(found @ expected) > (0.98 if name == "astronaut" else 0.999)
        assert float(found @ old) < 0.999
    back = Reembedder(store, pipeline, now).switch().gallery
    for name, old in before.items():
        assert _embedding(store, back, name).tobytes() == old.tobytes()


def _embedding(store: Store, gallery: Gallery, external_id: str) -> NDArray[np.float32]:
    [stored] = store.faces.list(gallery.id, external_id)
    [found] = store.embeddings.of_faces(gallery, [stored.id]).vectors
    return np.asarray(found)
