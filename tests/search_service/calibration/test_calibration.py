"""A gallery's own thresholds: from its people's scores, in the background, the same for every process."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from indexer.clock import now
from indexer.errors import Conflict, NotFound
from indexer.gallery.calibrations import Calibration, Calibrations
from indexer.gallery.store import FaceVectors
from indexer.models.packs import SFACE, Pack
from indexer.types import Gallery, ScoreTail, Vectors
from indexer.vectors.flat import FaissIndex
from search_service.calibration.report import Basis, report, said
from search_service.calibration.survey import METHOD, Strangers, Thresholds, one_a_person, sample, strangers, survey
from search_service.cli.calibrate import gallery_calibrate
from search_service.matching.calibration import LEAST_PEOPLE, own_curve, threshold_for
from search_service.search import Query, SearchService
from search_service.service_context import ServiceContext
from tests.indexer.gallery.faces import new_face

DIM = SFACE.dim

PACK = replace(SFACE, tail=ScoreTail(0.3687, 1.128e-3, 0.02221, before=((0.1, 0.2114), (0.01, 0.3022))))
"""Its strangers score as `people` do with a likeness of 0.1."""
BORROWED = replace(PACK, measured=False)


def people(count: int, likeness: float, seed: int = 0) -> Vectors:
    """(count, DIM) unit vectors of people who share `likeness` of their squared length: their cosine in the mean."""
    random = np.random.default_rng(seed)
    own = random.standard_normal((count, DIM)) / np.sqrt(DIM)
    common = np.random.default_rng(99).standard_normal(DIM) / np.sqrt(DIM)
    return unit(np.sqrt(likeness) * common + np.sqrt(1 - likeness) * own)


def unit(vectors: NDArray[np.float64]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def again(vector: Vectors, cosine: float, seed: int = 5) -> Vectors:
    """Another photo of the same face, about so near."""
    noise = np.random.default_rng(seed).standard_normal(vector.shape)
    aside = unit(noise - (noise * vector).sum(-1, keepdims=True) * vector)
    return unit(cosine * vector.astype(np.float64) + np.sqrt(1 - cosine**2) * aside)


def searched(gallery: Vectors, pack: Pack = PACK) -> tuple[Strangers, float]:
    """What a gallery of one face a person says of strangers, and how many faces each was compared with."""
    ids = np.arange(1, len(gallery) + 1)
    index = FaissIndex(DIM)
    index.put(ids, ids, gallery)
    found = survey(index.nearest_identities, FaceVectors(ids, ids, gallery), len(gallery), len(gallery))
    return strangers(found, pack), found.compared


def observed(gallery: Vectors, probes: Vectors, fpir: float, pack: Pack = PACK) -> tuple[float, float]:
    """The FPIR of strangers by the gallery's own curve, and by the pack alone."""
    found, compared = searched(gallery, pack)
    curve = own_curve(found.best.tolist(), compared, len(gallery), pack.tail, pack.measured)
    assert curve is not None
    best = (probes @ gallery.T).max(axis=1)
    own, by_pack = threshold_for(fpir, 1, curve), threshold_for(fpir, len(gallery), pack.tail)
    return float((best >= own).mean()), float((best >= by_pack).mean())


# The curve


@pytest.mark.parametrize("pack", [PACK, BORROWED], ids=["measured", "borrowed"])
@pytest.mark.parametrize(("likeness", "fpir"), [(0.35, 0.1), (0.35, 0.03), (0.05, 0.1), (0.05, 0.03)])
def test_a_gallery_unlike_the_pack_s_people_gets_the_fpir_asked_for(likeness: float, fpir: float, pack: Pack) -> None:
    """Where all look alike the pack lets in every second stranger; where nobody does, none."""
    own, by_pack = observed(people(500, likeness), people(2_000, likeness, seed=1), fpir, pack)
    assert fpir / 2 <= own <= fpir * 2
    assert by_pack > 4 * fpir if likeness > 0.1 else by_pack < fpir / 4


