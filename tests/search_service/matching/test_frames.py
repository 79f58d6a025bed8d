"""Several images of one person become one probe."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.errors import InvalidRequest
from indexer.models.packs import SFACE
from indexer.types import Pick, Quality, Reason
from indexer.vision.pipeline import FacePipeline
from search_service.matching.frames import Frame, fuse, weight_of
from tests.indexer.gallery.faces import vector
from tests.photos import astronaut, six_people

GOOD = Quality(120.0, 20.0, 0.0, 120.0, 40.0)


def frame(embedding: NDArray[np.float32], weight: float = 1.0) -> Frame:
    return Frame(embedding.tolist(), weight)


def near(seed: int, noise: int, cosine: float) -> NDArray[np.float32]:
    """A vector at that cosine from `vector(seed)`."""
    own, aside = vector(seed), vector(noise)
    aside = aside - (aside @ own) * own
    return np.asarray(cosine * own + math.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside), dtype=np.float32)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.01, 1)), min_size=1, max_size=6))
def test_the_weighted_mean(told: list[tuple[int, float]]) -> None:
    expected = np.sum([np.float64(weight) * vector(seed).astype(np.float64) for seed, weight in told], axis=0)
    expected /= np.linalg.norm(expected)
    fused = fuse([frame(vector(seed), weight) for seed, weight in told], -1)
    assert np.allclose(fused.embedding, expected, atol=1e-9)
    assert fused.disagreeing == ()


def test_one_frame_is_itself() -> None:
    fused = fuse([frame(vector(1), 0.3)], 0.9)
    assert np.allclose(fused.embedding, vector(1), atol=1e-6)
    assert fused.disagreeing == ()


def test_the_mean_is_nearer_to_the_person_than_its_frames() -> None:
    frames = [near(1, 100 + i, 0.6) for i in range(5)]
    fused = np.array(fuse([frame(f) for f in frames], 0.0).embedding)
    assert fused @ vector(1) > 0.8 > max(f @ vector(1) for f in frames)


@pytest.mark.parametrize(("cosine", "disagreeing"), [(0.45, ()), (0.41, ()), (0.39, (0, 1)), (-0.5, (0, 1))])
def test_two_frames_agree_or_neither_is_believed(cosine: float, disagreeing: tuple[int, ...]) -> None:
    weights = (0.2, 1.0)  # how much a frame counts for makes it no more like the other
    frames = [frame(v, w) for v, w in zip((vector(1), near(1, 2, cosine)), weights, strict=True)]
    assert fuse(frames, 0.4).disagreeing == disagreeing


def test_the_odd_one_of_several_is_named_and_the_others_are_not() -> None:
    frames = [near(1, 101, 0.8), near(1, 102, 0.8), near(3, 103, 0.8), near(1, 104, 0.8)]
    assert fuse([frame(f) for f in frames], 0.4).disagreeing == (2,)


@pytest.mark.parametrize("each", [2, 3, 8])
def test_two_people_do_not_pass_for_one_by_having_many_frames(each: int) -> None:
    frames = [frame(near(person, 100 * person + i, 0.85)) for i in range(each) for person in (1, 3)]
    assert fuse(frames, 0.3).disagreeing == tuple(range(2 * each))
    assert fuse([*frames, frame(near(1, 99, 0.85))], 0.3).disagreeing == tuple(range(1, 2 * each, 2))


@pytest.mark.parametrize("frames", [[], [frame(vector(1)), frame(-vector(1))]], ids=["none", "opposites"])
def test_what_has_no_mean_is_refused(frames: list[Frame]) -> None:
    with pytest.raises(InvalidRequest):
        fuse(frames, 0.4)


def test_better_frames_count_for_more() -> None:
    assert weight_of(GOOD) == 1
    assert weight_of(replace(GOOD, size=500.0)) == 1
    assert weight_of(replace(GOOD, size=56.0)) == pytest.approx(0.5)
    assert weight_of(replace(GOOD, yaw=0.5)) == weight_of(replace(GOOD, yaw=-0.5)) == pytest.approx(math.sqrt(0.5))
    assert weight_of(replace(GOOD, reasons=(Reason.FACE_TOO_BLURRY,))) == pytest.approx(0.25)
    assert weight_of(Quality(0.0, 0.0, 1.0, 0.0, 0.0, (Reason.FACE_TOO_SMALL, Reason.FACE_TURNED_AWAY))) > 0


def test_real_frames_of_one_person_agree_and_of_two_do_not(pipeline: FacePipeline) -> None:
    ana, group = pipeline.describe([astronaut(), six_people()], Pick.LARGEST)
    [astronauts], [other] = ana.faces, group.faces
    assert astronauts.crop is not None
    [darker] = pipeline.embed((astronauts.crop[None] * 0.5).astype(np.uint8))
    frames = [frame(v, weight_of(astronauts.quality)) for v in (astronauts.embedding, darker, other.embedding)]
    assert fuse(frames[:2], SFACE.same_threshold).disagreeing == ()
    assert fuse(frames[1:], SFACE.same_threshold).disagreeing == (0, 1)
    assert fuse(frames, SFACE.same_threshold).disagreeing == (2,)
