"""Probe -> answer. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.app_context import AppContext
from indexer.clock import now
from indexer.errors import InvalidRequest, RejectedImage
from indexer.models.packs import Pack
from indexer.types import Detection, Face, Gallery, Hit, Identity, Named, Pick, Quality, Vectors, check_vectors
from indexer.vectors.base import VectorIndex
from indexer.vision.pipeline import Seen
from search_service.matching.decision import Decision, DecisionReason, decide
from search_service.matching.frames import Frame, fuse, weight_of
from search_service.matching.ranking import Candidate, Outranked, outranked, rank
from search_service.store.events import Recorded
from search_service.template_scores import fused

MAX_TOP_K = 100

MIN_FPIR = 1e-9
"""One stranger in a billion: far beyond what any pack's scores were measured for."""

SETTLE_SECONDS = 30.0
"""Longer than the survey of the largest gallery takes."""

SPARE = 4
"""Identities asked of the index beyond those wanted: the runner-up, and a few that may be expired."""


@dataclass(frozen=True)
class Query:
    """What is asked of a search. Without `fpir` or `threshold` the service's own FPIR is taken.

    `pick` None means all faces. Raises InvalidRequest.
    """

    top_k: int = 5
    fpir: float | None = None
    threshold: float | None = None
    pick: Pick | None = Pick.LARGEST

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise InvalidRequest(f"top_k is {self.top_k}; expected 1 to {MAX_TOP_K}")
        if self.fpir is not None and self.threshold is not None:
            raise InvalidRequest("give fpir or threshold, not both")
        if self.fpir is not None and not MIN_FPIR <= self.fpir < 1:
            raise InvalidRequest(f"fpir is {self.fpir}; expected {MIN_FPIR} or more and less than 1, as 0.01")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise InvalidRequest(f"threshold is {self.threshold}; expected a cosine, -1 to 1")


@dataclass(frozen=True, eq=False)
class FaceAnswer:
    """Who one face is. An embedding searched as such has no detection and no quality."""

    detection: Detection | None
    quality: Quality | None
    decision: Decision
    threshold: float
    fpir: float | None
    candidates: tuple[Candidate, ...]
    reasons: tuple[DecisionReason, ...] = ()
    event: Recorded | None = None
    """Where it was to be recorded."""


@dataclass(frozen=True, eq=False)
class FrameAnswer:
    """What became of one of several images of one person."""

    error: RejectedImage | None = None
    """Why it was passed over."""
    disagrees: bool = False
    """Whether it looks like somebody else than the others."""
    shown: bool = False
    """Whether the answer's box, landmarks and quality are those of its face."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one probe; `error` says why there are no faces. `frames` where the probe is several images."""

    gallery: str
    model: str
    faces: tuple[FaceAnswer, ...]
    error: RejectedImage | None = None
    frames: tuple[FrameAnswer, ...] | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    score: float
    threshold: float
    same: bool
    faces: tuple[Face, Face]


Told = Callable[[Gallery, FaceAnswer], None]
"""Hears of each face that was searched."""


