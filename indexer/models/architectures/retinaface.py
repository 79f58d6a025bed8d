"""RetinaFace (Deng et al. 2020, https://arxiv.org/abs/1905.00641) on a ResNet-50.

The parameter names, inconsistent as they are (`conv7X7_2`, `conv7x7_3`, `ClassHead`), are those of biubug6's
`Pytorch_Retinaface`, so that its checkpoints, and ModelScope's, load unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as PyTorch's own documentation

ANCHORS = 2
"""Anchors in each cell."""
_WIDTH = 256
"""Channels of the feature pyramid."""


class RetinaFaceNetwork(nn.Module):
    """Maps (N, 3, H, W) float32 BGR minus (104, 117, 123), H and W multiples of 32, to predictions for K priors.

    They are boxes (N, K, 4), probabilities of no face and of a face (N, K, 2), and landmarks (N, K, 10). Boxes and
    landmarks are offsets from the prior.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = _Body()
        self.fpn = _Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = _Context(), _Context(), _Context()
        self.ClassHead = _heads(2)
        self.BboxHead = _heads(4)
        self.LandmarkHead = _heads(10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = self.fpn(*self.body(x))
        levels = [self.ssh1(fine), self.ssh2(middle), self.ssh3(coarse)]
        boxes, classes, landmarks = (
            torch.cat([head(level) for head, level in zip(heads, levels, strict=True)], dim=1)
            for heads in (self.BboxHead, self.ClassHead, self.LandmarkHead)
        )
        return boxes, F.softmax(classes, dim=-1), landmarks


class _Bottleneck(nn.Module):
    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        outer = 4 * width
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.downsample: nn.Module | None = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class _Body(nn.Module):
    """ResNet-50 (He et al. 2015, with torchvision's stride in the 3 x 3 convolution).

    Returns the outputs of its last three layers, whose strides are 8, 16 and 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(64, 64, 3, stride=1)
        self.layer2 = _layer(256, 128, 4, stride=2)
        self.layer3 = _layer(512, 256, 6, stride=2)
        self.layer4 = _layer(1024, 512, 3, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        fine = self.layer2(self.layer1(x))
        middle = self.layer3(fine)
        return fine, middle, self.layer4(middle)


class _Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output1 = _convolution(512, _WIDTH, kernel=1)
        self.output2 = _convolution(1024, _WIDTH, kernel=1)
        self.output3 = _convolution(2048, _WIDTH, kernel=1)
        self.merge1 = _convolution(_WIDTH, _WIDTH)
        self.merge2 = _convolution(_WIDTH, _WIDTH)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coarse = self.output3(coarse)
        # Each level is exactly twice as large as the next because the sides are multiples of 32.
        middle = self.merge2(self.output2(middle) + F.interpolate(coarse, scale_factor=2.0))
        fine = self.merge1(self.output1(fine) + F.interpolate(middle, scale_factor=2.0))
        return fine, middle, coarse


class _Context(nn.Module):
    """The context module of SSH (Najibi et al. 2017): receptive fields of 3, 5 and 7 cells from 3 x 3 kernels."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter = _WIDTH // 2, _WIDTH // 4
        self.conv3X3 = _convolution(_WIDTH, half, relu=False)
        self.conv5X5_1 = _convolution(_WIDTH, quarter)
        self.conv5X5_2 = _convolution(quarter, quarter, relu=False)
        self.conv7X7_2 = _convolution(quarter, quarter)
        self.conv7x7_3 = _convolution(quarter, quarter, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        five = self.conv5X5_1(x)
        seven = self.conv7x7_3(self.conv7X7_2(five))
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(five), seven], dim=1))


class _Head(nn.Module):
    def __init__(self, values: int) -> None:
        super().__init__()
        self._values = values
        self.conv1x1 = nn.Conv2d(_WIDTH, ANCHORS * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, channels, rows, columns) to (N, rows * columns * ANCHORS, values)."""
        cells: Tensor = self.conv1x1(x).permute(0, 2, 3, 1)
        return cells.reshape(cells.shape[0], -1, self._values)


def _heads(values: int) -> nn.ModuleList:
    """Returns one head for each level."""
    return nn.ModuleList(_Head(values) for _ in range(3))


def _layer(inner: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Bottleneck(inner, width, stride)
    return nn.Sequential(first, *(_Bottleneck(4 * width, width, stride=1) for _ in range(blocks - 1)))


def _convolution(inner: int, outer: int, kernel: int = 3, relu: bool = True) -> nn.Sequential:
    """Uses ReLU because the original's LeakyReLU has a slope of 0 at this width."""
    parts = [nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outer)]
    return nn.Sequential(*parts, nn.ReLU()) if relu else nn.Sequential(*parts)
