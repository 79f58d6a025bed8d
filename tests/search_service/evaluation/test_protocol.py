"""`whosthere evaluate` over real photos: who is enrolled, who is searched, what it says of mistakes, and that it leaves
everything else alone."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from indexer.enrollment.sources import Row, rows_of
from indexer.errors import InvalidRequest, RejectedImage
from indexer.settings import read_settings
from indexer.types import Person, Pick
from indexer.vision.pipeline import FacePipeline
from search_service.demo import PROBES, make_photos
from search_service.evaluation.metrics import FPIRS, Basis
from search_service.evaluation.protocol import LEAST_STRANGERS, Protocol, cache_folder, evaluate, own_home, split
from search_service.service_context import ServiceContext
from tests import photos
from tests.indexer.cli.command import Command
from tests.variants import SETTINGS


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a person: seven with two photos, and a stranger. To be copied, not written to."""
    folder = tmp_path_factory.mktemp("labelled")
    people, probes = make_photos(folder / "demo")
    for person in people.iterdir():
        shutil.copytree(person, folder / "people" / person.name)
    for probe in PROBES:
        target = folder / "people" / (probe.expected or "stranger")
        target.mkdir(exist_ok=True)
        shutil.copy(probes / probe.file, target / f"2{Path(probe.file).suffix}")
    return folder / "people"


@pytest.fixture
def people(tmp_path: Path, labelled: Path) -> Path:
    return Path(shutil.copytree(labelled, tmp_path / "people"))


@pytest.fixture
def command(tmp_path: Path, models_folder: Path) -> Command:
    home = tmp_path / "home"
    home.mkdir()
    models_folder.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models_folder)
    return Command(home)


def rows(**counts: int) -> list[Row]:
    def unread(_: int) -> bytes:
        raise AssertionError("a split reads nothing")

    return [
        Row(f"{name}/{number}", Person(name, metadata={"a": 1}), unread)
        for name, count in counts.items()
        for number in range(1, count + 1)
    ]


def names(some: tuple[Row, ...]) -> list[str]:
    return [row.image for row in some]


# The protocol


def test_one_photo_a_person_is_enrolled_and_the_others_are_searched() -> None:
    parts = split(rows(ana=3, ben=2, cleo=1), 1)
    assert names(parts.enrolled) == ["ana/1", "ben/1"]
    assert names(parts.mated) == ["ana/2", "ana/3", "ben/2"]
    assert names(parts.strangers) == ["cleo/1"]


def test_people_with_fewer_than_k_photos_are_enrolled_with_all_but_one_and_not_searched() -> None:
    parts = split(rows(ana=5, ben=3, cleo=2, dora=1), 3)
    assert names(parts.enrolled) == ["ana/1", "ana/2", "ana/3", "ben/1", "ben/2", "cleo/1"]
    assert names(parts.mated) == ["ana/4", "ana/5"]
    assert names(parts.strangers) == ["dora/1"]


def test_rows_that_name_nobody_are_counted_and_what_a_manifest_says_of_people_is_left_out() -> None:
    parts = split([*rows(ana=2, ben=1), *(Row("odd", Person(""), row.read) for row in rows(x=2))], 1)
    assert parts.nobody == 2
    assert all(not row.person.metadata for row in parts.enrolled)


@pytest.mark.parametrize(
    ("counts", "photos_each", "expected"),
    [
        ({"ana": 1, "ben": 1}, 1, "of 2 people, none has more than 1 photo: .*expected several photos of some people"),
        ({"ana": 3, "ben": 2}, 3, "of 2 people, none has more than 3 photos"),
        ({"ana": 3}, 1, "the 3 photos are of 1 person by their folders or names; expected a folder of folders"),
        ({}, 1, "there are no photos in what was named"),
    ],
)
def test_with_nobody_to_search_for_it_says_what_was_expected(
    counts: dict[str, int], photos_each: int, expected: str
) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        split(rows(**counts), photos_each)


