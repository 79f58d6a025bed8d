"""Moves a gallery to another model pack: computes new embeddings, switches to them, and can switch back.

New embeddings are computed from kept crops, or from the photos. They are committed in batches, so that an interrupted
run can be repeated; until the switch the gallery answers from its old embeddings. A kept crop is embedded as it is,
although the detector of the new pack might have aligned it slightly differently.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.enrollment.reading import process_each
from indexer.errors import InvalidRequest
from indexer.gallery.reembeddings import SwitchResult, UnembeddedFace
from indexer.gallery.store import Store
from indexer.types import Gallery, Pick, sha256
from indexer.vectors.index_registry import IndexRegistry
from indexer.vision import crops
from indexer.vision.batch_errors import describe_error
from indexer.vision.detection import SAME_FACE_IOU
from indexer.vision.detectors.base import iou
from indexer.vision.pipeline import FacePipeline, ImageResult

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

BATCH = 128
"""Faces embedded and committed at a time: six seconds of IR-50 on a slow CPU, and enough to fill a GPU."""

PHOTOS = 8
"""Photos processed at a time."""


@dataclass(frozen=True)
class Progress:
    """The progress of a re-embedding. Faces enrolled meanwhile are counted when they are reached."""

    embedded: int
    """Including those of earlier runs."""
    missing: int
    """Faces with neither a crop nor a photo."""
    faces: int


@dataclass(frozen=True)
class Missing:
    """A face that cannot be embedded, with what identifies its photo."""

    face_id: int
    external_id: str
    image_sha256: str


class Reembedder:
    """Re-embeds one gallery with the pack of `pipeline`.

    `images` are photos by their SHA-256, as `hash_images` returns them, for faces without a kept crop. With `indexes`,
    the new index is built before the switch, so that services on this machine need not build it after. A rollback to a
    former pack works the same: its embeddings are kept, and only faces enrolled since are embedded. Several runs at the
    same time are safe.

    Raises:
        Conflict: The gallery is bound to that pack already, or no longer to the pack of `gallery`.
    """

    def __init__(
        self,
        store: Store,
        pipeline: FacePipeline,
        gallery: Gallery,
        images: Mapping[str, Path] | None = None,
        indexes: IndexRegistry | None = None,
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._gallery = gallery
        self._fingerprint = pipeline.pack.fingerprint
        self._images = images or {}
        self._indexes = indexes
        self._missing: dict[int, Missing] = {}
        """Faces that this run could not embed, by id."""

    def embed(self) -> Generator[Progress]:
        """Embeds every face without an embedding. Close the iterator to stop early.

        Yields the progress at the start and after each committed batch. Raises ModelUnavailable as well.
        """
        batches = self._embed_missing()
        next(batches)
        faces = self._store.galleries.counts(self._gallery.id)[1]
        embedded = self._store.reembeddings.count(self._gallery.id, self._fingerprint)
        yield Progress(embedded, len(self._missing), faces)
        for more in batches:
            embedded += more
            yield Progress(embedded, len(self._missing), max(faces, embedded + len(self._missing)))

    def missing(self) -> list[Missing]:
        """Returns the faces that could not be embedded, in the order of enrollment; after `switch` including those that
        it deleted."""
        return list(self._missing.values())

    def switch(self, drop_missing: bool = False) -> SwitchResult:
        """Embeds the remaining faces and binds the gallery to the pack in one transaction. Its old embeddings are kept.

        With `drop_missing`, faces that cannot be embedded are deleted and their identities stay; without, one such face
        prevents the switch.
        """
        if self._indexes is not None:
            for _ in self._embed_missing():
                pass
            if drop_missing or not self._missing:
                pack = self._pipeline.pack
                future = replace(self._gallery, model=pack.name, fingerprint=pack.fingerprint, dim=pack.dim)
                with self._indexes.prepared(self._gallery, future):
                    return self._switch(drop_missing)
        return self._switch(drop_missing)

    def _switch(self, drop_missing: bool) -> SwitchResult:
        """Switches, after embedding the faces that were enrolled meanwhile."""
        while True:
            for _ in self._embed_missing():
                pass
            ended = self._store.reembeddings.switch(
                self._gallery, self._fingerprint, self._missing.keys(), drop_missing
            )
            if not ended.newer:
                return ended

    def _embed_missing(self) -> Iterator[int]:
        """Embeds every face without an embedding. Yields 0 at the start, then the number of each committed batch."""
        pack, after = self._pipeline.pack, 0
        self._store.reembeddings.start(self._gallery, pack.name, self._fingerprint, pack.dim)
        yield 0
        left: dict[int, Missing] = {}
        while some := self._store.reembeddings.missing(self._gallery.id, self._fingerprint, after, BATCH):
            after = some[-1].face_id  # faces enrolled meanwhile have higher ids
            yield self._embed([face for face in some if face.face_id not in self._missing])
            left |= {face.face_id: self._missing[face.face_id] for face in some if face.face_id in self._missing}
        self._missing = left  # others were deleted, or embedded by another run

    def _embed(self, some: Sequence[UnembeddedFace]) -> int:
        """Embeds and commits the faces that can be embedded. Returns their number."""
        found = self._from_crops(some)
        found |= self._from_photos([face for face in some if face.face_id not in found])
        if found:
            vectors = np.stack(list(found.values()))
            self._store.reembeddings.put(self._gallery, self._fingerprint, list(found), vectors)
        for face in some:
            if face.face_id not in found:
                self._missing[face.face_id] = Missing(face.face_id, face.external_id, face.image_sha256)
        return len(found)

    def _from_crops(self, some: Sequence[UnembeddedFace]) -> dict[int, NDArray[np.float32]]:
        """Returns the embeddings of kept crops, by face id."""
        read: dict[int, NDArray[np.uint8]] = {}
        for face in some:
            if face.crop is not None:
                try:
                    read[face.face_id] = crops.decode(face.crop)
                except InvalidRequest as error:
                    log.warning("Face %d of %s: %s", face.face_id, face.external_id, error.message)
        return dict(self._successes(list(read), lambda ids: self._pipeline.embed(np.stack([read[i] for i in ids]))))

    def _from_photos(self, some: Sequence[UnembeddedFace]) -> dict[int, NDArray[np.float32]]:
        """Returns the embeddings of faces found in their photo at the enrolled position, by face id.

        The largest face is tried first, as enrollment does: detecting all faces gives slightly different landmarks.
        """
        left = [face for face in some if face.image_sha256 in self._images]
        found: dict[int, NDArray[np.float32]] = {}
        for pick in (Pick.LARGEST, None):
            for start in range(0, len(left), PHOTOS):
                photos = [(f, data) for f in left[start : start + PHOTOS] if (data := self._read(f)) is not None]
                for (face, _), answer in self._successes(photos, lambda pairs: self._describe(pairs, pick)):  # noqa: B023
                    same = max(answer.faces, key=lambda one: iou(one.detection.box, face.box), default=None)
                    if same is not None and iou(same.detection.box, face.box) >= SAME_FACE_IOU:
                        found[face.face_id] = same.embedding
            left = [face for face in left if face.face_id not in found]
        return found

    def _successes(
        self, items: Sequence[Item], process: Callable[[Sequence[Item]], Iterable[Answer]]
    ) -> list[tuple[Item, Answer]]:
        """Returns each item with its answer; items on which the pipeline fails are logged and left out."""
        successes: list[tuple[Item, Answer]] = []
        for item, answer in zip(items, process_each(self._pipeline, items, process), strict=True):
            if isinstance(answer, Exception):
                log.warning("A face cannot be embedded: %s", describe_error(answer))
            else:
                successes.append((item, answer))
        return successes

    def _describe(self, photos: Sequence[tuple[UnembeddedFace, bytes]], pick: Pick | None) -> list[ImageResult]:
        return self._pipeline.describe([data for _, data in photos], pick)

    def _read(self, face: UnembeddedFace) -> bytes | None:
        """Returns the bytes of the photo, if it has not changed since it was hashed."""
        path = self._images[face.image_sha256]
        try:
            data = path.read_bytes()
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error.strerror)
            return None
        return data if sha256(data) == face.image_sha256 else None


def hash_images(paths: Sequence[Path], max_bytes: int) -> dict[str, Path]:
    """Returns the files of at most `max_bytes` in `paths` and the folders below, by the SHA-256 of their bytes.

    Raises InvalidRequest if a path does not exist or cannot be read.
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
