"""Searches images that show no face with certainty: at all scales, in other orientations, and large ones in tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from indexer.errors import RejectedImage
from indexer.types import Detection, Pick
from indexer.vision import detection
from indexer.vision.decode import Photo
from indexer.vision.detectors.base import Detector
from indexer.vision.selection import SEARCH_SCOPES, SeenImage

TURN_MARGIN = 0.02
"""The second detection pass must score a turned photo higher by this much than the photo as it is. On LFW the upright
photo is ahead by 0.023 at least and by 0.066 in the median."""


@dataclass(frozen=True)
class FurtherSearch:
    """Searches single images further than the first detection pass does."""

    detector: Detector
    look: Callable[[Sequence[SeenImage], Pick | None], None]
    """Runs the second detection pass for the faces that may be selected."""
    full_size: Callable[[SeenImage], Photo]
    """Decodes a reduced photo at full size. Raises RejectedImage."""

    def is_needed(self, image: SeenImage, pick: Pick | None) -> bool:
        """Returns whether an image may show other faces, after both detection passes."""
        is_complete = pick is not None or not detection.needs_tiles(image.photo)
        return not (is_complete and image.score >= self.detector.upright_score)

    def search(self, image: SeenImage, pick: Pick | None) -> SeenImage:
        """Searches an image at all scales, in the other orientations, and a large one in tiles.

        If a face is likely, the other orientations are searched at a coarse scale only, which finds a turned face.
        Returns the image with the faces of the best orientation.
        """
        reduced = image.photo
        try:
            if pick is not None and 0 < image.score < self.detector.enrollment_score:
                (faces,) = detection.detect_faces(self.detector, [image.photo])  # the first pass may have stopped early
                self._look_at_more(image, pick, faces)
            for sides, enough in self._passes(reduced, pick):
                if image.score < enough and image.turn == 0:
                    image = self._search_turned(image, pick, sides)
            if detection.needs_tiles(reduced) and (pick is None or image.score < self.detector.confident_score):
                image.photo = self.full_size(image)
                side = min(detection.DETECTION_SIDES[-1], max(reduced.pixels.shape))
                self._look_at_more(image, pick, detection.detect_in_tiles(self.detector, image.photo, side, image.turn))
        except RejectedImage as rejection:
            image.rejection = rejection.without_traceback()
        image.photo = reduced  # full-size photos of a batch are not kept together
        return image

    def _passes(self, photo: Photo, pick: Pick | None) -> Sequence[tuple[Sequence[int], float]]:
        """Returns the scales at which a photo is searched in other orientations, each with the score of a face above
        which this is not needed."""
        fine = detection.FINE_SIDES
        if pick is None:
            return [(fine, self.detector.upright_score)]
        passes = [(fine[:1], self.detector.upright_score), (fine[1:], self.detector.confident_score)]
        return passes if max(photo.pixels.shape) > fine[0] else passes[:1]

    def _search_turned(self, image: SeenImage, pick: Pick | None, sides: Sequence[int]) -> SeenImage:
        """Returns the image with the faces of another orientation if these are certain, otherwise as it is."""
        turned = []
        for turn in detection.TURNS:
            (faces,) = detection.detect_faces(self.detector, [image.photo], SEARCH_SCOPES[pick], sides, turn)
            if faces:
                turned.append(SeenImage(image.data, image.photo, faces, turn=turn))
        if turned:
            image.photo = self.full_size(image)
        for one in turned:
            one.photo = image.photo
        self.look(turned, pick)
        best = max(turned, key=lambda one: one.score, default=image)
        needed = max(self.detector.enrollment_score, image.score + TURN_MARGIN)
        return best if best.score >= needed else image

    def _look_at_more(self, image: SeenImage, pick: Pick | None, faces: Sequence[Detection]) -> None:
        """Runs the second detection pass for those of `faces` that it has not seen yet."""
        known = [face.detection for face in image.seen]
        new = detection.exclude(faces, [*known, *image.skipped])
        image.found = detection.merge([*image.found, *new])
        if pick is Pick.CENTER:  # the most central face is the only one that was seen
            image.found, image.seen = detection.merge([*image.found, *known]), []
        self.look([image], pick)
