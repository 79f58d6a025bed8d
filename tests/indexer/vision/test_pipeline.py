"""Image bytes in, described faces out."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from indexer.errors import ModelUnavailable, RejectedImage
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, ModelFile
from indexer.types import CROP_SIZE, Box, Detection, Face, Pick, Pixels, Reason
from indexer.vision.align import estimate_similarity
from indexer.vision.decode import Limits, Photo
from indexer.vision.detectors.base import iou
from indexer.vision.pipeline import (
    MAX_BATCH_PIXELS,
    RIVAL_AREA_RATIO,
    FacePipeline,
    ImageResult,
    Options,
    select_faces,
    zoom_landmarks,
)
from indexer.vision.runtime import Threads
from tests import photos
from tests.variants import PRECISION


def png(picture: Pixels) -> bytes:
    return photos.encode(np.ascontiguousarray(picture), "PNG", compress_level=1)


def face_of(seen: ImageResult) -> Face:
    assert seen.rejection is None, seen.rejection
    (face,) = seen.faces
    return face


def code(seen: ImageResult) -> str:
    assert seen.rejection is not None
    assert seen.faces == ()
    return seen.rejection.code


def cosine(a: Face, b: Face) -> float:
    return float(a.embedding @ b.embedding)


def astronaut() -> Pixels:
    return photos.pixels(photos.astronaut())


def pair(second: int) -> Pixels:
    """The astronaut in 512 pixels on the left, and her mirror image in `second` pixels on the right."""
    canvas = np.full((512, 1024, 3), 120, np.uint8)
    canvas[:, :512] = astronaut()
    canvas[:second, 512 : 512 + second] = photos.enlarged(astronaut()[:, ::-1], second, second)
    return canvas


@pytest.mark.numeric
def test_embeddings_are_unit_vectors_that_tell_people_apart(pipeline: FacePipeline) -> None:
    seen = pipeline.describe([photos.astronaut(), png(astronaut()[:, ::-1]), photos.six_people()], None)
    assert [len(s.faces) for s in seen] == [1, 1, 6]
    for face in (face for s in seen for face in s.faces):
        assert face.embedding.shape == (SFACE.dim,)
        assert face.embedding.dtype == np.float32
        assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)
    assert cosine(seen[0].faces[0], seen[1].faces[0]) > 0.95
    people = [seen[0].faces[0], *seen[2].faces]
    assert max(cosine(a, b) for i, a in enumerate(people) for b in people[:i]) < 0.45
    assert (seen[2].width, seen[2].height) == (1280, 886)


def test_all_faces_come_largest_first(pipeline: FacePipeline) -> None:
    for seen in (*pipeline.describe([photos.six_people()], None), *pipeline.detect([photos.six_people()])):
        areas = [face.detection.box.area for face in seen.faces]
        assert len(areas) == 6
        assert areas == sorted(areas, reverse=True)


def test_detect_measures_without_embedding(pipeline: FacePipeline) -> None:
    described = pipeline.describe([photos.six_people()], None)[0]
    nothing, detected, broken = pipeline.detect([photos.no_faces()[0], photos.six_people(), b"junk"])
    assert code(nothing) == Reason.NO_FACE
    assert code(broken) == Reason.UNREADABLE_IMAGE
    assert [face.embedding.shape for face in detected.faces] == [(0,)] * 6
    for a, b in zip(detected.faces, described.faces, strict=True):
        assert np.allclose(a.detection.landmarks, b.detection.landmarks, atol=0.01)
        assert a.quality == b.quality


@pytest.mark.parametrize("pick", Pick)
def test_detect_picks_as_describe_does(pipeline: FacePipeline, pick: Pick) -> None:
    images = [photos.six_people(), photos.astronaut()]
    for detected, described in zip(pipeline.detect(images, pick), pipeline.describe(images, pick), strict=True):
        assert (detected.rejection and detected.rejection.code) == (described.rejection and described.rejection.code)
        for a, b in zip(detected.faces, described.faces, strict=True):
            assert a.embedding.shape == (0,)
            assert a.crop is not None
            assert b.crop is not None
            assert np.array_equal(a.crop, b.crop)


def test_no_face(pipeline: FacePipeline) -> None:
    for pick in (None, *Pick):
        seen = pipeline.describe(photos.no_faces(), pick)
        assert [code(s) for s in seen] == [Reason.NO_FACE] * len(photos.no_faces())
    assert pipeline.describe([], Pick.ONLY) == []
    assert pipeline.detect([]) == []


@pytest.mark.parametrize(("second", "several"), [(512, True), (390, True), (330, False), (200, False)])
def test_only_rejects_a_second_face_of_half_the_area(pipeline: FacePipeline, second: int, several: bool) -> None:
    data = png(pair(second))
    (everyone,) = pipeline.describe([data], None)
    assert len(everyone.faces) == 2
    ratio = everyone.faces[1].detection.box.area / everyone.faces[0].detection.box.area
    assert (ratio >= RIVAL_AREA_RATIO) == several
    (only,) = pipeline.describe([data], Pick.ONLY)
    if several:
        assert code(only) == Reason.SEVERAL_FACES
        assert only.rejection is not None
        assert only.rejection.details == {"faces": 2}
        assert "2 faces" in only.rejection.message
    else:
        assert face_of(only).detection.box.center[0] < 512


def test_largest_and_center(pipeline: FacePipeline) -> None:
    canvas = np.full((700, 1600, 3), 120, np.uint8)
    canvas[:512, :512] = astronaut()
    canvas[300:600, 650:950] = photos.enlarged(astronaut()[:, ::-1], 300, 300)
    data = png(canvas)
    assert face_of(pipeline.describe([data], Pick.LARGEST)[0]).detection.box.center[0] < 512
    assert 650 < face_of(pipeline.describe([data], Pick.CENTER)[0]).detection.box.center[0] < 950


def sized(area: float, x: float = 0) -> Detection:
    return Detection(Box(x, 0, area, 1), np.zeros((5, 2), np.float32), 0.9)


def test_choose() -> None:
    photo = Photo(np.zeros((100, 1000, 3), np.uint8), 1000, 100)
    small, half, large = sized(20, x=490), sized(50, x=200), sized(100)
    assert select_faces([small, large, half], None, photo) == [large, half, small]
    assert select_faces([small, large, half], Pick.LARGEST, photo) == [
        large,
        half,
    ]  # the second look decides between them
    assert select_faces([small, large, sized(49.9)], Pick.LARGEST, photo) == [large]
    assert select_faces([large, half, small], Pick.CENTER, photo) == [small]
    assert select_faces([small, large, sized(49.9)], Pick.ONLY, photo) == [large]
    with pytest.raises(RejectedImage) as caught:
        select_faces([small, large, half, sized(60)], Pick.ONLY, photo)
    assert caught.value.code == Reason.SEVERAL_FACES
    assert caught.value.details == {"faces": 3}
    for pick in (None, *Pick):
        with pytest.raises(RejectedImage) as caught:
            select_faces([], pick, photo)
        assert caught.value.code == Reason.NO_FACE


def test_the_largest_is_the_first_of_all(pipeline: FacePipeline) -> None:
    """Also where the first look tells another order than the second."""
    (largest,), (every,) = (pipeline.describe([photos.six_people()], pick) for pick in (Pick.LARGEST, None))
    assert iou(face_of(largest).detection.box, every.faces[0].detection.box) > 0.9


@pytest.mark.numeric
def test_the_gate_rejects_what_is_too_poor(pipeline: FacePipeline) -> None:
    dark = png(astronaut() // 12)
    images = [photos.astronaut(), dark, photos.astronaut()]
    free = pipeline.describe(images, Pick.ONLY)
    gated = pipeline.describe(images, Pick.ONLY, gate=True)
    assert [s.rejection is None for s in free] == [True, True, True]
    assert free[1].faces[0].quality.reasons[0] == Reason.FACE_BADLY_LIT
    assert code(gated[1]) == Reason.FACE_BADLY_LIT
    assert (gated[1].width, gated[1].height) == (512, 512)
    for n in (0, 2):
        assert cosine(face_of(gated[n]), face_of(free[n])) > 0.9999


def mixed() -> list[bytes]:
    picture = astronaut()
    return [
        photos.astronaut(),
        b"",
        photos.six_people(),
        photos.encode(photos.enlarged(picture, 1700, 1700), "JPEG"),
        photos.six_people()[:5000],
        photos.no_faces()[0],
        photos.encode(picture[:, ::-1], "WEBP"),
        png(pair(512)),
        png(picture[:300, 100:400]),
        photos.encode(photos.enlarged(photos.pixels(photos.six_people()), 2560, 1772), "JPEG"),
        b"text",
        photos.aligned_face(),
    ]


def numbers(box: Box) -> tuple[float, ...]:
    return (box.x, box.y, box.w, box.h)


def same(a: ImageResult, b: ImageResult) -> bool:
    """Whether they are the same but for the rounding of numbers, which may depend on the size of a batch."""
    return (
        (a.width, a.height, len(a.faces)) == (b.width, b.height, len(b.faces))
        and (a.rejection.code if a.rejection else None) == (b.rejection.code if b.rejection else None)
        and all(
            x.quality.reasons == y.quality.reasons
            and np.allclose(numbers(x.detection.box), numbers(y.detection.box), atol=0.1)
            and np.allclose(x.detection.landmarks, y.detection.landmarks, atol=0.05)
            and cosine(x, y) > 0.999
            for x, y in zip(a.faces, b.faces, strict=True)
        )
    )


@pytest.mark.parametrize("pick", [None, Pick.ONLY, Pick.CENTER])
@pytest.mark.numeric
def test_a_batch_answers_what_its_images_do_alone(pipeline: FacePipeline, pick: Pick | None) -> None:
    images = mixed()
    together = pipeline.describe(images, pick)
    alone = [pipeline.describe([data], pick)[0] for data in images]
    assert [same(a, b) for a, b in zip(together, alone, strict=True)] == [True] * len(images)
    codes = [seen.rejection.code if seen.rejection else "" for seen in together]
    assert [codes[n] for n in (1, 4, 5, 10)] == [
        "unreadable_image",
        "unreadable_image",
        "no_face",
        "unreadable_image",
    ]
    assert codes[7] == ("several_faces" if pick is Pick.ONLY else "")
    assert [codes[n] for n in (0, 3, 6, 8, 11)] == [""] * 5
    backwards = pipeline.describe(images[::-1], pick)
    assert [same(a, b) for a, b in zip(backwards[::-1], together, strict=True)] == [True] * len(images)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_file_gives_the_same_face(pipeline: FacePipeline, orientation: int) -> None:
    """A camera held any way: the box lies where a viewer sees it, and the face is the same."""
    upright = photos.enlarged(astronaut()[:400], 2048, 1600)  # large enough to be decoded reduced at first
    plain = photos.encode(upright, "JPEG", quality=92)
    turned = photos.encode(photos.stored(upright, orientation), "JPEG", quality=92, exif=photos.exif(orientation))
    for pick in (Pick.ONLY, None):
        expected, found = pipeline.describe([plain, turned], pick)
        assert (found.width, found.height) == (2048, 1600)
        a, b = face_of(expected), face_of(found)
        assert 700 < a.detection.box.x < 760
        assert 220 < a.detection.box.y < 290
        box, other = a.detection.box, b.detection.box
        assert np.abs(np.subtract((box.x, box.y, box.w, box.h), (other.x, other.y, other.w, other.h))).max() < 8
        assert np.abs(a.detection.landmarks - b.detection.landmarks).max() < 8  # two hundredths of the face
        assert cosine(a, b) > 0.99


def test_a_mirrored_photo_mirrors_the_box(pipeline: FacePipeline) -> None:
    straight, mirrored = (face_of(s) for s in pipeline.describe([photos.astronaut(), png(astronaut()[:, ::-1])], None))
    assert straight.detection.box.center[0] + mirrored.detection.box.center[0] == pytest.approx(512, abs=4)
    flipped = mirrored.detection.landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (511, 0)
    assert np.abs(straight.detection.landmarks - flipped).max() < 5
    assert cosine(straight, mirrored) > 0.95


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF"])
def test_the_format_does_not_matter(pipeline: FacePipeline, form: str) -> None:
    original, other = pipeline.describe([photos.astronaut(), photos.encode(astronaut(), form)], Pick.ONLY)
    assert cosine(face_of(original), face_of(other)) > 0.99


@pytest.mark.parametrize("side", [300, 800, 1500, 3000])
@pytest.mark.numeric
def test_the_size_hardly_matters(pipeline: FacePipeline, side: int) -> None:
    data = photos.encode(photos.enlarged(astronaut(), side, side), "JPEG", quality=92)
    original, other = pipeline.describe([photos.astronaut(), data], Pick.ONLY)
    a, b = face_of(original), face_of(other)
    assert iou(a.detection.scaled(side / 512, side / 512).box, b.detection.box) > 0.8
    assert cosine(a, b) > 0.95


def test_a_face_far_right_in_a_panorama(pipeline: FacePipeline) -> None:
    panorama = np.full((2400, 33_000, 3), 120, np.uint8)
    panorama[:, 30_600:] = photos.enlarged(astronaut(), 2400, 2400)
    (seen,) = pipeline.describe([photos.encode(panorama, "JPEG", quality=90)], None)
    face = face_of(seen)
    assert (seen.width, seen.height) == (33_000, 2400)
    assert 30_600 + 750 < face.detection.box.x < 30_600 + 900
    assert cosine(face, face_of(pipeline.describe([photos.astronaut()], None)[0])) > 0.9


def test_limits_reject_one_image_only(models_folder: Path) -> None:
    small = FacePipeline(SFACE, ModelFiles(models_folder), Options(limits=Limits(max_pixels=300_000)))
    fits, too_large, fits_too = small.describe([photos.astronaut(), photos.six_people(), photos.astronaut()], None)
    assert code(too_large) == Reason.IMAGE_TOO_LARGE
    assert same(fits, fits_too)
    assert len(fits.faces) == 1


def test_whole_photos_are_held_a_few_at_a_time(pipeline: FacePipeline) -> None:
    """Faces that the reduced photo shows too small are cut from the whole one: 36 MB each at 12 MP."""
    canvas = np.full((3000, 4000, 3), 110, np.uint8)
    canvas[900:1700, 1500:2300] = photos.enlarged(astronaut(), 800, 800)
    data = photos.encode(canvas, "JPEG", quality=85)
    alone = pipeline.describe([data], Pick.ONLY)[0]
    tracemalloc.start(1)
    try:
        seen = pipeline.describe([data] * 12, Pick.ONLY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [same(s, alone) for s in seen] == [True] * 12
    # Pixels of the reduced and of the whole photos, a copy that decoding makes, and the networks' inputs.
    assert peak < 3 * MAX_BATCH_PIXELS + 12 * 3 * 4_000_000 // 4 + 120e6, f"{peak / 1e6:.0f} MB"


@dataclass(frozen=True)
class CountingFiles(ModelFiles):
    asked: list[str] = field(default_factory=list)

    def prepared_model(self, file: ModelFile) -> bytes:
        self.asked.append(file.name)
        return super().prepared_model(file)


def test_loads_at_the_first_call_and_once(models_folder: Path) -> None:
    files = CountingFiles(models_folder)
    lazy = FacePipeline(SFACE, files, Options(threads=Threads(per_stream=1)))
    assert files.asked == []
    images: Sequence[bytes] = [photos.astronaut(), png(astronaut()[:, ::-1])]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: lazy.describe([images[n % 2]], Pick.ONLY)[0], range(16)))
    assert sorted(files.asked) == sorted(file.name for file in SFACE.files)
    assert all(same(answer, answers[n % 2]) for n, answer in enumerate(answers))
    assert not same(answers[0], answers[1])


def test_a_model_that_cannot_be_had(tmp_path: Path) -> None:
    nowhere = replace(SFACE.embedder, package="", url="http://127.0.0.1:1/nothing")
    broken = FacePipeline(replace(SFACE, embedder=nowhere), ModelFiles(tmp_path))
    for call in (broken.load, lambda: broken.describe([photos.astronaut()], None)):
        with pytest.raises(ModelUnavailable, match=nowhere.name):
            call()


@pytest.mark.parametrize("zoom", [0.9, 0.95, 1.0, 1.05, 1.2])
def test_zoomed_crops_show_the_same_middle(zoom: float) -> None:
    points = np.array([[210, 105], [250, 100], [233, 128], [217, 146], [250, 142]], np.float64)
    before, after = estimate_similarity(points), estimate_similarity(zoom_landmarks(points, zoom))
    middle = np.array([*((CROP_SIZE - 1) / 2,) * 2])
    for place in ((0.0, 0.0), (30.0, -12.0)):
        here = cv2.invertAffineTransform(before) @ (*(middle + place), 1)
        assert after @ (*here, 1) == pytest.approx(middle + np.array(place) * zoom)


@pytest.mark.numeric
def test_thorough_or_not_the_embeddings_may_be_compared(pipeline: FacePipeline, models_folder: Path) -> None:
    quick = FacePipeline(SFACE, ModelFiles(models_folder), Options(precision=PRECISION, thorough=False))
    a, b = (one.describe([photos.six_people()], None)[0] for one in (pipeline, quick))
    scores = np.array([[cosine(x, y) for y in b.faces] for x in a.faces])
    assert scores.diagonal().min() > 0.93
    assert not np.allclose(scores.diagonal(), 1, atol=1e-4)
    assert scores[~np.eye(6, dtype=np.bool_)].max() < 0.3
    crops = np.stack([face.crop for face in a.faces if face.crop is not None])
    assert np.allclose(quick.embed(crops), np.stack([face.embedding for face in b.faces]), atol=0.02)
    assert np.allclose(pipeline.embed(crops), quick.embed(crops), atol=1e-3)


def test_an_answer_keeps_no_photo(pipeline: FacePipeline) -> None:
    """Whatever is refused, the decoded photo goes at once, not when cycles are collected some day."""
    six, blank = png(photos.pixels(photos.six_people())), png(np.zeros((64, 64, 3), np.uint8))
    gc.collect()
    before = sum(type(kept) is Photo for kept in gc.get_objects())
    gc.disable()
    try:
        answers = pipeline.describe([six, blank, b"no image", photos.astronaut()], Pick.ONLY)
        assert [answer.rejection.code for answer in answers if answer.rejection is not None] == [
            Reason.SEVERAL_FACES,
            Reason.NO_FACE,
            Reason.UNREADABLE_IMAGE,
        ]
        assert sum(type(kept) is Photo for kept in gc.get_objects()) == before
    finally:
        gc.enable()
