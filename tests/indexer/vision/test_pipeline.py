"""The pipeline from image files to embedded faces."""

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

from indexer.errors import ModelUnavailable
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, ModelFile
from indexer.types import CROP_SIZE, Face, Pick, Pixels, Reason
from indexer.vision.align import estimate_similarity, zoom_landmarks
from indexer.vision.batches import MAX_BATCH_PIXELS
from indexer.vision.decode import Limits, Photo
from indexer.vision.detectors.base import iou
from indexer.vision.pipeline import (
    FacePipeline,
    ImageResult,
    Options,
)
from indexer.vision.runtime import Threads
from indexer.vision.selection import RIVAL_AREA_RATIO
from tests import photos
from tests.indexer.vision.common import astronaut, box_values, mirrored_landmarks, six_people
from tests.variants import PRECISION


def png(picture: Pixels) -> bytes:
    return photos.encode(np.ascontiguousarray(picture), "PNG", compress_level=1)


def only_face(result: ImageResult) -> Face:
    assert result.rejection is None, result.rejection
    (face,) = result.faces
    return face


def code(result: ImageResult) -> str:
    assert result.rejection is not None
    assert result.faces == ()
    return result.rejection.code


def cosine(a: Face, b: Face) -> float:
    return float(a.embedding @ b.embedding)


def two_faces(second: int) -> Pixels:
    """Returns the astronaut in 512 pixels on the left, and her mirror image in `second` pixels on the right."""
    canvas = np.full((512, 1024, 3), 120, np.uint8)
    canvas[:, :512] = astronaut()
    canvas[:second, 512 : 512 + second] = photos.enlarged(astronaut()[:, ::-1], second, second)
    return canvas


@pytest.mark.numeric
def test_embeddings_have_unit_length_and_distinguish_people(pipeline: FacePipeline) -> None:
    results = pipeline.describe([photos.astronaut(), png(astronaut()[:, ::-1]), photos.six_people()], None)
    assert [len(result.faces) for result in results] == [1, 1, 6]
    for face in (face for result in results for face in result.faces):
        assert face.embedding.shape == (SFACE.dim,)
        assert face.embedding.dtype == np.float32
        assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)
    assert cosine(results[0].faces[0], results[1].faces[0]) > 0.95
    people = [results[0].faces[0], *results[2].faces]
    assert max(cosine(a, b) for i, a in enumerate(people) for b in people[:i]) < 0.45
    assert (results[2].width, results[2].height) == (1280, 886)


def test_all_faces_are_returned_largest_first(pipeline: FacePipeline) -> None:
    for result in (*pipeline.describe([photos.six_people()], None), *pipeline.detect([photos.six_people()])):
        areas = [face.detection.box.area for face in result.faces]
        assert len(areas) == 6
        assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("pick", [None, *Pick])
def test_detect_equals_describe_without_embeddings(pipeline: FacePipeline, pick: Pick | None) -> None:
    images = [photos.six_people(), photos.astronaut(), photos.no_faces()[0], b"junk"]
    detected, described = pipeline.detect(images, pick), pipeline.describe(images, pick)
    assert [code(result) for result in detected[2:]] == [Reason.NO_FACE, Reason.UNREADABLE_IMAGE]
    for found, expected in zip(detected, described, strict=True):
        assert (found.rejection and found.rejection.code) == (expected.rejection and expected.rejection.code)
        for a, b in zip(found.faces, expected.faces, strict=True):
            assert a.embedding.shape == (0,)
            assert np.allclose(a.detection.landmarks, b.detection.landmarks, atol=0.01)
            assert a.quality == b.quality
            assert a.crop is not None
            assert b.crop is not None
            assert np.array_equal(a.crop, b.crop)


def test_photos_without_a_face_are_rejected(pipeline: FacePipeline) -> None:
    for pick in (None, *Pick):
        results = pipeline.describe(photos.no_faces(), pick)
        assert [code(result) for result in results] == [Reason.NO_FACE] * len(photos.no_faces())
    assert pipeline.describe([], Pick.ONLY) == []
    assert pipeline.detect([]) == []