def as_the_pack_says(size: int) -> NDArray[np.float64]:
    """(size,) best scores of as many people."""
    return np.array([threshold_for((i + 0.5) / size, size - 1, PACK.tail) for i in range(size)])


@pytest.mark.parametrize("size", [LEAST_PEOPLE, 100, 2_000])
@pytest.mark.parametrize("fpir", [0.3, 0.1, 0.01, 1e-3])
def test_who_scores_as_the_pack_says_gets_its_threshold(size: int, fpir: float) -> None:
    curve = own_curve(as_the_pack_says(size).tolist(), size - 1, size, PACK.tail, True)
    assert curve is not None
    assert threshold_for(fpir, 1, curve) == pytest.approx(threshold_for(fpir, size, PACK.tail), abs=0.005)


def test_few_people_move_the_pack_s_threshold_little_and_many_decide() -> None:
    """All score a hundredth higher than the pack says."""
    moved = []
    for size in (LEAST_PEOPLE, 100, 2_000):
        best = as_the_pack_says(size)
        curves = [own_curve(some.tolist(), size - 1, size, PACK.tail, True) for some in (best, best + 0.01)]
        before, after = [threshold_for(0.1, 1, curve) for curve in curves if curve]
        moved.append(after - before)
    assert 0 < moved[0] < 0.0035 < moved[1] < moved[2]
    assert moved[2] > 0.009


def test_a_pack_that_is_far_off_does_not_count() -> None:
    """Hundreds of people who score 0.3 higher than it says: the threshold is theirs."""
    best = searched(people(400, 0.1))[0].best
    curve = own_curve((best + 0.3).tolist(), 399, 400, PACK.tail, True)
    assert curve is not None
    assert (best + 0.3 >= threshold_for(0.1, 1, curve)).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("pack", "least"), [(PACK, 20), (BORROWED, 100)], ids=["measured", "borrowed"])
def test_too_few_people_say_nothing(pack: Pack, least: int) -> None:
    scores = people(least, 0.2)[:, 0].tolist()
    assert own_curve(scores[:-1], least - 2, least - 1, pack.tail, pack.measured) is None
    assert own_curve(scores, least - 1, least, pack.tail, pack.measured) is not None


@pytest.mark.parametrize("pack", [PACK, BORROWED, replace(PACK, tail=replace(PACK.tail, before=()))])
@pytest.mark.parametrize("score", [-1.0, 0.3, 1.0])
def test_equal_scores_have_a_curve_as_well(pack: Pack, score: float) -> None:
    curve = own_curve([score] * 120, 119, 120, pack.tail, pack.measured)
    assert curve is not None
    thresholds = [threshold_for(fpir, 1, curve) for fpir in (0.5, 0.1, 1e-3, 1e-9)]
    assert thresholds == sorted(thresholds)
    assert all(np.isfinite(thresholds))


def test_the_curve_falls_and_goes_on_beyond_what_was_measured() -> None:
    found, compared = searched(people(300, 0.2))
    curve = own_curve(found.best.tolist(), compared, 300, PACK.tail, True)
    assert curve is not None
    rates = (0.8, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6, 1e-9)
    thresholds = [threshold_for(rate, 1, curve) for rate in rates]
    assert thresholds == sorted(set(thresholds))
    assert threshold_for(0.01, 1.05, curve) > threshold_for(0.01, 1, curve) > threshold_for(0.01, 0.95, curve)


# Duplicates


def test_one_person_under_two_ids_is_found_and_left_out() -> None:
    """The curve is nearly that of the gallery without the copies."""
    once = people(300, 0.2)
    found, compared = searched(np.concatenate([once, again(once[:9], 0.8)]))
    assert sorted((pair.a, pair.b) for pair in found.duplicates) == [(i, 300 + i) for i in range(1, 10)]
    assert all(pair.score == pytest.approx(0.8, abs=0.01) for pair in found.duplicates)
    plain, _ = searched(once)
    assert plain.duplicates == ()
    with_copies = own_curve(found.best.tolist(), compared, 309, PACK.tail, True)
    without = own_curve(plain.best.tolist(), 299, 300, PACK.tail, True)
    assert with_copies is not None
    assert without is not None
    assert threshold_for(0.01, 1, with_copies) == pytest.approx(threshold_for(0.01, 1, without), abs=0.01)


