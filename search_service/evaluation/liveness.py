"""Measures presentation attack detection on labeled photos, with the error rates of ISO/IEC 30107-3."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from indexer.app_context import AppContext
from indexer.enrollment.containers import Reader, folder_container
from indexer.enrollment.reading import detect_or_reject
from indexer.errors import InvalidRequest, RejectedImage
from indexer.models.liveness_packs import LivenessPack
from indexer.types import Pick
from indexer.vision.liveness.base import LivenessCheck, LivenessModel
from indexer.vision.pipeline import FacePipeline
from indexer.vision.runtime import Threads
from search_service.evaluation.metrics import Estimate
from search_service.evaluation.mistakes import SHOWN, portrait

LIVE_FOLDER = "live"
ATTACK_FOLDER = "attack"

NORMAL_QUANTILE = NormalDist().inv_cdf(0.975)
"""Of the normal distribution, for intervals of 95 %."""


@dataclass(frozen=True)
class Presentation:
    """One photo of a person, or of an attack of some species."""

    image: str
    """Relative to the folder."""
    species: str | None
    """None for a live person."""
    score: float | None
    """P(live), 0..1; None if no face was found."""
    reason: str | None = None
    """Why the photo could not be scored."""


@dataclass(frozen=True)
class Share:
    """A share of photos."""

    errors: int
    total: int

    @property
    def value(self) -> float:
        return self.errors / self.total

    @property
    def estimate(self) -> Estimate:
        """The share with its interval after Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953."""
        z2, n, p = NORMAL_QUANTILE**2, self.total, self.value
        middle, half = p + z2 / (2 * n), NORMAL_QUANTILE * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return Estimate(p, max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n)))


@dataclass(frozen=True)
class LivenessEvaluation:
    """The result. Photos without a score count in no rate."""

    model: str
    threshold: float
    wanted_bpcer: float | None
    """The BPCER for which the threshold was chosen on these photos; None for the threshold of the pack."""
    presentations: Sequence[Presentation]
    apcer: dict[str, Share]
    """Share of the attacks of each species that are accepted as live."""
    bpcer: Share
    """Share of live faces that are refused as attacks."""
    accepted_attacks: Sequence[tuple[Presentation, bytes]]
    """The attacks with the highest scores, each with a JPEG."""
    refused_faces: Sequence[tuple[Presentation, bytes]]
    """The live faces with the lowest scores, each with a JPEG."""

    @property
    def worst_species(self) -> str:
        """The species with the highest APCER, which ISO/IEC 30107-3 reports for a system."""
        return max(self.apcer, key=lambda species: self.apcer[species].value)


@dataclass(frozen=True)
class LabeledPhoto:
    """A photo of a live person, or of an attack."""

    image: str
    species: str | None
    read: Reader


def find_photos(folder: Path) -> list[LabeledPhoto]:
    """Returns the photos of a folder with their labels.

    Raises:
        InvalidRequest: There is no `live` or no `attack/SPECIES` folder with photos.
    """
    found = []
    for name, read in folder_container(folder).photos():
        top, *inner = name.split("/")
        if top == LIVE_FOLDER and inner:
            found.append(LabeledPhoto(name, None, read))
        elif top == ATTACK_FOLDER and len(inner) > 1:
            found.append(LabeledPhoto(name, inner[0], read))
    species = {photo.species for photo in found}
    if None not in species or len(species) == 1:
        raise InvalidRequest(
            f"{folder} has no photos of {'live people' if None not in species else 'attacks'}; expected "
            f"{LIVE_FOLDER}/*.jpg and {ATTACK_FOLDER}/SPECIES/*.jpg, for example {ATTACK_FOLDER}/print/1.jpg"
        )
    return found


def threshold_for_bpcer(scores: Sequence[float], bpcer: float) -> float:
    """Returns the highest threshold below which at most the share `bpcer` of live `scores` lies."""
    ordered = sorted(scores)
    return ordered[min(len(ordered) - 1, int(bpcer * len(ordered) + 1e-9))]


def evaluate_liveness(
    context: AppContext,
    pack: LivenessPack,
    folder: Path,
    wanted_bpcer: float | None,
    progress: Callable[[int, int, str], None],
) -> LivenessEvaluation:
    """Scores the largest face of each photo.

    Raises:
        InvalidRequest: The folder has no labeled photos, or no photo of a kind has a face.
        ModelUnavailable: The networks cannot be loaded.
    """
    photos = find_photos(folder)
    scorer = _Scorer(context, pack, photos)
    presentations = []
    for photo in photos:
        presentations.append(scorer.present(photo))
        progress(len(presentations), len(photos), "")
    live = [one for one in presentations if one.species is None and one.score is not None]
    attacks = [one for one in presentations if one.species is not None and one.score is not None]
    if not live or not attacks:
        missing = "attack" if live else "live person"
        raise InvalidRequest(f"no face was found in any photo of {'an' if live else 'a'} {missing} in {folder}")
    threshold = pack.threshold
    if wanted_bpcer is not None:
        threshold = threshold_for_bpcer([_score(one) for one in live], wanted_bpcer)
    return LivenessEvaluation(
        pack.name,
        threshold,
        wanted_bpcer,
        presentations,
        _apcer(attacks, threshold),
        Share(sum(_score(one) < threshold for one in live), len(live)),
        scorer.pictures(sorted(attacks, key=_score, reverse=True)),
        scorer.pictures(sorted(live, key=_score)),
    )


def _apcer(attacks: Sequence[Presentation], threshold: float) -> dict[str, Share]:
    shares = {}
    for species in sorted({one.species or "" for one in attacks}):
        scores = np.array([_score(one) for one in attacks if one.species == species])
        shares[species] = Share(int((scores >= threshold).sum()), len(scores))
    return shares


def _score(presentation: Presentation) -> float:
    assert presentation.score is not None  # noqa: S101 - only photos with a face are compared
    return presentation.score


class _Scorer:
    """Reads, detects and scores the photos of a folder, as searches do."""

    def __init__(self, context: AppContext, pack: LivenessPack, photos: Sequence[LabeledPhoto]) -> None:
        self._settings = context.settings
        self._pipeline: FacePipeline = context.pipeline(context.pack)
        self._check = LivenessCheck(LivenessModel(pack, context.files, Threads(1, context.cores)))
        self._readers = {photo.image: photo.read for photo in photos}

    def present(self, labeled: LabeledPhoto) -> Presentation:
        name, species = labeled.image, labeled.species
        try:
            data = labeled.read(self._settings.max_image_bytes)
        except RejectedImage as rejection:
            return Presentation(name, species, None, str(rejection.code))
        (result,) = detect_or_reject(self._pipeline, [data], Pick.LARGEST, self._check)
        if result.rejection is not None:
            return Presentation(name, species, None, str(result.rejection.code))
        liveness = result.faces[0].liveness
        return Presentation(name, species, None if liveness is None else liveness.score)

    def pictures(self, presentations: Sequence[Presentation]) -> list[tuple[Presentation, bytes]]:
        pictures = []
        for one in presentations[:SHOWN]:
            data = self._readers[one.image](self._settings.max_image_bytes)
            (result,) = self._pipeline.detect([data], Pick.LARGEST)
            pictures.append((one, portrait(data, self._settings.max_image_pixels, result.faces[0])))
        return pictures
