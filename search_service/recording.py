"""What a search says of the faces in front of a device becomes events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from indexer.errors import InvalidRequest
from indexer.gallery.events import Direction, Events, Sighting
from indexer.gallery.store import check_name
from indexer.types import Gallery
from search_service.matching.decision import Decision
from search_service.search import Answer, FaceAnswer

LONGEST_COOLDOWN_SECONDS = 86_400
"""A day: who comes once a day is to be seen once a day."""


@dataclass(frozen=True)
class Recording:
    """Where faces were seen, and how long the same person is not recorded there again. Raises InvalidRequest."""

    device: str
    direction: Direction | None
    cooldown_seconds: float
    request_id: str | None = None

    def __post_init__(self) -> None:
        check_name("device", self.device)
        if not 0 <= self.cooldown_seconds <= LONGEST_COOLDOWN_SECONDS:
            raise InvalidRequest(
                f"cooldown is {self.cooldown_seconds:g}; expected 0 to {LONGEST_COOLDOWN_SECONDS} seconds"
            )

    @property
    def cooldown(self) -> timedelta:
        return timedelta(seconds=self.cooldown_seconds)


def record(events: Events, gallery: Gallery, answer: Answer, recording: Recording) -> Answer:
    """The answer with the event of each face: a transaction a face, so asked again after a failure none is doubled."""
    faces = (
        replace(face, event=events.record(gallery, sighting(face, recording), recording.cooldown))
        for face in answer.faces
    )
    return replace(answer, faces=tuple(faces))


def sighting(face: FaceAnswer, recording: Recording) -> Sighting:
    """Of a match or a review, the best candidate's; of anything else nobody's, with the score that was too low."""
    best = face.candidates[0] if face.candidates else None
    return Sighting(
        recording.device,
        recording.direction,
        face.decision,
        face.decision is Decision.MATCH,
        best.identity if best and face.decision is not Decision.NO_MATCH else None,
        best.score if best else None,
        face.threshold,
        recording.request_id,
    )
