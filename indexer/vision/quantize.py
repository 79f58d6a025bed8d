"""Quantizes a pack's embedder to int8 for CPUs with NNCF's post-training quantization.

The result is calibrated on real faces, compared with float32 on other faces, and stored only if both agree.

NNCF quantizes the ONNX model, with symmetric activations. In OpenVINO on two cores this is at least as accurate and
fast as quantizing OpenVINO's own model: SFace takes 2.4 ms per face with a mean cosine of 0.997 to float32, instead of
5.8 ms and 0.994; IR-50 with random weights takes 7.0 ms instead of 7.9 ms. Asymmetric activations in the ONNX model
take 5 to 9 times as long.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import InvalidRequest, InvalidVector, ModelUnavailable
from indexer.files import write_atomically
from indexer.models.model_files import ModelFiles
from indexer.models.packs import ModelFile, Pack
from indexer.rounding import decimals
from indexer.types import Pixels, Precision, Vectors, sha256
from indexer.vision import networks
from indexer.vision.runtime import CPU_BATCH, Preprocessing, Session, Threads, no_telemetry, to_blob

MIN_FACES = 50
MAX_FACES = 300
HELD_OUT = 3
"""One in this many faces is not used for calibration but to check the result."""

MIN_COSINE = 0.99
"""Lowest accepted mean cosine to the float32 embeddings."""

ROUNDS = 5
"""How often the speed of each precision is measured; the median counts."""

PER_CHANNEL_OPSET = 13
"""In older ONNX opsets, all channels of a convolution share one scale."""

ProgressListener = Callable[[int, int], None]
"""Receives the number of faces used for calibration so far, and of all."""


@dataclass(frozen=True)
class QuantizationReport:
    """The result of quantizing an embedder, stored as JSON with the model."""

    pack: str
    file: str
    source_sha256: str
    """Hash of the file that was quantized."""
    sha256: str
    """Hash of the int8 model."""
    calibrated_on: int
    """Number of faces."""
    checked_on: int
    """Number of other faces."""
    cosine_mean: float
    """Of the checked faces' embeddings, to those in float32."""
    cosine_min: float
    float32_ms: float
    """Median time per face in batches of CPU_BATCH, the three precisions measured in turns."""
    native_ms: float
    int8_ms: float
    seconds: float
    versions: dict[str, str]

    @property
    def times_as_fast(self) -> float:
        """Speed relative to float32."""
        return self.float32_ms / self.int8_ms


def quantize_embedder(
    pack: Pack,
    files: ModelFiles,
    crops: Sequence[Pixels] | NDArray[np.uint8],
    progress: ProgressListener = lambda done, of: None,
) -> QuantizationReport:
    """Quantizes the pack's embedder to int8 and stores it in the models folder for `ModelFiles.quantized_model`.

    `crops` are aligned faces, (112, 112, 3) uint8 RGB, ideally MAX_FACES. Raises InvalidRequest for fewer than
    MIN_FACES, and ModelUnavailable if NNCF is not installed, the network cannot be quantized, or the result differs too
    much from float32. Nothing is stored then.
    """
    started = time.perf_counter()
    if len(crops) < MIN_FACES:
        raise InvalidRequest(f"quantizing needs {MIN_FACES} faces or more; found {len(crops)}")
    faces = np.asarray(crops, np.uint8)
    exact = files.prepared_model(pack.embedder)
    file = files.with_known_hash(pack.embedder)
    is_held_out = np.arange(len(faces)) % HELD_OUT == HELD_OUT - 1
    preprocessing = networks.embedder_preprocessing(pack)
    model = _quantize(exact, file, preprocessing, faces[~is_held_out], progress)
    sessions = _sessions(exact, model, preprocessing, file)
    try:
        cosines = _cosines(pack, sessions, faces[is_held_out])
    except InvalidVector as error:
        raise ModelUnavailable(f"{file.name} has no valid embeddings in int8: {error}; nothing was stored") from error
    mean = float(cosines.mean())
    if mean < MIN_COSINE:
        places = decimals(mean, MIN_COSINE, 4)
        raise ModelUnavailable(
            f"{file.name} in int8 differs too much from float32: mean cosine {mean:.{places}f} over {len(cosines)} "
            f"faces, expected {MIN_COSINE} or more; nothing was stored"
        )
    float32_ms, native_ms, int8_ms = _speeds(sessions, faces[is_held_out])
    report = QuantizationReport(
        pack=pack.name,
        file=file.name,
        source_sha256=file.sha256,
        sha256=sha256(model),
        calibrated_on=int((~is_held_out).sum()),
        checked_on=len(cosines),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        float32_ms=float32_ms,
        native_ms=native_ms,
        int8_ms=int8_ms,
        seconds=time.perf_counter() - started,
        versions=_versions(),
    )
    _store(files, file, model, report)
    return report


