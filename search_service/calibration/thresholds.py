"""Thresholds of galleries: computed in the background from a gallery's own people, and stored in SQL."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.app_context import AppContext
from indexer.clock import now
from indexer.errors import WhosthereError
from indexer.files import exclusive_lock
from indexer.gallery.calibrations import Calibration
from indexer.models.packs import Pack
from indexer.types import Gallery, Hit, ScoreTail, Vectors
from indexer.vectors.base import VectorIndex
from search_service.calibration.survey import (
    Strangers,
    Survey,
    one_face_per_person,
    sample,
    select_faces,
    strangers,
    survey,
)
from search_service.matching.calibration import LEAST_PEOPLE, by_pack, own_curve, threshold_for
from search_service.matching.fusion import Templates, rescore
from search_service.search import SETTLE_SECONDS

log = logging.getLogger(__name__)

METHOD = 2
"""Version of the computation. Raise it when the same scores give another curve, so that stored ones are replaced."""

MOST_PEOPLE = 5_000
"""People searched among the others: five of them are above the threshold for FPIR 0.1 %."""

LEAST_SEARCHED = 1_000
"""The same for galleries of any size."""

MOST_WORK = 1e11
"""Limit of people searched x faces x numbers in an embedding, in an index that scores every face."""

GROWN = 0.1
"""Share of a gallery's faces that must be added, removed or replaced before its curve is computed again. Until then,
the curve is used with the ratio of the numbers of faces."""

AGAIN_SECONDS = 600.0
"""Time until the next attempt where the curve could not be computed, or where another process did not finish it."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A gallery's curve and the data behind it. `curve` is None where there are too few people."""

    gallery: Gallery
    pack: Pack
    curve: ScoreTail | None
    survey: Survey
    strangers: Strangers


