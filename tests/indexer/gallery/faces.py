"""Synthetic faces for tests of galleries and indexes, which never look at pixels."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from indexer.gallery.faces import NewFace
from indexer.gallery.store import Store
from indexer.types import Box, Detection, Face, Gallery, Outcome, Person, Quality, Reason, sha256

DIM = 32


def vector(seed: int, dim: int = DIM) -> NDArray[np.float32]:
    """Returns a (dim,) float32 unit vector, the same for the same seed."""
    raw = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return np.asarray(raw / np.linalg.norm(raw), dtype=np.float32)


def face(embedding: NDArray[np.float32]) -> Face:
    landmarks = np.array([[30, 40], [70, 41], [50, 60], [35, 80], [66, 81]], dtype=np.float32)
    quality = Quality(90.0, 12.5, -0.25, 130.0, 44.0, (Reason.FACE_BADLY_LIT, Reason.DETECTION_UNSURE))
    return Face(Detection(Box(10.25, 20.5, 80.0, 100.75), landmarks, 0.9375), quality, embedding)


def new_face(
    external_id: str,
    image: int,
    *,
    embedding: NDArray[np.float32] | None = None,
    name: str | None = None,
    valid_from: datetime | None = None,
    valid_until: datetime | None = None,
    metadata: Mapping[str, object] | None = None,
    crop: bytes | None = None,
) -> NewFace:
    """Returns a face of `external_id` in image number `image`, by default with the embedding `vector(image)`."""
    person = Person(external_id, name, valid_from, valid_until, metadata or {})
    return NewFace(person, image_hash(image), face(vector(image) if embedding is None else embedding), crop)


def image_hash(image: int) -> str:
    return sha256(image.to_bytes(8, "little"))


def make_gallery(store: Store, name: str = "staff", dim: int = DIM) -> Gallery:
    return store.galleries.create(name, "sface", "0123456789abcdef", dim)


def enroll_one(store: Store, gallery: Gallery, new: NewFace) -> int:
    """Enrolls a face and returns its id."""
    [enrolled] = store.faces.enroll(gallery, [new])
    assert enrolled.outcome is Outcome.ENROLLED
    assert enrolled.face_id is not None
    return enrolled.face_id
