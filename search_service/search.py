"""Searches probes in galleries and decides; independent of HTTP and the command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.app_context import AppContext
from indexer.enrollment.reading import describe_or_reject
from indexer.errors import InvalidRequest, RejectedImage
from indexer.models.packs import Pack
from indexer.rounding import NARROW_DECIMALS, SCORE_DECIMALS, reaches
from indexer.supervision import notify
from indexer.types import Detection, Face, Gallery, Pick, Quality, Vectors, check_vectors
from indexer.vectors.base import VectorIndex
from indexer.vision.pipeline import ImageResult
from search_service.candidates import CandidateFinder
from search_service.matching.decision import Decision, DecisionReason, decide
from search_service.matching.frames import fuse, weight_of
from search_service.matching.ranking import Candidate
from search_service.store.events import Recorded

MAX_TOP_K = 100

MIN_FPIR = 1e-9
"""One stranger in a billion, far beyond what the scores of any pack were measured for."""

SETTLE_SECONDS = 30.0
"""Longer than the survey of the largest gallery takes."""


@dataclass(frozen=True)
class Query:
    """How to search. Without `fpir` and `threshold`, the service's default FPIR applies.

    `pick` None searches all faces. Raises InvalidRequest.
    """

    top_k: int = 5
    fpir: float | None = None
    threshold: float | None = None
    pick: Pick | None = Pick.LARGEST
    may_lower: bool = True
    """Whether the threshold may be lower than that of the service's default FPIR. If not, a wished one is rounded up to
    NARROW_DECIMALS, so that searching one probe at many thresholds does not show its score in more detail."""

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
    """The answer for one face. A probe given as an embedding has no detection and no quality."""

    detection: Detection | None
    quality: Quality | None
    decision: Decision
    threshold: float
    fpir: float | None
    candidates: tuple[Candidate, ...]
    reasons: tuple[DecisionReason, ...] = ()
    event: Recorded | None = None
    """The recorded event, if the request asked for one."""
    turn: int | None = None
    """See `Face.turn`."""


@dataclass(frozen=True, eq=False)
class FrameAnswer:
    """How one of several images of one person was used."""

    error: RejectedImage | None = None
    """Why the image was skipped."""
    disagrees: bool = False
    """Whether it seems to show a different person than the other images."""
    shown: bool = False
    """Whether the answer's box, landmarks and quality are those of its face."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer for one probe. `error` explains empty `faces`; `frames` is set for a probe of several images."""

    gallery: str
    model: str
    faces: tuple[FaceAnswer, ...]
    error: RejectedImage | None = None
    frames: tuple[FrameAnswer, ...] | None = None
    faces_not_searched: int = 0
    """See `ImageResult.faces_not_searched`."""


@dataclass(frozen=True, eq=False)
class Comparison:
    score: float
    threshold: float
    same: bool
    faces: tuple[Face, Face]


Listener = Callable[[Gallery, FaceAnswer], None]
"""Is called with each face that was searched."""


