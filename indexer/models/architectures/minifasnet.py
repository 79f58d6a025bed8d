"""MiniFASNet, a small network for presentation attack detection, from Minivision's Silent-Face-Anti-Spoofing.

The parameter names and widths are those of `src/model_lib/MiniFASNet.py` in
https://github.com/minivision-ai/Silent-Face-Anti-Spoofing, so that its checkpoints load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

INPUT_SIZE = 80
CLASSES = 3
_EMBEDDING = 128
_LAST_SIDE = 5
"""Side of the last feature map: 80 pixels halved four times."""
_SQUEEZE = 4
"""How much narrower the hidden layer of `_Attention` is than its input."""


class _Convolution(nn.Module):
    """A convolution without bias, batch normalization and PReLU."""

    def __init__(self, inner: int, outer: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outer)
        self.prelu = nn.PReLU(outer)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.prelu(self.bn(self.conv(x)))
        return y


class _Linear(nn.Module):
    """A convolution without bias, and batch normalization."""

    def __init__(self, inner: int, outer: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


class _Attention(nn.Module):
    """Weights the channels by their means (squeeze and excitation, Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // _SQUEEZE
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        weights = self.bn2(self.fc2(torch.relu(self.bn1(self.fc1(means)))))
        return x * torch.sigmoid(weights)


class _Block(nn.Module):
    """Widens the channels to `width`, convolves each one, and narrows them; `stride` 1 adds the input."""

    def __init__(self, inner: int, outer: int, width: int, stride: int = 1, *, attention: bool = False) -> None:
        super().__init__()
        self.conv = _Convolution(inner, width)
        self.conv_dw = _Convolution(width, width, kernel=3, stride=stride, groups=width)
        self.project = _Linear(width, outer)
        if attention:
            self.se_module = _Attention(outer)
        self._attention, self._adds_input = attention, stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.conv_dw(self.conv(x)))
        if self._attention:
            y = self.se_module(y)
        return x + y if self._adds_input else y


class _Stage(nn.Module):
    """Blocks of equal size; with `attention`, the last one has it."""

    def __init__(self, channels: int, widths: Sequence[int], *, attention: bool) -> None:
        super().__init__()
        last = len(widths) - 1
        blocks = (_Block(channels, channels, w, attention=attention and i == last) for i, w in enumerate(widths))
        self.model = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


class MiniFASNet(nn.Module):
    """Maps (N, 3, 80, 80) float32 BGR, 0..255, to logits (N, 3); index 1 is a live face."""

    def __init__(self, widths: tuple[Sequence[int], Sequence[int], Sequence[int]], *, attention: bool) -> None:
        """Builds the network with the widths of the blocks of its three stages."""
        super().__init__()
        self.conv1 = _Convolution(3, 32, kernel=3, stride=2)
        self.conv2_dw = _Convolution(32, 32, kernel=3, groups=32)
        self.conv_23 = _Block(32, 64, 103, stride=2)
        self.conv_3 = _Stage(64, widths[0], attention=attention)
        self.conv_34 = _Block(64, 128, 231, stride=2)
        self.conv_4 = _Stage(128, widths[1], attention=attention)
        self.conv_45 = _Block(128, 128, 308, stride=2)
        self.conv_5 = _Stage(128, widths[2], attention=attention)
        self.conv_6_sep = _Convolution(128, 512)
        self.conv_6_dw = _Linear(512, 512, kernel=_LAST_SIDE, groups=512)
        self.linear = nn.Linear(512, _EMBEDDING, bias=False)
        self.bn = nn.BatchNorm1d(_EMBEDDING)
        self.prob = nn.Linear(_EMBEDDING, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_23(self.conv2_dw(self.conv1(x)))
        x = self.conv_34(self.conv_3(x))
        x = self.conv_45(self.conv_4(x))
        x = self.conv_6_dw(self.conv_6_sep(self.conv_5(x)))
        logits: Tensor = self.prob(self.bn(self.linear(torch.flatten(x, 1))))
        return logits


def minifasnet_v2() -> MiniFASNet:
    return MiniFASNet(((13, 13, 13, 13), (231, 52, 26, 77, 26, 26), (26, 26)), attention=False)


def minifasnet_v1se() -> MiniFASNet:
    return MiniFASNet(((13, 26, 13, 52), (154, 52, 26, 52, 26, 26), (26, 26)), attention=True)
