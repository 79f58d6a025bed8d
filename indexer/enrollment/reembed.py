"""Embeddings of a gallery by another pack: laid beside its own, then taken in their place, and back again.

They are made of the kept crops, or of the photos where those are at hand. What is laid beside stays whatever happens to
the run, so that running it again goes on; until the switch the gallery answers as ever. A crop that one pack's detector
aligned is embedded as it is: another pack's may have put it a little differently.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.errors import InvalidRequest
from indexer.gallery.reembeddings import SwitchResult, UnembeddedFace
from indexer.gallery.store import Store
from indexer.types import Gallery, Pick, sha256
from indexer.vision import crops
from indexer.vision.batch_errors import isolate_failures
from indexer.vision.detectors.base import iou
from indexer.vision.pipeline import FacePipeline, Seen

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

BATCH = 128
"""Faces that are embedded and committed at a time: six seconds of IR-50 on a slow CPU, and enough to fill a GPU."""

PHOTOS = 8
"""Photos that are read and looked at at a time."""

SAME_FACE = 0.4
"""Overlap (intersection over union) from which a face found in a photo is the enrolled one: detectors draw their boxes
differently, and two people's hardly overlap."""


@dataclass(frozen=True)
class Progress:
    """How far an embedding is. Faces that are enrolled meanwhile count as they are come by."""

    embedded: int
    """By now, those of earlier runs among them."""
    missing: int
    """That there is no crop and no photo of."""
    faces: int


@dataclass(frozen=True)
class Missing:
    """A face that cannot be embedded, as people find its photo."""

    face_id: int
    external_id: str
    image_sha256: str