class ThresholdSource(Protocol):
    """Provides the threshold for an FPIR. `calibration.thresholds.Thresholds` implements it."""

    def threshold(self, gallery: Gallery, index: VectorIndex, fpir: float) -> float:
        """Returns the cosine above which a share `fpir` of non-mated probes is answered with a match."""

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Waits at most `seconds` for calibrations that run in the background."""


class SearchService:
    """Searches probes in galleries. Thread-safe."""

    def __init__(self, context: AppContext, thresholds: ThresholdSource, listener: Listener | None = None) -> None:
        self._context = context
        self._finder = CandidateFinder(context)
        self._thresholds = thresholds
        self._listener = listener

    def search(self, images: Sequence[bytes], gallery: Gallery, query: Query) -> list[Answer]:
        """Returns one answer for each image; problems with one image are reported in its own answer."""
        return self.search_described(self._describe(gallery, images, query.pick), gallery, query)

    def search_described(self, results: Sequence[ImageResult], gallery: Gallery, query: Query) -> list[Answer]:
        """Returns one answer for each image whose faces are described already."""
        faces = [face for one in results for face in one.faces]
        vectors = np.stack([face.embedding for face in faces]) if faces else np.empty((0, gallery.dim), np.float32)
        answers = iter(self._match(vectors, gallery, query, [bool(face.quality.reasons) for face in faces]))
        return [
            Answer(
                gallery.name,
                gallery.model,
                tuple(_with_face(next(answers), face) for face in one.faces),
                one.rejection,
                faces_not_searched=one.faces_not_searched,
            )
            for one in results
        ]

    def search_frames(self, images: Sequence[bytes | RejectedImage], gallery: Gallery, query: Query) -> Answer:
        """Returns one answer from several images of one person, in which each face is weighted by its quality.

        Images without a usable face are skipped while another one has a face. Box and quality are the best frame's.
        """
        read = [image for image in images if isinstance(image, bytes)]
        described = iter(self._describe(gallery, read, query.pick or Pick.LARGEST))
        every = [
            ImageResult(rejection=image) if isinstance(image, RejectedImage) else next(described) for image in images
        ]
        return self.search_described_frames(every, gallery, query)

    def search_described_frames(self, results: Sequence[ImageResult], gallery: Gallery, query: Query) -> Answer:
        """Does the same with images whose faces are described already."""
        places = [place for place, one in enumerate(results) if one.faces]
        if not places:
            rejection = next(one.rejection for one in results if one.rejection is not None)
            return Answer(gallery.name, gallery.model, (), rejection, _frame_answers(results))
        faces = [results[place].faces[0] for place in places]
        weights = np.array([weight_of(face.quality) for face in faces])
        embeddings = np.stack([face.embedding for face in faces])
        probe = fuse(embeddings, weights, self._context.pack_of(gallery).same_threshold)
        is_poor = all(face.quality.reasons for face in faces)
        vectors = check_vectors(probe.embedding, gallery.dim)
        (answer,) = self._match(vectors, gallery, query, [is_poor], frames_disagree=probe.disagreeing.size > 0)
        best = int(weights.argmax())
        frames = _frame_answers(results, places[best], {places[i] for i in probe.disagreeing})
        return Answer(gallery.name, gallery.model, (_with_face(answer, faces[best]),), frames=frames)

    def search_embedding(self, values: Sequence[float], gallery: Gallery, query: Query) -> Answer:
        """Returns the answer for one embedding, (D,), computed elsewhere with the same pack. Raises InvalidVector."""
        faces = self._match(check_vectors(values, gallery.dim), gallery, query, [False])
        return Answer(gallery.name, gallery.model, tuple(faces))

    def compare(self, a: bytes, b: bytes, model: str | None = None) -> Comparison:
        """Compares the largest faces of two images. Raises RejectedImage, which names the image."""
        pack = self._context.usable(model)
        return compare_described(describe_or_reject(self._context.pipeline(pack), [a, b], Pick.LARGEST), pack)

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Waits at most `seconds` for background work that searches have started. Called before a process ends."""
        self._thresholds.settle(seconds)

    def _describe(self, gallery: Gallery, images: Sequence[bytes], pick: Pick | None) -> list[ImageResult]:
        return describe_or_reject(self._context.pipeline_of(gallery), images, pick)

    def _match(
        self, vectors: Vectors, gallery: Gallery, query: Query, are_poor: Sequence[bool], frames_disagree: bool = False
    ) -> list[FaceAnswer]:
        index = self._context.indexes.get(gallery).catch_up()
        threshold, fpir = self._threshold(gallery, index, query)
        answers = []
        ranked = self._finder.find(gallery, index, vectors, query.top_k + 1, threshold)
        for (candidates, better), is_poor in zip(ranked, are_poor, strict=True):
            verdict = decide(candidates, threshold, is_poor, frames_disagree, better)
            shown = candidates[: query.top_k]
            answers.append(FaceAnswer(None, None, verdict.decision, threshold, fpir, shown, verdict.reasons))
        if self._listener is not None:
            for answer in answers:
                notify(self._listener, gallery, answer)
        return answers

    def _threshold(self, gallery: Gallery, index: VectorIndex, query: Query) -> tuple[float, float | None]:
        """Returns the threshold of a search, and the FPIR that it was chosen for; None for a threshold of its own."""

        def for_fpir(fpir: float) -> float:
            return round(self._thresholds.threshold(gallery, index, fpir), SCORE_DECIMALS)

        default = self._context.settings.fpir
        wished = query.threshold if query.fpir is None else for_fpir(query.fpir)
        if wished is None:
            return for_fpir(default), default
        if query.may_lower:
            return wished, query.fpir
        least, step = for_fpir(default), 10**NARROW_DECIMALS
        wished = math.ceil(round(wished * step, SCORE_DECIMALS)) / step
        return (wished, query.fpir) if wished > least else (least, default)


def _frame_answers(
    results: Sequence[ImageResult], shown: int | None = None, disagreeing: Collection[int] = ()
) -> tuple[FrameAnswer, ...]:
    return tuple(
        FrameAnswer(None if one.faces else one.rejection, place in disagreeing, place == shown)
        for place, one in enumerate(results)
    )


def compare_described(results: Sequence[ImageResult], pack: Pack) -> Comparison:
    """Compares two described images. Raises RejectedImage, which names the image."""
    faces: list[Face] = []
    for name, one in zip(("a", "b"), results, strict=True):
        if one.rejection is not None:
            message = f"image {name}: {one.rejection.message}"
            raise RejectedImage(message, code=one.rejection.code, details={"image": name})
        faces.append(one.faces[0])
    score = cosine(faces[0].embedding, faces[1].embedding)
    return Comparison(score, pack.same_threshold, reaches(score, pack.same_threshold), (faces[0], faces[1]))


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Returns the cosine similarity of two vectors of unit length."""
    return float(np.clip(np.dot(a, b), -1, 1))


def _with_face(answer: FaceAnswer, face: Face) -> FaceAnswer:
    return replace(answer, detection=face.detection, quality=face.quality, turn=face.turn)
