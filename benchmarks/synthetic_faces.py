"""Synthetic embeddings whose scores are distributed as those of real faces, for galleries larger than LFW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks import thresholds
from benchmarks.lfw import Cell, Embedded
from indexer.types import Vectors, normalize

PHOTOS = 2
"""Faces of each person in a synthetic gallery."""

CHUNK = 20_000
"""People generated at a time."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Measured:
    """Real embeddings and the distribution of their scores."""

    people: Vectors
    """(M, D) one face of each person."""
    mates: NDArray[np.float64]
    """Cosines of each further photo with its person's first photo, ascending."""
    strangers: thresholds.Impostors
    data: Embedded


@dataclass(frozen=True, eq=False)
class Group:
    """People who look alike, as a normal distribution: its mean (D,), and the factor (D, D) of its covariance."""

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]


class Population:
    """Generates people whose scores are distributed as those of real people.

    k-means divides real people into GROUPS of lookalikes. Each group is a normal distribution with its mean and
    covariance (shrunk towards the common one by SHRINK, because groups are small), projected to the sphere. The groups
    give strangers the heavy tail that a uniform distribution lacks. For more dimensions than were measured, the groups
    are embedded in a random subspace, and a share FLOOR of the variance is distributed evenly over all dimensions.
    Strangers would then score too evenly, so the eigenvalues of each group are raised to a power such that one pair of
    strangers in a thousand reaches the same cosine as among real people.

    A mate is its person's face rotated towards another face of the group, to a cosine drawn from the measured ones.
    """

    GROUPS = 8
    SHRINK = 0.1
    FLOOR = 0.2
    FIT_PEOPLE = 4_000

    def __init__(self, measured: Measured, dim: int) -> None:
        self.dim = dim
        self._mates = measured.mates
        people = measured.people.astype(np.float64)
        kmeans = faiss.Kmeans(people.shape[1], self.GROUPS, seed=1)
        kmeans.train(measured.people)
        self._nearest = kmeans.index
        member = self.groups_of(measured.people)
        self._shares = np.bincount(member, minlength=self.GROUPS) / len(member)
        common = np.cov(people.T)
        self._moments = [
            (some.mean(axis=0), (1 - self.SHRINK) * np.cov(some.T) + self.SHRINK * common)
            for some in (people[member == group] for group in range(self.GROUPS))
        ]
        self.power = 1.0 if dim == people.shape[1] else self._fit_power(measured.strangers.cosine(1e-3))
        self._groups = self._make_groups(self.power)

    def groups_of(self, faces: Vectors) -> Ids:
        """Returns the groups (N,) of faces (N, D) in the measured dimension."""
        groups: Ids = self._nearest.search(faces, 1)[1][:, 0]
        return groups

    def people(self, count: int, rng: np.random.Generator) -> tuple[Vectors, Ids]:
        """Returns one face each (N, D) of `count` people, and their groups (N,)."""
        groups = rng.choice(self.GROUPS, count, p=self._shares)
        return self._draw(groups, np.ones(count, np.float32), rng), groups

    def photos(
        self, faces: Vectors, groups: Ids, rng: np.random.Generator, cosines: NDArray[np.float64] | None = None
    ) -> Vectors:
        """Returns another photo of each face, both (N, D), at `cosines` (N,) or at measured ones."""
        if cosines is None:
            cosines = np.interp(rng.random(len(faces)), np.linspace(0, 1, len(self._mates)), self._mates)
        near = cosines.astype(np.float32)
        # With this share of the mean in the orthogonal part, the photo has as much of the mean as any face.
        aside = self._draw(groups, np.sqrt((1 - near) / (1 + near)), rng)
        aside -= np.einsum("nd,nd->n", aside, faces)[:, None] * faces
        photos = near[:, None] * faces + np.sqrt(1 - near**2)[:, None] * normalize(aside)
        return normalize(photos.astype(np.float32))

    def _draw(self, groups: Ids, means: NDArray[np.float32], rng: np.random.Generator) -> Vectors:
        """Draws a face from each group (N,), with `means` (N,) times the mean of the group."""
        drawn = np.empty((len(groups), self.dim), np.float32)
        for number, group in enumerate(self._groups):
            rows = np.flatnonzero(groups == number)
            noise = rng.standard_normal((len(rows), self.dim), dtype=np.float32)
            drawn[rows] = means[rows, None] * group.mean + noise @ group.spread
        return normalize(drawn)

    def _fit_power(self, cosine: float) -> float:
        low, high = 1.0, 4.0
        for _ in range(8):
            self._groups = self._make_groups((low + high) / 2)
            people, _ = self.people(self.FIT_PEOPLE, np.random.default_rng(2))
            reached = thresholds.impostors(people, np.arange(len(people))).cosine(1e-3)
            low, high = ((low + high) / 2, high) if reached < cosine else (low, (low + high) / 2)
        return (low + high) / 2

    def _make_groups(self, power: float) -> list[Group]:
        measured = len(self._moments[0][0])
        subspace = np.linalg.qr(np.random.default_rng(3).standard_normal((self.dim, measured)))[0]
        if self.dim == measured:
            subspace = np.eye(measured)
        return [self._make_group(mean, covariance, subspace, power) for mean, covariance in self._moments]

    def _make_group(
        self, mean: NDArray[np.float64], covariance: NDArray[np.float64], subspace: NDArray[np.float64], power: float
    ) -> Group:
        values, axes = np.linalg.eigh(covariance)
        total = float(values.sum())
        sharp = values**power * (total / (values**power).sum())
        floor = self.FLOOR if self.dim > len(mean) else 0.0
        lifted = subspace @ (axes * sharp) @ axes.T @ subspace.T
        whole = (1 - floor) * lifted + floor * total / self.dim * np.eye(self.dim)
        spread = np.linalg.cholesky(whole).T
        return Group((subspace @ mean).astype(np.float32), np.ascontiguousarray(spread, dtype=np.float32))


