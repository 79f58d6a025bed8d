"""Runs an evaluation through the service itself, in a gallery of its own."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.app_context import SPARE_WORKERS, AppContext
from indexer.enrollment.enroller import Enroller, Result
from indexer.enrollment.rows import Row
from indexer.errors import InvalidRequest
from indexer.files import make_private_folder
from indexer.models.packs import Pack
from indexer.settings import Settings, read_settings
from indexer.types import Outcome, Reason
from search_service.calibration.thresholds import Thresholds
from search_service.evaluation.cache import Cache, CachedPipeline, kind_of
from search_service.evaluation.metrics import FPIRS, Metrics, measure
from search_service.evaluation.mistakes import Mistakes, Pictures, worst_mistakes
from search_service.evaluation.probes import (
    PhotoReader,
    ProbeResult,
    ProbeSummary,
    own_candidate,
    result_of,
    searches,
    summarize,
)
from search_service.evaluation.protocol import LEAST_STRANGERS, Protocol, Split, split
from search_service.search import MAX_TOP_K, Query, SearchService

GALLERY = "evaluation"

REPORTED_SETTINGS = ("device", "precision", "thorough", "vectors", "lookalikes")
"""Settings that scores depend on."""

Progress = Callable[[int, int, str], None]
"""Is called with the photos done, their total, and the current step."""


@dataclass(frozen=True)
class EnrollmentSummary:
    photos: int
    people: int
    enrolled: int
    reasons: Mapping[Reason, int]
    """Of photos that were rejected."""
    nobody: tuple[str, ...]
    """People none of whose photos could be enrolled."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    model: str
    fingerprint: str
    protocol: Protocol
    settings: Mapping[str, str]
    """REPORTED_SETTINGS."""
    fpir: float
    """Of the decisions: the service's default."""
    unlabelled: int
    """Rows that do not name a person."""
    copies: int
    """Photos that were left out, because they are the same file as another one of their person."""
    enrollment: EnrollmentSummary
    mated: ProbeSummary
    strangers: ProbeSummary
    """People with one photo."""
    are_mates_strangers: bool
    """Whether mated probes are strangers to the other people as well."""
    stranger_people: int
    stranger_searches: int
    metrics: Metrics
    mistakes: Mistakes
    computed: int
    """Photos that the networks computed."""
    from_cache: int
    """Photos whose descriptions were stored."""
    cache_problem: str | None = None
    """Why descriptions could not be stored."""


def evaluate(
    context: AppContext, rows: Sequence[Row], protocol: Protocol, model: str | None, keep: bool, progress: Progress
) -> Evaluation:
    """Evaluates a model pack, or the default one, with the settings of `context`, whose galleries are not touched.

    With `keep`, the descriptions of photos are stored for the next time.

    Raises InvalidRequest, NotFound, ModelUnavailable, StorageUnavailable and OSError.
    """
    pack = context.usable(model)
    parts = split(rows, protocol.photos)
    with isolated_context(context.settings) as isolated:
        folder = cache_folder(context) if keep else isolated.settings.home / "cache"
        cache = Cache(folder, kind_of(isolated, pack))
        try:
            evaluation = _Run(isolated, pack, protocol, parts, cache, progress).run()
        finally:
            cache.flush()
        return replace(evaluation, cache_problem=None if cache.failure is None else str(cache.failure))


def cache_folder(context: AppContext) -> Path:
    return context.settings.home / "cache"


@contextmanager
def isolated_context(settings: Settings) -> Iterator[AppContext]:
    """Opens a temporary home with these settings and model files, and a database and indexes of its own.

    Vectors that would be stored elsewhere are stored in it.
    """
    own = ("home", "database_url", "vectors", "keep_crops")
    shared = {name: getattr(settings, name) for name in Settings.model_fields if name not in own}
    vectors = settings.vectors if "://" not in settings.vectors else "auto"
    make_private_folder(settings.models_folder)
    with tempfile.TemporaryDirectory(prefix="whosthere-evaluate-") as folder:
        (Path(folder) / "models").symlink_to(settings.models_folder.resolve())
        context = AppContext(read_settings({}, home=Path(folder), vectors=vectors, **shared))
        try:
            yield context
        finally:
            context.close()


