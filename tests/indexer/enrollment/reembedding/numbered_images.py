"""A pipeline whose embeddings are determined by the numbers of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.gallery.faces import NewFace
from indexer.gallery.store import Store
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, Pack
from indexer.types import Box, Gallery, Person, Pick, Vectors, sha256
from indexer.vision import crops
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import FacePipeline, ImageResult
from tests.indexer.gallery.faces import face, vector

OLD = replace(SFACE, name="old", dim=16)
NEW = replace(SFACE, name="new", dim=24)
THIRD = replace(SFACE, name="third", dim=8)

BATCH = 4
FACES = 10

MAX_BYTES = 10_000_000


def embedding(pack: Pack, image: int) -> NDArray[np.float32]:
    """Returns the embedding that a pack computes for image number `image`."""
    return vector(1000 * pack.dim + image, pack.dim)


def photo(image: int) -> bytes:
    return b"photo %d" % image


def crop(image: int) -> NDArray[np.uint8]:
    """Returns a crop whose pixels all have the number of its image."""
    return np.full((112, 112, 3), image, np.uint8)


class Numbers(FacePipeline):
    """Computes embeddings from the number of an image, which its crop and its photo contain."""

    def __init__(self, pack: Pack, then: Callable[[int], None] = lambda batches: None) -> None:
        super().__init__(pack, ModelFiles(Path("nowhere")))
        self.images: list[int] = []
        self.batches = 0
        self._then = then

    def load(self) -> None:
        pass

    def check(self) -> None:
        """Numbers never fail on every image."""

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        numbers = [int(one[0, 0, 0]) for one in crops]
        self.images += numbers
        self.batches += 1
        self._then(self.batches)
        return np.stack([embedding(self.pack, number) for number in numbers])

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        """Each photo shows the person, and another person to the right."""
        seen = []
        for number in (int(image.split()[1]) for image in images):
            found = replace(face(embedding(self.pack, number)), crop=crop(number))
            box = found.detection.box
            to_the_right = replace(found.detection, box=Box(box.x + box.w, box.y, box.w, box.h))
            stranger = replace(found, detection=to_the_right, embedding=embedding(self.pack, 255))
            seen.append(ImageResult((found,) if gate else (stranger, found)))
            self.images.append(number)
        return seen


def new_face(external_id: str, image: int, keep: bool = True, pack: Pack = OLD) -> NewFace:
    kept = crops.encode(crop(image)) if keep else None
    return NewFace(Person(external_id), sha256(photo(image)), face(embedding(pack, image)), kept)


def enroll(store: Store, gallery: Gallery, faces: Sequence[NewFace]) -> list[int]:
    return [answer.face_id or 0 for answer in store.faces.enroll(gallery, faces)]


def check(store: Store, pack: Pack, images: dict[int, int]) -> None:
    """Checks that the gallery has exactly the faces of these images, by face id, embedded by that pack."""
    gallery = store.galleries.get("staff")
    assert (gallery.model, gallery.fingerprint, gallery.dim) == (pack.name, pack.fingerprint, pack.dim)
    parts = list(store.embeddings.pages(gallery))
    found = {f: v for part in parts for f, v in zip(part.face_ids.tolist(), part.vectors, strict=True)}
    assert set(found) == set(images)
    for face_id, image in images.items():
        assert found[face_id].tobytes() == embedding(pack, image).tobytes()
