"""The worst mistakes of an evaluation, with small pictures of the people."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from indexer.app_context import AppContext
from indexer.enrollment.rows import Row
from indexer.errors import RejectedImage
from indexer.types import Face, Pick
from indexer.vision.decode import Limits, decode
from indexer.vision.pipeline import FacePipeline
from search_service.evaluation.probes import ProbeResult
from search_service.evaluation.protocol import Protocol
from search_service.matching.ranking import Candidate

SHOWN = 12
"""Mistakes of each kind that are shown."""

SIDE = 132
"""Width of a picture in pixels: a report with 200 of them has 1 MB."""

MARGIN = 1.9
"""Width of a picture relative to the face's box, so that it shows the head with its hair."""

DECODED_SIDE = 1000
"""The same as in the pipeline's first detection pass."""

QUALITY = 80


@dataclass(frozen=True)
class Shot:
    """One photo. `picture` is a JPEG, None if the photo cannot be shown."""

    image: str
    external_id: str
    picture: bytes | None


@dataclass(frozen=True)
class Mistake:
    """A probe with the most similar enrolled photo of another person, and one of its own person if enrolled.

    `own_score` is None if the person is not among the candidates.
    """

    probe: Shot
    other: Shot | None
    other_score: float | None
    own: Shot | None
    own_score: float | None


@dataclass(frozen=True)
class Mistakes:
    """The worst mistakes of each kind, the worst first."""

    threshold: float
    """The service's own for FPIR 1 %."""
    strangers_let_in: Sequence[Mistake]
    """Strangers with the highest scores, above a threshold or not."""
    confused: Sequence[Mistake]
    """Mated probes whose top candidate is another person."""
    missed: Sequence[Mistake]
    """Mated probes whose top candidate is right and below the threshold."""
    not_enrolled: Sequence[tuple[Shot, str]]
    not_searched: Sequence[tuple[Shot, str]]


class Pictures:
    """Makes small pictures of photos."""

    def __init__(
        self, context: AppContext, pipeline: FacePipeline, protocol: Protocol, enrolled: Mapping[int, Row]
    ) -> None:
        """`enrolled` are the enrolled photos, by face id."""
        self._settings = context.settings
        self._pipeline = pipeline
        self._protocol = protocol
        self._enrolled = enrolled

    def of_mistakes(self, results: Iterable[ProbeResult]) -> list[Mistake]:
        return [
            Mistake(
                self._of_photo(one.row, self._protocol.searching),
                None if one.other is None else self._of_candidate(one.other),
                None if one.other is None else one.other.score,
                self._of_person(one.row.person.external_id) if one.own is None else self._of_candidate(one.own),
                None if one.own is None else one.own.score,
            )
            for one in list(results)[:SHOWN]
        ]

    def of_refused(self, photos: Iterable[tuple[Row, object]], is_probe: bool) -> list[tuple[Shot, str]]:
        """Returns pictures of photos that could not be used, each with the reason."""
        pick = self._protocol.searching if is_probe else self._protocol.enrolling
        return [(self._of_photo(row, pick), str(reason)) for row, reason in list(photos)[:SHOWN]]

    def _of_photo(self, row: Row, pick: Pick) -> Shot:
        """Returns a picture of the photo's face, or of the whole photo if none was found."""
        try:
            image = row.read(self._settings.max_image_bytes)
            (result,) = self._pipeline.describe([image], pick)
            picture = portrait(image, self._settings.max_image_pixels, result.faces[0] if result.faces else None)
        except RejectedImage:
            picture = None
        return Shot(row.image, row.person.external_id, picture)

    def _of_candidate(self, candidate: Candidate) -> Shot:
        return self._of_photo(self._enrolled[candidate.face_id], self._protocol.enrolling)

    def _of_person(self, external_id: str) -> Shot | None:
        row = next((row for row in self._enrolled.values() if row.person.external_id == external_id), None)
        return None if row is None else self._of_photo(row, self._protocol.enrolling)


def worst_mistakes(
    mated: Sequence[ProbeResult],
    strangers: Sequence[ProbeResult],
    refused: Sequence[tuple[Row, object]],
    threshold: float,
    pictures: Pictures,
    search_wider: Callable[[ProbeResult], ProbeResult],
) -> Mistakes:
    """Returns the worst mistakes of each kind.

    Args:
        strangers: Their results; those of mated probes too if they are strangers to the others.
        refused: Photos that could not be enrolled, with the reasons.
        threshold: The service's own for FPIR 1 %.
        search_wider: Repeats a search with more candidates, which may include the own person.
    """
    accepted = sorted((one for one in strangers if one.other is not None), key=lambda one: -one.other_score)
    confused = [one for one in mated if not one.is_right and one.other is not None]
    confused.sort(key=lambda one: -one.other_score)
    missed = sorted((one for one in mated if one.is_right and one.own_score < threshold), key=lambda one: one.own_score)
    probes = {id(one): one for one in (*mated, *strangers)}.values()
    unsearched = [(one.row, one.reason) for one in probes if one.reason is not None]
    return Mistakes(
        threshold,
        pictures.of_mistakes(accepted),
        pictures.of_mistakes(map(search_wider, confused[:SHOWN])),
        pictures.of_mistakes(missed),
        pictures.of_refused(refused, is_probe=False),
        pictures.of_refused(unsearched, is_probe=True),
    )


def portrait(image: bytes, max_pixels: int, face: Face | None) -> bytes:
    """Returns a JPEG, SIDE pixels wide and high around a face. Raises RejectedImage if it cannot be decoded."""
    photo = decode(image, Limits(len(image), max_pixels), DECODED_SIDE)
    picture = Image.fromarray(photo.pixels)
    if face is None:
        picture.thumbnail((SIDE, SIDE))
    else:
        box = face.detection.box
        half = max(box.w, box.h) * MARGIN / 2 / photo.scale
        x, y = photo.to_decoded(box.center).tolist()
        # The area outside of the photo is black.
        picture = picture.crop((x - half, y - half, x + half, y + half)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
