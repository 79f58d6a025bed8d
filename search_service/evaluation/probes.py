"""Probes of an evaluation: reading and describing their photos, and the results of their searches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from indexer.app_context import SPARE_WORKERS, AppContext
from indexer.enrollment.reading import describe_or_reject, process_chunks, read_batches
from indexer.enrollment.rows import Row
from indexer.types import Pick, Reason, sha256
from indexer.vision.pipeline import FacePipeline, ImageResult
from search_service.evaluation.metrics import NOT_SEARCHED, Searches
from search_service.matching.decision import Decision
from search_service.matching.ranking import Candidate
from search_service.search import Answer, FaceAnswer


@dataclass(frozen=True, eq=False)
class DescribedPhoto:
    """One photo; `sha256` is empty if it could not be read."""

    row: Row
    sha256: str
    described: ImageResult


class PhotoReader:
    """Reads and describes photos."""

    def __init__(self, context: AppContext, pipeline: FacePipeline, pick: Pick) -> None:
        self._max_bytes = context.settings.max_image_bytes
        self._workers = context.cores + SPARE_WORKERS
        self._pipeline = pipeline
        self._pick = pick

    def stream(self, rows: Sequence[Row]) -> Generator[list[DescribedPhoto]]:
        """Yields chunks of photos, in order, described by as many threads as enrollment uses, a few chunks ahead."""
        return process_chunks(rows, self.read, self._workers, "evaluate")

    def read(self, rows: Sequence[Row]) -> list[DescribedPhoto]:
        photos: list[DescribedPhoto] = []
        for batch in read_batches(rows, self._max_bytes):
            images = [image for _, image in batch if isinstance(image, bytes)]
            seen = iter(describe_or_reject(self._pipeline, images, self._pick, gate=False))
            photos += [
                DescribedPhoto(row, sha256(image), next(seen))
                if isinstance(image, bytes)
                else DescribedPhoto(row, "", ImageResult(rejection=image))
                for row, image in batch
            ]
        return photos


@dataclass(frozen=True)
class ProbeResult:
    """The result of one probe: its person's candidate, and the best of the other candidates."""

    row: Row
    own: Candidate | None = None
    other: Candidate | None = None
    decision: Decision | None = None
    reason: Reason | None = None
    """Why it could not be searched."""

    @property
    def is_right(self) -> bool:
        """Whether the top candidate is the person in the photo."""
        return self.own is not None and self.own.rank == 1

    @property
    def own_score(self) -> float:
        return NOT_SEARCHED if self.own is None else self.own.score

    @property
    def other_score(self) -> float:
        return NOT_SEARCHED if self.other is None else self.other.score


@dataclass(frozen=True)
class ProbeSummary:
    """The results of mated probes, or of strangers."""

    photos: int
    people: int
    reasons: Mapping[Reason, int]
    """Of photos that could not be searched."""
    decisions: Mapping[str, int]
    """The service's decisions at its default FPIR; `wrong_match` and `wrong_review` name a different person."""


def result_of(row: Row, answer: Answer) -> ProbeResult:
    if not answer.faces:
        return ProbeResult(row, reason=Reason(answer.error.code) if answer.error is not None else Reason.NO_FACE)
    face = answer.faces[0]
    other = next((one for one in face.candidates if one.identity.external_id != row.person.external_id), None)
    return ProbeResult(row, own_candidate(face, row), other, face.decision)


def own_candidate(face: FaceAnswer, row: Row) -> Candidate | None:
    """Returns the candidate that is the person in the photo."""
    return next((one for one in face.candidates if one.identity.external_id == row.person.external_id), None)


def searches(mated: Sequence[ProbeResult], strangers: Sequence[ProbeResult]) -> tuple[Searches, Searches]:
    """Returns the scores of mated probes, and of strangers, of whom the own candidate is ignored."""
    numbers: dict[str, int] = {}

    def of(results: Iterable[tuple[ProbeResult, float]]) -> Searches:
        rows = [
            (numbers.setdefault(one.row.person.external_id, len(numbers)), score, one.is_right)
            for one, score in results
        ]
        people, scores, right = zip(*rows, strict=True) if rows else ((), (), ())
        return Searches(np.array(people, np.int64), np.array(scores, np.float64), np.array(right, np.bool_))

    top = ((one, one.own_score if one.is_right else one.other_score) for one in mated)
    return of(top), of((one, one.other_score) for one in strangers)


def summarize(results: Sequence[ProbeResult]) -> ProbeSummary:
    decisions = Counter(map(_decision, results))
    reasons = Counter(one.reason for one in results if one.reason is not None)
    people = len({one.row.person.external_id for one in results})
    return ProbeSummary(len(results), people, dict(reasons.most_common()), dict(decisions.most_common()))


def _decision(result: ProbeResult) -> str:
    """Returns the service's decision, and whether it names a different person."""
    if result.decision is None:
        return "not_searched"
    if result.decision is Decision.NO_MATCH or result.is_right:
        return str(result.decision)
    return f"wrong_{result.decision}"
