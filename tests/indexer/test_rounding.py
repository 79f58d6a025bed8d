"""Rounded values do not contradict the comparison that they explain."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.enrollment.lookalikes import Lookalike
from indexer.rounding import decimals, reaches
from indexer.types import Quality, Reason
from indexer.vision import quality
from tests.indexer.gallery.faces import face, vector

numbers = st.floats(-300, 300)


@given(numbers, numbers, st.integers(0, 4))
def test_rounded_value_is_on_the_same_side_of_its_limit(value: float, limit: float, least: int) -> None:
    count = decimals(value, limit, least)
    shown, shown_limit = (float(f"{one:.{count}f}") for one in (value, limit))
    assert count >= least
    if abs(value - limit) > 1e-16 or value == limit:
        assert (shown < shown_limit, shown > shown_limit) == (value < limit, value > limit)


@pytest.mark.parametrize(("value", "text"), [(3.98, "3.98"), (3.9, "3.9"), (4.0, "4.0"), (math.nan, "nan")])
def test_as_few_decimals_as_possible_are_shown(value: float, text: str) -> None:
    assert f"{value:.{decimals(value, 4.0, 1)}f}" == text


@pytest.mark.parametrize(
    ("reason", "values", "shown"),
    [
        (Reason.FACE_TOO_BLURRY, {"sharpness": 3.98}, "sharpness is 3.98; expected 4 or more"),
        (Reason.FACE_TOO_SMALL, {"size": 19.7}, "19.7 pixels wide; expected 20 or more"),
        (Reason.FACE_TURNED_AWAY, {"yaw": -0.702}, "63.2 degrees; expected 63 or less"),
        (Reason.FACE_BADLY_LIT, {"brightness": 240.4}, "brightness is 240.4 and its contrast 50; expected 10 to 240"),
        (Reason.FACE_BADLY_LIT, {"contrast": 4.9}, "brightness is 100 and its contrast 4.9; expected 10 to 240 and 5"),
    ],
)
def test_rejections_do_not_contradict_their_limits(reason: Reason, values: dict[str, Any], shown: str) -> None:
    measured = replace(Quality(size=100, sharpness=10, yaw=0, brightness=100, contrast=50), **values)
    assert shown in quality.rejection_message(reason, face(vector(1, 128)).detection, measured, 0.8)


def test_lookalike_shows_that_its_score_exceeds_the_bound() -> None:
    assert Lookalike("ana", 1, 0.45004, 0.45).message.endswith("cosine 0.45004, bound 0.45000")


def test_score_reaches_a_threshold_that_is_reported_as_the_same_number() -> None:
    assert reaches(0.45367, 0.4537)
    assert reaches(0.36792, 0.36794)
    assert not reaches(0.45364, 0.4537)
