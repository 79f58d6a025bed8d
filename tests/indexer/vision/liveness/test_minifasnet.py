"""The built-in liveness networks return what the upstream code returns for the same files, images and boxes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable
from indexer.models.liveness_packs import MINIFASNET, LivenessNetwork, LivenessPack
from indexer.models.model_files import ModelFiles
from indexer.types import Box, Pixels
from indexer.vision import runtime
from indexer.vision.liveness.base import LivenessModel
from indexer.vision.runtime import Threads
from tests import photos

COLUMNS = ("v2_27", "v1se_40", "v2se_128")
"""Arrays of the shared file with upstream's probabilities, in the order of the pack's networks."""

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def expected(liveness_folder: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(liveness_folder / "liveness.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def faces(liveness_folder: Path, expected: dict[str, NDArray[np.float32]]) -> list[tuple[Pixels, Box]]:
    people = photos.shared("lfw/people")
    images = [people / name if "/" in name else liveness_folder / name for name in map(str, expected["image"])]
    boxes = [Box(*map(float, box)) for box in expected["box"]]
    return [(read_as_upstream(path), box) for path, box in zip(images, boxes, strict=True)]


def read_as_upstream(path: Path) -> Pixels:
    """Returns the image as RGB."""
    image = cv2.imread(str(path))
    assert image is not None
    return image[:, :, ::-1].astype(np.uint8, copy=False)


def pack_of(*networks: LivenessNetwork) -> LivenessPack:
    return replace(MINIFASNET, networks=networks)


def load(pack: LivenessPack, files: ModelFiles) -> LivenessModel:
    return LivenessModel(pack, files, Threads(per_stream=1))


@pytest.mark.parametrize(("number", "column"), list(enumerate(COLUMNS)))
@pytest.mark.parametrize("engine", runtime.ENGINES)
def test_network_agrees_with_upstream(
    number: int,
    column: str,
    engine: str,
    faces: list[tuple[Pixels, Box]],
    expected: dict[str, NDArray[np.float32]],
    liveness_files: ModelFiles,
) -> None:
    network = MINIFASNET.networks[number]
    model = load(pack_of(replace(network, file=replace(network.file, engines=(engine,)))), liveness_files)
    np.testing.assert_allclose(model.score(faces), expected[column][:, network.live_class], atol=TOLERANCE)


def test_score_is_the_weighted_mean_of_the_networks(
    faces: list[tuple[Pixels, Box]], expected: dict[str, NDArray[np.float32]], liveness_files: ModelFiles
) -> None:
    each = [expected[column][:, net.live_class] for column, net in zip(COLUMNS, MINIFASNET.networks, strict=True)]
    scores = load(MINIFASNET, liveness_files).score(faces)
    np.testing.assert_allclose(scores, (each[0] + each[1] + 2 * each[2]) / 4, atol=TOLERANCE)


def test_live_face_and_attack_of_upstream_are_told_apart(
    faces: list[tuple[Pixels, Box]], expected: dict[str, NDArray[np.float32]], liveness_files: ModelFiles
) -> None:
    names = [str(name) for name in expected["image"]]
    samples = [faces[names.index(name)] for name in ("image_T1.jpg", "image_F1.jpg")]
    live, attack = load(MINIFASNET, liveness_files).score(samples)
    assert live >= MINIFASNET.threshold > attack


def test_no_faces_have_no_scores(liveness_files: ModelFiles) -> None:
    assert load(MINIFASNET, liveness_files).score([]).shape == (0,)


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"2\.7_80x80_MiniFASNetV2\.pth is not in "):
        load(MINIFASNET, ModelFiles(tmp_path)).load()


def test_network_with_other_classes_is_rejected(liveness_files: ModelFiles) -> None:
    network = replace(MINIFASNET.networks[2], classes=3)
    with pytest.raises(ModelUnavailable, match=r"returns arrays of the shapes \[\(1, 2\)\]; expected one of \(1, 3\)"):
        load(pack_of(network), liveness_files).load()


def test_network_with_another_input_is_rejected(liveness_folder: Path, tmp_path: Path) -> None:
    network = MINIFASNET.networks[2]
    shutil.copyfile(liveness_folder / network.file.name, tmp_path / network.file.name)
    other = replace(network, file=replace(network.file, input_size=96))
    with pytest.raises(ModelUnavailable, match="expected one of N x 3 x 96 x 96"):
        load(pack_of(other), ModelFiles(tmp_path)).load()
