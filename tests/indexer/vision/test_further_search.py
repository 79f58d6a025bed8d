"""Photos that do not show one clear face at once: turned ones, large ones with small faces, and doubtful faces."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from indexer.types import Box, Face, Pick, Pixels, Reason
from indexer.vision.pipeline import FacePipeline, ImageResult
from tests import photos
from tests.indexer.vision.common import astronaut, box_values, six_people

PORTRAIT = slice(20, 220), slice(110, 310)
"""A part of the astronaut's photo with a face of 95 pixels."""


def jpeg(picture: Pixels) -> bytes:
    return photos.encode(np.ascontiguousarray(picture), "JPEG")


def only_face(result: ImageResult) -> Face:
    assert result.rejection is None, result.rejection
    (face,) = result.faces
    return face


def cosine(a: Face, b: Face) -> float:
    return float(a.embedding @ b.embedding)


def crowd(width: int, height: int, face: float, step: int) -> tuple[Pixels, list[tuple[int, int]]]:
    """Returns a gray picture with faces of `face` pixels every `step` pixels, and their upper left corners."""
    canvas = np.full((height, width, 3), 120, np.uint8)
    side = round(200 * face / 95)
    portrait = photos.enlarged(astronaut()[PORTRAIT], side, side)
    places = list(product(range(0, width - side + 1, step), range(0, height - side + 1, step)))
    for x, y in places:
        canvas[y : y + side, x : x + side] = portrait
    return canvas, places


def shown(faces: tuple[Face, ...], place: tuple[int, int], side: float) -> int:
    """Returns how many of the faces are in the square at `place`."""
    square = Box(*place, side, side)
    return sum(square.contains(*face.detection.box.center) for face in faces)