@pytest.mark.parametrize(("second", "rejected"), [(512, True), (390, True), (330, False), (200, False)])
def test_pick_only_rejects_a_second_face_of_half_the_area(pipeline: FacePipeline, second: int, rejected: bool) -> None:
    data = png(two_faces(second))
    (every,) = pipeline.describe([data], None)
    assert len(every.faces) == 2
    ratio = every.faces[1].detection.box.area / every.faces[0].detection.box.area
    assert (ratio >= RIVAL_AREA_RATIO) == rejected
    (only,) = pipeline.describe([data], Pick.ONLY)
    if rejected:
        assert code(only) == Reason.SEVERAL_FACES
        assert only.rejection is not None
        assert only.rejection.details == {"faces": 2}
        assert "2 faces" in only.rejection.message
    else:
        assert only_face(only).detection.box.center[0] < 512


def test_largest_and_center_face_are_picked(pipeline: FacePipeline) -> None:
    canvas = np.full((700, 1600, 3), 120, np.uint8)
    canvas[:512, :512] = astronaut()
    canvas[300:600, 650:950] = photos.enlarged(astronaut()[:, ::-1], 300, 300)
    data = png(canvas)
    assert only_face(pipeline.describe([data], Pick.LARGEST)[0]).detection.box.center[0] < 512
    assert 650 < only_face(pipeline.describe([data], Pick.CENTER)[0]).detection.box.center[0] < 950


def test_largest_face_is_the_first_of_all(pipeline: FacePipeline) -> None:
    """This also holds if the first detection pass ranks the faces in another order than the second."""
    (largest,), (every,) = (pipeline.describe([photos.six_people()], pick) for pick in (Pick.LARGEST, None))
    assert iou(only_face(largest).detection.box, every.faces[0].detection.box) > 0.9


