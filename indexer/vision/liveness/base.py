"""Scores how likely faces are live, with the networks of a liveness pack."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ModelUnavailable, RejectedImage
from indexer.models.liveness_packs import LivenessNetwork, LivenessPack
from indexer.models.model_files import ModelFiles
from indexer.rounding import decimals, reaches
from indexer.slices import end_slice
from indexer.types import Box, Liveness, Pixels, Precision, Reason
from indexer.vision import runtime
from indexer.vision.liveness.crops import crop
from indexer.vision.runtime import Preprocessing, Session, Tensor, Threads


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

    def assess(self, faces: Sequence[tuple[Pixels, Box]]) -> list[Liveness]:
        """Returns whether each face is live, by the pack's threshold. Takes and raises what `score` does."""
        name, threshold = self.pack.name, self.pack.threshold
        return [Liveness(score, reaches(score, threshold), name, threshold) for score in self.score(faces).tolist()]

    def _load(self) -> list[Session]:
        with self._lock:
            if self._sessions is None:
                self._sessions = [_load_session(network, self._files, self._threads) for network in self.pack.networks]
            return self._sessions


@dataclass(frozen=True)
class LivenessCheck:
    """A check of an image's faces for presentation attacks."""

    model: LivenessModel
    is_required: bool = False
    """Whether the quality gate rejects faces that are not live."""

    def rejection(self, liveness: Liveness) -> RejectedImage | None:
        """Returns why a face may not be enrolled; None if it may."""
        if liveness.live or not self.is_required:
            return None
        places = decimals(liveness.score, liveness.threshold, 2)
        return RejectedImage(
            f"the face does not seem to be live: its score is {liveness.score:.{places}f}; "
            f"expected {liveness.threshold:.{places}f} or more",
            code=Reason.NOT_LIVE,
        )


def check_pack(pack: LivenessPack, files: ModelFiles) -> LivenessPack:
    """Runs each network of a pack once and returns the pack with their numbers of classes. Raises ModelUnavailable."""
    networks = []
    for network in pack.networks:
        outputs = _run_once(network, _open_session(network, files, Threads()))
        if len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[1] <= max(1, network.live_class):
            shapes = [output.shape for output in outputs]
            raise ModelUnavailable(
                f"{network.file.name} returns arrays of the shapes {shapes}; expected one of (1, N), a number for each "
                f"of two or more classes, with the live class {network.live_class}"
            )
        networks.append(replace(network, classes=outputs[0].shape[1]))
    return replace(pack, networks=tuple(networks))


def _load_session(network: LivenessNetwork, files: ModelFiles, threads: Threads) -> Session:
    session = _open_session(network, files, threads)
    shapes = [output.shape for output in _run_once(network, session)]
    if shapes != [(1, network.classes)]:
        raise ModelUnavailable(
            f"{network.file.name} returns arrays of the shapes {shapes}; expected one of (1, {network.classes}), a "
            "number for each class"
        )
    return session


def _open_session(network: LivenessNetwork, files: ModelFiles, threads: Threads) -> Session:
    preprocessing = Preprocessing(scale=network.pixel_scale, bgr=network.bgr)
    engine = next(iter(runtime.engines(network.file.engines)), None)
    # In bfloat16, which OpenVINO would choose on some CPUs, scores differ by up to 0.05 from those in float32.
    return runtime.load(files.prepared_model(network.file), preprocessing, Precision.FLOAT32, threads, engine)


def _run_once(network: LivenessNetwork, session: Session) -> list[Tensor]:
    """Returns the outputs for a black crop. Raises ModelUnavailable."""
    try:
        return session.run(np.zeros((1, network.file.input_size, network.file.input_size, 3), np.uint8))
    except Exception as error:  # runtimes raise errors of their own
        raise ModelUnavailable(f"{network.file.name} does not run as a liveness network: {error}") from error


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
        end_slice()
    return found


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the probabilities (N, classes) of logits (N, classes)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)