class _Run:
    """One evaluation, from its split to its metrics."""

    def __init__(
        self, context: AppContext, pack: Pack, protocol: Protocol, parts: Split, cache: Cache, progress: Progress
    ) -> None:
        self._context = context
        self._protocol = protocol
        self._parts = parts
        self._cache = cache
        self._progress = progress
        self._total = sum(map(len, (parts.enrolled, parts.mated, parts.strangers)))
        self._done = 0
        self._pipeline = CachedPipeline(context, pack, cache)
        self._photos = PhotoReader(context, self._pipeline, protocol.searching)
        self._gallery = context.store.galleries.create(GALLERY, pack.name, pack.fingerprint, pack.dim)
        self._service = SearchService(context, Thresholds(context))
        self._enrolled: dict[int, Row] = {}
        """Enrolled photos, by face id."""
        self._copies = 0

    def run(self) -> Evaluation:
        parts, protocol, settings = self._parts, self._protocol, self._context.settings
        results = self._enroll()
        thresholds = self._thresholds()
        mated, unknown = list(self._search(parts.mated)), list(self._search(parts.strangers))
        if not mated:
            raise InvalidRequest("all photos that could be searched are copies of enrolled ones; expected other photos")
        are_mates_strangers = len({one.row.person.external_id for one in unknown}) < LEAST_STRANGERS
        strangers = [*unknown, *mated] if are_mates_strangers else unknown
        of_mated, of_strangers = searches(mated, strangers)
        metrics = measure(of_mated, of_strangers, thresholds, protocol.draws, protocol.seed)
        computed, from_cache = self._cache.added, self._cache.found
        refused = [
            (row, result.reason)
            for row, result in zip(parts.enrolled, results, strict=True)
            if result.outcome is Outcome.REJECTED
        ]
        pictures = Pictures(self._context, self._pipeline, protocol, self._enrolled)
        threshold = dict(thresholds)[0.01]
        mistakes = worst_mistakes(mated, strangers, refused, threshold, pictures, self._search_wider)
        self._service.settle()
        return Evaluation(
            self._gallery.model,
            self._gallery.fingerprint,
            protocol,
            {name: str(getattr(settings, name)) for name in REPORTED_SETTINGS},
            settings.fpir,
            parts.unlabelled,
            self._copies,
            _summarize(results),
            summarize(mated),
            summarize(unknown),
            are_mates_strangers,
            of_strangers.people,
            len(of_strangers.score),
            metrics,
            mistakes,
            computed,
            from_cache,
        )

    def _enroll(self) -> list[Result]:
        rows, context = self._parts.enrolled, self._context
        enroller = Enroller(
            context.store,
            self._pipeline,
            self._gallery,
            context.settings.max_image_bytes,
            workers=context.cores + SPARE_WORKERS,
            checks=context.face_checks(self._gallery, len(rows)),
        )
        results = []
        with closing(enroller.enroll(rows, self._protocol.enrolling)) as enrolling:
            for row, result in zip(rows, enrolling, strict=True):
                results.append(result)
                if result.outcome is Outcome.ENROLLED and result.face_id is not None:
                    self._enrolled[result.face_id] = row
                self._copies += result.outcome is Outcome.UNCHANGED
                self._advance(1, "enrolling")
        return results

    def _thresholds(self) -> list[tuple[float, float]]:
        """Returns FPIRs with the thresholds that the service applies in this gallery once it is calibrated."""
        if not self._enrolled:
            raise InvalidRequest("none of the photos could be enrolled; `whosthere enroll` prints the reason for each")
        self._gallery = self._context.store.galleries.get(GALLERY)  # current, or its calibration would look outdated
        Thresholds(self._context).calibrate(self._gallery)
        probe = [1.0, *[0.0] * (self._gallery.dim - 1)]
        answers = (self._service.search_embedding(probe, self._gallery, Query(fpir=fpir)) for fpir in FPIRS)
        return [(fpir, answer.faces[0].threshold) for fpir, answer in zip(FPIRS, answers, strict=True)]

    def _search(self, rows: Sequence[Row]) -> Iterator[ProbeResult]:
        """Searches photos, in order, except those that are the same file as another one of their person."""
        searched: set[tuple[str, str]] = set()
        for photos in self._photos.stream(rows):
            hashes = [photo.sha256 for photo in photos if photo.sha256]
            known = self._context.store.faces.known_images(self._gallery.id, hashes)
            probes = []
            for photo in photos:
                person = photo.row.person.external_id
                enrolled = known.get(photo.sha256)
                if (enrolled and enrolled.external_id == person) or (person, photo.sha256) in searched:
                    self._copies += 1
                    continue
                if photo.sha256:
                    searched.add((person, photo.sha256))
                probes.append(photo)
            answers = self._service.search_described([photo.described for photo in probes], self._gallery, Query())
            for photo, answer in zip(probes, answers, strict=True):
                yield result_of(photo.row, answer)
            self._advance(len(photos), "searching")

    def _search_wider(self, result: ProbeResult) -> ProbeResult:
        """Adds the own candidate if it is among the first MAX_TOP_K."""
        (photo,) = self._photos.read([result.row])
        (answer,) = self._service.search_described([photo.described], self._gallery, Query(top_k=MAX_TOP_K))
        return replace(result, own=own_candidate(answer.faces[0], result.row)) if answer.faces else result

    def _advance(self, photos: int, step: str) -> None:
        self._done += photos
        self._progress(self._done, self._total, step)


def _summarize(results: Sequence[Result]) -> EnrollmentSummary:
    rejected = [result for result in results if result.outcome is Outcome.REJECTED]
    people = {result.external_id for result in results}
    enrolled = {result.external_id for result in results if result.outcome is not Outcome.REJECTED}
    reasons = Counter(result.reason for result in rejected if result.reason is not None)
    return EnrollmentSummary(
        len(results),
        len(people),
        len(results) - len(rejected),
        dict(reasons.most_common()),
        tuple(sorted(people - enrolled)),
    )
