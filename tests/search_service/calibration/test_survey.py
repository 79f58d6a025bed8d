"""Surveys of a gallery: the FPIR of the curve they give, duplicates, and the sample of people."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.gallery.embeddings import FaceVectors
from indexer.models.packs import Pack
from indexer.types import ScoreTail, Vectors
from indexer.vectors.flat import FlatIndex
from search_service.calibration.survey import Strangers, one_face_per_person, sample, strangers, survey
from search_service.matching.calibration import own_curve, threshold_for
from tests.search_service.calibration.people import BORROWED, DIM, PACK, another_photo, people


def survey_of(gallery: Vectors, pack: Pack = PACK) -> tuple[Strangers, ScoreTail]:
    """Returns the survey of a gallery with one face of each person, numbered from 1, and its curve."""
    ids = np.arange(1, len(gallery) + 1)
    index = FlatIndex(DIM)
    index.put(ids, ids, gallery)
    found = survey(index.nearest_identities, FaceVectors(ids, ids, gallery), len(gallery), len(gallery))
    scores = strangers(found, pack)
    curve = own_curve(scores.best, found.compared, len(gallery), pack.tail, pack.measured)
    assert curve is not None
    return scores, curve


@pytest.mark.parametrize("pack", [PACK, BORROWED], ids=["measured", "borrowed"])
@pytest.mark.parametrize(("similarity", "fpir"), [(0.35, 0.1), (0.35, 0.03), (0.05, 0.1), (0.05, 0.03)])
def test_gallery_unlike_the_pack_s_people_gets_the_wanted_fpir(similarity: float, fpir: float, pack: Pack) -> None:
    """Where all people look alike, the pack's threshold accepts every second stranger; where nobody does, none."""
    gallery, probes = people(500, similarity), people(2_000, similarity, seed=1)
    _, curve = survey_of(gallery, pack)
    best = (probes @ gallery.T).max(axis=1)
    own = float((best >= threshold_for(fpir, 1, curve)).mean())
    by_pack = float((best >= threshold_for(fpir, len(gallery), pack.tail)).mean())
    assert fpir / 2 <= own <= fpir * 2
    assert by_pack > 4 * fpir if similarity > 0.1 else by_pack < fpir / 4


def test_curve_rises_beyond_what_was_measured() -> None:
    _, curve = survey_of(people(300, 0.2))
    thresholds = [threshold_for(rate, 1, curve) for rate in (0.8, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6, 1e-9)]
    assert thresholds == sorted(set(thresholds))
    assert threshold_for(0.01, 1.05, curve) > threshold_for(0.01, 1, curve) > threshold_for(0.01, 0.95, curve)


def test_people_enrolled_under_two_ids_are_found_and_left_out() -> None:
    """The curve is nearly that of the gallery without the copies."""
    once = people(300, 0.2)
    found, curve = survey_of(np.concatenate([once, another_photo(once[:9], 0.8)]))
    assert sorted((pair.a, pair.b) for pair in found.duplicates) == [(i, 300 + i) for i in range(1, 10)]
    assert all(pair.score == pytest.approx(0.8, abs=0.01) for pair in found.duplicates)
    without, curve_without = survey_of(once)
    assert without.duplicates == ()
    assert threshold_for(0.01, 1, curve) == pytest.approx(threshold_for(0.01, 1, curve_without), abs=0.01)


def test_many_ids_of_one_person_are_all_left_out() -> None:
    once = people(100, 0.2)
    same = np.concatenate([another_photo(once[:1], 0.9, seed) for seed in range(12)])
    found, _ = survey_of(np.concatenate([once, same]))
    assert len(found.best) == 99
    assert found.best.max() < 0.6


def test_sample_is_repeatable_and_stable_while_others_come_and_go() -> None:
    ids = np.arange(1, 10_001, dtype=np.int64)
    chosen = sample(ids, 500)
    assert sample(ids, 500).tolist() == chosen.tolist()
    assert len(set(chosen.tolist())) == 500
    assert 4_000 < chosen.mean() < 6_000
    grown = sample(np.arange(1, 11_001, dtype=np.int64), 500)
    assert len(set(grown.tolist()) & set(chosen.tolist())) > 400


def test_one_face_of_each_person_is_taken_in_the_order_of_the_sample() -> None:
    fourth, second, fifth, first, third = sample(np.arange(1, 6, dtype=np.int64), 5).tolist()
    ids = np.array([first, second, third, fourth, fifth])
    kept = one_face_per_person(FaceVectors(ids, np.array([7, 7, 8, 8, 9]), np.eye(5, dtype=np.float32)), 2)
    assert (kept.face_ids.tolist(), kept.identity_ids.tolist()) == ([fourth, second], [8, 7])
    assert kept.vectors.tolist() == [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
