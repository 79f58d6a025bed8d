"""What other ways to place landmarks, cut crops, average and centre embeddings are worth, all over the same photos.

    python -m benchmarks.variants [FOLDER] [--cache FOLDER] [--center FILE]

The open-set protocol of LFW over embeddings, without the quality gate. What is learned (a mean embedding, a
covariance) is learned on one half of the people and measured on the other, both ways, over HALVINGS random halvings.
`half_` columns are the mean over the halves, in galleries of 430 people that enrol a random photo of each, DRAWS of
them a half; `change_` is the mean difference to `as it was` in the same galleries, `sd` how much that scatters over the
halvings. `whole_` columns are over everybody at once as the protocol says (860 enrolled with their first photo), with
what was learned of everybody: compare them with `accuracy.csv`. FNMR is over all pairs of photos of one half, a
person's pairs counting as one. `detections` and `embeddings` are runs of the networks a face: squares at a second look,
of 320 pixels where nothing else is said, and crops.

`--center` writes the file that `packs.Center` describes. `--cache` keeps landmarks and embeddings for the next run.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import lfw, looks
from benchmarks.lfw import Cell, OpenSet, Shot, say
from indexer.models.packs import SFACE
from indexer.types import CROP_SIZE, Box, Detection, Pick, Pixels, Vectors, normalize
from indexer.vision import detection, quality
from indexer.vision.align import TEMPLATE, align, similarity
from indexer.vision.decode import Limits, Photo, decode
from indexer.vision.detection import Seek
from indexer.vision.detectors.base import Detector
from indexer.vision.embedders.base import Embedder
from indexer.vision.pipeline import FIRST_SIDE, choose

HALVINGS = 6
DRAWS = 3
FPIRS = (0.1, 0.03, 0.01)
FMRS = (1e-4, 1e-5)
BINS = 20_000
AT_ONCE = 64
"""Photos at a time."""
Item = TypeVar("Item")

Points = NDArray[np.float32]
"""(M, 5, 2) landmarks in pixels of the photos."""
Raw = NDArray[np.float32]
"""(M, 2, D): what the network answers for a crop and for its mirror image."""


@dataclass(frozen=True)
class Look:
    """A way to look at a face again."""

    face: int = detection.LOOK_FACE
    """Pixels across, in a square of `side`."""
    side: int = detection.LOOK_SIDE
    mirror: bool = False
    """At the mirrored face."""
    upright: bool = False
    """The face turned upright and scaled by its landmarks, not cut out by its box."""


LOOKS: Mapping[str, Look] = {
    "200": Look(),
    "160": Look(160),
    "240": Look(240),
    "200m": Look(mirror=True),
    "upright": Look(upright=True),
    "upright m": Look(upright=True, mirror=True),
    "upright 160": Look(160, upright=True),
    "upright 160 m": Look(160, upright=True, mirror=True),
    "upright 240": Look(240, upright=True),
    "upright 240 m": Look(240, upright=True, mirror=True),
    "upright in 256": Look(side=256, upright=True),
    "upright in 256 m": Look(side=256, upright=True, mirror=True),
    "upright in 384": Look(side=384, upright=True),
    "upright in 384 m": Look(side=384, upright=True, mirror=True),
}


def plain(crop: Pixels) -> Pixels:
    return crop


def blurred(crop: Pixels) -> Pixels:
    """As badly focused as the quality gate just lets pass."""
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), 2.5), np.uint8)


def zoomed(zoom: float) -> Callable[[Pixels], Pixels]:
    """Of the crop itself; what lies outside it is as its edge."""
    matrix = cv2.getRotationMatrix2D(((CROP_SIZE - 1) / 2, (CROP_SIZE - 1) / 2), 0, zoom)
    return lambda crop: np.asarray(
        cv2.warpAffine(crop, matrix, (CROP_SIZE, CROP_SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
        np.uint8,
    )


@dataclass(frozen=True)
class View:
    """A way to cut a crop and to run it."""

    looks: tuple[str, ...] = ("200",)
    """Whose landmarks are averaged."""
    move: tuple[float, float] = (0.0, 0.0)
    """Of the face within the crop, in its pixels."""
    zoom: float = 1.0
    paint: Callable[[Pixels], Pixels] = plain


UPRIGHT = ("upright", "upright m")
IN_256 = ("upright in 256", "upright in 256 m")
IN_384 = ("upright in 384", "upright in 384 m")
SIX = ("upright", "upright 160", "upright 240", "upright m", "upright 160 m", "upright 240 m")
VIEWS: Mapping[str, View] = {
    "200": View(),
    "both": View(("200", "200m")),
    "sizes": View(("160", "200", "240")),
    "upright": View(("upright",)),
    "upright both": View(UPRIGHT),
    "upright six": View(SIX),
    "left": View(move=(-2, 0)),
    "right": View(move=(2, 0)),
    "u near": View(UPRIGHT, zoom=1.05),
    "u wide": View(UPRIGHT, zoom=0.95),
    "256 near": View(IN_256, zoom=1.05),
    "256 wide": View(IN_256, zoom=0.95),
    "384 near": View(IN_384, zoom=1.05),
    "384 wide": View(IN_384, zoom=0.95),
    "crop wide": View(UPRIGHT, paint=zoomed(0.95)),
    "crop near": View(UPRIGHT, paint=zoomed(1.05)),
    "u blurred": View(UPRIGHT, paint=blurred),
}

Learn = Callable[[Vectors, NDArray[np.int64], NDArray[np.int64]], Vectors]
"""All embeddings (M, D), the person of each, and the rows that may be learned from -> all embeddings, changed."""


class Study:
    """Landmarks and embeddings of all photos, made when they are asked for and kept in `cache`."""

    def __init__(self, shots: Sequence[Shot], cache: Path) -> None:
        self._cache = cache
        self._shots = shots
        self._photos: list[Photo] = []
        self._detector, self._embedder = lfw.load_pipeline(replace(SFACE, center=None))._load()

    def raw(self, name: str) -> Raw:
        return self._kept(f"raw {name}", lambda: self._run(VIEWS[name]))

    def landmarks(self, name: str) -> Points:
        return self._kept(f"points {name}", lambda: self._look(LOOKS[name]))

    def qualities(self) -> NDArray[np.float32]:
        """(M, 4) detection score, size, sharpness and yaw at the first look."""
        return self._kept("quality", self._measure)

    def _kept(self, name: str, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        stored = self._cache / f"{name}.npy"
        if not stored.exists():
            say(name)
            np.save(stored, make())
        return np.asarray(np.load(stored), np.float32)

    def _all(self) -> list[Photo]:
        if not self._photos:
            self._photos = [decode(shot.path.read_bytes(), Limits(), FIRST_SIDE) for shot in self._shots]
        return self._photos

    def _first(self) -> list[Detection]:
        """The central face as the first look shows it."""
        stored = self._cache / "first.npz"
        if not stored.exists():
            found: list[Detection] = []
            for some in in_parts(self._all()):
                for photo, faces in zip(some, detection.find(self._detector, some, Seek.CENTER), strict=True):
                    found += choose(faces, Pick.CENTER, photo)
            boxes = np.array([(f.box.x, f.box.y, f.box.w, f.box.h) for f in found])
            np.savez(stored, b=boxes, p=np.stack([f.landmarks for f in found]), s=np.array([f.score for f in found]))
        with np.load(stored) as file:
            return [
                Detection(Box(*b), p, s)
                for b, p, s in zip(file["b"].tolist(), file["p"], file["s"].tolist(), strict=True)
            ]

    def _look(self, look: Look) -> Points:
        pairs = list(zip(self._all(), self._first(), strict=True))
        return np.stack([points for some in in_parts(pairs, 4) for points in look_again(self._detector, look, some)])

    def _run(self, view: View) -> Raw:
        points = np.mean([self.landmarks(one) for one in view.looks], axis=0)
        pairs = list(zip(self._all(), points, strict=True))
        bare = Embedder(self._embedder._session, SFACE.dim, mirror=False)
        answers = []
        for some in in_parts(pairs):
            crops = np.stack([cut(photo, where, view) for photo, where in some])
            answers.append(np.stack([bare.embed(crops), bare.embed(np.ascontiguousarray(crops[:, :, ::-1]))], axis=1))
        return np.concatenate(answers)

    def _measure(self) -> NDArray[np.float32]:
        found = []
        for photo, face, points in zip(self._all(), self._first(), self.landmarks("upright"), strict=True):
            crop = align(photo.pixels, points)
            measured = quality.measure(Detection(face.box, points, face.score), crop, self._detector.enrolled)
            found.append((face.score, measured.size, measured.sharpness, measured.yaw))
        return np.array(found, np.float32)


def look_again(detector: Detector, look: Look, faces: Sequence[tuple[Photo, Detection]]) -> list[NDArray[np.float32]]:
    """The landmarks (5, 2) of each face in its photo."""
    side = look.side
    matrices = [to_canvas(look, face) for _, face in faces]
    squares = np.stack(
        [cv2.warpAffine(p.pixels, m, (side, side)) for (p, _), m in zip(faces, matrices, strict=True)]
    ).astype(np.uint8)
    answers = []
    seen = detector.detect(squares[:, :, ::-1] if look.mirror else squares)
    for (_, face), matrix, found in zip(faces, matrices, seen, strict=True):
        if not found:
            answers.append(face.landmarks)
            continue
        best = min(found, key=lambda a: np.hypot(a.box.center[0] - side / 2, a.box.center[1] - side / 2))
        points = best.landmarks.astype(np.float64)
        if look.mirror:
            points = points[detection.MIRRORED] * (-1, 1) + (side - 1, 0)
        back = cv2.invertAffineTransform(matrix)
        answers.append((points @ back[:, :2].T + back[:, 2]).astype(np.float32))
    return answers


def to_canvas(look: Look, face: Detection) -> NDArray[np.float64]:
    """The (2, 3) matrix from the photo's pixels to those of the square."""
    side = look.side
    if look.upright:
        factor = look.face / detection.TEMPLATE_FACE
        target = (TEMPLATE - CROP_SIZE / 2) * factor + side / 2
        return similarity(face.landmarks, target)
    factor = look.face / max(face.box.size, 1.0)
    cx, cy = face.box.center
    return np.array([[factor, 0, side / 2 - factor * cx], [0, factor, side / 2 - factor * cy]])


