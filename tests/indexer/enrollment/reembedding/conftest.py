"""A gallery of numbered images."""

from __future__ import annotations

import pytest

from indexer.enrollment import reembed
from indexer.enrollment.reembed import Missing
from indexer.gallery.store import Store
from indexer.types import Gallery
from tests.indexer.enrollment.reembedding.numbered_images import (
    BATCH,
    FACES,
    OLD,
    enroll,
    new_face,
)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reembed, "BATCH", BATCH)
    monkeypatch.setattr(reembed, "PHOTOS", 3)


@pytest.fixture
def gallery(store: Store) -> Gallery:
    return store.galleries.create("staff", OLD.name, OLD.fingerprint, OLD.dim)


@pytest.fixture
def images(store: Store, gallery: Gallery) -> dict[int, int]:
    """Images 0 to 9 by face id, enrolled with their crops, two for each person."""
    ids = enroll(store, gallery, [new_face(f"p{image // 2}", image) for image in range(FACES)])
    return dict(zip(ids, range(FACES), strict=True))


@pytest.fixture
def some_missing(store: Store, gallery: Gallery, images: dict[int, int]) -> list[Missing]:
    """Three further faces without crops, images 20 to 22."""
    faces = [new_face("no crop", image, keep=False) for image in (20, 21, 22)]
    ids = enroll(store, gallery, faces)
    return [Missing(face_id, "no crop", new.image_sha256) for face_id, new in zip(ids, faces, strict=True)]
