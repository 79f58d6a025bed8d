"""`whosthere evaluate` with real photos."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from indexer.enrollment.rows import Row
from indexer.enrollment.sources import rows_of
from indexer.errors import RejectedImage
from indexer.settings import read_settings
from indexer.types import Pick
from indexer.vision.pipeline import FacePipeline
from search_service.evaluation.metrics import FPIRS, Basis
from search_service.evaluation.protocol import LEAST_STRANGERS, Protocol
from search_service.evaluation.run import cache_folder, evaluate, isolated_context
from search_service.service_context import ServiceContext
from tests import photos
from tests.indexer.cli.command import Command


def evaluated(command: Command, *arguments: str | Path) -> dict[str, Any]:
    report: dict[str, Any] = command.ok("evaluate", *arguments, "--json", "--draws", "100").json
    return report


# Results


def test_everyone_is_found_and_the_user_s_data_is_not_touched(command: Command, people: Path) -> None:
    report = evaluated(command, people, "--pick", "center")
    assert report["model"] == "sface"
    assert report["enrolment"] == {"photos": 7, "people": 7, "enrolled": 7, "reasons": {}, "nobody": []}
    assert (report["mated"]["photos"], report["strangers"]["photos"]) == (7, 1)
    assert report["rank_1"]["value"] == 1
    assert (report["computed"], report["from_cache"]) == (15, 0)
    assert report["strangers_are"] == "one_photo_and_others"
    assert (report["non_mated_people"], report["non_mated_searches"]) == (8, 8)
    assert [rate["fpir"] for rate in report["fnir"]] == list(FPIRS)
    assert {rate["basis"] for rate in report["fnir"]} == {Basis.UNSUPPORTED}
    assert all(rate["fnir"] is None for rate in report["fnir"])
    assert {path.name for path in command.home.iterdir()} == {"models", "cache"}  # no database, no index


def test_people_who_are_searched_are_strangers_to_the_others_if_there_are_no_strangers(
    command: Command, people: Path
) -> None:
    shutil.rmtree(people / "stranger")
    report = evaluated(command, people)
    assert report["non_mated_people"] == 7 < LEAST_STRANGERS
    best = report["mistakes"]["strangers_let_in"][0]
    assert best["candidate"] != best["external_id"]
    assert best["candidate_score"] < 0.5 < best["own_score"]


def test_wrong_label_is_listed_with_its_scores(command: Command, people: Path) -> None:
    shutil.copy(people / "left-1" / "2.jpg", people / "left-3" / "9_somebody_else.jpg")
    (wrong,) = evaluated(command, people)["mistakes"]["confused"]
    assert Path(wrong["image"]).name == "9_somebody_else.jpg"
    assert (wrong["external_id"], wrong["candidate"]) == ("left-3", "left-1")
    assert wrong["candidate_score"] > 0.8 > 0.5 > wrong["own_score"]
    assert Path(wrong["candidate_image"]) == people / "left-1" / "1.jpg"
    assert Path(wrong["own_image"]) == people / "left-3" / "1.jpg"


def test_unusable_photos_are_counted_by_reason_and_as_missed(command: Command, people: Path) -> None:
    (people / "left-1" / "1.jpg").write_bytes(photos.no_faces()[-1])  # its person is not enrolled at all
    (people / "left-2" / "3.jpg").write_bytes(b"no image")
    (people / "stranger" / "2.jpg").write_bytes(b"no image either")
    report = evaluated(command, people)
    assert report["enrolment"]["reasons"] == {"no_face": 1}
    assert report["enrolment"]["nobody"] == ["left-1"]
    assert report["mated"]["reasons"] == {"unreadable_image": 1}
    assert report["strangers"]["reasons"] == {"unreadable_image": 1}
    assert report["rank_1"]["value"] == pytest.approx(6 / 8)
    assert report["mistakes"]["not_enrolled"][0]["reason"] == "no_face"
    assert [Path(one["image"]).name for one in report["mistakes"]["not_searched"]] == ["3.jpg", "2.jpg"]


def test_copies_of_a_person_s_photo_are_not_searched(command: Command, people: Path) -> None:
    shutil.copy(people / "left-1" / "1.jpg", people / "left-1" / "3.jpg")
    shutil.copy(people / "left-2" / "2.png", people / "left-2" / "4.png")
    report = evaluated(command, people)
    assert report["copies_left_out"] == 2
    assert report["mated"]["photos"] == 7


def test_photo_that_is_deleted_meanwhile_is_reported(context: ServiceContext, labelled: Path) -> None:
    def fail(_: int) -> bytes:
        raise RejectedImage("the file cannot be read", code="unreadable_image")

    rows = [Row(r.image, r.person, fail) if r.image.endswith("2.jpg") else r for r in rows_of([labelled])]
    evaluation = evaluate(context, rows, Protocol(draws=100), None, False, lambda *_: None)
    assert sum(evaluation.mated.reasons.values()) == 5
    assert any(shot.picture is None for shot, _ in evaluation.mistakes.not_searched)


def test_faces_in_the_wild_are_recognized_and_calibration_holds(context: ServiceContext) -> None:
    rows = rows_of([photos.shared("lfw/people")])[:400]
    evaluation = evaluate(context, rows, Protocol(1, Pick.CENTER), None, True, lambda *_: None)
    metrics = evaluation.metrics
    assert metrics.rank_1.value > 0.97
    assert metrics.rates[0].basis is Basis.MEASURED
    assert metrics.rates[0].fnir is not None
    assert metrics.rates[0].fnir.value < 0.05
    assert 0.02 < metrics.calibrated[0].observed.value < 0.3
    assert cache_folder(context).is_dir()


# Input and output


def test_manifest_and_zip_are_read_as_by_enroll(command: Command, people: Path, tmp_path: Path) -> None:
    zipped = evaluated(command, shutil.make_archive(str(tmp_path / "people"), "zip", people))
    lines = ["image,external_id,valid_until", *(f"{p},{p.parent.name},1999-01-01" for p in sorted(people.glob("*/*")))]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    listed = evaluated(command, "--manifest", tmp_path / "all.csv")
    assert zipped["rank_1"]["value"] == listed["rank_1"]["value"] == 1
    assert listed["computed"] == 0


class Page(HTMLParser):
    """Collects what a browser would load, and the embedded pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.pictures = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data") and value is not None:
                if value.startswith("data:image/jpeg;base64,"):
                    self.pictures += 1
                else:
                    self.loaded.append(value)


