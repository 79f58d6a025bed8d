"""Random people for tests of scores and thresholds, and galleries of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from indexer.models.packs import SFACE
from indexer.types import Gallery, ScoreTail, Vectors
from search_service.service_context import ServiceContext
from tests.indexer.gallery.faces import new_face

DIM = SFACE.dim

PACK = replace(SFACE, tail=ScoreTail(0.3687, 1.128e-3, 0.02221, before=((0.1, 0.2114), (0.01, 0.3022))))
"""Strangers score as `people` do with a similarity of 0.1."""
BORROWED = replace(PACK, measured=False)


def unit(vectors: NDArray[np.floating]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def people(count: int, similarity: float, seed: int = 0) -> Vectors:
    """Returns (count, DIM) unit vectors of people whose average cosine to each other is `similarity`."""
    random = np.random.default_rng(seed)
    own = random.standard_normal((count, DIM)) / np.sqrt(DIM)
    common = np.random.default_rng(99).standard_normal(DIM) / np.sqrt(DIM)
    return unit(np.sqrt(similarity) * common + np.sqrt(1 - similarity) * own)


def another_photo(vectors: Vectors, cosine: float, seed: int = 5) -> Vectors:
    """Returns another photo of each face, at that cosine."""
    noise = np.random.default_rng(seed).standard_normal(vectors.shape)
    aside = unit(noise - (noise * vectors).sum(-1, keepdims=True) * vectors)
    return unit(cosine * vectors.astype(np.float64) + np.sqrt(1 - cosine**2) * aside)


def photos_of(person: Vectors, count: int, cosine: float = 0.75, first_seed: int = 0) -> Vectors:
    """Returns (count, DIM) photos of one person."""
    return np.stack([another_photo(person, cosine, first_seed + i) for i in range(count)])


def enroll_photos(context: ServiceContext, of_each: Sequence[Vectors], name: str = "staff", first: int = 0) -> Gallery:
    """Enrolls people p0000, p0001, ... with their photos into a gallery, and creates it if it does not exist."""
    store = context.store
    if name not in {gallery.name for gallery in store.galleries.list()}:
        store.galleries.create(name, SFACE.name, SFACE.fingerprint, DIM)
    faces = [
        new_face(f"p{person:04}", 100 * person + photo, embedding=vector)
        for person, vectors in enumerate(of_each, first)
        for photo, vector in enumerate(vectors)
    ]
    store.faces.enroll(store.galleries.get(name), faces)
    return store.galleries.get(name)


def enroll_people(
    context: ServiceContext, vectors: Vectors, name: str = "staff", photos: int = 1, first: int = 0
) -> Gallery:
    """Does the same with so many photos of each person, the first of which is the vector itself."""
    of_each = [
        np.stack([vector, *(another_photo(vector, 0.7, 100 * i + photo) for photo in range(1, photos))])
        for i, vector in enumerate(vectors, first)
    ]
    return enroll_photos(context, of_each, name, first)