def cut(photo: Photo, points: NDArray[np.float32], view: View) -> Pixels:
    where = points
    if (view.move, view.zoom) != ((0.0, 0.0), 1.0):
        onto = similarity(points)
        centre = (CROP_SIZE - 1) / 2
        turn = cv2.getRotationMatrix2D((centre, centre), 0, view.zoom)
        turn[:, 2] += np.array(view.move)
        # Landmarks that `align` brings to where `turn` moves the template from.
        whole = np.vstack([turn, (0, 0, 1)]) @ np.vstack([onto, (0, 0, 1)])
        back = cv2.invertAffineTransform(whole[:2])
        where = (TEMPLATE @ back[:, :2].T + back[:, 2]).astype(np.float32)
    return view.paint(align(photo.pixels, where))


def in_parts(items: Sequence[Item], count: int = AT_ONCE) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), count):
        yield items[start : start + count]


class People:
    """Who is on the photos, and the protocol over some of them."""

    def __init__(self, shots: Sequence[Shot]) -> None:
        self.names, self.person = np.unique([shot.person for shot in shots], return_inverse=True)
        self.photos = np.bincount(self.person)
        self.everybody = np.ones(len(self.names), np.bool_)
        self.first = np.unique(self.person, return_index=True)[1]

    def halves(self, number: int) -> Iterator[NDArray[np.bool_]]:
        """Both halves of the people, (P,) each."""
        some = np.random.default_rng(number).permutation(len(self.names)) < len(self.names) // 2
        yield from (some, ~some)

    def any_photos(self, draw: int) -> NDArray[np.int64]:
        """(P,) a random photo of each person."""
        order = np.random.default_rng(1000 + draw).permutation(len(self.person))
        return np.asarray(order[np.unique(self.person[order], return_index=True)[1]])

    def open_set(self, some: NDArray[np.bool_], chosen: NDArray[np.int64]) -> OpenSet:
        """Of `some` of the people (P,), enrolled with or searched by their `chosen` photo (P,)."""
        gallery, non_mated = chosen[(self.photos > 1) & some], chosen[(self.photos == 1) & some]
        theirs = np.flatnonzero((self.photos > 1)[self.person] & some[self.person])
        return OpenSet(gallery, np.setdiff1d(theirs, chosen), non_mated)