def measure(data: Embedded) -> Measured:
    labelled = thresholds.impostors(data.vectors, data.person)
    two_names = thresholds.find_two_names(data, thresholds.fit(labelled), labelled.pairs)
    first = np.unique(data.person, return_index=True)[1]
    others = np.setdiff1d(np.arange(len(data.person)), first)
    mates = np.einsum("nd,nd->n", data.vectors[others], data.vectors[first[data.person[others]]])
    strangers = thresholds.impostors(data.vectors, data.person, two_names)
    return Measured(data.vectors[first], np.sort(mates).astype(np.float64), strangers, data)


def make_vectors(population: Population, faces: int) -> tuple[Vectors, Ids]:
    """Returns PHOTOS adjacent faces of each person, (N, D), and their groups (N,)."""
    rng = np.random.default_rng(population.dim)
    vectors = np.empty((faces, population.dim), np.float32)
    groups = np.empty(faces, np.int64)
    for start in range(0, faces, CHUNK * PHOTOS):
        people, of = population.people(min(CHUNK, (faces - start) // PHOTOS), rng)
        part = slice(start, start + PHOTOS * len(people))
        vectors[part][::PHOTOS] = people
        for photo in range(1, PHOTOS):
            vectors[part][photo::PHOTOS] = population.photos(people, of, rng)
        groups[part] = np.repeat(of, PHOTOS)
    return vectors, groups


def spread_rows(measured: Measured, populations: Sequence[Population]) -> list[dict[str, Cell]]:
    """Returns the same quantiles for real and synthetic embeddings."""
    columns = {"measured": _spread_of_real(measured)} | {
        f"synthetic_{population.dim}": _spread_of_synthetic(population, len(measured.people))
        for population in populations
    }
    return [
        {"table": "spread", "what": what, **{name: column[what] for name, column in columns.items()}}
        for what in columns["measured"]
    ]


def _spread_of_real(measured: Measured) -> dict[str, float]:
    return _stranger_quantiles("faces of strangers", measured.strangers) | _mate_quantiles(measured.mates)


def _spread_of_synthetic(population: Population, people: int) -> dict[str, float]:
    rng = np.random.default_rng(11)
    faces, groups = population.people(2 * people, rng)
    photos = population.photos(faces, groups, rng)
    mates = np.sort(np.einsum("nd,nd->n", faces, photos)).astype(np.float64)
    # Half of them are derived photos, as probes are: they must score with strangers as faces do.
    both = np.concatenate([faces[::2], photos[1::2]])
    return _stranger_quantiles(
        "faces of strangers", thresholds.impostors(both, np.arange(len(both), dtype=np.int64))
    ) | _mate_quantiles(mates)


def _stranger_quantiles(what: str, scores: thresholds.Impostors) -> dict[str, float]:
    return {f"{what}, FMR {rate:g}": scores.cosine(rate) for rate in (0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)}


def _mate_quantiles(mates: NDArray[np.float64]) -> dict[str, float]:
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    quantiles = {f"mates, quantile {share:g}": float(np.quantile(mates, share)) for share in shares}
    return quantiles | {"mates, mean": float(mates.mean()), "mates, sd": float(mates.std())}