def test_many_ids_of_one_person_are_left_out_altogether() -> None:
    once = people(100, 0.2)
    same = np.concatenate([again(once[:1], 0.9, seed) for seed in range(12)])
    found, _ = searched(np.concatenate([once, same]))
    assert len(found.best) == 99
    assert found.best.max() < 0.6


# Whom to search


def test_the_sample_is_the_same_and_stays_while_others_come_and_go() -> None:
    ids = np.arange(1, 10_001, dtype=np.int64)
    chosen = sample(ids, 500)
    assert sample(ids, 500).tolist() == chosen.tolist()
    assert len(set(chosen.tolist())) == 500
    assert 4_000 < chosen.mean() < 6_000
    grown = sample(np.arange(1, 11_001, dtype=np.int64), 500)
    assert len(set(grown.tolist()) & set(chosen.tolist())) > 400


def test_one_face_a_person() -> None:
    fourth, second, fifth, first, third = sample(np.arange(1, 6, dtype=np.int64), 5).tolist()
    ids = np.array([first, second, third, fourth, fifth])
    kept = one_a_person(FaceVectors(ids, np.array([7, 7, 8, 8, 9]), np.eye(5, dtype=np.float32)), 2)
    assert (kept.face_ids.tolist(), kept.identity_ids.tolist()) == ([fourth, second], [8, 7])
    assert kept.vectors.tolist() == [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]


# Kept


def make(home: ServiceContext, vectors: Vectors, name: str = "staff", photos: int = 1) -> Gallery:
    """A gallery of so many photos a person."""
    gallery = home.store.create_gallery(name, SFACE.name, SFACE.fingerprint, DIM)
    add(home, gallery, vectors, photos)
    return home.store.gallery(name)


def add(home: ServiceContext, gallery: Gallery, vectors: Vectors, photos: int = 1, first: int = 0) -> None:
    home.store.enroll(
        gallery,
        [
            new_face(
                f"p{i:04}", 10 * i + photo, embedding=vector if photo == 0 else again(vector, 0.7, 100 * i + photo)
            )
            for i, vector in enumerate(vectors, first)
            for photo in range(photos)
        ],
    )


def answered(service: SearchService, home: ServiceContext, fpir: float = 0.01) -> float:
    [face] = service.search_embedding(
        people(1, 0.3, seed=3)[0].tolist(), home.store.gallery("staff"), Query(fpir=fpir)
    ).faces
    return face.threshold


def test_the_first_search_has_the_pack_s_threshold_and_those_after_it_the_gallery_s(home: ServiceContext) -> None:
    gallery = make(home, people(150, 0.35))
    service = SearchService(home, Thresholds(home))
    assert answered(service, home) == round(threshold_for(0.01, 150, SFACE.tail), 4)
    service.settle()
    own = answered(service, home)
    assert own > threshold_for(0.01, 150, SFACE.tail) + 0.05
    kept = Calibrations(home.engine).find(gallery)
    assert kept is not None
    assert (kept.method, kept.seq, kept.people, kept.faces) == (METHOD, gallery.seq, 150, 150)
    assert answered(SearchService(home, Thresholds(home)), home) == own  # after a restart, and for other workers
    curve = Thresholds(home).calibrate(gallery).curve
    assert curve is not None
    assert threshold_for(0.01, 1, curve) == pytest.approx(own, abs=2e-4)  # and when it is computed again


