"""Images with very many faces: only the largest are looked at, and the others are counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from indexer.types import Box, Detection, Pick, Reason
from indexer.vision.decode import Photo
from indexer.vision.detection import are_same_face, merge, needs_tiles
from indexer.vision.pipeline import FacePipeline
from tests import photos

SIDE = 120
"""Pixels of a tile with a face."""

SMALL = 80


def crowd(rows: int, columns: int) -> bytes:
    """Returns a photo of one face in many tiles, with smaller ones in the last row."""
    face = photos.pixels(photos.astronaut())[20:220, 140:340]
    tile = photos.enlarged(face, SIDE, SIDE)
    small = np.zeros((SIDE, SIDE, 3), np.uint8)
    small[:SMALL, :SMALL] = photos.enlarged(face, SMALL, SMALL)
    row, last = np.hstack([tile] * columns), np.hstack([small] * columns)
    return photos.encode(np.vstack([row] * (rows - 1) + [last]), "PNG")


@pytest.fixture
def limited(pipeline: FacePipeline, monkeypatch: pytest.MonkeyPatch) -> FacePipeline:
    """The pipeline, which looks at four faces of an image."""
    monkeypatch.setattr(pipeline, "_options", replace(pipeline._options, max_faces=4))
    return pipeline


def test_only_the_largest_faces_are_described(limited: FacePipeline) -> None:
    (seen,) = limited.describe([crowd(3, 3)], None)
    assert (len(seen.faces), seen.faces_not_searched) == (4, 5)
    assert all(face.detection.box.y < 2 * SIDE for face in seen.faces), "the small ones are left out"
    (detected,) = limited.detect([crowd(3, 3)])
    assert (len(detected.faces), detected.faces_not_searched) == (4, 5)


@pytest.mark.parametrize("pick", [Pick.LARGEST, Pick.CENTER])
def test_nothing_is_missing_where_one_face_is_wanted(limited: FacePipeline, pick: Pick) -> None:
    (seen,) = limited.describe([crowd(3, 3)], pick)
    assert (len(seen.faces), seen.faces_not_searched) == (1, 0)


def test_many_faces_are_still_several(limited: FacePipeline) -> None:
    (seen,) = limited.describe([crowd(3, 3)], Pick.ONLY)
    assert seen.rejection is not None
    assert (seen.rejection.code, seen.faces_not_searched) == (Reason.SEVERAL_FACES, 0)


def test_few_faces_are_all_described(pipeline: FacePipeline) -> None:
    (seen,) = pipeline.describe([photos.six_people()], None)
    assert (len(seen.faces), seen.faces_not_searched) == (6, 0)


def test_detections_of_one_face_are_merged() -> None:
    draw = np.random.default_rng(5)

    def detection(x: float, y: float, w: float, h: float, score: float) -> Detection:
        return Detection(Box(x, y, w, h), np.zeros((5, 2), np.float32), score)

    numbers = draw.uniform(0, 1, (300, 5)) * (60, 60, 40, 40, 1)
    faces = [detection(x, y, w, h, score) for x, y, w, h, score in [*numbers.tolist(), [5, 5, 0, 0, 0.5]]]
    expected: list[Detection] = []
    for face in sorted(faces, key=lambda one: -one.score):
        if not any(are_same_face(face, other) for other in expected):
            expected.append(face)
    assert [id(face) for face in merge(faces)] == [id(face) for face in expected]
    assert merge([]) == []


def test_faces_of_a_tiled_photo_are_counted_once(limited: FacePipeline) -> None:
    (seen,) = limited.describe([crowd(2, 14)], None)
    assert needs_tiles(Photo(np.empty((0, 0, 3), np.uint8), seen.width, seen.height))
    assert (len(seen.faces), seen.faces_not_searched) == (4, 24)
