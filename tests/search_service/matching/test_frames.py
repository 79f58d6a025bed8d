"""One probe from several images of one person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.errors import InvalidRequest
from indexer.models.packs import SFACE
from indexer.types import Liveness, Pick, Quality, Reason
from indexer.vision.pipeline import FacePipeline
from search_service.matching.frames import SURE_ATTACK_SHARE, FusedProbe, combine_liveness, fuse, weight_of
from tests.indexer.gallery.faces import DIM, vector
from tests.photos import astronaut, six_people

GOOD = Quality(120.0, 20.0, 0.0, 120.0, 40.0)


def fuse_frames(
    frames: Sequence[NDArray[np.float32]], same_threshold: float, weights: Sequence[float] | None = None
) -> FusedProbe:
    embeddings = np.stack(frames) if len(frames) else np.empty((0, DIM), np.float32)
    return fuse(embeddings, np.array(weights if weights is not None else [1.0] * len(frames)), same_threshold)


def similar_to(seed: int, noise: int, cosine: float) -> NDArray[np.float32]:
    """Returns a vector at that cosine to `vector(seed)`."""
    own, aside = vector(seed), vector(noise)
    aside = aside - (aside @ own) * own
    return np.asarray(cosine * own + math.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside), dtype=np.float32)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.01, 1)), min_size=1, max_size=6))
def test_probe_is_weighted_mean_of_frames(frames: list[tuple[int, float]]) -> None:
    expected = np.sum([weight * vector(seed).astype(np.float64) for seed, weight in frames], axis=0)
    expected /= np.linalg.norm(expected)
    probe = fuse_frames([vector(seed) for seed, _ in frames], -1, [weight for _, weight in frames])
    assert np.allclose(probe.embedding, expected, atol=1e-9)
    assert probe.embedding.shape == (DIM,)
    assert probe.disagreeing.size == 0


def test_mean_is_more_similar_to_the_person_than_each_frame() -> None:
    frames = [similar_to(1, 100 + i, 0.6) for i in range(5)]
    assert fuse_frames(frames, 0.0).embedding @ vector(1) > 0.8 > max(f @ vector(1) for f in frames)


@pytest.mark.parametrize(("cosine", "disagreeing"), [(0.45, []), (0.41, []), (0.39, [0, 1]), (-0.5, [0, 1])])
def test_two_frames_agree_or_both_disagree(cosine: float, disagreeing: list[int]) -> None:
    weights = (0.2, 1.0)  # they do not change how similar two frames are
    assert fuse_frames((vector(1), similar_to(1, 2, cosine)), 0.4, weights).disagreeing.tolist() == disagreeing


def test_only_the_odd_one_of_several_frames_disagrees() -> None:
    frames = [similar_to(person, 101 + i, 0.8) for i, person in enumerate((1, 1, 3, 1))]
    assert fuse_frames(frames, 0.4).disagreeing.tolist() == [2]


@pytest.mark.parametrize("each", [2, 3, 8])
def test_two_people_with_many_frames_are_not_taken_for_one(each: int) -> None:
    frames = [similar_to(person, 100 * person + i, 0.85) for i in range(each) for person in (1, 3)]
    assert fuse_frames(frames, 0.3).disagreeing.tolist() == list(range(2 * each))
    frames.append(similar_to(1, 99, 0.85))
    assert fuse_frames(frames, 0.3).disagreeing.tolist() == list(range(1, 2 * each, 2))


@pytest.mark.parametrize("frames", [[], [vector(1), -vector(1)]], ids=["none", "opposites"])
def test_frames_without_a_mean_are_refused(frames: list[NDArray[np.float32]]) -> None:
    with pytest.raises(InvalidRequest):
        fuse_frames(frames, 0.4)


def test_better_frames_have_higher_weights() -> None:
    assert weight_of(GOOD) == 1
    assert weight_of(replace(GOOD, size=500.0)) == 1
    assert weight_of(replace(GOOD, size=56.0)) == pytest.approx(0.5)
    assert weight_of(replace(GOOD, yaw=0.5)) == weight_of(replace(GOOD, yaw=-0.5)) == pytest.approx(math.sqrt(0.5))
    assert weight_of(replace(GOOD, reasons=(Reason.FACE_TOO_BLURRY,))) == pytest.approx(0.25)
    assert weight_of(Quality(0.0, 0.0, 1.0, 0.0, 0.0, (Reason.FACE_TOO_SMALL, Reason.FACE_TURNED_AWAY))) > 0


def test_real_frames_of_one_person_agree_and_those_of_two_do_not(pipeline: FacePipeline) -> None:
    ana, group = pipeline.describe([astronaut(), six_people()], Pick.LARGEST)
    [astronauts], [other] = ana.faces, group.faces
    assert astronauts.crop is not None
    [darker] = pipeline.embed((astronauts.crop[None] * 0.5).astype(np.uint8))
    frames = [astronauts.embedding, darker, other.embedding]
    for some, disagreeing in ((frames[:2], []), (frames[1:], [0, 1]), (frames, [2])):
        assert fuse_frames(some, SFACE.same_threshold).disagreeing.tolist() == disagreeing


@pytest.mark.parametrize(
    ("scores", "score", "live"),
    [
        ([0.5], 0.5, True),
        ([0.49], 0.49, False),
        ([0.9, 0.3, 0.8], 0.8, True),
        ([0.9, 0.3, 0.2], 0.3, False),
        ([0.9, 0.3], 0.6, True),
        ([0.9, 0.5 * SURE_ATTACK_SHARE, 0.8], 0.8, True),
        ([0.9, 0.5 * SURE_ATTACK_SHARE - 0.01, 0.8], 0.8, False),
    ],
)
def test_median_of_frames_decides_unless_one_is_surely_an_attack(scores: list[float], score: float, live: bool) -> None:
    frames = [Liveness(one, one >= 0.5, "light", 0.5) for one in scores]
    combined = combine_liveness(frames)
    assert combined.score == pytest.approx(score)
    assert combined.live is live
