"""The ResNets of ArcFace (Deng et al. 2019, https://arxiv.org/abs/1801.07698).

The parameter names are those of `iresnet.py` in insightface's `arcface_torch`, so that its checkpoints load unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DIM = 512
_CHANNELS = (64, 128, 256, 512)
_LAST_SIDE = 7
"""Side of the last feature map: 112 pixels halved four times."""


class _Block(nn.Module):
    """ArcFace's block: batch normalization before the first convolution and no activation after the sum."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.prelu = nn.PReLU(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.downsample: nn.Module | None = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Maps (N, 3, 112, 112) float32 RGB, (x / 255 - 0.5) / 0.5, to (N, DIM) embeddings that are not normalized."""

    def __init__(self, blocks: tuple[int, int, int, int]) -> None:
        """Builds four layers of so many blocks."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, _CHANNELS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_CHANNELS[0])
        self.prelu = nn.PReLU(_CHANNELS[0])
        inner = (_CHANNELS[0], *_CHANNELS)
        self.layer1, self.layer2, self.layer3, self.layer4 = map(_layer, inner, _CHANNELS, blocks)
        self.bn2 = nn.BatchNorm2d(_CHANNELS[-1])
        self.fc = nn.Linear(_CHANNELS[-1] * _LAST_SIDE**2, DIM)
        self.features = nn.BatchNorm1d(DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        embeddings: Tensor = self.features(self.fc(torch.flatten(self.bn2(x), 1)))
        return embeddings


def _layer(inner: int, outer: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(inner, outer, stride=2), *(_Block(outer, outer, stride=1) for _ in range(blocks - 1)))


def iresnet18() -> IResNet:
    return IResNet((2, 2, 2, 2))


def iresnet34() -> IResNet:
    return IResNet((3, 4, 6, 3))


def iresnet50() -> IResNet:
    return IResNet((3, 4, 14, 3))


def iresnet100() -> IResNet:
    return IResNet((3, 13, 30, 3))
