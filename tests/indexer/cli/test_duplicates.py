"""`gallery duplicates` and `identity merge`, with real faces."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.app_context import AppContext
from indexer.enrollment.enroller import Enroller
from indexer.enrollment.lookalikes import lookalike_bound
from indexer.enrollment.rows import Row
from indexer.models.packs import SFACE
from indexer.settings import read_settings
from indexer.types import Outcome, Person
from tests import photos
from tests.indexer.cli.command import Command
from tests.variants import SETTINGS


def enroll(staff: Command, external_id: str, pictures: Sequence[NDArray[Any]]) -> None:
    """Enrolls photos without comparing them with other identities."""
    files = [photos.encode(np.asarray(picture, np.uint8), "PNG") for picture in pictures]
    rows = [Row(str(i), Person(external_id), lambda _, file=file: file) for i, file in enumerate(files)]  # type: ignore[misc]
    with closing(AppContext(read_settings(SETTINGS, home=staff.home))) as context:
        gallery = context.store.galleries.get("staff")
        enroller = Enroller(context.store, context.pipeline_of(gallery), gallery, 10_000_000, workers=1)
        assert {result.outcome for result in enroller.enroll(rows)} == {Outcome.ENROLLED}


@pytest.fixture
def twice(staff: Command) -> Command:
    """The demo's people, and Eileen Collins under a second id with a darker photo and a mirrored one."""
    pixels = photos.pixels(photos.astronaut())
    enroll(staff, "collins-2", [pixels * 0.6, pixels[:, ::-1] * 0.8])
    return staff


@pytest.mark.numeric
def test_duplicates_are_found_and_merged(twice: Command, tmp_path: Path) -> None:
    found = twice.ok("gallery", "duplicates", "staff", "--json").json
    assert list(found) == ["gallery", "threshold", "faces", "exact", "complete", "pairs", "wrong_photos", "outliers"]
    assert (found["gallery"], found["faces"], found["exact"], found["complete"]) == ("staff", 9, True, True)
    assert found["threshold"] == lookalike_bound(SFACE, 9)
    assert found["wrong_photos"] == []
    [pair] = found["pairs"]
    assert list(pair) == ["score", "identities"]
    assert found["threshold"] < pair["score"] < 1
    assert [list(side) for side in pair["identities"]] == [["external_id", "name", "face_id"]] * 2
    assert [side["external_id"] for side in pair["identities"]] == ["collins", "collins-2"]
    shown = twice.ok("gallery", "duplicates", "staff").out
    assert "collins-2" in shown
    assert "identity merge A B" in shown

    merged = twice.ok("identity", "merge", "collins", "collins-2", "--gallery", "staff", "--json").json
    assert list(merged) == ["identity", "merged", "faces"]
    assert (merged["identity"]["external_id"], merged["identity"]["faces"]) == ("collins", 3)
    assert (merged["merged"], merged["faces"]) == ("collins-2", 2)
    assert twice.ok("gallery", "duplicates", "staff", "--json").json["pairs"] == []
    assert twice("identity", "show", "collins-2", "--gallery", "staff").code == 1
    (tmp_path / "probe.png").write_bytes(photos.astronaut())
    [answer] = twice.ok("search", tmp_path / "probe.png", "--gallery", "staff", "--json").json
    assert answer["faces"][0]["candidates"][0]["external_id"] == "collins"
    assert "collins-2" not in [c["external_id"] for c in answer["faces"][0]["candidates"]]


@pytest.mark.numeric
def test_wrong_photo_is_found_and_deleted(staff: Command) -> None:
    """Tom Hanks is also enrolled with a photo of Eileen Collins."""
    enroll(staff, "hanks", [photos.pixels(photos.astronaut()) * 0.6])
    found = staff.ok("gallery", "duplicates", "staff", "--json").json
    [wrong] = found["wrong_photos"]
    assert list(wrong) == ["face", "own_score", "score", "looks_like"]
    assert (wrong["face"]["external_id"], wrong["looks_like"]["external_id"]) == ("hanks", "collins")
    assert wrong["own_score"] < found["threshold"] <= wrong["score"]
    assert [list(outlier) for outlier in found["outliers"]] == [["face", "own_score"]] * 2
    assert {outlier["face"]["external_id"] for outlier in found["outliers"]} == {"hanks"}
    shown = staff.ok("gallery", "duplicates", "staff").out
    assert "Wrong photos: 1. Outliers: 2." in shown
    assert "identity delete A --gallery staff --face N" in shown

    face = wrong["face"]["face_id"]
    for other in ("collins", "nobody"):
        refused = staff("identity", "delete", other, "--gallery", "staff", "--face", str(face))
        assert (refused.code, refused.out) == (1, "")
        assert other in refused.err
    assert len(staff.ok("gallery", "duplicates", "staff", "--json").json["wrong_photos"]) == 1
    delete = ("identity", "delete", "hanks", "--gallery", "staff", "--face", str(face))
    assert staff.ok(*delete, "--json").json == {"external_id": "hanks", "faces": 1}
    assert staff(*delete).code == 1
    found = staff.ok("gallery", "duplicates", "staff", "--json").json
    assert (found["pairs"], found["wrong_photos"], found["faces"]) == ([], [], 7)
    assert len(staff.ok("identity", "show", "hanks", "--gallery", "staff", "--json").json["faces"]) == 1


def test_threshold_of_duplicates_is_an_option(staff: Command) -> None:
    found = staff.ok("gallery", "duplicates", "staff", "--threshold", "-1", "--json").json
    assert len(found["pairs"]) == 7 * 6 / 2
    assert found["threshold"] == -1
    scores = [pair["score"] for pair in found["pairs"]]
    assert scores == sorted(scores, reverse=True)
    shown = staff.ok("gallery", "duplicates", "staff", "--threshold", "-1").out
    assert "The first 20 are shown" in shown
    assert staff("gallery", "duplicates", "staff", "--threshold", "1.1").code == 2
    assert staff("gallery", "duplicates", "nobody").code == 1


def test_merge_refuses_one_identity_twice_and_unknown_ones(staff: Command) -> None:
    same = staff("identity", "merge", "collins", "collins", "--gallery", "staff")
    assert (same.code, same.out) == (2, "")
    assert "cannot be merged with itself" in same.err
    unknown = staff("identity", "merge", "collins", "nobody", "--gallery", "staff")
    assert unknown.code == 1
    assert "'nobody'" in unknown.err
    printed = staff.ok("identity", "merge", "collins", "hanks", "--gallery", "staff").out
    assert printed == "Identity hanks merged into collins: 1 faces moved, collins now has 2.\n"