class ThresholdSource(Protocol):
    """Where the threshold for a wanted FPIR comes from. `calibration.survey.Thresholds` is one."""

    def threshold(self, gallery: Gallery, index: VectorIndex, fpir: float) -> float:
        """Returns the cosine above which a share `fpir` of non-mated probes is answered with a match."""
        ...

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Waits at most `seconds` for calibrations that run in the background."""
        ...


class SearchService:
    """Answers probes: who they are, out of the people of a gallery. Thread-safe."""

    def __init__(self, context: AppContext, thresholds: ThresholdSource, told: Told | None = None) -> None:
        self._context = context
        self._thresholds = thresholds
        self._told = told

    def search(self, images: Sequence[bytes], gallery: Gallery, query: Query) -> list[Answer]:
        """One answer an image; what is wrong with one image is in its own answer."""
        return self.search_seen(self._context.pipeline_of(gallery).describe(images, query.pick), gallery, query)

    def search_seen(self, seen: Sequence[Seen], gallery: Gallery, query: Query) -> list[Answer]:
        """The same for images whose faces are described already."""
        faces = [face for one in seen for face in one.faces]
        vectors = np.stack([face.embedding for face in faces]) if faces else np.empty((0, gallery.dim), np.float32)
        found = iter(self._match(vectors, gallery, query, [bool(face.quality.reasons) for face in faces]))
        return [
            Answer(
                gallery.name,
                gallery.model,
                tuple(_with_face(next(found), face) for face in one.faces),
                one.rejection,
            )
            for one in seen
        ]

    def search_frames(self, images: Sequence[bytes | RejectedImage], gallery: Gallery, query: Query) -> Answer:
        """One answer from several images of one person, each face counting for its quality; images without a face to
        use are passed over while there is one with. The answer's box and quality are the best frame's."""
        read = [image for image in images if not isinstance(image, RejectedImage)]
        seen = iter(self._context.pipeline_of(gallery).describe(read, query.pick or Pick.LARGEST))
        every = [Seen(rejection=image) if isinstance(image, RejectedImage) else next(seen) for image in images]
        return self.frames_seen(every, gallery, query)

    def frames_seen(self, seen: Sequence[Seen], gallery: Gallery, query: Query) -> Answer:
        """The same for images whose faces are described already."""
        used = [(place, one.faces[0]) for place, one in enumerate(seen) if one.faces]
        if not used:
            rejection = next(one.rejection for one in seen if one.rejection is not None)
            return Answer(gallery.name, gallery.model, (), rejection, _frames(seen))
        frames = [Frame(face.embedding.tolist(), weight_of(face.quality)) for _, face in used]
        together = fuse(frames, self._context.pack_of(gallery).same_threshold)
        poor = all(face.quality.reasons for _, face in used)
        vector = check_vectors(together.embedding, gallery.dim)
        (answer,) = self._match(vector, gallery, query, [poor], disagreeing=bool(together.disagreeing))
        best, face = used[max(range(len(used)), key=lambda i: frames[i].weight)]
        told = _frames(seen, best, {used[i][0] for i in together.disagreeing})
        return Answer(gallery.name, gallery.model, (_with_face(answer, face),), frames=told)

    def search_embedding(self, values: Sequence[float], gallery: Gallery, query: Query) -> Answer:
        """For one embedding (D,) made elsewhere with the same pack. Raises InvalidVector."""
        faces = self._match(check_vectors(values, gallery.dim), gallery, query, [False])
        return Answer(gallery.name, gallery.model, tuple(faces))

    def compare(self, a: bytes, b: bytes, model: str | None = None) -> Comparison:
        """Whether the largest faces of two images are one person. Raises RejectedImage that says which image."""
        pack = self._context.usable(model)
        return compare_seen(self._context.pipeline(pack).describe([a, b], Pick.LARGEST), pack)

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Waits at most `seconds` for what searches have started in the background, before a process ends."""
        self._thresholds.settle(seconds)

    def _match(
        self, vectors: Vectors, gallery: Gallery, query: Query, poor: Sequence[bool], disagreeing: bool = False
    ) -> list[FaceAnswer]:
        index = self._context.indexes.of(gallery).caught_up()
        fpir = self._context.settings.fpir if query.fpir is None and query.threshold is None else query.fpir
        threshold = query.threshold
        if threshold is None and fpir is not None:
            threshold = round(self._thresholds.threshold(gallery, index, fpir), 4)
        assert threshold is not None  # noqa: S101 (one of the two is always set)
        candidates = self._candidates(gallery, index, vectors, query.top_k + 1)
        answers = [
            _answer(ranked, threshold, fpir, is_poor, disagreeing, query.top_k)
            for ranked, is_poor in zip(candidates, poor, strict=True)
        ]
        if self._told is not None:
            for answer in answers:
                self._told(gallery, answer)
        return answers

    def _candidates(self, gallery: Gallery, index: VectorIndex, vectors: Vectors, wanted: int) -> list[_Ranked]:
        """The best `wanted` identities that exist and are valid now, for each vector, by all of their faces: more are
        asked of the index until there are enough or no more."""
        if len(vectors) == 0:
            return []
        asked, at = wanted + SPARE, now()
        while True:
            with self._context.stopwatch.stage("index"):
                hits = index.nearest_identities(vectors, asked)
            ids = {hit.identity_id for some in hits for hit in some}
            people = self._context.store.valid_identities(ids, at)
            if not all(_enough(some, people, wanted) or len(some) < asked for some in hits):
                asked *= 4
                continue
            others = self._context.store.identities_by_id(ids - people.keys()) if len(people) < len(ids) else {}
            hits = self._fused(hits, vectors, gallery, (*people.values(), *others.values()))
            return [_Ranked(rank(some, people, wanted), outranked(some, people, others, at)) for some in hits]

    def _fused(
        self, hits: list[list[Hit]], vectors: Vectors, gallery: Gallery, people: Iterable[Named | Identity]
    ) -> list[list[Hit]]:
        several = [person.id for person in people if person.faces > 1]
        if not several:
            return hits
        faces = self._context.store.vectors_of_people(gallery, several)
        return fused(hits, vectors, faces, self._context.pack_of(gallery).same_threshold)


@dataclass(frozen=True)
class _Ranked:
    """The best candidates of one face, and who is not one although they would be the first."""

    candidates: tuple[Candidate, ...]
    outranked: Outranked | None


def _enough(hits: Sequence[Hit], people: Mapping[int, Named], wanted: int) -> bool:
    """Whether `wanted` of the hits are of `people`."""
    return sum(hit.identity_id in people for hit in hits) >= wanted


def _answer(
    ranked: _Ranked, threshold: float, fpir: float | None, poor_probe: bool, disagreeing: bool, top_k: int
) -> FaceAnswer:
    verdict = decide(ranked.candidates, threshold, poor_probe, frames_disagree=disagreeing, outranked=ranked.outranked)
    candidates = ranked.candidates[:top_k]
    return FaceAnswer(None, None, verdict.decision, threshold, fpir, candidates, verdict.reasons)


def _frames(
    seen: Sequence[Seen], shown: int | None = None, disagreeing: Collection[int] = ()
) -> tuple[FrameAnswer, ...]:
    return tuple(
        FrameAnswer(None if one.faces else one.rejection, place in disagreeing, place == shown)
        for place, one in enumerate(seen)
    )


def compare_seen(seen: Sequence[Seen], pack: Pack) -> Comparison:
    """The comparison of two described images."""
    faces: list[Face] = []
    for name, one in zip(("a", "b"), seen, strict=True):
        if one.rejection is not None:
            message = f"image {name}: {one.rejection.message}"
            raise RejectedImage(message, code=one.rejection.code, details={"image": name})
        faces.append(one.faces[0])
    score = cosine(faces[0].embedding, faces[1].embedding)
    return Comparison(score, pack.same_threshold, score >= pack.same_threshold, (faces[0], faces[1]))


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Of two vectors of unit length."""
    return float(np.clip(np.dot(a, b), -1, 1))


def _with_face(answer: FaceAnswer, face: Face) -> FaceAnswer:
    return replace(answer, detection=face.detection, quality=face.quality)