@pytest.mark.parametrize("turn", [90, 180, 270])
@pytest.mark.parametrize("pick", [None, *Pick])
def test_turned_photo_gives_the_face_of_the_upright_one(pipeline: FacePipeline, turn: int, pick: Pick | None) -> None:
    picture = astronaut()[:420]
    turned = np.rot90(picture, turn // 90)  # counterclockwise: it has to be turned clockwise by `turn`
    upright, found = (
        only_face(result) for result in pipeline.describe([jpeg(picture), jpeg(turned)], pick, gate=pick is Pick.ONLY)
    )
    assert (upright.turn, found.turn) == (0, turn)
    assert cosine(upright, found) > 0.95
    eyes = found.detection.landmarks[1] - found.detection.landmarks[0]
    assert {90: -eyes[1], 180: -eyes[0], 270: eyes[1]}[turn] > 20, "landmarks are those of the photo as it is"
    x, y = upright.detection.box.center
    expected = {90: (y, 512 - x), 180: (512 - x, 420 - y), 270: (420 - y, x)}[turn]
    assert found.detection.box.center == pytest.approx(expected, abs=6)


def test_every_face_of_a_turned_group_is_found(pipeline: FacePipeline) -> None:
    upright, turned = pipeline.detect([jpeg(six_people()), jpeg(np.rot90(six_people()))])
    assert [face.turn for face in turned.faces] == [90] * 6
    assert (turned.width, turned.height) == (886, 1280)
    expected = sorted(face.detection.box.center for face in upright.faces)
    found = sorted((1280 - y, x) for x, y in (face.detection.box.center for face in turned.faces))
    np.testing.assert_allclose(found, expected, atol=8)


@pytest.mark.parametrize("pick", [None, Pick.LARGEST])
def test_small_face_in_a_turned_photo_is_found(pipeline: FacePipeline, pick: Pick | None) -> None:
    canvas = np.full((1200, 1600, 3), 120, np.uint8)
    canvas[700:900, 900:1100] = astronaut()[PORTRAIT]
    face = only_face(pipeline.describe([jpeg(np.rot90(canvas, 3))], pick)[0])
    assert face.turn == 270
    assert cosine(face, only_face(pipeline.describe([photos.astronaut()], Pick.ONLY)[0])) > 0.9


def test_photos_without_a_face_are_not_turned(pipeline: FacePipeline) -> None:
    turned = [jpeg(np.rot90(photos.pixels(data), turns)) for data in photos.no_faces() for turns in range(4)]
    for pick in (None, Pick.LARGEST):
        for result in pipeline.describe(turned, pick):
            assert all(face.turn == 0 and face.quality.reasons for face in result.faces)


def test_small_faces_of_a_large_photo_are_found_once_each(pipeline: FacePipeline) -> None:
    """Scaled to 1,280 pixels the faces have 8. Some are at the borders of tiles."""
    picture, places = crowd(3600, 2200, face=24, step=310)
    (result,) = pipeline.detect([jpeg(picture)])
    assert [shown(result.faces, place, 50) for place in places] == [1] * len(places)
    assert len(result.faces) == len(places)


@pytest.mark.parametrize(("width", "height"), [(9000, 300), (300, 9000)])
@pytest.mark.parametrize("pick", list(Pick))
def test_small_face_in_a_wide_or_long_photo_is_found(
    pipeline: FacePipeline, width: int, height: int, pick: Pick
) -> None:
    picture = np.full((height, width, 3), 120, np.uint8)
    x, y = (width - 100) * 3 // 4, (height - 100) * 3 // 4
    picture[y : y + 100, x : x + 100] = photos.enlarged(astronaut()[PORTRAIT], 100, 100)
    face = only_face(pipeline.describe([jpeg(picture)], pick)[0])
    assert shown((face,), (x, y), 100) == 1
    assert face.quality.size == pytest.approx(47, abs=6)


def test_large_photo_with_a_large_and_a_small_face_shows_both(pipeline: FacePipeline) -> None:
    picture = np.full((2000, 3000, 3), 120, np.uint8)
    picture[100:1700, 100:1700] = photos.enlarged(astronaut()[PORTRAIT], 1600, 1600)
    picture[1700:1760, 2600:2660] = photos.enlarged(astronaut()[PORTRAIT], 60, 60)
    large, small = pipeline.detect([jpeg(picture)])[0].faces
    assert shown((large,), (100, 100), 1600) == shown((small,), (2600, 1700), 60) == 1
    assert only_face(pipeline.detect([jpeg(picture)], Pick.ONLY)[0]).quality.size > 600


def doubtful_beside_clear() -> Pixels:
    """Returns a face of 200 pixels of which the left half is covered, and a clear one of 100 pixels at the right."""
    covered = photos.enlarged(astronaut(), 1024, 1024).copy()
    covered[:, 430:] = 120
    canvas = np.full((1024, 1536, 3), 120, np.uint8)
    canvas[:, :1024], canvas[:512, 1024:] = covered, astronaut()
    return canvas


@pytest.mark.parametrize("pick", [Pick.ONLY, Pick.LARGEST])
def test_doubtful_larger_face_gives_way_to_a_clear_one(pipeline: FacePipeline, pick: Pick) -> None:
    data = jpeg(doubtful_beside_clear())
    doubtful, clear = pipeline.detect([data])[0].faces
    assert doubtful.quality.reasons == (Reason.DETECTION_UNSURE,)
    assert clear.quality.reasons == ()
    face = only_face(pipeline.describe([data], pick, gate=True)[0])
    assert box_values(face.detection.box) == pytest.approx(box_values(clear.detection.box), abs=5)


@pytest.mark.parametrize("pick", [Pick.ONLY, Pick.LARGEST])
def test_clear_face_is_found_although_a_doubtful_one_fills_the_photo(pipeline: FacePipeline, pick: Pick) -> None:
    """The doubtful face is seen at a scale at which the clear one has 8 pixels."""
    covered = astronaut()[PORTRAIT].copy()
    covered[:, 105:] = 120
    picture = np.full((1000, 1000, 3), 120, np.uint8)
    picture[:900, :900] = photos.enlarged(covered, 900, 900)
    picture[900:, 900:] = photos.enlarged(astronaut()[PORTRAIT], 100, 100)
    face = only_face(pipeline.describe([jpeg(picture)], pick, gate=True)[0])
    assert shown((face,), (900, 900), 100) == 1


def test_doubtful_face_alone_is_still_used(pipeline: FacePipeline) -> None:
    picture = doubtful_beside_clear()[:, :1024]
    assert only_face(pipeline.describe([jpeg(picture)], Pick.LARGEST)[0]).detection.box.center[0] < 430
    (gated,) = pipeline.describe([jpeg(picture)], Pick.ONLY, gate=True)
    assert gated.rejection is not None
    assert gated.rejection.code == Reason.DETECTION_UNSURE


@pytest.mark.parametrize("side", [240, 480, 960, 2400])
def test_second_face_of_half_the_area_is_seen_at_every_photo_size(pipeline: FacePipeline, side: int) -> None:
    picture = np.full((960, 960, 3), 120, np.uint8)
    picture[40:540, 20:520] = photos.enlarged(astronaut()[PORTRAIT], 500, 500)
    picture[500:900, 540:940] = photos.enlarged(astronaut()[PORTRAIT][:, ::-1], 400, 400)
    (result,) = pipeline.describe([jpeg(photos.enlarged(picture, side, side))], Pick.ONLY, gate=True)
    assert result.rejection is not None
    assert result.rejection.code == Reason.SEVERAL_FACES
