"""Measures calibrated thresholds: the FPIR observed with strangers for requests of 10, 3, 1, 0.3 and 0.1 %.

    python -m benchmarks.calibration [FOLDER]

Writes benchmarks/results/calibration.csv. Each draw halves the people of an LFW folder at random. The pack's statistics
are fitted on one half. Of the other half, some people are enrolled with one photo each, and the rest are strangers with
one photo each. Rates are observed on people who contribute to no other number of that draw; the constants of
`search_service/matching` were chosen on other draws of the same people. Kinds of galleries:

- lfw: random people;
- poor photos: every photo is reduced to 56 pixels and enlarged again;
- alike: the two fifths of the half that score highest against one person, a different one in each draw;
- twice: 3 % of the people are also enrolled under a second id, with another photo;
- 3 photos, 5 photos: of each enrolled person, scored together; such people are famous in LFW, and look more alike;
- unmeasured: lfw, with a pack that has borrowed statistics.

`pack` is the rate observed at the threshold of the pack's statistics alone, `gallery` at the gallery's own threshold;
both are means over the draws. `within` is the share of draws within half and double of the request. With the 580
strangers that a gallery of 860 leaves and a correct threshold, 1 % is 3 to 11 strangers in 91 of 100 draws.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import lfw, thresholds
from benchmarks.lfw import Cell, Embedded, Shot
from indexer.gallery.embeddings import FaceVectors
from indexer.models.packs import SFACE, UNMEASURED_TAIL, Pack
from indexer.types import Hit, Vectors
from indexer.vectors.flat import FlatIndex
from search_service.calibration.survey import one_face_per_person, strangers, survey
from search_service.candidates import SPARE
from search_service.matching import calibration
from search_service.matching.calibration import own_curve, threshold_for
from search_service.matching.fusion import Templates, rescore

FPIRS = (0.1, 0.03, 0.01, 0.003, 0.001)
SIZES = (30, 100, 300, 860)
UNMEASURED_SIZES = (50, 100, 300, 860)
LEAST_STRANGERS = 250
FIT_FMR = (1e-3, 2e-5)
"""A half has a million pairs, which cannot show rarer events."""
DRAWS = 40
ALIKE = 0.4
TWICE = 0.03
POOR_PIXELS, POOR_QUALITY = 56, 60
"""Width of a poor photo, whose face takes half of it, and its JPEG quality."""
FIRST_SEED = 5_000

People = NDArray[np.int64]
Random = np.random.Generator


@dataclass(frozen=True, eq=False)
class Photos:
    """Embeddings of one photo of each person, of that photo at lower quality, and of further photos."""

    first: Vectors
    """(P, D)."""
    others: dict[int, Vectors]
    """Further photos of the people who have several."""
    poor: Vectors
    """(P, D); zeros where no face was found."""


@dataclass(frozen=True, eq=False)
class Draw:
    """A gallery, its strangers, and the pack with statistics of other people."""

    gallery: Vectors
    owners: People
    """(N,) the person of each face, from 1."""
    strangers: Vectors
    pack: Pack


Chosen = tuple[Vectors, People, Vectors]
"""Returns the faces of a gallery, their people, and strangers."""
Choose = Callable[[Photos, People, int, Random], Chosen]
"""Draws a gallery of `people` people from a half."""


def main() -> None:
    shots = lfw.list_shots(lfw.arguments(__doc__).parse_args().folder)
    pipeline = lfw.load_pipeline(SFACE)
    data = lfw.embed(pipeline, shots)
    first = [data.shots[row] for row in np.unique(data.person, return_index=True)[1]]
    seen = lfw.describe_all(pipeline, (made_poor(shot) for shot in first), len(first))
    zero = np.zeros(SFACE.dim, np.float32)
    report(data, np.stack([one.faces[0].embedding if one.faces else zero for one in seen]))


def made_poor(shot: Shot) -> bytes:
    with Image.open(shot.path) as image:
        small = image.convert("RGB").resize((POOR_PIXELS, POOR_PIXELS), Image.Resampling.BILINEAR)
        file = io.BytesIO()
        small.resize(image.size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=POOR_QUALITY)
    return file.getvalue()


def report(data: Embedded, poor: Vectors) -> None:
    _, first = np.unique(data.person, return_index=True)
    several = {p: np.flatnonzero(data.person == p)[1:] for p in np.flatnonzero(np.bincount(data.person) > 1).tolist()}
    labelled = thresholds.impostors(data.vectors, data.person)
    two_names = thresholds.find_two_names(data, thresholds.fit(labelled), labelled.pairs)
    people = np.setdiff1d(np.arange(len(first)), [other for _, other in two_names])
    photos = Photos(data.vectors[first], {p: data.vectors[rows] for p, rows in several.items()}, poor)
    rows: list[dict[str, Cell]] = []
    calibration.LEAST_PEOPLE_UNMEASURED = min(UNMEASURED_SIZES)  # to see how many are needed
    for kind, choose in KINDS.items():
        for size in UNMEASURED_SIZES if kind == UNMEASURED else SIZES:
            print(f"{kind}, {size} people", file=sys.stderr, flush=True)
            draws = [draw(photos, people, choose, size, FIRST_SEED + number) for number in range(DRAWS)]
            full = [one for one in draws if one.owners.max() >= size and len(one.strangers) >= LEAST_STRANGERS]
            rows += observed(kind, size, full)
    lfw.write_results(lfw.RESULTS / "calibration.csv", rows)


def draw(photos: Photos, people: People, choose: Choose, size: int, seed: int) -> Draw:
    random = np.random.default_rng(seed)
    mixed = random.permutation(people)
    half = len(mixed) // 2
    return Draw(*choose(photos, mixed[:half], size, random), measured_on(photos.first[mixed[half:]]))


def measured_on(vectors: Vectors) -> Pack:
    """Returns the pack with the statistics of these people, as `benchmarks.thresholds` measures them."""
    scores = thresholds.impostors(vectors, np.arange(len(vectors)))
    before = tuple((rate, scores.cosine(rate)) for rate in (0.1, 0.01))
    return replace(SFACE, tail=replace(thresholds.fit(scores, FIT_FMR), before=before))


def one_each(vectors: Vectors, strangers: Vectors) -> Chosen:
    return vectors, np.arange(1, len(vectors) + 1), strangers


def anyone(photos: Photos, half: People, size: int, _: Random) -> Chosen:
    return one_each(photos.first[half[:size]], photos.first[half[size:]])


def with_photos(count: int) -> Choose:
    def several(photos: Photos, half: People, size: int, _: Random) -> Chosen:
        have = np.array([len(photos.others.get(p, ())) + 1 >= count for p in half.tolist()])
        people, others = half[have][:size], np.concatenate([half[have][size:], half[~have]])
        faces = [np.concatenate([photos.first[[p]], photos.others[p][: count - 1]]) for p in people.tolist()]
        return np.concatenate(faces), np.repeat(np.arange(1, len(people) + 1), count), photos.first[others]

    return several


def poor_photos(photos: Photos, half: People, size: int, _: Random) -> Chosen:
    there = half[np.any(photos.poor[half], axis=1)]
    return one_each(photos.poor[there[:size]], photos.poor[there[size:]])


def alike(photos: Photos, half: People, size: int, random: Random) -> Chosen:
    scores = photos.first[half] @ photos.first[random.choice(half)]
    nearest = random.permutation(half[np.argsort(-scores)[: int(ALIKE * len(half))]])
    return one_each(photos.first[nearest[:size]], photos.first[nearest[size:]])


def twice(photos: Photos, half: People, size: int, _: Random) -> Chosen:
    once, others = half[:size], half[size:]
    again = [photos.others[p][0] for p in once.tolist() if p in photos.others][: max(1, int(TWICE * size))]
    return one_each(np.concatenate([photos.first[once], np.stack(again)]), photos.first[others])


UNMEASURED = "unmeasured"
KINDS: dict[str, Choose] = {
    "lfw": anyone,
    "3 photos": with_photos(3),
    "5 photos": with_photos(5),
    "poor photos": poor_photos,
    "alike": alike,
    "twice": twice,
    UNMEASURED: anyone,
}


def observed(kind: str, size: int, draws: Sequence[Draw]) -> list[dict[str, Cell]]:
    """Returns a row for each requested FPIR, with the rates observed at the pack's and at the gallery's threshold."""
    if not draws:
        return []
    answers = [answer(one, kind != UNMEASURED) for one in draws]
    rates = np.array([[one.pack, one.gallery] for one in answers])  # (draws, 2, FPIRS)
    rows: list[dict[str, Cell]] = []
    for i, fpir in enumerate(FPIRS):
        row: dict[str, Cell] = {"kind": kind, "people": size, "draws": len(draws), "fpir_requested": fpir}
        for name, found in zip(("pack", "gallery"), rates[:, :, i].T, strict=True):
            row |= {name: float(found.mean()), f"{name}_sd": float(found.std())}
            row[f"{name}_within"] = float(((found >= fpir / 2) & (found <= fpir * 2)).mean())
        row["threshold_minus_pack"] = float(np.mean([one.moved[i] for one in answers]))
        row["duplicates_found"] = float(np.mean([one.duplicates for one in answers]))
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Observed:
    """Returns the observed rates of one draw for each requested FPIR."""

    pack: list[float]
    gallery: list[float]
    moved: list[float]
    duplicates: int


def answer(one: Draw, measured: bool) -> Observed:
    faces, people = len(one.gallery), int(one.owners.max())
    all_faces = FaceVectors(np.arange(1, faces + 1), one.owners, one.gallery)
    index = FlatIndex(one.gallery.shape[1])
    index.put(all_faces.face_ids, all_faces.identity_ids, one.gallery)
    templates = Templates(one.owners, one.gallery)
    pack = one.pack if measured else replace(one.pack, measured=False, tail=UNMEASURED_TAIL)

    def nearest(probes: Vectors, k: int) -> list[list[Hit]]:
        return rescore(index.nearest_identities(probes, k), probes, templates, pack.same_threshold)

    found = survey(nearest, one_face_per_person(all_faces, people), people, faces)
    scores = strangers(found, pack)
    best = np.array([hits[0].score for hits in nearest(one.strangers, SPARE + 1)])
    curve = own_curve(scores.best, found.compared, found.total, pack.tail, measured) or pack.tail
    comparisons = faces if curve is pack.tail else 1
    by_pack = [threshold_for(fpir, faces, pack.tail) for fpir in FPIRS]
    own = [threshold_for(fpir, comparisons, curve) for fpir in FPIRS]
    return Observed(
        [float((best >= cosine).mean()) for cosine in by_pack],
        [float((best >= cosine).mean()) for cosine in own],
        [a - b for a, b in zip(own, by_pack, strict=True)],
        len(scores.duplicates),
    )


if __name__ == "__main__":
    main()