@pytest.mark.parametrize(
    ("photos_each", "draws", "seed", "named"), [(0, 100, 0, "photos"), (1, 99, 0, "draws"), (1, 100, -1, "seed")]
)
def test_what_makes_no_sense_is_refused(photos_each: int, draws: int, seed: int, named: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{named} is"):
        Protocol(photos_each, None, draws, seed)


# The command


def test_everyone_is_found_and_nothing_of_the_users_is_touched(command: Command, people: Path, tmp_path: Path) -> None:
    told = command.ok("evaluate", people, "--json", "--pick", "center", "--draws", "100").json
    assert told["model"] == "sface"
    assert told["enrolment"] == {"photos": 7, "people": 7, "enrolled": 7, "reasons": {}, "nobody": []}
    assert (told["mated"]["photos"], told["strangers"]["photos"]) == (7, 1)
    assert told["rank_1"]["value"] == 1
    assert (told["computed"], told["from_cache"]) == (15, 0)
    assert told["strangers_are"] == "one_photo_and_others"
    assert (told["non_mated_people"], told["non_mated_searches"]) == (8, 8)
    assert [one["fpir"] for one in told["fnir"]] == list(FPIRS)
    assert {one["basis"] for one in told["fnir"]} == {Basis.UNSUPPORTED}
    assert all(one["fnir"] is None for one in told["fnir"])
    assert {path.name for path in command.home.iterdir()} == {"models", "cache"}  # no database, no index


def test_the_second_time_no_network_computes_anything(
    command: Command, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command.ok("evaluate", people, "--json", "--draws", "100").json
    monkeypatch.setattr(FacePipeline, "_load", lambda _: pytest.fail("a network is loaded"))
    again = command.ok("evaluate", people, "--json", "--draws", "100").json
    assert (again["computed"], again["from_cache"]) == (0, 15)
    assert {k: v for k, v in first.items() if k not in ("computed", "from_cache", "seconds")} == {
        k: v for k, v in again.items() if k not in ("computed", "from_cache", "seconds")
    }
    assert "no network computed anything" in command.ok("evaluate", people, "--draws", "100").out


def test_without_a_cache_nothing_is_kept(command: Command, people: Path) -> None:
    told = command.ok("evaluate", people, "--no-cache", "--json", "--draws", "100").json
    assert told["computed"] == 15
    assert {path.name for path in command.home.iterdir()} == {"models"}


def test_a_cache_that_cannot_be_written_is_told_and_changes_nothing(command: Command, people: Path) -> None:
    (command.home / "cache").write_text("no folder")
    ran = command.ok("evaluate", people, "--json", "--draws", "100")
    assert ran.json["rank_1"]["value"] == 1
    assert "cannot be kept for the next time" in ran.err


def test_a_wrong_label_stands_out(command: Command, people: Path) -> None:
    shutil.copy(people / "left-1" / "2.jpg", people / "left-3" / "9_somebody_else.jpg")
    mistakes = command.ok("evaluate", people, "--json", "--draws", "100").json["mistakes"]
    (wrong,) = mistakes["confused"]
    assert Path(wrong["image"]).name == "9_somebody_else.jpg"
    assert (wrong["external_id"], wrong["candidate"]) == ("left-3", "left-1")
    assert wrong["candidate_score"] > 0.8 > 0.5 > wrong["own_score"]
    assert Path(wrong["candidate_image"]) == people / "left-1" / "1.jpg"
    assert Path(wrong["own_image"]) == people / "left-3" / "1.jpg"


def test_photos_that_cannot_be_used_are_told_by_reason_and_count_as_missed(command: Command, people: Path) -> None:
    (people / "left-1" / "1.jpg").write_bytes(photos.no_faces()[-1])  # its owner is not enrolled at all
    (people / "left-2" / "3.jpg").write_bytes(b"no image")
    (people / "stranger" / "2.jpg").write_bytes(b"no image either")
    told = command.ok("evaluate", people, "--json", "--draws", "100").json
    assert told["enrolment"]["reasons"] == {"no_face": 1}
    assert told["enrolment"]["nobody"] == ["left-1"]
    assert told["mated"]["reasons"] == {"unreadable_image": 1}
    assert told["strangers"]["reasons"] == {"unreadable_image": 1}
    assert told["rank_1"]["value"] == pytest.approx(6 / 8)
    assert told["mistakes"]["not_enrolled"][0]["reason"] == "no_face"
    assert {Path(one["image"]).name for one in told["mistakes"]["not_searched"]} == {"3.jpg", "2.jpg"}


def test_a_copy_of_an_enrolled_photo_is_no_probe(command: Command, people: Path) -> None:
    shutil.copy(people / "left-1" / "1.jpg", people / "left-1" / "3.jpg")
    shutil.copy(people / "left-2" / "2.png", people / "left-2" / "4.png")
    told = command.ok("evaluate", people, "--json", "--draws", "100").json
    assert told["copies_left_out"] == 2
    assert told["mated"]["photos"] == 7


def test_a_manifest_and_a_zip_are_read_as_enroll_reads_them(command: Command, people: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "people"), "zip", people)
    zipped = command.ok("evaluate", archive, "--json", "--draws", "100").json
    lines = ["image,external_id,valid_until", *(f"{p},{p.parent.name},1999-01-01" for p in sorted(people.glob("*/*")))]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    listed = command.ok("evaluate", "--manifest", tmp_path / "all.csv", "--json", "--draws", "100").json
    assert zipped["rank_1"]["value"] == listed["rank_1"]["value"] == 1
    assert listed["computed"] == 0


class Page(HTMLParser):
    """What of a page would be fetched, and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
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
                    self.fetched.append(value)


def test_the_report_is_one_file_with_pictures_that_fetches_nothing(
    command: Command, people: Path, tmp_path: Path
) -> None:
    odd = people.parent / "people" / "<script>alert(1)</script>"
    shutil.copytree(people / "left-1", odd)
    (odd / "1.jpg").write_bytes(photos.aligned_face())  # said to be the one, and shows the other
    out = command.ok("evaluate", people, "--out", tmp_path / "report.html", "--draws", "100").out
    text = (tmp_path / "report.html").read_text()
    shown = Page(text)
    assert not shown.fetched
    assert shown.pictures >= 10
    assert "alert(1)" in text
    assert "<script" not in text
    assert not re.findall(r"url\(|@import", text)
    assert text.count("<svg") == 2
    assert str(tmp_path / "report.html") in out
    assert "cannot be told from so few strangers" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name folders"),
        (["nowhere"], "there is no nowhere"),
        (["{people}", "--out", "nowhere/report.html"], "there is no folder nowhere"),
        (["{people}", "--photos", "0"], "photos is 0"),
        (["{people}", "--photos", "9"], "none has more than 9 photos"),
        (["{people}", "--model", "none"], "none"),
    ],
)
def test_wrong_usage_says_what_is_wrong(command: Command, people: Path, arguments: list[str], expected: str) -> None:
    ran = command("evaluate", *(argument.format(people=people) for argument in arguments))
    assert ran.code == 2
    assert expected in ran.err


def test_if_nobody_can_be_enrolled_it_says_so(command: Command, tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("cat_1.png", "cat_2.png", "dog_1.png")]
    for number, image in enumerate(images, 1):
        image.write_bytes(photos.no_faces()[-number])
    ran = command("evaluate", *images)
    assert ran.code == 2
    assert "not one of the photos to be enrolled could be" in ran.err


# What it stands on


def test_its_home_has_the_users_settings_and_models_and_nothing_else_of_theirs(tmp_path: Path) -> None:
    settings = read_settings(
        {}, home=tmp_path, database_url="postgresql://nowhere/x", vectors="milvus://nowhere:1", thorough=False, fpir=0.5
    )
    settings.models_folder.mkdir(parents=True)
    (settings.models_folder / "theirs").write_text("a model")
    with own_home(settings) as own:
        assert (own.settings.thorough, own.settings.fpir, own.settings.vectors) == (False, 0.5, "auto")
        assert own.settings.database_url.startswith("sqlite:///")
        assert tmp_path not in own.settings.home.parents
        folder = own.settings.home
    assert not folder.exists()
    assert (settings.models_folder / "theirs").read_text() == "a model"


def test_strangers_of_a_folder_without_any_are_the_others(command: Command, people: Path) -> None:
    """Whoever is searched is then a stranger to everybody else: their best score with them is what counts."""
    shutil.rmtree(people / "stranger")
    told: Any = command.ok("evaluate", people, "--json", "--draws", "100").json
    assert told["non_mated_people"] == 7 < LEAST_STRANGERS
    best = told["mistakes"]["strangers_let_in"][0]
    assert best["candidate"] != best["external_id"]
    assert best["candidate_score"] < 0.5 < best["own_score"]


def test_on_faces_of_the_wild(tmp_path: Path, models_folder: Path) -> None:
    """A few hundred photos: nobody is mistaken for somebody else, and calibration gives about what was asked for."""
    folder = photos.shared("lfw/people")
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path / "home"))
    (tmp_path / "home").mkdir()
    models_folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "home" / "models").symlink_to(models_folder)
    some = rows_of([folder])[:400]
    told = evaluate(home, some, Protocol(1, Pick.CENTER), None, True, lambda *_: None)
    home.close()
    assert told.numbers.rank_1.value > 0.97
    first = told.numbers.rates[0]
    assert first.basis is Basis.MEASURED
    assert first.fnir is not None
    assert first.fnir.value < 0.05
    assert 0.02 < told.numbers.asked[0].observed.value < 0.3
    assert cache_folder(home).is_dir()


def test_a_photo_that_goes_away_meanwhile_is_told_and_ends_nothing(
    tmp_path: Path, models_folder: Path, labelled: Path
) -> None:
    def gone(_: int) -> bytes:
        raise RejectedImage("the file cannot be read", code="unreadable_image")

    (tmp_path / "home").mkdir()
    models_folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "home" / "models").symlink_to(models_folder)
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path / "home"))
    some = [Row(r.image, r.person, gone) if r.image.endswith("2.jpg") else r for r in rows_of([labelled])]
    told = evaluate(home, some, Protocol(draws=100), None, False, lambda *_: None)
    home.close()
    assert sum(told.mated.reasons.values()) == 5
    assert any(shot.picture is None for shot, _ in told.mistakes.not_searched)
