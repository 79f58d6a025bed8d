"""The result of `gallery calibrate`, in words, as JSON and as a chart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from indexer.models.packs import SFACE
from search_service.calibration.report import Basis, Report, build_report, calibrate, summary
from search_service.calibration.thresholds import Calibrated, Thresholds
from search_service.matching.calibration import threshold_for
from search_service.search import Query, SearchService
from search_service.service_context import ServiceContext
from tests.indexer.cli.command import Command
from tests.search_service.calibration.people import BORROWED, DIM, another_photo, enroll_people, people


def test_report_tells_how_certain_thresholds_are(context: ServiceContext) -> None:
    report = calibrate(context, enroll_people(context, people(200, 0.3), photos=2))
    assert (len(report.strangers), len(report.mated_scores)) == (200, 200)
    assert report.supported == 5 / 200
    assert [row.basis for row in report.rows] == [Basis.MEASURED] * 2 + [Basis.EXTRAPOLATED] * 5
    for row in report.rows:
        assert row.low is not None
        assert row.high is not None
        assert row.low < row.threshold < row.high
        assert row.fnir == pytest.approx(1 - np.mean(report.mated_scores >= row.threshold), abs=0.05)
    assert report.rows[0].scores == pytest.approx(20, abs=10)
    assert "2.5 %" in summary(report)


def test_report_of_few_people_is_based_on_the_pack(context: ServiceContext) -> None:
    calibrated = Thresholds(context).calibrate(enroll_people(context, people(5, 0.3), photos=5))

    def unmated(calibrated: Calibrated) -> Report:
        return build_report(calibrated, np.full(5, np.nan))

    report = unmated(calibrated)
    assert report.rows[2].threshold == threshold_for(0.001, 25, SFACE.tail)
    assert {row.basis for row in report.rows} == {Basis.PACK}
    assert "too few" in summary(report)
    borrowed = unmated(replace(calibrated, pack=BORROWED))
    assert {row.basis for row in borrowed.rows} == {Basis.BORROWED}
    assert "borrowed" in summary(borrowed)


def test_command_prints_thresholds_lists_duplicates_and_draws(context: ServiceContext, tmp_path: Path) -> None:
    once = people(80, 0.1)
    enroll_people(context, np.concatenate([once, another_photo(once[:2], 0.9)]), photos=2)
    target = tmp_path / "scores.svg"
    command = Command(context.settings.home)
    plain = command.ok("gallery", "calibrate", "staff", "--picture", target)
    for word in ("0.01 %", "extrapolated", "p0000", "p0080", "support an FPIR"):
        assert word in plain.out
    lines = ElementTree.parse(target).findall(".//{http://www.w3.org/2000/svg}line")
    assert len([line for line in lines if line.get("x1") == line.get("x2")]) == 7
    report = command.ok("gallery", "calibrate", "staff", "--json").json
    assert [row["fpir"] for row in report["thresholds"]] == [0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001]
    duplicates = {tuple(sorted(one["external_ids"])) for one in report["duplicates"]}
    assert duplicates == {("p0000", "p0080"), ("p0001", "p0081")}
    service = SearchService(context, Thresholds(context))
    [face] = service.search_embedding(once[0].tolist(), context.store.galleries.get("staff"), Query(fpir=0.1)).faces
    assert face.threshold == report["thresholds"][0]["threshold"]


def test_empty_gallery_can_be_calibrated(context: ServiceContext, tmp_path: Path) -> None:
    enroll_people(context, np.empty((0, DIM), np.float32))
    target = tmp_path / "scores.svg"
    calibrated = Command(context.settings.home).ok("gallery", "calibrate", "staff", "--picture", target)
    assert "0 people are too few" in calibrated.out
    ElementTree.parse(target)
