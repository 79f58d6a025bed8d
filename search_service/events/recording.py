"""Records the faces of an answer as events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain, repeat

from indexer.errors import InvalidRequest, NotFound
from indexer.gallery.validation import check_name
from indexer.types import Gallery
from search_service.matching.decision import Decision, DecisionReason
from search_service.search import Answer, FaceAnswer
from search_service.store.event_pages import Direction
from search_service.store.events import EventRepository, Recorded, Sighting

LONGEST_COOLDOWN_SECONDS = 86_400
"""One day, so that a person who comes every day has an event every day."""


@dataclass(frozen=True)
class Recording:
    """Where faces were seen, and how long a person is not recorded there again. Raises InvalidRequest."""

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
    """Records an event for each face, and returns the answer with the events.

    Each face is a transaction of its own, so that a request repeated after a failure records no face twice within the
    cooldown.
    """
    faces = (
        replace(face, event=events.record(gallery, sighting(face, recording), recording.cooldown))
        for face in answer.faces
    )
    return replace(answer, faces=tuple(faces))


def serialize_events(answers: Sequence[Answer]) -> bytes:
    """Returns the events of each face, and nothing else of the answers, for `restore_events`."""
    faces = [face for answer in answers for face in answer.faces]
    return json.dumps([(face.event.event.id, face.event.recorded) if face.event else None for face in faces]).encode()


def restore_events(
    events: EventRepository, answers: Sequence[Answer], recording: Recording, serialized: bytes
) -> list[Answer]:
    """Returns the answers to repeated probes with the events of the first request; nothing is recorded.

    A face has no event if it was deleted, or if the search now finds a different person: an event outlives its
    identity, which a search no longer names.
    """
    stored = chain(json.loads(serialized), repeat(None))
    return [
        replace(answer, faces=tuple(_with_event(events, face, recording, next(stored)) for face in answer.faces))
        for answer in answers
    ]


def _with_event(
    events: EventRepository, face: FaceAnswer, recording: Recording, stored: tuple[int, bool] | None
) -> FaceAnswer:
    if stored is None:
        return face
    event_id, is_new = stored
    try:
        event = events.get(event_id)
    except NotFound:
        return face
    identity = sighting(face, recording).identity
    if event.identity_id != (identity.id if identity else None):
        return face
    return replace(face, event=Recorded(event, recorded=bool(is_new)))


def sighting(face: FaceAnswer, recording: Recording) -> Sighting:
    """Returns the sighting of the best candidate of a match or a review; of nobody otherwise, with the low score."""
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
        face.reasons,
        face.liveness.to_json() if face.liveness else None,
        is_attack=DecisionReason.NOT_LIVE in face.reasons,
    )
