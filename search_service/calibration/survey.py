"""A gallery's own thresholds: some of its people are searched among the others, in the background, and what their
scores say is kept in SQL."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.app_context import AppContext
from indexer.clock import now
from indexer.errors import WhosthereError
from indexer.files import alone
from indexer.gallery.calibrations import Calibration
from indexer.gallery.store import FaceVectors
from indexer.models.packs import Pack
from indexer.types import Gallery, Hit, ScoreTail, Vectors
from indexer.vectors.base import VectorIndex
from search_service.matching.calibration import (
    LEAST_PEOPLE,
    by_pack,
    comparisons,
    duplicate_limit,
    own_curve,
    threshold_for,
)
from search_service.search import SETTLE_SECONDS
from search_service.template_scores import by_person, fused, score

log = logging.getLogger(__name__)

METHOD = 2
"""Raise it when the same scores give another curve: those in SQL are then made anew."""

MOST_PEOPLE = 5_000
"""People searched among the others: five of them are above the threshold for FPIR 0.1 %."""

LEAST_SEARCHED = 1_000
"""The same, however large the gallery is."""

MOST_WORK = 1e11
"""People searched times faces times numbers in an embedding, in an index that scores every face."""

NEIGHBOURS = 8
"""Other people found for each, so that the best who is no duplicate is among them."""

AT_ONCE = 32
"""People searched in one call, which keeps others from changing the index meanwhile."""

GROWN = 0.1
"""Share by which a gallery's faces grow, shrink or are exchanged before it is due again. In between the curve is taken
for so many times as many faces."""

AGAIN_SECONDS = 600.0
"""After which it is tried again where it could not be computed, or another process that was about to has not."""


@dataclass(frozen=True, eq=False)
class Survey:
    """Some of a gallery's people, each searched with one face of theirs."""

    probes: FaceVectors
    """One face a person."""
    near: tuple[tuple[Hit, ...], ...]
    """Of each, the nearest others, best first."""
    people: int
    """In the gallery, of those who have faces."""
    faces: int
    """In the gallery."""

    @property
    def total(self) -> float:
        """Comparisons of a stranger's search."""
        return comparisons(self.people, self.faces / max(self.people, 1))

    @property
    def compared(self) -> float:
        """Comparisons with others that each was searched by."""
        return self.total * (1 - 1 / max(self.people, 2))


@dataclass(frozen=True)
class Pair:
    """Two identities that look like one person, the lower id first, and the score of two of their faces."""

    a: int
    b: int
    score: float


@dataclass(frozen=True, eq=False)
class Strangers:
    """What a survey says of strangers."""

    best: NDArray[np.float64]
    """(P,) the score of each person's best other one, who is not likely the same under another id."""
    row: NDArray[np.int64]
    """(P,) which of the survey's people each is: those of whom all others found are likely the same are left out."""
    duplicates: tuple[Pair, ...]
    """Best first."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A gallery's curve, None where it says too little, and what it is made from."""

    gallery: Gallery
    pack: Pack
    curve: ScoreTail | None
    survey: Survey
    strangers: Strangers


Nearest = Callable[[Vectors, int], list[list[Hit]]]
"""For each of (Q, D) probes so many identities, best first."""


def survey(nearest: Nearest, probes: FaceVectors, people: int, faces: int, pace: float = 0.0) -> Survey:
    """Searches `probes`, a face a person, among the `people` of a gallery, who have so many `faces`; rests `pace` times
    as long as it searches."""
    near: list[tuple[Hit, ...]] = []
    for start in range(0, len(probes.face_ids), AT_ONCE):
        begun = time.monotonic()
        some = slice(start, start + AT_ONCE)
        found = nearest(probes.vectors[some], NEIGHBOURS + 1)
        for own, hits in zip(probes.identity_ids[some].tolist(), found, strict=True):
            near.append(tuple(hit for hit in hits if hit.identity_id != own)[:NEIGHBOURS])
        time.sleep(pace * (time.monotonic() - begun))
    return Survey(probes, tuple(near), people, faces)


