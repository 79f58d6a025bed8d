"""Liveness packs as data: networks that distinguish live faces from presentation attacks, and their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from indexer.models.packs import ModelFile, Network


class Border(StrEnum):
    """What a crop contains where it would reach beyond the image."""

    SHIFT = "shift"
    """The crop is made no larger than the image and moved inside it."""
    REFLECT = "reflect"
    """The image is mirrored at its border, without repeating the outermost pixels."""


@dataclass(frozen=True)
class LivenessNetwork:
    """A network of a liveness pack, its input and its output."""

    file: ModelFile
    crop_scale: float
    """Size of the crop relative to the face's box. A crop with the border rule `reflect` is a square of the box's
    longer side."""
    border: Border
    bgr: bool
    pixel_scale: float
    """The input is x * pixel_scale, where x is 0..255."""
    classes: int
    live_class: int
    """Index of the class of live faces."""
    weight: float = 1.0
    """Weight of this network's probability in the pack's score, a weighted mean."""
    has_softmax: bool = False
    """Whether the network returns probabilities; else it returns logits."""


@dataclass(frozen=True)
class LivenessPack:
    """Networks whose weighted mean probability of a live face is a face's liveness score, 0..1."""

    name: str
    networks: tuple[LivenessNetwork, ...]
    threshold: float
    """A face is live from this score on."""
    measured_on: str
    """The data on which the threshold was chosen."""
    summary: str
    terms: str = ""

    @property
    def files(self) -> tuple[ModelFile, ...]:
        return tuple(network.file for network in self.networks)


_SILENT_FACE = (
    "https://raw.githubusercontent.com/minivision-ai/Silent-Face-Anti-Spoofing/b6d5f04ad78778917853b25c778acef6d5626d15"
    "/resources/anti_spoof_models/"
)
_FACENOX = (
    "https://raw.githubusercontent.com/facenox/facenox/1c3592f01e63561e7af8eeb3f534e54b72f15475/server/assets/models/"
)


def _minifasnet(name: str, network: Network, sha256: str, size: int, crop_scale: float) -> LivenessNetwork:
    """Returns one of the two networks of Silent-Face-Anti-Spoofing. Upstream adds their probabilities."""
    return LivenessNetwork(
        ModelFile(
            name=name,
            network=network,
            licence="Apache-2.0",
            origin="Minivision, Silent-Face-Anti-Spoofing",
            sha256=sha256,
            size=size,
            url=_SILENT_FACE + name,
            input_size=80,
        ),
        crop_scale=crop_scale,
        border=Border.SHIFT,
        bgr=True,
        pixel_scale=1.0,  # divided by 255, every face is found to be an attack
        classes=3,
        live_class=1,
    )


MINIFASNET = LivenessPack(
    name="minifasnet",
    networks=(
        _minifasnet(
            "2.7_80x80_MiniFASNetV2.pth",
            Network.MINIFASNET_V2,
            "a5eb02e1843f19b5386b953cc4c9f011c3f985d0ee2bb9819eea9a142099bec0",
            1_849_453,
            crop_scale=2.7,
        ),
        _minifasnet(
            "4_0_0_80x80_MiniFASNetV1SE.pth",
            Network.MINIFASNET_V1SE,
            "84ee1d37d96894d5e82de5a57df044ef80a58be2b218b5ed7cdfd875ec2f5990",
            1_856_130,
            crop_scale=4.0,
        ),
        LivenessNetwork(
            ModelFile(
                name="liveness.onnx",
                network=Network.ONNX,
                licence="Apache-2.0",
                origin="Facenox, face-antispoof-onnx; MiniFASNetV2-SE at 128 pixels",
                sha256="af2381b88f38769222ed93379e12444e2a50814575de1c46170de570c55a42b6",
                size=1_912_594,
                url=_FACENOX + "liveness.onnx",
                input_size=128,
            ),
            crop_scale=1.5,
            border=Border.REFLECT,
            bgr=False,
            pixel_scale=1 / 255,
            classes=2,
            live_class=0,
            weight=2.0,  # as much as the other two together
        ),
    ),
    threshold=0.5,
    measured_on="400 press photos of LFW as live faces and 400 drawn attacks (`benchmarks/results/liveness.csv`)",
    summary="MiniFASNetV2, MiniFASNetV1SE and MiniFASNetV2-SE at 128 pixels; Apache-2.0, fit for commercial use",
)

BUILT_IN_LIVENESS = (MINIFASNET,)
