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
from indexer.types import Detection, Face, Gallery, Liveness, LivenessMode, Pick, Quality, Vectors, check_vectors
from indexer.vectors.base import VectorIndex
from indexer.vision.pipeline import ImageResult
from search_service.candidates import CandidateFinder
from search_service.matching.decision import NOT_LIVE, Decision, DecisionReason, decide
from search_service.matching.frames import combine_liveness, fuse, weight_of
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
    liveness: LivenessMode = LivenessMode.OFF
    """With `require`, faces that are not live, or whose liveness is not known, match nobody."""

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
    liveness: Liveness | None = None
    """See `Face.liveness`."""


@dataclass(frozen=True, eq=False)
class FrameAnswer:
    """How one of several images of one person was used."""

    error: RejectedImage | None = None
    """Why the image was skipped."""
    disagrees: bool = False
    """Whether it seems to show a different person than the other images."""
    shown: bool = False
    """Whether the answer's box, landmarks and quality are those of its face."""
    liveness: Liveness | None = None
    """Of this image alone. The answer's is that of all images."""


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
    reasons: tuple[DecisionReason, ...] = ()
    """Why the faces are not accepted as one person although they may be similar."""


@dataclass(frozen=True, eq=False)
class _Probe:
    """What is searched of a face."""

    embedding: NDArray[np.float32]
    is_poor: bool = False
    liveness: Liveness | None = None
    frames_disagree: bool = False


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
        return self.search_described(self._describe(images, gallery, query), gallery, query)

    def search_described(self, results: Sequence[ImageResult], gallery: Gallery, query: Query) -> list[Answer]:
        """Returns one answer for each image whose faces are described already."""
        probes = [
            _Probe(face.embedding, bool(face.quality.reasons), face.liveness) for one in results for face in one.faces
        ]
        answers = iter(self._match(probes, gallery, query))
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
        described = iter(self._describe(read, gallery, replace(query, pick=query.pick or Pick.LARGEST)))
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
        (embedding,) = check_vectors(probe.embedding, gallery.dim)
        seen = [face.liveness for face in faces if face.liveness is not None]
        liveness = combine_liveness(seen) if seen else None
        is_poor = all(face.quality.reasons for face in faces)
        (answer,) = self._match([_Probe(embedding, is_poor, liveness, probe.disagreeing.size > 0)], gallery, query)
        best = int(weights.argmax())
        frames = _frame_answers(results, places[best], {places[i] for i in probe.disagreeing})
        shown = replace(_with_face(answer, faces[best]), liveness=liveness)
        return Answer(gallery.name, gallery.model, (shown,), frames=frames)

    def search_embedding(self, values: Sequence[float], gallery: Gallery, query: Query) -> Answer:
        """Returns the answer for one embedding, (D,), computed elsewhere with the same pack.

        Raises InvalidVector, or InvalidRequest if a live face is required, which only an image can show.
        """
        if query.liveness is LivenessMode.REQUIRE:
            raise InvalidRequest("a live face is required here; send an image, an embedding cannot show one")
        faces = self._match([_Probe(one) for one in check_vectors(values, gallery.dim)], gallery, query)
        return Answer(gallery.name, gallery.model, tuple(faces))

    def compare(
        self, a: bytes, b: bytes, model: str | None = None, liveness: LivenessMode = LivenessMode.OFF
    ) -> Comparison:
        """Compares the largest faces of two images. Raises RejectedImage, which names the image."""
        pack, check = self._context.usable(model), self._context.liveness_check(liveness)
        described = describe_or_reject(self._context.pipeline(pack), [a, b], Pick.LARGEST, liveness=check)
        return compare_described(described, pack, liveness)

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Waits at most `seconds` for background work that searches have started. Called before a process ends."""
        self._thresholds.settle(seconds)

    def _describe(self, images: Sequence[bytes], gallery: Gallery, query: Query) -> list[ImageResult]:
        check = self._context.liveness_check(query.liveness)
        return describe_or_reject(self._context.pipeline_of(gallery), images, query.pick, liveness=check)

    def _match(self, probes: Sequence[_Probe], gallery: Gallery, query: Query) -> list[FaceAnswer]:
        index = self._context.indexes.get(gallery).catch_up()
        threshold, fpir = self._threshold(gallery, index, query)
        searched = [probe.embedding for probe in probes if _may_match(probe.liveness, query.liveness)]
        vectors: Vectors = np.stack(searched) if searched else np.empty((0, gallery.dim), np.float32)
        ranked = iter(self._finder.find(gallery, index, vectors, query.top_k + 1, threshold))
        answers = []
        for probe in probes:
            candidates: tuple[Candidate, ...] = ()
            verdict = NOT_LIVE
            if _may_match(probe.liveness, query.liveness):
                candidates, better = next(ranked)
                verdict = decide(candidates, threshold, probe.is_poor, probe.frames_disagree, better)
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
        FrameAnswer(
            None if one.faces else one.rejection,
            place in disagreeing,
            place == shown,
            one.faces[0].liveness if one.faces else None,
        )
        for place, one in enumerate(results)
    )


def compare_described(
    results: Sequence[ImageResult], pack: Pack, liveness: LivenessMode = LivenessMode.OFF
) -> Comparison:
    """Compares two described images. Raises RejectedImage, which names the image.

    Where live faces are required, both must be, as it is not known which one is the person's own photo.
    """
    faces: list[Face] = []
    for name, one in zip(("a", "b"), results, strict=True):
        if one.rejection is not None:
            message = f"image {name}: {one.rejection.message}"
            raise RejectedImage(message, code=one.rejection.code, details={"image": name})
        faces.append(one.faces[0])
    score = cosine(faces[0].embedding, faces[1].embedding)
    are_live = all(_may_match(face.liveness, liveness) for face in faces)
    same = are_live and reaches(score, pack.same_threshold)
    return Comparison(
        score, pack.same_threshold, same, (faces[0], faces[1]), () if are_live else (DecisionReason.NOT_LIVE,)
    )


def _may_match(liveness: Liveness | None, mode: LivenessMode) -> bool:
    """Returns whether a face may match although it could be a presentation attack."""
    return mode is not LivenessMode.REQUIRE or (liveness is not None and liveness.live)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Returns the cosine similarity of two vectors of unit length."""
    return float(np.clip(np.dot(a, b), -1, 1))


def _with_face(answer: FaceAnswer, face: Face) -> FaceAnswer:
    return replace(answer, detection=face.detection, quality=face.quality, turn=face.turn, liveness=face.liveness)
