"""Loads the detector and the embedder of a model pack on the requested device."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable
from indexer.models import onnx_prepare
from indexer.models.model_files import ModelFiles, load_checkpoints_module
from indexer.models.packs import CHECKPOINTS, Center, ModelFile, Network, Pack
from indexer.types import Device, Precision, sha256
from indexer.vision import runtime
from indexer.vision.detectors.base import ALL_OUTPUTS, Detector
from indexer.vision.detectors.retinaface import RetinaFace
from indexer.vision.detectors.scrfd import Scrfd
from indexer.vision.detectors.yunet import YuNet
from indexer.vision.embedders.base import Embedder
from indexer.vision.runtime import Preprocessing, Session, Threads

DETECTORS: dict[Network, type[YuNet] | type[Scrfd] | type[RetinaFace]] = {
    Network.YUNET: YuNet,
    Network.SCRFD: Scrfd,
    Network.RETINAFACE: RetinaFace,
}


def load(
    pack: Pack, files: ModelFiles, device: Device, precision: Precision, threads: Threads
) -> tuple[Detector, Embedder]:
    """Loads the pack's networks; `precision` applies to the embedder.

    Raises:
        ModelUnavailable: A file is missing or wrong, or the device is not available.
    """
    cuda = uses_cuda(pack, device)
    session = load_embedder_session(pack, files, cuda, precision, threads)
    return load_detector(pack, files, cuda, threads), build_embedder(pack, session)


def load_detector(pack: Pack, files: ModelFiles, cuda: bool, threads: Threads) -> Detector:
    """Loads the detector. Raises ModelUnavailable.

    On the CPU it always computes in float32: bfloat16 moves landmarks.
    """
    kind = DETECTORS[pack.detector.network]
    sessions = _load_sessions(
        pack.detector, files, kind.preprocessing, cuda, Precision.FLOAT32, threads, kind.output_slices
    )
    return kind(*sessions)


def load_embedder_session(pack: Pack, files: ModelFiles, cuda: bool, precision: Precision, threads: Threads) -> Session:
    """Loads the embedder's network. Raises ModelUnavailable."""
    (session,) = _load_sessions(pack.embedder, files, embedder_preprocessing(pack), cuda, precision, threads)
    return session


def embedder_preprocessing(pack: Pack) -> Preprocessing:
    """Returns the preprocessing of the pack's embedder."""
    return Preprocessing((pack.mean,) * 3, pack.scale)


def load_on_cpu(
    model: bytes, file: ModelFile, preprocessing: Preprocessing, precision: Precision, threads: Threads
) -> Session:
    """Loads the ONNX model made from `file` with the fastest installed engine. Raises ModelUnavailable."""
    engine = next(iter(runtime.engines(file.engines)), None)
    return runtime.load(model, preprocessing, precision, threads, engine)


def build_embedder(pack: Pack, session: Session) -> Embedder:
    """Returns an embedder that runs `session` as the pack describes. Raises ModelUnavailable as `load_center` does."""
    center = load_center(pack.center, pack.dim) if pack.center else None
    return Embedder(session, pack.dim, pack.mirror, center)


def load_center(center: Center, dim: int) -> NDArray[np.float32]:
    """Loads the pack's mean embedding, (dim,). Raises ModelUnavailable if the file is missing or not the expected
    one."""
    file = resources.files("indexer.models") / "data" / center.name
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelUnavailable(f"{center.name} cannot be read: {error.strerror}; reinstall whosthere") from error
    if sha256(data) != center.sha256:
        raise ModelUnavailable(f"{center.name} is {sha256(data)}; expected {center.sha256}; reinstall whosthere")
    mean = np.array(json.loads(data)["center"], np.float32)
    if mean.shape != (dim,):
        raise ModelUnavailable(f"{center.name} holds an array of shape {mean.shape}; expected ({dim},)")
    return mean


def uses_cuda(pack: Pack, device: Device) -> bool:
    """Returns whether the pack's networks run on the GPU. Raises ModelUnavailable if `device` is `cuda` and they
    cannot."""
    if device is Device.CPU:
        return False
    problem = next(filter(None, (find_cuda_problem(file) for file in pack.files)), None)
    if problem is not None and device is Device.CUDA:
        raise ModelUnavailable(f"pack {pack.name} cannot run on CUDA here: {problem}", code="device_unavailable")
    return problem is None


def find_cuda_problem(file: ModelFile) -> str | None:
    """Returns why this network cannot run on a GPU here, None if it can."""
    if file.network not in CHECKPOINTS:
        return runtime.find_cuda_problem()
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'whosthere[torch]'"
    from indexer.vision import cuda

    return cuda.find_problem()


def _load_sessions(
    file: ModelFile,
    files: ModelFiles,
    preprocessing: Preprocessing,
    cuda: bool,
    precision: Precision,
    threads: Threads,
    output_slices: Sequence[slice] = (ALL_OUTPUTS,),
) -> list[Session]:
    """Loads one session for each of `output_slices` of the network's outputs."""
    if cuda and file.network in CHECKPOINTS:
        from indexer.vision.cuda import CudaSession

        half = precision is not Precision.FLOAT32
        return [CudaSession(load_checkpoints_module(file).module(files.read(file), file), preprocessing, half)]
    model = files.quantized_model(file) if precision is Precision.INT8 and not cuda else files.prepared_model(file)
    models = [model if part == ALL_OUTPUTS else onnx_prepare.extract_outputs(model, part) for part in output_slices]
    if cuda:
        return [runtime.load(model, preprocessing, precision, threads, runtime.ON_CUDA) for model in models]
    return [load_on_cpu(model, file, preprocessing, precision, threads) for model in models]