def mean_embedding(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(D,) the mean over people of the mean of their photos."""
    weights = 1 / np.bincount(person[rows], minlength=person.max() + 1)[person[rows]]
    return np.asarray((vectors[rows] * weights[:, None]).sum(0) / weights.sum(), np.float32)


def as_they_are(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    return vectors


def centered(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    return normalize(vectors - mean_embedding(vectors, person, rows))


def half_centered(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    return normalize(vectors - 0.5 * mean_embedding(vectors, person, rows))


def total_whitened(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    """What all embeddings vary most in counts less; the covariance shrunk towards its mean."""
    found = centered(vectors, person, rows)
    return _whiten(found, np.cov(found[rows].T), 1.0)


def within_whitened(vectors: Vectors, person: NDArray[np.int64], rows: NDArray[np.int64]) -> Vectors:
    """What one person's embeddings vary most in counts less (within-class covariance normalisation)."""
    found = centered(vectors, person, rows)
    several = rows[np.bincount(person[rows])[person[rows]] > 1]
    people = np.unique(person[several])
    covariance = np.mean([np.cov(found[several[person[several] == one]].T) for one in people], axis=0)
    return _whiten(found, covariance, 3.0)


def _whiten(vectors: Vectors, covariance: NDArray[np.float64], shrink: float) -> Vectors:
    values, axes = np.linalg.eigh(covariance)
    return normalize((vectors @ ((axes * (values + shrink * values.mean()) ** -0.5) @ axes.T)).astype(np.float32))


@dataclass(frozen=True)
class Variant:
    name: str
    views: tuple[str, ...]
    """Whose embeddings are averaged."""
    learn: Learn = centered
    mirror: bool = True
    detections: int = 1
    """At the second look."""

    @property
    def embeddings(self) -> int:
        return len(self.views) * (2 if self.mirror else 1)


VARIANTS = (
    Variant("as it was", ("200",), as_they_are),
    Variant("as it was, without the mirrored crop", ("200",), as_they_are, mirror=False),
    Variant("mean subtracted", ("200",)),
    Variant("half the mean subtracted", ("200",), half_centered),
    Variant("mean subtracted, whitened", ("200",), total_whitened),
    Variant("mean subtracted, whitened within people", ("200",), within_whitened),
    Variant("mean; mirrored look averaged in", ("both",), detections=2),
    Variant("mean; looks at 160, 200 and 240 averaged", ("sizes",), detections=3),
    Variant("mean; upright look", ("upright",)),
    Variant("mean; upright look and its mirror image", ("upright both",), detections=2),
    Variant("mean; upright looks at 160, 200, 240, mirrored too", ("upright six",), detections=6),
    Variant("upright, mirrored; mean not subtracted", ("upright both",), as_they_are, detections=2),
    Variant("mean; upright, mirrored; without the mirrored crop", ("upright both",), mirror=False, detections=2),
    Variant("mean; upright, mirrored; whitened within people", ("upright both",), within_whitened, detections=2),
    Variant("mean; crops of two looks averaged", ("upright", "upright both"), detections=2),
    Variant("mean; crops 2 pixels left and right", ("left", "right")),
    Variant("mean; upright, mirrored; crops 5 % nearer and wider (shipped)", ("u near", "u wide"), detections=2),
    Variant("as shipped, in a square of 256", ("256 near", "256 wide"), detections=2),
    Variant("as shipped, in a square of 384", ("384 near", "384 wide"), detections=2),
    Variant(
        "mean; upright, mirrored; crops nearer, as is and wider", ("u near", "upright both", "u wide"), detections=2
    ),
    Variant("mean; upright, mirrored; the crop itself 5 % nearer and wider", ("crop near", "crop wide"), detections=2),
)


def main() -> None:
    parser = lfw.arguments(__doc__)
    parser.add_argument("--cache", type=Path, help="a folder for landmarks and embeddings")
    parser.add_argument("--center", type=Path, help="where to write the mean embedding")
    given = parser.parse_args()
    shots = lfw.list_shots(given.folder)
    with tempfile.TemporaryDirectory() as temporary:
        study, people = Study(shots, given.cache or Path(temporary)), People(shots)
        if given.center:
            write_center(given.center, embeddings(study, VARIANTS[SHIPPED]), people)
        rows: list[dict[str, Cell]] = []
        before: list[dict[str, NDArray[np.float64]]] = []
        for variant in VARIANTS:
            say(variant.name)
            found = measure(embeddings(study, variant), variant.learn, people)
            before = before or [found]
            rows.append(row_of(variant, found, before[0]))
    lfw.write_results(lfw.RESULTS / "variants.csv", rows)


SHIPPED = next(i for i, variant in enumerate(VARIANTS) if "(shipped)" in variant.name)


def embeddings(study: Study, variant: Variant) -> Vectors:
    sides = slice(None) if variant.mirror else slice(1)
    answers = [study.raw(view)[:, sides] for view in variant.views]
    return normalize(np.sum([normalize(side) for raw in answers for side in raw.transpose(1, 0, 2)], axis=0))


def measure(vectors: Vectors, learn: Learn, people: People) -> dict[str, NDArray[np.float64]]:
    """`whole` (4,): 1 - rank-1 and FNIR at FPIRS; `half` (HALVINGS, 4) the same; `fnmr` (2,)."""
    everything = np.arange(len(vectors))
    whole = errors(learn(vectors, people.person, everything), people, people.everybody, people.first)
    halves, fnmr = [], []
    for number in range(HALVINGS):
        found = []
        for half in people.halves(number):
            changed = learn(vectors, people.person, np.flatnonzero(~half[people.person]))
            found += [errors(changed, people, half, people.any_photos(number * DRAWS + i)) for i in range(DRAWS)]
            if number == 0:
                fnmr.append(non_match(changed, people, np.flatnonzero(half[people.person])))
        halves.append(np.mean(found, axis=0))
    return {"whole": np.array(whole), "half": np.array(halves), "fnmr": np.mean(fnmr, axis=0)}


def errors(vectors: Vectors, people: People, some: NDArray[np.bool_], chosen: NDArray[np.int64]) -> list[float]:
    given = people.open_set(some, chosen)
    data = lfw.Embedded((), (), vectors, people.person, ())
    found = looks.identification(data, given)
    return [1 - float(found["rank_1"]), *(float(found[f"fnir_at_fpir_{fpir:g}"]) for fpir in FPIRS)]


def non_match(vectors: Vectors, people: People, rows: NDArray[np.int64]) -> list[float]:
    """FNMR at FMRS; the pairs of one person count as one."""
    mine, person = vectors[rows], people.person[rows]
    mated, strangers = np.zeros(BINS + 1), np.zeros(BINS + 1, np.int64)
    for start in range(0, len(mine), AT_ONCE):
        scores = mine[start : start + AT_ONCE] @ mine[start:].T
        later = np.arange(scores.shape[1]) > np.arange(len(scores))[:, None]
        same = person[start : start + AT_ONCE, None] == person[None, start:]
        bins = ((np.clip(scores, -1, 1) + 1) * (BINS / 2)).astype(np.int64)
        strangers += np.bincount(bins[~same & later], minlength=BINS + 1)
        photos = people.photos[np.broadcast_to(person[None, start:], same.shape)[same & later]]
        mated += np.bincount(bins[same & later], 2 / (photos * (photos - 1)), minlength=BINS + 1)
    above, below = strangers[::-1].cumsum()[::-1], np.concatenate([[0], mated.cumsum()[:-1]])
    return [float(below[np.argmax(above <= fmr * above[0])] / mated.sum()) for fmr in FMRS]


def row_of(
    variant: Variant, found: dict[str, NDArray[np.float64]], before: dict[str, NDArray[np.float64]]
) -> dict[str, Cell]:
    names = ["rank_1_error", *(f"fnir_at_fpir_{fpir:g}" for fpir in FPIRS)]
    row: dict[str, Cell] = {
        "variant": variant.name,
        "detections": variant.detections,
        "embeddings": variant.embeddings,
    }
    change = found["half"] - before["half"]
    for i, name in enumerate(names):
        row[f"whole_{name}"] = float(found["whole"][i])
    for i, name in enumerate(names):
        row[f"half_{name}"] = float(found["half"][:, i].mean())
    for i, name in enumerate(names):
        row[f"change_{name}"] = float(change[:, i].mean())
        row[f"sd_{name}"] = float(change[:, i].std(ddof=1))
    return row | {f"fnmr_at_fmr_{fmr:g}": float(value) for fmr, value in zip(FMRS, found["fnmr"], strict=True)}


def write_center(path: Path, vectors: Vectors, people: People) -> None:
    mean = mean_embedding(vectors, people.person, np.arange(len(vectors)))
    about = (
        f"Mean embedding of {len(people.names)} people of LFW (each the mean of their photos, {len(vectors)} in all), "
        "SFace, before centering"
    )
    numbers = [", ".join(f"{value:.6f}" for value in some) for some in in_parts(mean.tolist(), 12)]
    text = f'{{\n "about": {json.dumps(about)},\n "center": [\n  ' + ",\n  ".join(numbers) + "\n ]\n}\n"
    path.write_text(text)
    say(f"{path}: SHA-256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