class Reembedder:
    """Embeds one gallery by the pack of `pipeline`. `images` are photos by their SHA-256 (`hashed` makes that), for the
    faces of which no crop was kept.

    Going back to a former pack is the same: its embeddings are still there, and only faces enrolled since are embedded.
    Several at a time do no harm. Raises Conflict when the gallery is bound to that pack, or to another one than
    `gallery` says, from the start or meanwhile.
    """

    def __init__(
        self, store: Store, pipeline: FacePipeline, gallery: Gallery, images: Mapping[str, Path] | None = None
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._gallery = gallery
        self._fingerprint = pipeline.pack.fingerprint
        self._images = images or {}
        self._missing: dict[int, Missing] = {}
        """Faces that this run has looked at in vain, by their ids."""

    def embed(self) -> Generator[Progress]:
        """Embeds every face that lacks an embedding, telling how far it is at the start and after each batch that is
        committed. Close the iterator to stop early. Raises ModelUnavailable too."""
        rest = self._rest()
        next(rest)
        faces = self._store.galleries.counts(self._gallery.id)[1]
        embedded = self._store.reembeddings.count(self._gallery.id, self._fingerprint)
        yield Progress(embedded, len(self._missing), faces)
        for more in rest:
            embedded += more
            yield Progress(embedded, len(self._missing), max(faces, embedded + len(self._missing)))

    def missing(self) -> list[Missing]:
        """The faces that were looked at in vain, in the order of their enrolment; after `switch` those that it found
        missing, also where it dropped them."""
        return list(self._missing.values())

    def switch(self, drop_missing: bool = False) -> SwitchResult:
        """Embeds what is left, and binds the gallery to the pack in one transaction; the embeddings it had lie beside
        from then on. With `drop_missing` the faces that cannot be embedded are deleted, their identities stay; without,
        one such face keeps it from switching."""
        while True:
            for _ in self._rest():
                pass
            ended = self._store.reembeddings.switch(
                self._gallery, self._fingerprint, self._missing.keys(), drop_missing
            )
            if not ended.newer:
                return ended

    def _rest(self) -> Iterator[int]:
        """Embeds every face that lacks an embedding: how many each batch added that is committed, and 0 once begun."""
        pack, after = self._pipeline.pack, 0
        self._store.reembeddings.start(self._gallery, pack.name, self._fingerprint, pack.dim)
        yield 0
        left: dict[int, Missing] = {}
        while some := self._store.reembeddings.missing(self._gallery.id, self._fingerprint, after, BATCH):
            after = some[-1].face_id  # ids rise: faces that are enrolled meanwhile come after it
            yield self._embed([face for face in some if face.face_id not in self._missing])
            left |= {face.face_id: self._missing[face.face_id] for face in some if face.face_id in self._missing}
        self._missing = left  # others are gone, or somebody else has embedded them

    def _embed(self, some: Sequence[UnembeddedFace]) -> int:
        """Embeds those that can be, and commits; how many."""
        found = self._of_crops(some)
        found |= self._of_photos([face for face in some if face.face_id not in found])
        if found:
            vectors = np.stack(list(found.values()))
            self._store.reembeddings.put(self._gallery, self._fingerprint, list(found), vectors)
        for face in some:
            if face.face_id not in found:
                self._missing[face.face_id] = Missing(face.face_id, face.external_id, face.image_sha256)
        return len(found)

    def _of_crops(self, some: Sequence[UnembeddedFace]) -> dict[int, NDArray[np.float32]]:
        """Embeddings of kept crops, by face."""
        read: dict[int, NDArray[np.uint8]] = {}
        for face in some:
            if face.crop is not None:
                try:
                    read[face.face_id] = crops.read(face.crop)
                except InvalidRequest as error:
                    log.warning("Face %d of %s: %s", face.face_id, face.external_id, error.message)
        return dict(_answered(list(read), lambda ids: self._pipeline.embed(np.stack([read[i] for i in ids]))))

    def _of_photos(self, some: Sequence[UnembeddedFace]) -> dict[int, NDArray[np.float32]]:
        """Embeddings of faces whose photo is at hand and shows them where it did, by face. The largest face is looked
        for first, as enrolling does: looking for all of them places landmarks a little differently."""
        left = [face for face in some if face.image_sha256 in self._images]
        found: dict[int, NDArray[np.float32]] = {}
        for pick in (Pick.LARGEST, None):
            for start in range(0, len(left), PHOTOS):
                photos = [(f, data) for f in left[start : start + PHOTOS] if (data := self._read(f)) is not None]
                for (face, _), answer in _answered(photos, lambda pairs: self._describe(pairs, pick)):  # noqa: B023
                    same = max(answer.faces, key=lambda one: iou(one.detection.box, face.box), default=None)
                    if same is not None and iou(same.detection.box, face.box) >= SAME_FACE:
                        found[face.face_id] = same.embedding
            left = [face for face in left if face.face_id not in found]
        return found

    def _describe(self, photos: Sequence[tuple[UnembeddedFace, bytes]], pick: Pick | None) -> list[Seen]:
        return self._pipeline.describe([data for _, data in photos], pick)

    def _read(self, face: UnembeddedFace) -> bytes | None:
        """The photo's bytes, when they are still what they were when they were hashed."""
        path = self._images[face.image_sha256]
        try:
            data = path.read_bytes()
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error.strerror)
            return None
        return data if sha256(data) == face.image_sha256 else None


def hashed(paths: Sequence[Path], max_bytes: int) -> dict[str, Path]:
    """The files of at most `max_bytes` among `paths` and in the folders below them, by the SHA-256 of their bytes.

    Raises InvalidRequest when a path is not there or cannot be read.
    """
    found: dict[str, Path] = {}
    for path in paths:
        try:
            path.stat()
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and file.stat().st_size <= max_bytes:
                    with file.open("rb") as opened:
                        found[hashlib.file_digest(opened, "sha256").hexdigest()] = file
        except OSError as error:
            where = error.filename or path
            raise InvalidRequest(
                f"{where} cannot be read: {error.strerror}; expected photos or their folders"
            ) from error
    return found


def _answered(items: Sequence[Item], ask: Callable[[Sequence[Item]], Iterable[Answer]]) -> list[tuple[Item, Answer]]:
    """Each item with its answer, as `each`; one that the pipeline fails on is left out."""
    answered: list[tuple[Item, Answer]] = []
    for item, answer in zip(items, isolate_failures(items, ask), strict=True):
        if isinstance(answer, Exception):
            log.warning("A face cannot be embedded: %s: %s", type(answer).__name__, answer)
        else:
            answered.append((item, answer))
    return answered