def test_report_is_one_file_with_pictures_that_loads_nothing(command: Command, people: Path, tmp_path: Path) -> None:
    odd = people / "<script>alert(1)<" / "script>"
    shutil.copytree(people / "left-1", odd)
    (odd / "1.jpg").write_bytes(photos.aligned_face())  # labelled as one person, shows another
    out = command.ok("evaluate", people, "--out", tmp_path / "report.html", "--draws", "100").out
    text = (tmp_path / "report.html").read_text()
    shown = Page(text)
    assert not shown.loaded
    assert shown.pictures >= 10
    assert "alert(1)" in text
    assert "<script" not in text
    assert not re.findall(r"url\(|@import", text)
    assert text.count("<svg") == 2
    assert str(tmp_path / "report.html") in out
    assert "unknown with so few strangers" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name folders"),
        (["nowhere"], "nowhere"),
        (["{people}", "--out", "nowhere/report.html"], "there is no folder nowhere"),
        (["{people}", "--photos", "0"], "photos is 0"),
        (["{people}", "--photos", "9"], "none has more than 9 photos"),
        (["{people}", "--model", "none"], "none"),
    ],
)
def test_wrong_usage_is_explained(command: Command, labelled: Path, arguments: list[str], expected: str) -> None:
    ran = command("evaluate", *(argument.format(people=labelled) for argument in arguments))
    assert ran.code == 2
    assert expected in ran.err


def test_evaluation_fails_if_nobody_can_be_enrolled(command: Command, tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("cat_1.png", "cat_2.png", "dog_1.png")]
    for number, image in enumerate(images, 1):
        image.write_bytes(photos.no_faces()[-number])
    ran = command("evaluate", *images)
    assert ran.code == 2
    assert "none of the photos could be enrolled" in ran.err


# Cache and settings


def test_second_evaluation_computes_nothing(command: Command, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluated(command, labelled)
    monkeypatch.setattr(FacePipeline, "_load", lambda _: pytest.fail("a network is loaded"))
    again = evaluated(command, labelled)
    assert (again["computed"], again["from_cache"]) == (0, 15)
    changing = ("computed", "from_cache", "seconds")
    assert [first[key] for key in first if key not in changing] == [again[key] for key in again if key not in changing]
    assert "no network computed anything" in command.ok("evaluate", labelled, "--draws", "100").out


def test_nothing_is_stored_without_a_cache(command: Command, labelled: Path) -> None:
    assert evaluated(command, labelled, "--no-cache")["computed"] == 15
    assert {path.name for path in command.home.iterdir()} == {"models"}


def test_cache_that_cannot_be_written_is_a_warning(command: Command, labelled: Path) -> None:
    (command.home / "cache").write_text("no folder")
    ran = command.ok("evaluate", labelled, "--json", "--draws", "100")
    assert ran.json["rank_1"]["value"] == 1
    assert "cannot be cached for the next time" in ran.err


def test_isolated_context_has_the_settings_and_models_but_not_the_data(tmp_path: Path) -> None:
    settings = read_settings(
        {}, home=tmp_path, database_url="postgresql://nowhere/x", vectors="milvus://nowhere:1", thorough=False, fpir=0.5
    )
    settings.models_folder.mkdir(parents=True)
    (settings.models_folder / "file").write_text("a model")
    with isolated_context(settings) as isolated:
        own = isolated.settings
        assert (own.thorough, own.fpir, own.vectors) == (False, 0.5, "auto")
        assert own.database_url.startswith("sqlite:///")
        assert tmp_path not in own.home.parents
    assert not own.home.exists()
    assert (settings.models_folder / "file").read_text() == "a model"
