"""The selection of the faces that count."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.errors import RejectedImage
from indexer.types import Box, Detection, Pick, Quality, Reason
from indexer.vision.decode import Photo
from indexer.vision.selection import SeenFace, next_faces, select_faces

PHOTO = Photo(np.zeros((100, 1000, 3), np.uint8), 1000, 100)


def found(area: float, x: float = 0) -> Detection:
    return Detection(Box(x, 0, area, 1), np.zeros((5, 2), np.float32), 0.9)


def seen(area: float, *reasons: Reason, x: float = 0) -> SeenFace:
    crop = np.zeros((112, 112, 3), np.uint8)
    return SeenFace(found(area, x), Quality(area, 20, 0, 120, 50, reasons), crop, crop[None])


def test_faces_are_selected_by_area_and_position() -> None:
    small, half, large = seen(20, x=490), seen(50, x=200), seen(100)
    assert select_faces([small, large, half], None, PHOTO) == [large, half, small]
    assert select_faces([small, large, half], Pick.LARGEST, PHOTO) == [large]
    assert select_faces([large, half, small], Pick.CENTER, PHOTO) == [small]
    assert select_faces([small, large, seen(49.9)], Pick.ONLY, PHOTO) == [large]
    with pytest.raises(RejectedImage) as caught:
        select_faces([small, large, half, seen(60)], Pick.ONLY, PHOTO)
    assert caught.value.code == Reason.SEVERAL_FACES
    assert caught.value.details == {"faces": 3}
    for pick in (None, *Pick):
        with pytest.raises(RejectedImage) as caught:
            select_faces([], pick, PHOTO)
        assert caught.value.code == Reason.NO_FACE


@pytest.mark.parametrize("pick", [Pick.ONLY, Pick.LARGEST])
def test_unsure_face_of_any_size_gives_way_to_a_sure_one(pick: Pick) -> None:
    clear, blurry = seen(20), seen(20, Reason.FACE_TOO_BLURRY)
    unsure = seen(100, Reason.FACE_TOO_BLURRY, Reason.DETECTION_UNSURE)
    assert select_faces([unsure, clear], pick, PHOTO) == [clear]
    assert select_faces([unsure, blurry], pick, PHOTO) == [blurry]
    assert select_faces([unsure, seen(40, Reason.DETECTION_UNSURE)], pick, PHOTO) == [unsure]


@pytest.mark.parametrize("pick", [Pick.ONLY, Pick.LARGEST])
def test_face_that_may_not_be_enrolled_gives_way_to_one_of_similar_size(pick: Pick) -> None:
    blurry = seen(100, Reason.FACE_TOO_BLURRY)
    similar, bystander = seen(60), seen(40)
    assert select_faces([blurry, similar], pick, PHOTO) == [similar]
    assert select_faces([blurry, bystander], pick, PHOTO) == [blurry]


def test_two_faces_that_may_not_be_enrolled_are_several() -> None:
    with pytest.raises(RejectedImage, match="2 faces of similar size"):
        select_faces([seen(100, Reason.FACE_TOO_BLURRY), seen(60, Reason.FACE_BADLY_LIT)], Pick.ONLY, PHOTO)


@pytest.mark.parametrize("pick", [Pick.ONLY, Pick.LARGEST])
def test_smaller_faces_are_looked_at_until_one_is_sure(pick: Pick) -> None:
    large, half, small, tiny = (found(area) for area in (100, 50, 20, 2))
    assert next_faces([small, large, half, tiny], [], pick, PHOTO) == [large, half]
    unsure = [seen(100, Reason.DETECTION_UNSURE), seen(50, Reason.DETECTION_UNSURE)]
    assert next_faces([small, tiny], unsure, pick, PHOTO) == [small]
    assert next_faces([tiny], [*unsure, seen(20)], pick, PHOTO) == []
    assert next_faces([small, tiny], [*unsure, seen(50)], pick, PHOTO) == [small]


def test_all_faces_or_the_most_central_one_are_looked_at() -> None:
    faces = [found(100), found(20, x=490)]
    assert next_faces(faces, [], None, PHOTO) == faces
    assert next_faces(faces, [], Pick.CENTER, PHOTO) == faces[1:]
    assert next_faces(faces[:1], [seen(20, x=490)], Pick.CENTER, PHOTO) == []