def _quantize(
    model: bytes, file: ModelFile, preprocessing: Preprocessing, faces: NDArray[np.uint8], progress: ProgressListener
) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(model)
    name = proto.graph.input[0].name
    count = 0

    def blob(crop: Pixels) -> dict[str, NDArray[np.float32]]:
        nonlocal count
        count += 1
        progress(count, len(faces))
        return {name: to_blob(crop[None], preprocessing)}

    with _quiet_nncf() as nncf:
        try:
            quantized = nncf.quantize(
                _with_channel_scales(proto),
                nncf.Dataset(faces, blob),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(faces),
            )
        except Exception as error:  # NNCF and ONNX Runtime raise errors of their own
            raise ModelUnavailable(f"{file.name} cannot be quantized: {error}") from error
    return bytes(quantized.SerializeToString())


def _with_channel_scales(proto: Any) -> Any:
    """Returns the model in an opset with a scale for each channel."""
    from onnx import version_converter

    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return version_converter.convert_version(proto, PER_CHANNEL_OPSET) if opset < PER_CHANNEL_OPSET else proto


@contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """Imports NNCF and silences its log, its progress bars on stdout and its telemetry. Raises ModelUnavailable if it
    is not installed."""
    with no_telemetry(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import nncf
        except ImportError as error:
            raise ModelUnavailable(f"NNCF is not installed ({error}): pip install 'whosthere[quantize]'") from error
        import rich

        # `nncf.set_log_level` also sets the level of each handler of that logger, which other code may share.
        logger = logging.getLogger("nncf")
        console = rich.get_console()  # NNCF draws its progress bars on it
        former_level, was_quiet = logger.level, console.quiet
        logger.setLevel(logging.ERROR)
        console.quiet = True
        try:
            yield nncf
        finally:
            logger.setLevel(former_level)
            console.quiet = was_quiet


def _sessions(exact: bytes, int8: bytes, preprocessing: Preprocessing, file: ModelFile) -> dict[Precision, Session]:
    """Loads the model in each precision as the pipeline does. Raises ModelUnavailable."""
    return {
        precision: networks.load_on_cpu(
            int8 if precision is Precision.INT8 else exact, file, preprocessing, precision, Threads()
        )
        for precision in (Precision.FLOAT32, Precision.NATIVE, Precision.INT8)
    }


def _cosines(pack: Pack, sessions: dict[Precision, Session], faces: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the cosines (N,) between each face's embeddings in int8 and float32, as galleries store them."""

    def embed(precision: Precision) -> Vectors:
        return networks.build_embedder(pack, sessions[precision]).embed(faces)

    return np.asarray((embed(Precision.FLOAT32) * embed(Precision.INT8)).sum(1), np.float32)


def _speeds(sessions: dict[Precision, Session], faces: NDArray[np.uint8]) -> list[float]:
    """Returns milliseconds per face, in the order of `sessions`."""
    batch = faces[:CPU_BATCH]
    durations: dict[Precision, list[float]] = {precision: [] for precision in sessions}
    for _ in range(ROUNDS):
        for precision, session in sessions.items():
            session.run(batch)  # warm up: the previous session's threads may still be spinning
            started = time.perf_counter()
            session.run(batch)
            durations[precision].append(1000 * (time.perf_counter() - started) / len(batch))
    return [statistics.median(times) for times in durations.values()]


def _versions() -> dict[str, str]:
    found = {}
    for package in ("nncf", "onnx", "onnxruntime", "openvino"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _store(files: ModelFiles, file: ModelFile, model: bytes, report: QuantizationReport) -> None:
    """Writes the model first, because a model that its report does not describe is refused."""
    target = files.quantized_path(file)
    try:
        write_atomically(target, [model], shared=True)
        text = json.dumps(asdict(report), indent=2) + "\n"
        write_atomically(target.with_suffix(".json"), [text.encode()], shared=True)
    except OSError as error:
        raise ModelUnavailable(f"{target} cannot be written: {error.strerror}") from error
