"""Scores how likely faces are live, with the networks of a liveness pack."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable
from indexer.models.liveness_packs import LivenessNetwork, LivenessPack
from indexer.models.model_files import ModelFiles
from indexer.types import Box, Pixels, Precision
from indexer.vision import runtime
from indexer.vision.liveness.crops import crop
from indexer.vision.runtime import Preprocessing, Session, Threads


class LivenessModel:
    """The networks of a liveness pack, loaded at first use. Thread-safe."""

    def __init__(self, pack: LivenessPack, files: ModelFiles, threads: Threads) -> None:
        self.pack = pack
        self._files = files
        self._threads = threads
        self._lock = threading.Lock()
        self._sessions: list[Session] | None = None

    def load(self) -> None:
        """Loads the networks. Raises ModelUnavailable if a file is missing, wrong, or not the described network."""
        self._load()

    def score(self, faces: Sequence[tuple[Pixels, Box]]) -> NDArray[np.float32]:
        """Returns the probability (N,) float32 that each face is live, 0..1.

        Args:
            faces: The whole image, (H, W, 3) RGB uint8, upright, and the face's box in its pixels, for each face. The
                networks were trained with boxes that end at the forehead and the chin.

        Raises ModelUnavailable.
        """
        networks = self.pack.networks
        scores = [
            _live_probabilities(network, session, faces)
            for network, session in zip(networks, self._load(), strict=True)
        ]
        weights = [network.weight for network in networks]
        return np.average(scores, axis=0, weights=weights).astype(np.float32)

    def _load(self) -> list[Session]:
        with self._lock:
            if self._sessions is None:
                self._sessions = [_load_session(network, self._files, self._threads) for network in self.pack.networks]
            return self._sessions


def _load_session(network: LivenessNetwork, files: ModelFiles, threads: Threads) -> Session:
    preprocessing = Preprocessing(scale=network.pixel_scale, bgr=network.bgr)
    engine = next(iter(runtime.engines(network.file.engines)), None)
    # In bfloat16, which OpenVINO would choose on some CPUs, scores differ by up to 0.05 from those in float32.
    session = runtime.load(files.prepared_model(network.file), preprocessing, Precision.FLOAT32, threads, engine)
    try:
        outputs = session.run(np.zeros((1, network.file.input_size, network.file.input_size, 3), np.uint8))
    except Exception as error:  # runtimes raise errors of their own
        raise ModelUnavailable(f"{network.file.name} does not run as a liveness network: {error}") from error
    shapes = [output.shape for output in outputs]
    if shapes != [(1, network.classes)]:
        raise ModelUnavailable(
            f"{network.file.name} returns arrays of the shapes {shapes}; expected one of (1, {network.classes}), a "
            "number for each class"
        )
    return session


def _live_probabilities(
    network: LivenessNetwork, session: Session, faces: Sequence[tuple[Pixels, Box]]
) -> NDArray[np.float32]:
    """Returns the network's probabilities (N,) of the live class."""
    found = np.empty(len(faces), np.float32)
    for start in range(0, len(faces), session.batch):
        part = faces[start : start + session.batch]
        crops = [crop(image, box, network.crop_scale, network.file.input_size, network.border) for image, box in part]
        (output,) = session.run(np.stack(crops))
        probabilities = output if network.has_softmax else _softmax(output)
        found[start : start + len(part)] = probabilities[:, network.live_class]
    return found


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the probabilities (N, classes) of logits (N, classes)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)
