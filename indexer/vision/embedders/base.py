"""What every embedder offers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.types import Vectors


class Embedder(Protocol):
    dim: int

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        """(N, 112, 112, 3) RGB uint8 -> (N, dim) float32 of unit length."""
        ...
