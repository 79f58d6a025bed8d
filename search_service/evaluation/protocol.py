"""The open-set protocol on labelled photos, through the service itself: some photos of each person are enrolled into a
gallery of its own, the others are searched in it, and so are strangers.

Of everyone with two photos or more the first K, by name, are enrolled, or all but one where there are fewer. People
with more than K are searched with the others: these are the mated probes. Everyone with one photo is a stranger. Where
fewer than LEAST_STRANGERS are, everyone who is searched is a stranger as well, to the others: their own identity is
passed over then.
"""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from indexer.app_context import SPARE_WORKERS, AppContext
from indexer.enrollment.enroller import BYTES_AT_ONCE, CHUNK, Enroller, Result
from indexer.enrollment.sources import Row
from indexer.errors import InvalidRequest, RejectedImage
from indexer.settings import Settings, read_settings
from indexer.types import Gallery, Outcome, Person, Pick, Reason, sha256
from indexer.vision.batch_errors import as_rejection, isolate_failures
from indexer.vision.pipeline import Seen
from search_service.calibration.thresholds import Thresholds
from search_service.evaluation.cache import Cache, CachedPipeline, kind_of
from search_service.evaluation.metrics import FPIRS, NOTHING, Numbers, Searches, numbers
from search_service.evaluation.mistakes import Mistake, Mistakes, Shot, portrait
from search_service.matching.decision import Decision
from search_service.matching.ranking import Candidate
from search_service.search import MAX_TOP_K, FaceAnswer, Query, SearchService

LEAST_STRANGERS = 50
"""People with one photo from which on they are the only strangers: they support an FPIR of 10 %."""

SHOWN = 12
"""Mistakes of each kind that are shown."""

GALLERY = "evaluation"

Tell = Callable[[int, int, str], None]
"""Is told how many photos are done, of how many, and what is being done."""


@dataclass(frozen=True)
class Protocol:
    """`pick` None takes what the commands take: `only` when enrolling, `largest` when searching."""

    photos: int = 1
    pick: Pick | None = None
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.photos < 1:
            raise InvalidRequest(f"photos is {self.photos}; expected the photos enrolled of a person, 1 or more")
        if self.draws < 100:
            raise InvalidRequest(f"draws is {self.draws}; expected 100 or more, or the intervals mean nothing")
        if self.seed < 0:
            raise InvalidRequest(f"seed is {self.seed}; expected 0 or more")

    @property
    def enrolling(self) -> Pick:
        return self.pick or Pick.ONLY

    @property
    def searching(self) -> Pick:
        return self.pick or Pick.LARGEST


@dataclass(frozen=True, eq=False)
class Split:
    """Who is enrolled with which photos, and which are searched."""

    enrolled: tuple[Row, ...]
    mated: tuple[Row, ...]
    strangers: tuple[Row, ...]
    """Of those with one photo."""
    nobody: int = 0
    """Rows that do not say whom they show."""


@dataclass(frozen=True)
class Found:
    """What came of one probe. `own` is its person's candidate, `other` the best of the others, where there are."""

    row: Row
    own: Candidate | None = None
    other: Candidate | None = None
    decision: Decision | None = None
    reason: Reason | None = None
    """Why it could not be searched."""

    @property
    def right(self) -> bool:
        return self.own is not None and self.own.rank == 1

    @property
    def top(self) -> Candidate | None:
        return self.own if self.right else self.other


@dataclass(frozen=True)
class Enrolment:
    """What became of the photos that were to be enrolled."""

    photos: int
    people: int
    enrolled: int
    reasons: Mapping[Reason, int]
    """Of those that were not."""
    nobody: tuple[str, ...]
    """People none of whose photos could be."""


