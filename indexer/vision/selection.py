"""Selects the faces of an image that count: which are looked at closely, and which are used in the end.

A detection that is too unsure to be enrolled may be no face at all, so it never displaces a sure one. A sure face that
may not be enrolled for another reason, such as blur, gives way only to faces of similar size: a small sharp face in the
background is not the person of the photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from indexer.errors import RejectedImage
from indexer.types import Detection, Liveness, Pick, Pixels, Quality, Reason
from indexer.vision.decode import Photo
from indexer.vision.detection import SearchScope

SEARCH_SCOPES = {
    None: SearchScope.ALL,
    Pick.ONLY: SearchScope.ONLY,
    Pick.LARGEST: SearchScope.LARGEST,
    Pick.CENTER: SearchScope.CENTER,
}
"""What the first detection pass searches for, so that `Pick` finds its faces; None stands for all faces."""

RIVAL_AREA_RATIO = 0.5
"""A second face counts if its area is at least this share of the largest one's (public contract of `--pick only`)."""

NEAR_AREA_RATIO = 0.35
"""Faces with this share of the area in the first detection pass may have RIVAL_AREA_RATIO after the second: areas
differ by a tenth on LFW, and by up to a third for faces that are cut off."""


@dataclass(frozen=True, eq=False)
class SeenFace:
    """A face after the second detection pass."""

    detection: Detection
    quality: Quality
    crop: Pixels
    """The aligned crop."""
    views: NDArray[np.uint8]
    """The V crops that are embedded, (V, 112, 112, 3) RGB."""

    @property
    def area(self) -> float:
        return self.detection.box.area

    @property
    def is_sure(self) -> bool:
        return Reason.DETECTION_UNSURE not in self.quality.reasons


@dataclass(eq=False)
class SeenImage:
    """One image between the steps of the pipeline."""

    data: bytes
    photo: Photo
    found: list[Detection] = field(default_factory=list)
    """The detections of the first pass that the second one has not seen."""
    seen: list[SeenFace] = field(default_factory=list)
    chosen: list[SeenFace] = field(default_factory=list)
    """The faces that `Pick` selects."""
    liveness: list[Liveness] = field(default_factory=list)
    """Of the chosen faces; empty if it was not asked for."""
    turn: int = 0
    """Degrees clockwise by which the photo was turned to find its faces."""
    skipped: list[Detection] = field(default_factory=list)
    """Faces that are too many for the second pass."""
    rejection: RejectedImage | None = None

    @property
    def score(self) -> float:
        """The highest score of a face, 0 if there is none."""
        return max((face.score for face in (*self.found, *(one.detection for one in self.seen))), default=0.0)


def next_faces(
    found: Sequence[Detection], seen: Sequence[SeenFace], pick: Pick | None, photo: Photo
) -> list[Detection]:
    """Returns those of `found` that the second detection pass needs next, after it has `seen` others.

    For `only` and `largest` these are the largest ones, then smaller ones until a sure face is seen, and all that may
    be of about its size.
    """
    if pick is None or not found:
        return list(found)
    if pick is Pick.CENTER:
        return [] if seen else [min(found, key=lambda face: _distance(face, photo))]
    sure = [face.area for face in seen if face.is_sure]
    smallest = NEAR_AREA_RATIO * max(sure or [face.box.area for face in found])
    return [face for face in found if face.box.area >= smallest]


def select_faces(seen: Sequence[SeenFace], pick: Pick | None, photo: Photo) -> list[SeenFace]:
    """Returns the faces that `pick` selects: all, largest first, or one.

    Raises:
        RejectedImage: `no_face` or `several_faces`.
    """
    if not seen:
        raise RejectedImage("no face was found", code=Reason.NO_FACE)
    ranked = sorted(seen, key=lambda face: -face.area)
    if pick is None:
        return ranked
    if pick is Pick.CENTER:
        return [min(ranked, key=lambda face: _distance(face.detection, photo))]
    sure = [face for face in ranked if face.is_sure] or ranked
    similar = [face for face in sure if face.area >= RIVAL_AREA_RATIO * sure[0].area]
    rivals = [face for face in similar if not face.quality.reasons] or similar
    if pick is Pick.ONLY and len(rivals) > 1:
        raise RejectedImage(
            f"{len(rivals)} faces of similar size were found; expected one person, or --pick largest or center",
            code=Reason.SEVERAL_FACES,
            details={"faces": len(rivals)},
        )
    return rivals[:1]


def _distance(face: Detection, photo: Photo) -> float:
    """Returns the squared distance of the face from the photo's center."""
    x, y = face.box.center
    return (x - photo.width / 2) ** 2 + (y - photo.height / 2) ** 2
