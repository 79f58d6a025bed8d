"""What a search says of the faces in front of a device becomes events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain, repeat

from indexer.errors import InvalidRequest, NotFound
from indexer.gallery.validation import check_name
from indexer.types import Gallery
from search_service.matching.decision import Decision
from search_service.search import Answer, FaceAnswer
from search_service.store.events import Direction, Event, EventRepository, Recorded, Sighting

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


def record(events: EventRepository, gallery: Gallery, answer: Answer, recording: Recording) -> Answer:
    """The answer with the event of each face: a transaction a face, so asked again after a failure none is doubled."""
    faces = (
        replace(face, event=events.record(gallery, sighting(face, recording), recording.cooldown))
        for face in answer.faces
    )
    return replace(answer, faces=tuple(faces))


def remembered(answers: Sequence[Answer]) -> bytes:
    """Which events the answers told, face by face, and nothing else of them: for `told_again`."""
    faces = [face for answer in answers for face in answer.faces]
    return json.dumps([(face.event.event.id, face.event.recorded) if face.event else None for face in faces]).encode()


def told_again(events: EventRepository, answers: Sequence[Answer], recording: Recording, then: bytes) -> list[Answer]:
    """The answers to the same probes with the events that were told `then`; nothing is recorded.

    A face has no event where that was deleted, and where it is not the same person any more whom the search finds: an
    event outlives its identity, which a search does not name any more.
    """
    told = chain(json.loads(then), repeat(None))
    return [
        replace(answer, faces=tuple(_with_event(events, face, recording, next(told)) for face in answer.faces))
        for answer in answers
    ]


def _with_event(events: EventRepository, face: FaceAnswer, recording: Recording, told: list[int] | None) -> FaceAnswer:
    event = _event(events, told[0]) if told else None
    seen = sighting(face, recording).identity
    if told is None or event is None or event.identity_id != (seen.id if seen else None):
        return face
    return replace(face, event=Recorded(event, recorded=bool(told[1])))


def _event(events: EventRepository, event_id: int) -> Event | None:
    try:
        return events.get(event_id)
    except NotFound:
        return None


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