@dataclass(frozen=True)
class Probed:
    """What became of the probes of one kind."""

    photos: int
    people: int
    reasons: Mapping[Reason, int]
    """Of those that could not be searched."""
    decisions: Mapping[str, int]
    """What the service decided at the FPIR of its settings; `wrong_match`, `wrong_review`: of somebody else."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    model: str
    fingerprint: str
    protocol: Protocol
    settings: Mapping[str, str]
    """Those that scores hang on."""
    fpir: float
    """At which decisions were taken."""
    nobody: int
    """Rows that do not say whom they show."""
    copies: int
    """Photos that were left out, being the same file as another one of their person."""
    enrolment: Enrolment
    mated: Probed
    strangers: Probed
    others: bool
    """Whether those who are searched are strangers to the others as well."""
    stranger_people: int
    stranger_searches: int
    numbers: Numbers
    mistakes: Mistakes
    described: int
    """Photos that the networks computed."""
    from_cache: int
    """Photos whose description was there."""
    unkept: str | None = None
    """Why descriptions could not be kept; None where they were."""


def split(rows: Sequence[Row], photos: int) -> Split:
    """Raises InvalidRequest where nobody could be searched."""
    if not rows:
        raise InvalidRequest("there are no photos in what was named; expected a folder of folders, one a person")
    people: dict[str, list[Row]] = {}
    for row in rows:
        # Dates of validity are not what is evaluated: whoever expired would count as missed.
        plain = replace(row, person=Person(row.person.external_id, row.person.name))
        people.setdefault(row.person.external_id, []).append(plain)
    nobody = len(people.pop("", []))
    enrolled: list[Row] = []
    mated: list[Row] = []
    strangers: list[Row] = []
    for own in people.values():
        if len(own) == 1:
            strangers += own
        else:
            enrolled += own[: min(photos, len(own) - 1)]
            mated += own[photos:] if len(own) > photos else []
    if len(people) < 2:
        raise InvalidRequest(
            f"the {len(rows):,} photos are of {len(people)} person by their folders or names; expected a folder of "
            "folders, one a person: name the folder that holds those"
        )
    if not mated:
        raise InvalidRequest(
            f"of {len(people):,} people, none has more than {photos} photo{'s' * (photos > 1)}: there is nobody to "
            "search for; expected several photos of some people, as a folder for each"
        )
    return Split(tuple(enrolled), tuple(mated), tuple(strangers), nobody)


def evaluate(
    context: AppContext, rows: Sequence[Row], protocol: Protocol, model: str | None, keep: bool, tell: Tell
) -> Evaluation:
    """Evaluates the pack `model`, or the one of new galleries, under the settings of `home`, whose galleries are left
    alone. With `keep` what the networks saw is kept there for the next time.

    Raises InvalidRequest, NotFound, ModelUnavailable, StorageUnavailable and OSError.
    """
    pack = context.usable(model)
    parts = split(rows, protocol.photos)
    with own_home(context.settings) as own:
        folder = cache_folder(context) if keep else own.settings.home / "cache"
        cache = Cache(folder, kind_of(own, pack))
        pipeline = CachedPipeline(own, pack, cache)
        gallery = own.store.galleries.create(GALLERY, pack.name, pack.fingerprint, pack.dim)
        try:
            told = _Run(own, pipeline, gallery, protocol, parts, cache, tell).run()
        finally:
            cache.flush()
        return replace(told, unkept=str(cache.failure) if cache.failure is not None else None)


def cache_folder(context: AppContext) -> Path:
    return context.settings.home / "cache"


@contextmanager
def own_home(settings: Settings) -> Iterator[AppContext]:
    """A home with these settings and model files, and a database and indexes of its own, which are deleted. Vectors
    that would be kept elsewhere are kept here."""
    ours = ("home", "database_url", "vectors", "keep_crops")
    given = {name: getattr(settings, name) for name in Settings.model_fields if name not in ours}
    vectors = settings.vectors if "://" not in settings.vectors else "auto"
    settings.models_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="whosthere-evaluate-") as folder:
        (Path(folder) / "models").symlink_to(settings.models_folder.resolve())
        context = AppContext(read_settings({}, home=Path(folder), vectors=vectors, **given))
        try:
            yield context
        finally:
            context.close()


@dataclass(eq=False)
class _Run:
    """One evaluation, from its split to its numbers."""

    context: AppContext
    pipeline: CachedPipeline
    gallery: Gallery
    protocol: Protocol
    parts: Split
    cache: Cache
    tell: Tell
    copies: int = 0
    photo_of: dict[int, Row] = field(default_factory=dict)
    """By face."""

    def run(self) -> Evaluation:
        parts, self.service = self.parts, SearchService(self.context, Thresholds(self.context))
        results = list(self._enrolled())
        thresholds = self._thresholds()
        mated, strangers = list(self._searched(parts.mated)), list(self._searched(parts.strangers))
        if not mated:
            raise InvalidRequest("all photos that could be searched are copies of enrolled ones; expected other photos")
        others = len({found.row.person.external_id for found in strangers}) < LEAST_STRANGERS
        of_mated, of_strangers = _arrays(mated, strangers, others)
        measured = numbers(of_mated, of_strangers, thresholds, self.protocol.draws, self.protocol.seed)
        described, from_cache = self.cache.made, self.cache.found
        mistakes = self._mistakes(mated, strangers, others, results, dict(thresholds)[0.01])
        self.service.settle()
        settings = self.context.settings
        return Evaluation(
            self.gallery.model,
            self.gallery.fingerprint,
            self.protocol,
            {
                name: str(getattr(settings, name))
                for name in ("device", "precision", "thorough", "vectors", "lookalikes")
            },
            settings.fpir,
            parts.nobody,
            self.copies,
            _enrolment(results),
            _probed(mated),
            _probed(strangers),
            others,
            of_strangers.people,
            len(of_strangers.score),
            measured,
            mistakes,
            described,
            from_cache,
        )

    @property
    def _total(self) -> int:
        return sum(map(len, (self.parts.enrolled, self.parts.mated, self.parts.strangers)))

    def _enrolled(self) -> Iterator[Result]:
        rows, context = self.parts.enrolled, self.context
        enroller = Enroller(
            context.store,
            self.pipeline,
            self.gallery,
            context.settings.max_image_bytes,
            workers=context.cores + SPARE_WORKERS,
            lookalikes=context.lookalikes(self.gallery, len(rows)),
        )
        with closing(enroller.enroll(rows, self.protocol.enrolling)) as results:
            for done, (row, result) in enumerate(zip(rows, results, strict=True), 1):
                if result.outcome is Outcome.ENROLLED and result.face_id is not None:
                    self.photo_of[result.face_id] = row
                self.copies += result.outcome is Outcome.UNCHANGED
                self.tell(done, self._total, "enrolling")
                yield result

    def _thresholds(self) -> list[tuple[float, float]]:
        """FPIRs, and what the service takes for them in this gallery, as it does once it has calibrated itself."""
        if not self.photo_of:
            raise InvalidRequest("not one of the photos to be enrolled could be; `whosthere enroll` says why of each")
        self.gallery = self.context.store.galleries.get(GALLERY)  # current, or its calibration would look outdated
        Thresholds(self.context).calibrate(self.gallery)
        anyone = [1.0, *[0.0] * (self.gallery.dim - 1)]
        queries = [(fpir, Query(fpir=fpir)) for fpir in FPIRS]
        return [
            (fpir, self.service.search_embedding(anyone, self.gallery, query).faces[0].threshold)
            for fpir, query in queries
        ]

    def _searched(self, rows: Sequence[Row]) -> Iterator[Found]:
        """What came of each photo, in order, without those that are the same file as another one of their person."""
        searched: set[tuple[str, str]] = set()
        done = len(self.parts.enrolled) + (len(self.parts.mated) if rows is self.parts.strangers else 0)
        for looked in self._looked_at(rows):
            known = self.context.store.faces.known_images(self.gallery.id, [one.sha256 for one in looked if one.sha256])
            fresh = []
            for one in looked:
                person = one.row.person.external_id
                there = known.get(one.sha256)
                if (there and there.external_id == person) or (person, one.sha256) in searched:
                    self.copies += 1
                    continue
                if one.sha256:
                    searched.add((person, one.sha256))
                fresh.append(one)
            answers = self.service.search_seen([one.seen for one in fresh], self.gallery, Query())
            for one, answer in zip(fresh, answers, strict=True):
                yield _found(one.row, answer.faces[0] if answer.faces else None, answer.error)
            done += len(looked)
            self.tell(done, self._total, "searching")

    def _looked_at(self, rows: Sequence[Row]) -> Iterator[list[_Looked]]:
        """Chunks of photos, described by as many threads as enrolling takes; a few chunks ahead at a time."""
        workers = self.context.cores + SPARE_WORKERS
        with ThreadPoolExecutor(workers, thread_name_prefix="evaluate") as pool:
            waiting: deque[Future[list[_Looked]]] = deque()
            try:
                for start in range(0, len(rows), CHUNK):
                    waiting.append(pool.submit(self._look, rows[start : start + CHUNK]))
                    if len(waiting) >= 2 * workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _look(self, rows: Sequence[Row]) -> list[_Looked]:
        """As many photos at a time as BYTES_AT_ONCE allows."""
        limit = self.context.settings.max_image_bytes
        looked: list[_Looked] = []
        batch: list[tuple[Row, bytes]] = []
        for row in rows:
            try:
                batch.append((row, row.read(limit)))
            except RejectedImage as rejection:
                looked += self._describe(batch)
                looked.append(_Looked(row, "", Seen(rejection=rejection.without_traceback())))
                batch = []
            if sum(len(image) for _, image in batch) + limit > BYTES_AT_ONCE:
                looked += self._describe(batch)
                batch = []
        return looked + self._describe(batch)

    def _describe(self, batch: Sequence[tuple[Row, bytes]]) -> list[_Looked]:
        """An image that the networks fail on cannot be searched."""
        pick = self.protocol.searching
        seen = isolate_failures([image for _, image in batch], lambda images: self.pipeline.describe(images, pick))
        return [
            _Looked(row, sha256(image), one if isinstance(one, Seen) else Seen(rejection=as_rejection(one)))
            for (row, image), one in zip(batch, seen, strict=True)
        ]

    def _mistakes(
        self,
        mated: Sequence[Found],
        strangers: Sequence[Found],
        others: bool,
        results: Sequence[Result],
        threshold: float,
    ) -> Mistakes:
        """The worst of each kind, with pictures. `threshold` is the service's own for FPIR 1 %."""
        let_in = [one for one in (*strangers, *(mated if others else ())) if one.other is not None]
        confused = [one for one in mated if not one.right and one.other is not None]
        missed = [one for one in mated if one.right and one.own is not None and one.own.score < threshold]
        refused = [
            (row, result.reason)
            for row, result in zip(self.parts.enrolled, results, strict=True)
            if result.outcome is Outcome.REJECTED
        ]
        unsearched = [(one.row, one.reason) for one in (*mated, *strangers) if one.reason is not None]
        return Mistakes(
            threshold=threshold,
            strangers_let_in=self._shown(sorted(let_in, key=_other_score, reverse=True)),
            confused=self._shown(self._owned(sorted(confused, key=_other_score, reverse=True)[:SHOWN])),
            missed=self._shown(sorted(missed, key=lambda one: one.own.score if one.own else NOTHING)),
            not_enrolled=[(self._shot(row, self.protocol.enrolling), str(why)) for row, why in refused[:SHOWN]],
            not_searched=[(self._shot(row, self.protocol.searching), str(why)) for row, why in unsearched[:SHOWN]],
        )

    def _owned(self, mistaken: Sequence[Found]) -> list[Found]:
        """The same, with their own candidate where it is among the first MAX_TOP_K."""
        again = []
        for one in mistaken:
            (looked,) = self._look([one.row])
            (answer,) = self.service.search_seen([looked.seen], self.gallery, Query(top_k=MAX_TOP_K))
            again.append(replace(one, own=_candidate(answer.faces[0], one.row)) if answer.faces else one)
        return again

    def _shown(self, mistaken: Sequence[Found]) -> list[Mistake]:
        return [
            Mistake(
                self._shot(one.row, self.protocol.searching),
                self._of(one.other),
                one.other.score if one.other else None,
                self._of(one.own) or self._enrolled_photo(one.row.person.external_id),
                one.own.score if one.own else None,
            )
            for one in mistaken[:SHOWN]
        ]

    def _of(self, candidate: Candidate | None) -> Shot | None:
        if candidate is None:
            return None
        row = self.photo_of[candidate.face_id]
        return self._shot(row, self.protocol.enrolling)

    def _enrolled_photo(self, external_id: str) -> Shot | None:
        row = next((row for row in self.photo_of.values() if row.person.external_id == external_id), None)
        return None if row is None else self._shot(row, self.protocol.enrolling)

    def _shot(self, row: Row, pick: Pick) -> Shot:
        """The photo's face as a small picture; the whole photo where none was found."""
        try:
            image = row.read(self.context.settings.max_image_bytes)
            (seen,) = self.pipeline.describe([image], pick)
            picture = portrait(image, self.context.settings.max_image_pixels, seen.faces[0] if seen.faces else None)
        except RejectedImage:
            picture = None
        return Shot(row.image, row.person.external_id, picture)


