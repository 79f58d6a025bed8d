"""Checks of a pack's networks before it is added: their outputs, and that preparation changed no result."""

from __future__ import annotations

import logging
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable
from indexer.models import onnx_prepare
from indexer.models.model_files import ModelFiles
from indexer.models.packs import CHECKPOINTS, ModelFile, Pack
from indexer.types import Precision, sha256
from indexer.vision import networks, runtime
from indexer.vision.reference_crops import reference_crops
from indexer.vision.runtime import Preprocessing, Session, Tensor, Threads

log = logging.getLogger(__name__)

BATCHES = (1, 2, 3)
"""Numbers of crops for which an embedder must return a row each."""

MAX_SPREAD_ERROR, MAX_LENGTH_ERROR = 0.05, 1e-3
"""How far outputs may be from those of the original file: a share of their mean distance to the mean output, plus a
share of their mean length. Rounding gives less than 1e-4 of either; quantization scales along a wrong axis 0.4 or more
of the first."""

LEAST_SPREAD = 1e-4
"""Share of an embedding's length by which those of different images differ at least. Rounding alone gives less."""

REFERENCE_IMAGES = 1
"""Images for ONNX's reference implementation, which takes seconds for each."""


def check_pack(pack: Pack, files: ModelFiles) -> Pack:
    """Runs the pack's networks and returns the pack with the embedder's `dim`. Raises ModelUnavailable.

    The embedder must return one embedding for each crop in batches of any size. Networks that were prepared must return
    what their original files do in ONNX Runtime.
    """
    crops = reference_crops()
    try:
        detector = networks.load_detector(pack, files, cuda=False, threads=Threads())
        canvases = _resize(crops, 4 * detector.stride, 4 * detector.stride)
        detector.detect(canvases)
        session = networks.load_embedder_session(pack, files, False, Precision.FLOAT32, Threads())
        dim = _count_dimensions(session, crops, pack.embedder)
        _compare(pack.embedder, files, networks.embedder_preprocessing(pack), crops)
        _compare(pack.detector, files, networks.DETECTORS[pack.detector.network].preprocessing, canvases)
    except ModelUnavailable:
        raise
    except Exception as error:  # outputs of another kind of network can fail anywhere in decoding
        raise ModelUnavailable(
            f"the files of {pack.name} do not work as {pack.detector.network} and {pack.embedder.network}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return replace(pack, dim=dim)


def _count_dimensions(session: Session, crops: NDArray[np.uint8], file: ModelFile) -> int:
    """Returns the length of an embedding. Raises ModelUnavailable unless the network returns one for each crop."""
    dims = set()
    firsts = []
    for count in BATCHES:
        outputs = session.run(crops[:count])
        shapes = " and ".join(" x ".join(map(str, output.shape)) for output in outputs)
        if len(outputs) != 1 or outputs[0].ndim != 2 or len(outputs[0]) != count:
            raise ModelUnavailable(
                f"{file.name} returns {shapes} numbers for {count} crops; expected one embedding per crop: {count} x "
                "its dimensions"
            )
        if not np.isfinite(outputs[0]).all():
            raise ModelUnavailable(f"{file.name} returns infinite numbers or NaN")
        dims.add(outputs[0].shape[1])
        firsts.append(outputs[0][0])
    if len(dims) > 1:
        raise ModelUnavailable(f"{file.name} returns embeddings of different lengths: {', '.join(map(str, dims))}")
    length = np.linalg.norm(firsts[0])
    if not length > 0:
        raise ModelUnavailable(f"{file.name} returns zeros only, which are no embedding")
    if max(np.linalg.norm(first - firsts[0]) for first in firsts) > MAX_SPREAD_ERROR * length:
        raise ModelUnavailable(f"{file.name} returns another embedding of a crop where other crops are in its batch")
    if max(np.linalg.norm(row - firsts[-1]) for row in outputs[0]) < LEAST_SPREAD * length:
        raise ModelUnavailable(f"{file.name} returns the same embedding for different images")
    return int(dims.pop())


def _compare(file: ModelFile, files: ModelFiles, preprocessing: Preprocessing, images: NDArray[np.uint8]) -> None:
    """Raises ModelUnavailable where a prepared network does not return what its original ONNX file does."""
    if file.network in CHECKPOINTS:
        return
    model = files.prepared_model(file)
    if sha256(model) == file.prepared_sha256:  # compared when the pack was built in
        return
    images, expected = _run_original(files.read(file), preprocessing, images)
    prepared = networks.load_on_cpu(model, file, preprocessing, Precision.FLOAT32, Threads())
    for ours, theirs in zip(prepared.run(images), expected, strict=True):
        _check_equal(ours.reshape(len(images), -1), theirs, file)


def _run_original(
    model: bytes, preprocessing: Preprocessing, images: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], list[Tensor]]:
    """Returns the images in the size that the file requires, and each output of the unchanged file, (N, values)."""
    model, source = onnx_prepare.remove_unused_inputs(model)
    try:
        original = runtime.load_original(model, preprocessing)
        batch, _, height, width = original.sides
        if isinstance(height, int) and isinstance(width, int):
            images = _resize(images, height, width)
        copies = batch if isinstance(batch, int) else 1
        outputs = [original.run(np.repeat(image[None], copies, axis=0)) for image in images]
    except Exception as error:  # ONNX Runtime 1.32 refuses `block_size` with a single scale, as in OpenCV Zoo's YuNet
        log.info("ONNX Runtime cannot run the original file, which ONNX's slow reference does: %s", error)
        import onnx.reference

        images, copies = images[:REFERENCE_IMAGES], 1
        reference = onnx.reference.ReferenceEvaluator(onnx.load_model_from_string(model))
        outputs = [reference.run(None, {source: runtime.to_blob(image[None], preprocessing)}) for image in images]
    rows = [[np.asarray(output, np.float32).reshape(copies, -1)[0] for output in found] for found in outputs]
    return images, [np.stack(found) for found in zip(*rows, strict=True)]


def _check_equal(found: Tensor, expected: Tensor, file: ModelFile) -> None:
    error = np.linalg.norm(found - expected, axis=1)
    spread = np.linalg.norm(expected - expected.mean(axis=0), axis=1).mean()
    allowed = MAX_SPREAD_ERROR * spread + MAX_LENGTH_ERROR * np.linalg.norm(expected, axis=1).mean()
    if not error.max() <= allowed:  # also where one is NaN
        worst = int(np.argmax(error))
        cosine = found[worst] @ expected[worst] / (np.linalg.norm(found[worst]) * np.linalg.norm(expected[worst]))
        raise ModelUnavailable(
            f"{file.name} does not compute the same after its preparation: for {int((error > allowed).sum())} of "
            f"{len(error)} test images its output is not that of the original file in ONNX Runtime (cosine "
            f"{cosine:.3f}); please report this with the file"
        )


def _resize(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if images.shape[1:3] == (height, width):
        return images
    return np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) for image in images]).astype(
        np.uint8
    )
