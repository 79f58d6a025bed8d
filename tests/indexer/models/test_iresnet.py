"""ArcFace's networks compared with insightface's implementation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from indexer.models.architectures.iresnet import iresnet18, iresnet34, iresnet50, iresnet100
from tests.indexer.vision import golden


def test_parameters_equal_those_of_the_published_checkpoint() -> None:
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in iresnet50().state_dict().items()}
    assert ours == golden.shapes("ir50")


def test_embeddings_equal_those_of_insightface() -> None:
    expected = golden.outputs("ir50")["embedding"]
    crops = np.random.default_rng(7).integers(0, 256, (2, 112, 112, 3), np.uint8)
    fed = torch.tensor((crops / 255 - 0.5) / 0.5, dtype=torch.float32).permute(0, 3, 1, 2)
    assert np.abs(golden.fill(iresnet50())(fed).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("build", "millions"), [(iresnet18, 24.03), (iresnet34, 34.14), (iresnet50, 43.59), (iresnet100, 65.16)]
)
def test_each_depth_has_the_published_number_of_parameters(build: Callable[[], nn.Module], millions: float) -> None:
    with torch.device("meta"):
        network = build().eval()
        answer = network(torch.zeros(3, 3, 112, 112))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
    assert answer.shape == (3, 512)