@dataclass(frozen=True, eq=False)
class _Looked:
    """One photo, described; `sha256` is empty where it could not be read."""

    row: Row
    sha256: str
    seen: Seen


def _found(row: Row, face: FaceAnswer | None, error: RejectedImage | None) -> Found:
    if face is None:
        return Found(row, reason=Reason(error.code) if error is not None else Reason.NO_FACE)
    other = next((c for c in face.candidates if c.identity.external_id != row.person.external_id), None)
    return Found(row, _candidate(face, row), other, face.decision)


def _candidate(face: FaceAnswer, row: Row) -> Candidate | None:
    """That of the person whom the row shows."""
    return next((c for c in face.candidates if c.identity.external_id == row.person.external_id), None)


def _other_score(found: Found) -> float:
    return found.other.score if found.other is not None else NOTHING


def _arrays(mated: Sequence[Found], strangers: Sequence[Found], others: bool) -> tuple[Searches, Searches]:
    """The mated probes, and those of strangers: of people with one photo, and of the mated ones without their own
    candidate, where `others` is set."""
    number: dict[str, int] = {}

    def searches(found: Iterable[tuple[Found, Candidate | None]]) -> Searches:
        rows = [
            (number.setdefault(one.row.person.external_id, len(number)), top.score if top else NOTHING, one.right)
            for one, top in found
        ]
        people, scores, right = zip(*rows, strict=True) if rows else ((), (), ())
        return Searches(np.array(people, np.int64), np.array(scores, np.float64), np.array(right, np.bool_))

    unknown = [*strangers, *mated] if others else strangers
    return searches((one, one.top) for one in mated), searches((one, one.other) for one in unknown)


def _enrolment(results: Sequence[Result]) -> Enrolment:
    rejected = [result for result in results if result.outcome is Outcome.REJECTED]
    people = {result.external_id for result in results}
    there = {result.external_id for result in results if result.outcome is not Outcome.REJECTED}
    reasons = Counter(result.reason for result in rejected if result.reason is not None)
    return Enrolment(
        len(results),
        len(people),
        len(results) - len(rejected),
        dict(reasons.most_common()),
        tuple(sorted(people - there)),
    )


def _probed(found: Sequence[Found]) -> Probed:
    decisions = Counter(_decided(one) for one in found)
    reasons = Counter(one.reason for one in found if one.reason is not None)
    people = len({one.row.person.external_id for one in found})
    return Probed(len(found), people, dict(reasons.most_common()), dict(decisions.most_common()))


def _decided(found: Found) -> str:
    """The service's decision, and whether it is about somebody else."""
    if found.decision is None:
        return "not_searched"
    if found.decision is Decision.NO_MATCH or found.right:
        return str(found.decision)
    return f"wrong_{found.decision}"