def test_a_search_never_waits(home: ServiceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    make(home, people(60, 0.35))
    go = threading.Event()

    def slow(*_: object, **__: object) -> None:
        assert go.wait(30)

    monkeypatch.setattr(Thresholds, "calibrate", slow)
    service = SearchService(home, Thresholds(home))
    for _ in range(3):
        assert answered(service, home) == round(threshold_for(0.01, 60, SFACE.tail), 4)
    assert [thread.name for thread in threading.enumerate()].count("calibration") == 1
    go.set()
    service.settle()


def test_it_is_made_anew_when_the_gallery_has_grown_by_a_tenth(home: ServiceContext) -> None:
    gallery = make(home, people(100, 0.35))
    service, kept = SearchService(home, Thresholds(home)), Calibrations(home.engine)
    Thresholds(home).calibrate(gallery)
    before = answered(service, home)
    add(home, gallery, people(9, 0.35, seed=7), first=200)
    grown = answered(service, home)
    service.settle()
    assert grown > before  # there are more to be taken for
    assert [found.faces for found in [kept.find(gallery)] if found] == [100]
    add(home, gallery, people(1, 0.35, seed=8), first=300)
    answered(service, home)
    service.settle()
    assert [found.faces for found in [kept.find(gallery)] if found] == [110]


def test_it_is_made_anew_when_the_people_were_exchanged_or_the_method_is_another(home: ServiceContext) -> None:
    gallery = make(home, people(40, 0.1))
    service, kept = SearchService(home, Thresholds(home)), Calibrations(home.engine)
    made = Thresholds(home).calibrate(gallery)
    assert made.curve is not None
    for i in range(40):
        home.store.delete_identity(gallery.id, f"p{i:04}")
    add(home, gallery, people(40, 0.35, seed=9), first=500)
    before = answered(service, home)
    service.settle()
    assert answered(service, home) > before
    old = kept.find(gallery)
    assert old is not None
    kept.put(home.store.gallery("staff"), replace(old, method=METHOD - 1))
    other = SearchService(home, Thresholds(home))
    answered(other, home)
    other.settle()
    assert [found.method for found in [kept.find(gallery)] if found] == [METHOD]


def test_small_galleries_have_the_pack_s(home: ServiceContext) -> None:
    gallery = make(home, people(LEAST_PEOPLE - 1, 0.35))
    service = SearchService(home, Thresholds(home))
    answered(service, home)
    service.settle()
    assert answered(service, home) == round(threshold_for(0.001, LEAST_PEOPLE - 1, SFACE.tail), 4)
    assert Calibrations(home.engine).find(gallery) is None


def test_a_small_gallery_is_one_of_few_people_however_many_photos_they_have(
    home: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Gallery] = []
    monkeypatch.setattr(Thresholds, "calibrate", lambda _, gallery, **__: begun.append(gallery))
    make(home, people(LEAST_PEOPLE - 1, 0.35), photos=2)
    service = SearchService(home, Thresholds(home))
    cautious = round(threshold_for(0.001, 2 * (LEAST_PEOPLE - 1), SFACE.tail), 4)
    assert answered(service, home) == cautious
    service.settle()
    assert begun == []
    add(home, home.store.gallery("staff"), people(1, 0.35, seed=7), first=200)
    assert answered(service, home) < cautious
    service.settle()
    assert [gallery.name for gallery in begun] == ["staff"]


def test_what_goes_wrong_is_told_once_and_the_search_answers(
    home: ServiceContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(home, people(60, 0.35))

    def fails(*_: object, **__: object) -> None:
        raise Conflict("gallery 'staff' was re-embedded meanwhile")

    monkeypatch.setattr(Thresholds, "calibrate", fails)
    service = SearchService(home, Thresholds(home))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert answered(service, home) == round(threshold_for(0.01, 60, SFACE.tail), 4)
            service.settle()
    assert [r.message for r in caplog.records] == [
        "Gallery staff could not be calibrated: gallery 'staff' was re-embedded meanwhile"
    ]


def test_what_went_wrong_is_tried_again_after_a_while(home: ServiceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = make(home, people(60, 0.35))
    in_the_way = home.settings.indexes_folder / f"{gallery.id}.calibration.lock"
    in_the_way.mkdir(parents=True)
    service, kept = SearchService(home, Thresholds(home)), Calibrations(home.engine)
    answered(service, home)
    service.settle()
    in_the_way.rmdir()
    answered(service, home)
    service.settle()
    assert kept.find(gallery) is None
    monkeypatch.setattr("search_service.calibration.survey.AGAIN_SECONDS", 0.0)
    answered(service, home)
    service.settle()
    assert kept.find(gallery) is not None


def test_a_calibration_is_of_one_pack_and_goes_with_its_gallery(home: ServiceContext) -> None:
    gallery, kept = make(home, people(30, 0.3)), Calibrations(home.engine)
    made = Calibration(METHOD, 30, 30, 30, ((0.1, 0.4), (0.01, 0.5)), 0.02, now())
    kept.put(gallery, made)
    assert kept.find(gallery) == made
    assert kept.find(replace(gallery, fingerprint="another")) is None
    with pytest.raises(Conflict, match="re-embedded"):
        kept.put(replace(gallery, fingerprint="another"), made)
    home.store.delete_gallery("staff")
    assert kept.find(gallery) is None
    with pytest.raises(NotFound):
        kept.put(gallery, made)


# What people are told


def test_the_report_says_how_sure_it_is(home: ServiceContext) -> None:
    service = Thresholds(home)
    gallery = make(home, people(200, 0.3), photos=2)
    made = service.calibrate(gallery)
    mates = service.mates(made.survey, gallery)
    told = report(made, mates)
    assert (told.people, told.mated) == (200, 200)
    assert told.supported == 5 / 200
    assert [row.basis for row in told.rows] == [Basis.MEASURED] * 2 + [Basis.EXTRAPOLATED] * 5
    for row in told.rows:
        assert row.low is not None
        assert row.high is not None
        assert row.low < row.threshold < row.high
        assert row.fnir == pytest.approx(1 - np.mean([score >= row.threshold for score in mates.values()]), abs=0.05)
    assert told.rows[0].scores == pytest.approx(20, abs=10)
    assert "2.5 %" in said(told, made)
    few = service.calibrate(make(home, people(5, 0.3), "few", photos=5))
    assert report(few, {}).rows[2].threshold == threshold_for(0.001, 25, SFACE.tail)
    assert {row.basis for row in report(few, {}).rows} == {Basis.PACK}
    assert "too few" in said(report(few, {}), few)
    borrowed = replace(few, pack=BORROWED)
    assert {row.basis for row in report(borrowed, {}).rows} == {Basis.BORROWED}
    assert "borrowed" in said(report(borrowed, {}), borrowed)


def test_the_command_shows_lists_and_draws(home: ServiceContext, tmp_path: Path) -> None:
    once = people(80, 0.1)
    make(home, np.concatenate([once, again(once[:2], 0.9)]), photos=2)
    target = tmp_path / "scores.svg"
    common = ["staff", "--home", str(home.settings.home)]
    plain = CliRunner().invoke(gallery_calibrate, [*common, "--picture", str(target)], catch_exceptions=False)
    assert plain.exit_code == 0
    for word in ("0.01 %", "extrapolated", "p0000", "p0080", "support an FPIR"):
        assert word in plain.output
    lines = ElementTree.parse(target).findall(".//{http://www.w3.org/2000/svg}line")
    assert len([line for line in lines if line.get("x1") == line.get("x2")]) == 7
    told = json.loads(CliRunner().invoke(gallery_calibrate, [*common, "--json"], catch_exceptions=False).output)
    assert [row["fpir"] for row in told["thresholds"]] == [0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001]
    twice = {tuple(sorted(one["external_ids"])) for one in told["duplicates"]}
    assert twice == {("p0000", "p0080"), ("p0001", "p0081")}
    assert answered(SearchService(home, Thresholds(home)), home, fpir=0.1) == told["thresholds"][0]["threshold"]


def test_an_empty_gallery_can_be_calibrated(home: ServiceContext, tmp_path: Path) -> None:
    make(home, np.empty((0, DIM), np.float32))
    target = tmp_path / "scores.svg"
    common = ["staff", "--home", str(home.settings.home), "--picture", str(target)]
    ran = CliRunner().invoke(gallery_calibrate, common, catch_exceptions=False)
    assert ran.exit_code == 0
    assert "0 people are too few" in ran.output
    ElementTree.parse(target)
