"""A pack's embedder in int8, for CPUs: made by NNCF's post-training quantization, calibrated on real faces, checked
against float32 on others, and kept only where it agrees.

NNCF quantizes the ONNX form, activations symmetrically. Run by OpenVINO on two cores, that is as close to float32 as
what NNCF makes of OpenVINO's form, and no slower: SFace 2.4 ms a face and mean cosine 0.997, as against 5.8 ms and
0.994; IR-50 of made weights 7.0 ms, as against 7.9 ms. Activations quantized asymmetrically, in the ONNX form, take 5
to 9 times as long.
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
from indexer.types import Pixels, Precision, Vectors, sha256
from indexer.vision import networks
from indexer.vision.runtime import CPU_BATCH, Feed, Session, Threads, no_telemetry, to_blob

LEAST_FACES = 50
MOST_FACES = 300
HELD_OUT = 3
"""One face in so many is not calibrated on: it checks the result."""

LEAST_COSINE = 0.99
"""Mean, to float32."""

ROUNDS = 5
"""Turns of each precision when the speed is measured; the median counts."""

PER_CHANNEL_OPSET = 13
"""Of ONNX: before it, all channels of a convolution share one scale."""

Progress = Callable[[int, int], None]
"""Faces calibrated on, of how many."""


@dataclass(frozen=True)
class QuantizationReport:
    """What quantizing an embedder gave. It lies beside the model as JSON."""

    pack: str
    file: str
    source_sha256: str
    """Of the file that was quantized."""
    sha256: str
    """Of the int8 model."""
    calibrated_on: int
    """Faces."""
    checked_on: int
    """Other faces."""
    cosine_mean: float
    """Of the checked faces' embeddings to those in float32."""
    cosine_min: float
    float32_ms: float
    """A face, in batches of CPU_BATCH: the median, the three precisions taking turns."""
    native_ms: float
    int8_ms: float
    seconds: float
    versions: dict[str, str]

    @property
    def times_as_fast(self) -> float:
        """As float32."""
        return self.float32_ms / self.int8_ms


def quantize_embedder(
    pack: Pack,
    files: ModelFiles,
    crops: Sequence[Pixels] | NDArray[np.uint8],
    progress: Progress = lambda done, of: None,
) -> QuantizationReport:
    """Makes the pack's embedder in int8 and keeps it in the models folder, where `ModelFiles.quantized` finds it.

    `crops` are aligned faces, (112, 112, 3) uint8 RGB, at best MOST_FACES. Raises InvalidRequest for fewer than
    LEAST_FACES, and ModelUnavailable where NNCF is not installed, the network cannot be quantized, or the result strays
    too far from float32. Nothing is kept then.
    """
    begun = time.perf_counter()
    if len(crops) < LEAST_FACES:
        raise InvalidRequest(f"quantizing needs {LEAST_FACES} faces or more; found {len(crops)}")
    faces = np.asarray(crops, np.uint8)
    exact = files.prepared_model(pack.embedder)
    file = files.with_known_hash(pack.embedder)
    held = np.arange(len(faces)) % HELD_OUT == HELD_OUT - 1
    feed = networks.feed_of(pack)
    model = _quantized(exact, file, feed, faces[~held], progress)
    sessions = _sessions(exact, model, feed, file)
    try:
        cosines = _cosines(pack, sessions, faces[held])
    except InvalidVector as error:
        raise ModelUnavailable(f"{file.name} does not survive int8: {error}; nothing was kept") from error
    if cosines.mean() < LEAST_COSINE:
        raise ModelUnavailable(
            f"{file.name} in int8 strays too far from float32: mean cosine {cosines.mean():.4f} over {len(cosines)} "
            f"faces, expected {LEAST_COSINE} or more; nothing was kept"
        )
    float32_ms, native_ms, int8_ms = _speeds(sessions, faces[held])
    report = QuantizationReport(
        pack=pack.name,
        file=file.name,
        source_sha256=file.sha256,
        sha256=sha256(model),
        calibrated_on=int((~held).sum()),
        checked_on=len(cosines),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        float32_ms=float32_ms,
        native_ms=native_ms,
        int8_ms=int8_ms,
        seconds=time.perf_counter() - begun,
        versions=_versions(),
    )
    _keep(files, file, model, report)
    return report