def strangers(found: Survey, pack: Pack) -> Strangers:
    """Each person's best score that is a stranger's. Who scores like nobody else's strangers do is likely one person
    under two ids; each such pair taken out makes the next one plainer."""
    own = found.probes.identity_ids.tolist()
    pairs: dict[tuple[int, int], float] = {}
    while True:
        best, row = [], []
        for i, (person, hits) in enumerate(zip(own, found.near, strict=True)):
            score = next((hit.score for hit in hits if _pair(person, hit.identity_id) not in pairs), None)
            if score is not None:
                best.append(score)
                row.append(i)
        limit = duplicate_limit(best, found.compared, pack.tail, pack.measured)
        more = {
            _pair(person, hit.identity_id): hit.score
            for person, hits in zip(own, found.near, strict=True)
            for hit in hits
            if hit.score >= limit and _pair(person, hit.identity_id) not in pairs
        }
        if not more:
            listed = sorted((Pair(*ids, score) for ids, score in pairs.items()), key=lambda pair: -pair.score)
            return Strangers(np.array(best), np.array(row, dtype=np.int64), tuple(listed))
        pairs |= more


def sample(face_ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """`most` of the faces: always the same ones, and mostly the same ones when others come and go."""
    return face_ids[_mixed(face_ids)[:most]]


def one_a_person(faces: FaceVectors, most: int) -> FaceVectors:
    """Of each of `most` people the face that comes first in a `sample`."""
    rows = _mixed(faces.face_ids)
    _, first = np.unique(faces.identity_ids[rows], return_index=True)
    kept = rows[np.sort(first)[:most]]
    return FaceVectors(faces.face_ids[kept], faces.identity_ids[kept], faces.vectors[kept])


class Thresholds:
    """The thresholds of every gallery. Thread-safe; a search never waits for what is computed."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._running: dict[tuple[int, str], threading.Thread] = {}
        self._tried: dict[tuple[int, str], tuple[int, int, float]] = {}
        """Last change, faces and the time of `time.monotonic` when it was last computed or could not be: not to be
        tried at every search."""

    def threshold(self, gallery: Gallery, index: VectorIndex, fpir: float) -> float:
        """The cosine for that FPIR, by the gallery's own curve where there is one. `index` is the gallery's.

        Raises as `AppContext.pack_of`.
        """
        pack, faces = self._context.pack_of(gallery), len(index)
        kept = self._context.calibrations.find(gallery) if faces >= LEAST_PEOPLE else None
        people = faces if kept or faces < LEAST_PEOPLE else self._context.calibrations.people(gallery, LEAST_PEOPLE)
        if people >= LEAST_PEOPLE and (kept is None or _due(kept, gallery.seq, faces)):
            self._begin(gallery, faces)
        if kept is None:
            return by_pack(fpir, faces, people, pack.tail)
        return threshold_for(fpir, faces / kept.faces, _curve(kept))

    def calibrate(self, gallery: Gallery, pace: float = 0.0) -> Calibrated:
        """Computes the gallery's curve now, and keeps it. Raises NotFound when the gallery is gone, Conflict when it
        was re-embedded."""
        pack = self._context.pack_of(gallery)
        index = self._context.indexes.of(gallery).caught_up()
        seq, held = self._context.store.last_change(gallery.id) or 0, len(index)
        most = int(min(MOST_PEOPLE, max(LEAST_SEARCHED, MOST_WORK / max(held * gallery.dim, 1))))
        chosen = sample(index.face_ids(), 2 * most)  # some are of one person
        faces = self._context.store.vectors_of(gallery, chosen.tolist())

        def nearest(vectors: Vectors, k: int) -> list[list[Hit]]:
            hits = index.nearest_identities(vectors, k)
            people = sorted({hit.identity_id for some in hits for hit in some})
            return fused(hits, vectors, self._context.store.vectors_of_people(gallery, people), pack.same_threshold)

        found = survey(nearest, one_a_person(faces, most), self._context.calibrations.people(gallery), held, pace)
        scores = strangers(found, pack)
        curve = own_curve(scores.best.tolist(), found.compared, found.total, pack.tail, pack.measured)
        if curve is None:
            self._context.calibrations.forget(gallery)
        else:
            points = (*curve.before, (curve.rate, curve.start))
            made = Calibration(METHOD, seq, len(scores.best), held, points, curve.scale, now())
            self._context.calibrations.put(gallery, made)
        return Calibrated(gallery, pack, curve, found, scores)

    def mates(self, found: Survey, gallery: Gallery) -> dict[int, float]:
        """By row of the survey, the score of the person's other faces, of those who have some."""
        own, same_threshold = found.probes, self._context.pack_of(gallery).same_threshold
        faces = self._context.store.vectors_of_people(gallery, own.identity_ids.tolist())
        others = ~np.isin(faces.face_ids, own.face_ids)
        people = by_person(FaceVectors(faces.face_ids[others], faces.identity_ids[others], faces.vectors[others]))
        return {
            i: score(own.vectors[i], people[identity_id], same_threshold)
            for i, identity_id in enumerate(own.identity_ids.tolist())
            if identity_id in people
        }

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Waits for what is being computed, at the end of a process."""
        until = time.monotonic() + seconds
        with self._lock:
            running = list(self._running.values())
        for thread in running:
            thread.join(max(0.0, until - time.monotonic()))

    def _begin(self, gallery: Gallery, faces: int) -> None:
        key = gallery.id, gallery.fingerprint
        with self._lock:
            running, tried = self._running.get(key), self._tried.get(key)
            if running is not None and running.is_alive():
                return
            if tried is not None:
                seq, then, at = tried
                if not _moved(seq, then, gallery.seq, faces) and time.monotonic() < at + AGAIN_SECONDS:
                    return
            self._tried[key] = gallery.seq, faces, time.monotonic()
            thread = threading.Thread(target=self._aside, args=(gallery, faces), name="calibration", daemon=True)
            self._running[key] = thread
            thread.start()

    def _aside(self, gallery: Gallery, faces: int) -> None:
        """One process computes; the others take what it has kept."""
        try:
            path = self._context.settings.indexes_folder / f"{gallery.id}.calibration.lock"
            with alone(path) as computes:
                kept = self._context.calibrations.find(gallery)
                if computes and (kept is None or _due(kept, gallery.seq, faces)):
                    self.calibrate(gallery, pace=1.0)
        except (WhosthereError, OSError) as error:
            log.warning("Gallery %s could not be calibrated: %s", gallery.name, error)
        except Exception:
            log.exception("Gallery %s could not be calibrated", gallery.name)


def _mixed(face_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Their places, in an order that hangs on each id alone."""
    mixed = face_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hash, with 64 bits
    return np.argsort(mixed ^ (mixed >> np.uint64(32)))


def _due(kept: Calibration, seq: int, faces: int) -> bool:
    return kept.method != METHOD or _moved(kept.seq, kept.faces, seq, faces)


def _moved(then: int, faces_then: int, seq: int, faces: int) -> bool:
    """Whether so much was changed that it is time again. A person who comes is two changes; a number that falls is that
    of a restored backup."""
    grown = abs(faces - faces_then) >= max(GROWN * faces_then, 1)
    return grown or seq < then or seq - then >= max(4 * GROWN * faces_then, 1)


def _curve(kept: Calibration) -> ScoreTail:
    *before, (rate, start) = kept.points
    return ScoreTail(start, rate, kept.scale, tuple(before))


def _pair(a: int, b: int) -> tuple[int, int]:
    return min(a, b), max(a, b)
