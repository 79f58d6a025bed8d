"""Embeddings of photos that show the same people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.enrollment.rows import Row
from indexer.gallery.faces import NewFace
from indexer.gallery.store import Store
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Gallery, Person, Pick, Tier
from indexer.vectors.engines import FaissEngine
from indexer.vectors.synchronizer import SynchronizedIndex
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import FacePipeline, ImageResult
from tests.indexer.gallery.faces import DIM, face, image_hash, vector

BOUND = 0.6
PACK = replace(SFACE, dim=DIM)
MAX_BYTES = 1_000_000


def near(person: int, photo: int, cosine: float = 0.9) -> NDArray[np.float32]:
    """Returns the embedding of a person's photo, at that cosine to `vector(person)`, in a direction of its own."""
    own, aside = vector(person), vector(1000 + photo)
    aside = aside - (aside @ own) * own
    return np.asarray(cosine * own + math.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside), dtype=np.float32)


def new(external_id: str, embedding: NDArray[np.float32], image: int) -> NewFace:
    return NewFace(Person(external_id), image_hash(image), face(embedding))


def index_of(store: Store, gallery: Gallery, folder: Path, tier: Tier = Tier.EXACT) -> SynchronizedIndex:
    return SynchronizedIndex(store, gallery, folder, FaissEngine(tier))


class DescribedPhotos(FacePipeline):
    """Finds the face that a photo's bytes describe: `person photo cosine`."""

    def __init__(self) -> None:
        super().__init__(PACK, ModelFiles(Path("nowhere")))

    def load(self) -> None:
        pass

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        return [ImageResult((face(_embedding_of(image)),)) for image in images]


def _embedding_of(image: bytes) -> NDArray[np.float32]:
    person, photo, cosine = image.split()
    return near(int(person), int(photo), float(cosine))


def row(external_id: str, person: int, photo: int, cosine: float = 0.9, stem: str | None = None) -> Row:
    """Returns the row of a photo for DescribedPhotos."""
    image = f"{person} {photo} {cosine}"
    return Row(f"{external_id}/{photo}.jpg", Person(external_id), lambda _: image.encode(), stem)