def _quantized(model: bytes, file: ModelFile, feed: Feed, faces: NDArray[np.uint8], progress: Progress) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(model)
    name = proto.graph.input[0].name
    fed = 0

    def blob(crop: Pixels) -> dict[str, NDArray[np.float32]]:
        nonlocal fed
        fed += 1
        progress(fed, len(faces))
        return {name: to_blob(crop[None], feed)}

    with _quietly() as nncf:
        try:
            quantized = nncf.quantize(
                _with_channels(proto),
                nncf.Dataset(faces, blob),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(faces),
            )
        except Exception as error:  # NNCF and ONNX Runtime raise errors of their own
            raise ModelUnavailable(f"{file.name} cannot be quantized: {error}") from error
    return bytes(quantized.SerializeToString())


def _with_channels(proto: Any) -> Any:
    """The model in an opset that has a scale for each channel."""
    from onnx import version_converter

    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return version_converter.convert_version(proto, PER_CHANNEL_OPSET) if opset < PER_CHANNEL_OPSET else proto


@contextmanager
def _quietly() -> Iterator[Any]:
    """NNCF, without its log, its progress bars on stdout and its telemetry. Raises ModelUnavailable where it is not
    installed."""
    with no_telemetry(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import nncf
        except ImportError as error:
            raise ModelUnavailable(f"NNCF is not installed ({error}): pip install 'whosthere[quantize]'") from error
        import rich

        nncf.set_log_level(logging.ERROR)
        console = rich.get_console()  # the one that NNCF's progress bars are drawn on
        was_quiet, console.quiet = console.quiet, True
        try:
            yield nncf
        finally:
            console.quiet = was_quiet


def _sessions(exact: bytes, int8: bytes, feed: Feed, file: ModelFile) -> dict[Precision, Session]:
    """Run as the pipeline runs them. Raises ModelUnavailable."""
    return {
        precision: networks.on_cpu(int8 if precision is Precision.INT8 else exact, file, feed, precision, Threads())
        for precision in (Precision.FLOAT32, Precision.NATIVE, Precision.INT8)
    }


def _cosines(pack: Pack, sessions: dict[Precision, Session], faces: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N,) of each face's embedding in int8, as galleries hold it, to that in float32."""

    def embed(precision: Precision) -> Vectors:
        return networks.embedder_of(pack, sessions[precision]).embed(faces)

    return np.asarray((embed(Precision.FLOAT32) * embed(Precision.INT8)).sum(1), np.float32)


def _speeds(sessions: dict[Precision, Session], faces: NDArray[np.uint8]) -> list[float]:
    """Milliseconds a face, in the order of `sessions`."""
    batch = faces[:CPU_BATCH]
    taken: dict[Precision, list[float]] = {precision: [] for precision in sessions}
    for _ in range(ROUNDS):
        for precision, session in sessions.items():
            session.run(batch)  # after another's turn, which may have left its threads spinning
            begun = time.perf_counter()
            session.run(batch)
            taken[precision].append(1000 * (time.perf_counter() - begun) / len(batch))
    return [statistics.median(times) for times in taken.values()]


def _versions() -> dict[str, str]:
    found = {}
    for package in ("nncf", "onnx", "onnxruntime", "openvino"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _keep(files: ModelFiles, file: ModelFile, model: bytes, report: QuantizationReport) -> None:
    """The model first: one that its report does not describe is refused."""
    target = files.quantized_path(file)
    try:
        write_atomically(target, [model], shared=True)
        text = json.dumps(asdict(report), indent=2) + "\n"
        write_atomically(target.with_suffix(".json"), [text.encode()], shared=True)
    except OSError as error:
        raise ModelUnavailable(f"{target} cannot be written: {error.strerror}") from error
