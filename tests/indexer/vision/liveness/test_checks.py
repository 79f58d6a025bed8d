"""Liveness in the pipeline: on the photo as it was taken, turned upright, and only where it is asked for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.models.liveness_catalogue import LivenessCatalogue
from indexer.models.model_files import ModelFiles
from indexer.types import Pick, Reason
from indexer.vision.liveness.base import LivenessCheck, LivenessModel, check_pack
from indexer.vision.pipeline import FacePipeline
from indexer.vision.runtime import Threads
from tests import photos
from tests.liveness_networks import add_pack, brightness_network, upper_half_network


def check_of(folder: Path, network: bytes, is_required: bool = False) -> LivenessCheck:
    add_pack(folder, network)
    files = ModelFiles(folder)
    pack = LivenessCatalogue(files, check_pack).find("light")
    return LivenessCheck(LivenessModel(pack, files, Threads(per_stream=1)), is_required)


def score(pipeline: FacePipeline, photo: bytes, check: LivenessCheck) -> float:
    (result,) = pipeline.describe([photo], Pick.LARGEST, liveness=check)
    (face,) = result.faces
    assert face.liveness is not None
    return face.liveness.score


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_photo_is_checked_upright(pipeline: FacePipeline, tmp_path: Path, turns: int) -> None:
    check = check_of(tmp_path, upper_half_network())
    upright = photos.pixels(photos.astronaut())
    turned = photos.encode(np.ascontiguousarray(np.rot90(upright, turns)), "PNG")
    assert score(pipeline, turned, check) == pytest.approx(score(pipeline, photos.astronaut(), check), abs=0.05)


def test_large_photo_is_checked_at_full_size(pipeline: FacePipeline, tmp_path: Path) -> None:
    """Its detail is what distinguishes a print; the detector sees a reduced copy."""
    check = check_of(tmp_path, upper_half_network())
    sizes: list[tuple[int, ...]] = []
    assess = check.model.assess

    class Observed(LivenessModel):
        def assess(self, faces):  # type: ignore[no-untyped-def]
            sizes.extend(image.shape for image, _ in faces)
            return assess(faces)

    observed = Observed(check.model.pack, ModelFiles(tmp_path), Threads(per_stream=1))
    with Image.open(io.BytesIO(photos.astronaut())) as opened:
        large = photos.encode(opened.convert("RGB").resize((2400, 2400)), "JPEG")
    large_score = score(pipeline, large, LivenessCheck(observed))
    assert sizes == [(2400, 2400, 3)]
    assert large_score == pytest.approx(score(pipeline, photos.astronaut(), check), abs=0.05)


def test_every_chosen_face_is_checked(pipeline: FacePipeline, tmp_path: Path) -> None:
    check = check_of(tmp_path, upper_half_network())
    images = [photos.six_people(), photos.no_faces()[0], photos.astronaut()]
    results = pipeline.describe(images, None, liveness=check)
    assert [len({face.liveness for face in result.faces}) for result in results] == [6, 0, 1]
    assert all(face.liveness is not None for result in results for face in result.faces)
    assert all(face.liveness is None for result in pipeline.describe(images, None) for face in result.faces)


@pytest.mark.parametrize("is_required", [False, True])
def test_gate_rejects_a_face_that_is_not_live_where_that_is_required(
    pipeline: FacePipeline, tmp_path: Path, is_required: bool
) -> None:
    check = check_of(tmp_path, brightness_network(limit=250), is_required)
    (result,) = pipeline.describe([photos.astronaut()], Pick.ONLY, gate=True, liveness=check)
    assert (result.rejection and result.rejection.code) == (Reason.NOT_LIVE if is_required else None)
    assert len(result.faces) == (not is_required)