@pytest.mark.numeric
def test_quality_gate_rejects_single_images(pipeline: FacePipeline) -> None:
    images = [photos.astronaut(), png(astronaut() // 12), photos.astronaut()]
    ungated = pipeline.describe(images, Pick.ONLY)
    gated = pipeline.describe(images, Pick.ONLY, gate=True)
    assert [result.rejection is None for result in ungated] == [True, True, True]
    assert ungated[1].faces[0].quality.reasons[0] == Reason.FACE_BADLY_LIT
    assert code(gated[1]) == Reason.FACE_BADLY_LIT
    assert (gated[1].width, gated[1].height) == (512, 512)
    for n in (0, 2):
        assert cosine(only_face(gated[n]), only_face(ungated[n])) > 0.9999


def mixed_images() -> list[bytes]:
    picture = astronaut()
    return [
        photos.astronaut(),
        b"",
        photos.six_people(),
        photos.encode(photos.enlarged(picture, 1700, 1700), "JPEG"),
        photos.six_people()[:5000],
        photos.no_faces()[0],
        photos.encode(picture[:, ::-1], "WEBP"),
        png(two_faces(512)),
        png(picture[:300, 100:400]),
        photos.encode(photos.enlarged(six_people(), 2560, 1772), "JPEG"),
        b"text",
        photos.aligned_face(),
    ]


def same(a: ImageResult, b: ImageResult) -> bool:
    """Returns whether the results are equal except for rounding, which may depend on the batch size."""
    return (
        (a.width, a.height, len(a.faces)) == (b.width, b.height, len(b.faces))
        and (a.rejection.code if a.rejection else None) == (b.rejection.code if b.rejection else None)
        and all(
            x.quality.reasons == y.quality.reasons
            and np.allclose(box_values(x.detection.box), box_values(y.detection.box), atol=0.1)
            and np.allclose(x.detection.landmarks, y.detection.landmarks, atol=0.05)
            and cosine(x, y) > 0.999
            for x, y in zip(a.faces, b.faces, strict=True)
        )
    )


@pytest.mark.parametrize("pick", [None, Pick.ONLY, Pick.CENTER])
@pytest.mark.numeric
def test_batch_equals_single_images(pipeline: FacePipeline, pick: Pick | None) -> None:
    images = mixed_images()
    together = pipeline.describe(images, pick)
    alone = [pipeline.describe([data], pick)[0] for data in images]
    assert [same(a, b) for a, b in zip(together, alone, strict=True)] == [True] * len(images)
    codes = [result.rejection.code if result.rejection else "" for result in together]
    assert [codes[n] for n in (1, 4, 10)] == ["unreadable_image"] * 3
    assert codes[5] == "no_face"
    assert codes[7] == ("several_faces" if pick is Pick.ONLY else "")
    assert [codes[n] for n in (0, 3, 6, 8, 11)] == [""] * 5
    backwards = pipeline.describe(images[::-1], pick)
    assert [same(a, b) for a, b in zip(backwards[::-1], together, strict=True)] == [True] * len(images)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_does_not_change_the_face(pipeline: FacePipeline, orientation: int) -> None:
    upright = photos.enlarged(astronaut()[:400], 2048, 1600)  # large enough for reduced decoding
    plain = photos.encode(upright, "JPEG", quality=92)
    stored = photos.encode(photos.stored(upright, orientation), "JPEG", quality=92, exif=photos.exif(orientation))
    for pick in (Pick.ONLY, None):
        expected, found = pipeline.describe([plain, stored], pick)
        assert (found.width, found.height) == (2048, 1600)
        a, b = only_face(expected), only_face(found)
        assert 700 < a.detection.box.x < 760
        assert 220 < a.detection.box.y < 290
        assert np.abs(np.subtract(box_values(a.detection.box), box_values(b.detection.box))).max() < 8
        assert np.abs(a.detection.landmarks - b.detection.landmarks).max() < 8  # 2 % of the face
        assert cosine(a, b) > 0.99


def test_padding_of_a_reduced_jpeg_moves_no_box(pipeline: FacePipeline) -> None:
    """Both JPEGs are decoded at a quarter of their size; the last column of the wider one is padded to four pixels."""
    wide = np.full((1500, 4001, 3), 110, np.uint8)
    wide[:, 2400:4000] = photos.enlarged(astronaut()[40:200, 140:310], 1600, 1500)
    boxes = [
        box_values(only_face(pipeline.detect([photos.encode(picture, "JPEG")], Pick.LARGEST)[0]).detection.box)
        for picture in (wide[:, :4000], wide)
    ]
    assert boxes[0][0] > 2400
    assert boxes[0][2] > 800, "the second detection pass uses the reduced photo"
    assert boxes[1] == pytest.approx(boxes[0], abs=2)
    assert boxes[1][0] == pytest.approx(boxes[0][0], abs=1)


def test_mirrored_photo_gives_the_mirrored_face(pipeline: FacePipeline) -> None:
    results = pipeline.describe([photos.astronaut(), png(astronaut()[:, ::-1])], None)
    original, mirrored = (only_face(result) for result in results)
    assert original.detection.box.center[0] + mirrored.detection.box.center[0] == pytest.approx(512, abs=4)
    flipped = mirrored_landmarks(mirrored.detection.landmarks, 512)
    assert np.abs(original.detection.landmarks - flipped).max() < 5
    assert cosine(original, mirrored) > 0.95


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF"])
def test_file_format_does_not_change_the_face(pipeline: FacePipeline, form: str) -> None:
    original, other = pipeline.describe([photos.astronaut(), photos.encode(astronaut(), form)], Pick.ONLY)
    assert cosine(only_face(original), only_face(other)) > 0.99


@pytest.mark.parametrize("side", [300, 800, 1500, 3000])
@pytest.mark.numeric
def test_photo_size_hardly_changes_the_face(pipeline: FacePipeline, side: int) -> None:
    data = photos.encode(photos.enlarged(astronaut(), side, side), "JPEG", quality=92)
    original, other = pipeline.describe([photos.astronaut(), data], Pick.ONLY)
    a, b = only_face(original), only_face(other)
    assert iou(a.detection.scaled(side / 512, side / 512).box, b.detection.box) > 0.8
    assert cosine(a, b) > 0.95


def test_face_at_the_right_of_a_panorama_is_aligned(pipeline: FacePipeline) -> None:
    panorama = np.full((2400, 33_000, 3), 120, np.uint8)
    panorama[:, 30_600:] = photos.enlarged(astronaut(), 2400, 2400)
    (result,) = pipeline.describe([photos.encode(panorama, "JPEG", quality=90)], None)
    face = only_face(result)
    assert (result.width, result.height) == (33_000, 2400)
    assert 30_600 + 750 < face.detection.box.x < 30_600 + 900
    assert cosine(face, only_face(pipeline.describe([photos.astronaut()], None)[0])) > 0.9


def test_limits_reject_single_images(models_folder: Path) -> None:
    limited = FacePipeline(SFACE, ModelFiles(models_folder), Options(limits=Limits(max_pixels=300_000)))
    first, too_large, last = limited.describe([photos.astronaut(), photos.six_people(), photos.astronaut()], None)
    assert code(too_large) == Reason.IMAGE_TOO_LARGE
    assert same(first, last)
    assert len(first.faces) == 1


def test_few_full_size_photos_are_in_memory_at_a_time(pipeline: FacePipeline) -> None:
    """Faces that are too small in the reduced photo are cropped from the full-size one: 36 MB each at 12 MP."""
    canvas = np.full((3000, 4000, 3), 110, np.uint8)
    canvas[900:1700, 1500:2300] = photos.enlarged(astronaut(), 800, 800)
    data = photos.encode(canvas, "JPEG", quality=85)
    alone = pipeline.describe([data], Pick.ONLY)[0]
    tracemalloc.start(1)
    try:
        results = pipeline.describe([data] * 12, Pick.ONLY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [same(result, alone) for result in results] == [True] * 12
    # Pixels of the reduced and the full-size photos, a copy that decoding makes, and the networks' inputs.
    assert peak < 3 * MAX_BATCH_PIXELS + 12 * 3 * 4_000_000 // 4 + 120e6, f"{peak / 1e6:.0f} MB"


@dataclass(frozen=True)
class CountingFiles(ModelFiles):
    loaded: list[str] = field(default_factory=list)

    def prepared_model(self, file: ModelFile) -> bytes:
        self.loaded.append(file.name)
        return super().prepared_model(file)


def test_networks_are_loaded_once_at_the_first_call(models_folder: Path) -> None:
    files = CountingFiles(models_folder)
    lazy = FacePipeline(SFACE, files, Options(threads=Threads(per_stream=1)))
    assert files.loaded == []
    images: Sequence[bytes] = [photos.astronaut(), png(astronaut()[:, ::-1])]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: lazy.describe([images[n % 2]], Pick.ONLY)[0], range(16)))
    assert sorted(files.loaded) == sorted(file.name for file in SFACE.files)
    assert all(same(result, results[n % 2]) for n, result in enumerate(results))
    assert not same(results[0], results[1])


def test_unavailable_model_is_reported_by_each_call(tmp_path: Path) -> None:
    unavailable = replace(SFACE.embedder, package="", url="http://127.0.0.1:1/nothing")
    broken = FacePipeline(replace(SFACE, embedder=unavailable), ModelFiles(tmp_path))
    for call in (broken.load, lambda: broken.describe([photos.astronaut()], None)):
        with pytest.raises(ModelUnavailable, match=unavailable.name):
            call()


@pytest.mark.parametrize("zoom", [0.9, 0.95, 1.0, 1.05, 1.2])
def test_zoomed_crop_has_the_same_center(zoom: float) -> None:
    points = np.array([[210, 105], [250, 100], [233, 128], [217, 146], [250, 142]], np.float64)
    before, after = estimate_similarity(points), estimate_similarity(zoom_landmarks(points, zoom))
    center = np.full(2, (CROP_SIZE - 1) / 2)
    for offset in ((0.0, 0.0), (30.0, -12.0)):
        place = cv2.invertAffineTransform(before) @ (*(center + offset), 1)
        assert after @ (*place, 1) == pytest.approx(center + np.array(offset) * zoom)


@pytest.mark.numeric
def test_thorough_and_quick_embeddings_are_comparable(pipeline: FacePipeline, models_folder: Path) -> None:
    quick = FacePipeline(SFACE, ModelFiles(models_folder), Options(precision=PRECISION, thorough=False))
    a, b = (one.describe([photos.six_people()], None)[0] for one in (pipeline, quick))
    scores = np.array([[cosine(x, y) for y in b.faces] for x in a.faces])
    assert scores.diagonal().min() > 0.93
    assert not np.allclose(scores.diagonal(), 1, atol=1e-4)
    assert scores[~np.eye(6, dtype=np.bool_)].max() < 0.3
    crops = np.stack([face.crop for face in a.faces if face.crop is not None])
    assert np.allclose(quick.embed(crops), np.stack([face.embedding for face in b.faces]), atol=0.02)
    assert np.allclose(pipeline.embed(crops), quick.embed(crops), atol=1e-3)


def test_results_do_not_keep_photos_in_memory(pipeline: FacePipeline) -> None:
    """Photos of rejected images are freed at once, not only when the garbage collector runs."""
    six, blank = png(six_people()), png(np.zeros((64, 64, 3), np.uint8))
    gc.collect()
    before = sum(type(kept) is Photo for kept in gc.get_objects())
    gc.disable()
    try:
        results = pipeline.describe([six, blank, b"no image", photos.astronaut()], Pick.ONLY)
        expected = [Reason.SEVERAL_FACES, Reason.NO_FACE, Reason.UNREADABLE_IMAGE]
        assert [result.rejection.code for result in results if result.rejection is not None] == expected
        assert sum(type(kept) is Photo for kept in gc.get_objects()) == before
    finally:
        gc.enable()