class Thresholds:
    """The thresholds of every gallery. Thread-safe; a search never waits for a computation."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._running: dict[tuple[int, str], threading.Thread] = {}
        self._tried: dict[tuple[int, str], tuple[int, int, float]] = {}
        """Last change, faces and `time.monotonic` of the last attempt, so that not every search makes a new one."""

    def threshold(self, gallery: Gallery, index: VectorIndex, fpir: float) -> float:
        """Returns the cosine for that FPIR, by the gallery's own curve if there is one. `index` is the gallery's.

        Raises the same errors as `AppContext.pack_of`.
        """
        pack, faces = self._context.pack_of(gallery), len(index)
        stored = self._context.store.calibrations.find(gallery) if faces >= LEAST_PEOPLE else None
        people = (
            faces
            if stored or faces < LEAST_PEOPLE
            else self._context.store.calibrations.count_people(gallery, LEAST_PEOPLE)
        )
        if people >= LEAST_PEOPLE and (stored is None or _is_due(stored, gallery.seq, faces)):
            self._start(gallery, faces)
        if stored is None:
            return by_pack(fpir, faces, people, pack.tail)
        return threshold_for(fpir, faces / stored.faces, _curve(stored))

    def calibrate(self, gallery: Gallery, pace: float = 0.0) -> Calibrated:
        """Computes the gallery's curve now, and stores it.

        Raises NotFound when the gallery was deleted, Conflict when it was re-embedded.
        """
        pack = self._context.pack_of(gallery)
        index = self._context.indexes.get(gallery).catch_up()
        seq, held = self._context.store.changes.last(gallery.id) or 0, len(index)
        most = int(min(MOST_PEOPLE, max(LEAST_SEARCHED, MOST_WORK / max(held * gallery.dim, 1))))
        chosen = sample(index.face_ids(), 2 * most)  # some are of one person
        faces = self._context.store.embeddings.of_faces(gallery, chosen.tolist())

        def nearest(vectors: Vectors, k: int) -> list[list[Hit]]:
            hits = index.nearest_identities(vectors, k)
            people = sorted({hit.identity_id for some in hits for hit in some})
            found = self._context.store.embeddings.of_identities(gallery, people)
            return rescore(hits, vectors, Templates(found.identity_ids, found.vectors), pack.same_threshold)

        people = self._context.store.calibrations.count_people(gallery)
        found = survey(nearest, one_face_per_person(faces, most), people, held, pace)
        scores = strangers(found, pack)
        curve = own_curve(scores.best, found.compared, found.total, pack.tail, pack.measured)
        if curve is None:
            self._context.store.calibrations.delete(gallery)
        else:
            points = (*curve.before, (curve.rate, curve.start))
            stored = Calibration(METHOD, seq, len(scores.best), held, points, curve.scale, now())
            self._context.store.calibrations.put(gallery, stored)
        return Calibrated(gallery, pack, curve, found, scores)

    def mated_scores(self, calibrated: Calibrated) -> NDArray[np.float64]:
        """Returns, for each person of the survey, the score with their own other faces; NaN where they have none."""
        probes, gallery = calibrated.survey.probes, calibrated.gallery
        faces = self._context.store.embeddings.of_identities(gallery, probes.identity_ids.tolist())
        others = select_faces(faces, ~np.isin(faces.face_ids, probes.face_ids))
        templates = Templates(others.identity_ids, others.vectors)
        rows = templates.rows_of(probes.identity_ids)
        mated = np.flatnonzero(rows >= 0)
        scores = np.full(len(rows), np.nan)
        scores[mated] = templates.scores(probes.vectors[mated], rows[mated], calibrated.pack.same_threshold)
        return scores

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Waits at most `seconds` for running computations, at the end of a process."""
        until = time.monotonic() + seconds
        with self._lock:
            running = list(self._running.values())
        for thread in running:
            thread.join(max(0.0, until - time.monotonic()))

    def _start(self, gallery: Gallery, faces: int) -> None:
        key = gallery.id, gallery.fingerprint
        with self._lock:
            running, tried = self._running.get(key), self._tried.get(key)
            if running is not None and running.is_alive():
                return
            if tried is not None:
                seq, faces_then, at = tried
                if not _has_changed(seq, faces_then, gallery.seq, faces) and time.monotonic() < at + AGAIN_SECONDS:
                    return
            self._tried[key] = gallery.seq, faces, time.monotonic()
            thread = threading.Thread(target=self._run, args=(gallery, faces), name="calibration", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no thread can be started now; the search goes on
                log.warning("Gallery %s could not be calibrated: %s", gallery.name, error)
            else:
                self._running[key] = thread

    def _run(self, gallery: Gallery, faces: int) -> None:
        """Computes in one process only; the others use the stored result."""
        try:
            path = self._context.settings.indexes_folder / f"{gallery.id}.calibration.lock"
            with exclusive_lock(path) as is_alone:
                stored = self._context.store.calibrations.find(gallery)
                if is_alone and (stored is None or _is_due(stored, gallery.seq, faces)):
                    self.calibrate(gallery, pace=1.0)
        except (WhosthereError, OSError) as error:
            log.warning("Gallery %s could not be calibrated: %s", gallery.name, error)
        except Exception:
            log.exception("Gallery %s could not be calibrated", gallery.name)


def _is_due(stored: Calibration, seq: int, faces: int) -> bool:
    return stored.method != METHOD or _has_changed(stored.seq, stored.faces, seq, faces)


def _has_changed(seq_then: int, faces_then: int, seq: int, faces: int) -> bool:
    """Whether the gallery has changed enough to be calibrated again.

    A new person is two changes. A sequence number that fell is that of a restored backup.
    """
    has_grown = abs(faces - faces_then) >= max(GROWN * faces_then, 1)
    return has_grown or seq < seq_then or seq - seq_then >= max(4 * GROWN * faces_then, 1)


def _curve(stored: Calibration) -> ScoreTail:
    *before, (rate, start) = stored.points
    return ScoreTail(start, rate, stored.scale, tuple(before))
