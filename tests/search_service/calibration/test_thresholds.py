"""A gallery's own thresholds: computed in the background, stored, and the same for every process."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import pytest

from indexer.clock import now
from indexer.errors import Conflict, NotFound
from indexer.gallery.calibrations import Calibration, CalibrationRepository
from indexer.models.packs import SFACE
from indexer.types import Gallery
from search_service.calibration.thresholds import METHOD, Thresholds
from search_service.matching.calibration import LEAST_PEOPLE, threshold_for
from search_service.search import Query, SearchService
from search_service.service_context import ServiceContext
from tests.search_service.calibration.people import enroll_people, people
from tests.waiting import DEADLINE


@pytest.fixture
def service(context: ServiceContext) -> SearchService:
    return SearchService(context, Thresholds(context))


@pytest.fixture
def stored(context: ServiceContext) -> CalibrationRepository:
    return CalibrationRepository(context.engine)


def answered(service: SearchService, context: ServiceContext, fpir: float = 0.01) -> float:
    """Returns the threshold that a search applies."""
    probe = people(1, 0.3, seed=3)[0].tolist()
    [face] = service.search_embedding(probe, context.store.galleries.get("staff"), Query(fpir=fpir)).faces
    return face.threshold


def answered_and_settled(service: SearchService, context: ServiceContext) -> float:
    threshold = answered(service, context)
    service.settle()
    return threshold


def of_pack(faces: int, fpir: float = 0.01) -> float:
    return round(threshold_for(fpir, faces, SFACE.tail), 4)


def test_first_search_applies_the_pack_s_threshold_and_later_ones_the_gallery_s(
    context: ServiceContext, service: SearchService, stored: CalibrationRepository
) -> None:
    gallery = enroll_people(context, people(150, 0.35))
    assert answered_and_settled(service, context) == of_pack(150)
    own = answered(service, context)
    assert own > of_pack(150) + 0.05
    found = stored.find(gallery)
    assert found is not None
    assert (found.method, found.seq, found.people, found.faces) == (METHOD, gallery.seq, 150, 150)
    restarted = SearchService(context, Thresholds(context))
    assert answered(restarted, context) == own
    curve = Thresholds(context).calibrate(gallery).curve
    assert curve is not None
    assert threshold_for(0.01, 1, curve) == pytest.approx(own, abs=2e-4)


def test_searches_never_wait_for_a_calibration(
    context: ServiceContext, service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll_people(context, people(60, 0.35))
    go = threading.Event()

    def slow(*_: object, **__: object) -> None:
        assert go.wait(DEADLINE)

    monkeypatch.setattr(Thresholds, "calibrate", slow)
    for _ in range(3):
        assert answered(service, context) == of_pack(60)
    assert [thread.name for thread in threading.enumerate()].count("calibration") == 1
    go.set()
    service.settle()


def test_gallery_that_has_grown_by_a_tenth_is_calibrated_again(
    context: ServiceContext, service: SearchService, stored: CalibrationRepository
) -> None:
    gallery = enroll_people(context, people(100, 0.35))
    Thresholds(context).calibrate(gallery)
    before = answered(service, context)
    enroll_people(context, people(9, 0.35, seed=7), first=200)
    assert answered_and_settled(service, context) > before  # there are more people to be mistaken for
    assert [found.faces for found in [stored.find(gallery)] if found] == [100]
    enroll_people(context, people(1, 0.35, seed=8), first=300)
    answered_and_settled(service, context)
    assert [found.faces for found in [stored.find(gallery)] if found] == [110]


def test_gallery_whose_people_were_replaced_is_calibrated_again(
    context: ServiceContext, service: SearchService
) -> None:
    gallery = enroll_people(context, people(40, 0.1))
    assert Thresholds(context).calibrate(gallery).curve is not None
    for i in range(40):
        context.store.identities.delete(gallery.id, f"p{i:04}")
    enroll_people(context, people(40, 0.35, seed=9), first=500)
    before = answered_and_settled(service, context)
    assert answered(service, context) > before


def test_calibration_by_a_former_method_is_replaced(
    context: ServiceContext, service: SearchService, stored: CalibrationRepository
) -> None:
    gallery = enroll_people(context, people(40, 0.1))
    Thresholds(context).calibrate(gallery)
    current = stored.find(gallery)
    assert current is not None
    stored.put(gallery, replace(current, method=METHOD - 1))
    answered_and_settled(service, context)
    assert [found.method for found in [stored.find(gallery)] if found] == [METHOD]


def test_small_galleries_apply_the_pack_s_threshold(
    context: ServiceContext, service: SearchService, stored: CalibrationRepository
) -> None:
    gallery = enroll_people(context, people(LEAST_PEOPLE - 1, 0.35))
    answered_and_settled(service, context)
    assert answered(service, context) == of_pack(LEAST_PEOPLE - 1, fpir=0.001)
    assert stored.find(gallery) is None


def test_gallery_of_few_people_is_small_however_many_photos_they_have(
    context: ServiceContext, service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated: list[Gallery] = []
    monkeypatch.setattr(Thresholds, "calibrate", lambda _, gallery, **__: calibrated.append(gallery))
    enroll_people(context, people(LEAST_PEOPLE - 1, 0.35), photos=2)
    cautious = of_pack(2 * (LEAST_PEOPLE - 1), fpir=0.001)
    assert answered_and_settled(service, context) == cautious
    assert calibrated == []
    enroll_people(context, people(1, 0.35, seed=7), first=200)
    assert answered_and_settled(service, context) < cautious
    assert [gallery.name for gallery in calibrated] == ["staff"]


def test_failed_calibration_is_logged_once_and_searches_are_answered(
    context: ServiceContext, service: SearchService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    enroll_people(context, people(60, 0.35))

    def fails(*_: object, **__: object) -> None:
        raise Conflict("gallery 'staff' was re-embedded meanwhile")

    monkeypatch.setattr(Thresholds, "calibrate", fails)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert answered_and_settled(service, context) == of_pack(60)
    assert [r.message for r in caplog.records] == [
        "Gallery staff could not be calibrated: gallery 'staff' was re-embedded meanwhile"
    ]


def test_failed_calibration_is_repeated_after_a_while(
    context: ServiceContext, service: SearchService, stored: CalibrationRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = enroll_people(context, people(60, 0.35))
    in_the_way = context.settings.indexes_folder / f"{gallery.id}.calibration.lock"
    in_the_way.mkdir(parents=True)
    answered_and_settled(service, context)
    in_the_way.rmdir()
    answered_and_settled(service, context)
    assert stored.find(gallery) is None
    monkeypatch.setattr("search_service.calibration.thresholds.AGAIN_SECONDS", 0.0)
    answered_and_settled(service, context)
    assert stored.find(gallery) is not None


def test_calibration_belongs_to_one_pack_and_is_deleted_with_its_gallery(
    context: ServiceContext, stored: CalibrationRepository
) -> None:
    gallery = enroll_people(context, people(30, 0.3))
    calibration = Calibration(METHOD, 30, 30, 30, ((0.1, 0.4), (0.01, 0.5)), 0.02, now())
    stored.put(gallery, calibration)
    assert stored.find(gallery) == calibration
    assert stored.find(replace(gallery, fingerprint="another")) is None
    with pytest.raises(Conflict, match="re-embedded"):
        stored.put(replace(gallery, fingerprint="another"), calibration)
    context.store.galleries.delete("staff")
    assert stored.find(gallery) is None
    with pytest.raises(NotFound):
        stored.put(gallery, calibration)
